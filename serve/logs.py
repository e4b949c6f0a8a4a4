"""Logs: JSON, a line a record, for whoever collects them; bare sentences for a person."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

_KNOWN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: time, level, message, and what was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        values = {"time": time, "level": record.levelname.lower(), "message": record.getMessage()}
        values |= {name: value for name, value in vars(record).items() if name not in _KNOWN}
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=True, default=str)


@contextmanager
def logging_to_stderr(as_json: bool) -> Iterator[None]:
    """Within the block, send what edgecifar logs, and uvicorn's errors, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else logging.Formatter("%(message)s"))
    # What clients send wrong is answered; it must not fill the log.
    wanted = {"edgecifar": logging.INFO, "uvicorn": logging.ERROR}
    wanted |= {"python_multipart": logging.CRITICAL, "PIL": logging.CRITICAL}
    levels = {logging.getLogger(name): level for name, level in wanted.items()}
    before = [(logger, logger.handlers, logger.level, logger.propagate) for logger in levels]
    for logger, level in levels.items():
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, handlers, level, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
