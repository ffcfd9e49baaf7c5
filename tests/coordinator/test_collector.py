"""The garbage collector is calmed while a coordinator runs, and nobody else's afterwards."""

from __future__ import annotations

import gc

import pytest

from novamesh_coordinator.collector import THRESHOLDS, calm_collector


def test_what_is_loaded_is_not_looked_at_again() -> None:
    usual, frozen = gc.get_threshold(), gc.get_freeze_count()
    with calm_collector() as loaded:
        assert not gc.isenabled()
        loaded()
        assert gc.isenabled()
        assert gc.get_threshold() == THRESHOLDS
        assert gc.get_freeze_count() > frozen
    assert (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()) == (True, usual, 0)


def test_it_is_as_it_was_when_loading_fails() -> None:
    usual = gc.get_threshold()
    with pytest.raises(ZeroDivisionError), calm_collector():
        raise ZeroDivisionError
    assert gc.isenabled()
    assert gc.get_threshold() == usual
