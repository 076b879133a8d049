"""vLLM's requests, as far as connectors see them."""

from __future__ import annotations

import enum
from typing import Any


class RequestStatus(enum.IntEnum):
    """Those after PREEMPTED are ends."""

    WAITING = 0
    WAITING_FOR_REMOTE_KVS = 1
    RUNNING = 2
    PREEMPTED = 3
    FINISHED_STOPPED = 4
    FINISHED_LENGTH_CAPPED = 5
    FINISHED_ABORTED = 6

    @staticmethod
    def is_finished(status: RequestStatus) -> bool:
        return status > RequestStatus.PREEMPTED


class Request:
    """A prompt, and what has been made of it."""

    def __init__(self, request_id: str, prompt: list[int], max_tokens: int, params: dict[str, Any] | None) -> None:
        self.request_id, self.max_tokens, self.kv_transfer_params = request_id, max_tokens, params
        self.prompt_token_ids = list(prompt)
        self.num_prompt_tokens = len(prompt)
        self._all_token_ids = list(prompt)
        self.status = RequestStatus.WAITING
        self.num_computed_tokens = 0

    @property
    def num_tokens(self) -> int:
        return len(self._all_token_ids)

    @property
    def output(self) -> list[int]:
        return self._all_token_ids[self.num_prompt_tokens :]
