"""What vLLM's workers say after a step."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class KVConnectorOutput:
    """Of the connector."""

    finished_sending: set[str] | None = None
    finished_recving: set[str] | None = None
    invalid_block_ids: set[int] = field(default_factory=set)
