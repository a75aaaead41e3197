"""The log on stderr: lines of text, or one JSON object per line for machines that collect them.

What a request was about stands in fields of its own (`fields`); a clip's contents never do.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

_FIELDS: Final = "mvfoul"


def fields(**values: Any) -> dict[str, dict[str, Any]]:
    """Return the argument `extra` of a logging call whose JSON gets these fields."""
    return {_FIELDS: values}


class JsonFormatter(logging.Formatter):
    """One object per record: time (UTC), level, logger, message, fields, and a traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


class TextFormatter(logging.Formatter):
    """Nothing that a client chose begins a line of its own or moves a terminal's cursor."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Return the line, with what cannot be printed as escapes."""
        record.message = "".join(c if c.isprintable() else repr(c)[1:-1] for c in record.message)
        return super().formatMessage(record)


def configure_logging(level: str, log_format: str) -> None:
    """Log to stderr: our own records from `level` on, those of libraries and Python's warnings from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    text = TextFormatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler.setFormatter(JsonFormatter() if log_format == "json" else text)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("mvfoul").setLevel(level.upper())
    logging.captureWarnings(capture=True)
