"""Logs of a node: to stderr, key=value for people or JSON for programs.

Rules: what is logged are codes, ids and counts; prompts and answers are never passed to a logger.
Colour is for a terminal whose owner did not set NO_COLOR. Lines of libraries come out in the same
form.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping

import structlog
from structlog.dev import ConsoleRenderer
from structlog.processors import JSONRenderer


def configure(
    log_format: str, level: int = logging.INFO, env: Mapping[str, str] | None = None
) -> None:
    """Set up logging for this process."""
    env = os.environ if env is None else env
    exceptions: list[structlog.typing.Processor]
    renderer: structlog.typing.Processor
    if log_format == "json":
        exceptions, renderer = [structlog.processors.format_exc_info], JSONRenderer()
    else:
        # no-color.org: set and not empty, whatever it says
        colors = sys.stderr.isatty() and not env.get("NO_COLOR")
        # Never with local variables: a prompt may be among them.
        plain = structlog.dev.plain_traceback
        exceptions, renderer = (
            [],
            ConsoleRenderer(colors=colors, pad_event_to=0, exception_formatter=plain),
        )
    structlog.configure(
        processors=[
            _without_nothing,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *exceptions,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(message)s", force=True
    )


def _without_nothing(
    logger: object, name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """A field that says nothing is left out."""
    return {key: value for key, value in event.items() if value is not None}
