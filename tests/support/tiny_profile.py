"""A profile folder around a tiny random model: what a node serves in tests."""

from __future__ import annotations

from pathlib import Path

from novamesh_engine.quant.profile import ModelProfile, write_profile
from support.tiny_engine import save_tiny


def save_tiny_profile(folder: Path, name: str = "tiny") -> ModelProfile:
    """Save the model, its tokenizer and its manifest; nothing is quantized."""
    save_tiny(folder)
    files = [path.name for path in folder.iterdir()]
    return write_profile(folder, name, "none", files)
