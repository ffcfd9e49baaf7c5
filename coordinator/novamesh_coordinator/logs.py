"""Logs of a coordinator: to stderr, key=value for people or JSON for programs, as a node's are.

Rules: what is logged are codes, ids and counts, never a prompt, an answer or a key. Lines of
libraries come out in the same form.
"""

from __future__ import annotations

import logging
import sys

import structlog


def configure_logs(log_format: str) -> None:
    """Set up logging for this process."""
    renderer: tuple[structlog.typing.Processor, ...]
    if log_format == "json":
        renderer = (structlog.processors.format_exc_info, structlog.processors.JSONRenderer())
    else:
        # The default formatter would print local variables, and keys are among them.
        console = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            pad_event_to=0,
            exception_formatter=structlog.dev.plain_traceback,
        )
        renderer = (console,)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(message)s", force=True
    )
