"""logs.py - what pccl says in the log, one JSON object a line.

    handler = logging.StreamHandler()
    handler.setFormatter(pccl.logs.json_formatter())
    logging.getLogger("pccl").addHandler(handler)

pccl logs under "pccl" and its children. Records that concern one peer carry `run`, `peer` and `epoch`, those about one
op also `op`, as attributes (`extra=` of logging), which filters and formatters of others see as well.
"""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone

from pccl.types import short_id

__all__ = ["FIELDS", "JsonFormatter", "about", "json_formatter"]

#: Attributes that records may carry.
FIELDS = ("run", "peer", "epoch", "op")


class JsonFormatter(logging.Formatter):
    """time (UTC, ISO 8601), level, logger, run, peer, epoch, op, message, and the traceback as error. What a record
    does not carry is left out.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        said: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        said |= {field: getattr(record, field) for field in FIELDS if getattr(record, field, None) is not None}
        said["message"] = record.getMessage()
        if record.exc_info:
            said["error"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False, default=str)


def about(run: str, peer: bytes, epoch: int, op: str | None = None) -> dict[str, object]:
    """The `extra` of a record. Epoch 0: there is none yet."""
    return {"run": run, "peer": short_id(peer), "epoch": epoch or None, "op": op}


def json_formatter() -> logging.Formatter:
    """See JsonFormatter."""
    return JsonFormatter()
