"""reality.py - what the plan in use achieves beside what was expected of it: what is said of it, when to warn, and
whether its algorithm is slower than its figures say.

Pure; a helper of membership.py. Peers tell how long their large all-reduces took. An op's time at a peer contains its
wait for those that called it later, so the peer that waited least counts. Expected is what the planner predicts for ops
of that size by the figures of the moment: where both part, either the figures are wrong or the model is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pccl import messages as m
from pccl.coordinator.cost import REFERENCE_BYTES

#: Times beyond so many times the expected ones, or below the same part of them, are far off.
FAR = 2.0
#: Far off for so long: a warning, once per plan.
WARN_AFTER_S = 60.0
#: An algorithm that takes so many times as long at so many looks in a row is slower than its figures say.
SLOWER = 1.5
SLOWER_LOOKS = 2
#: Said again when the achieved time has changed by so much.
NEWS = 1.5

Predict = Callable[[float], float]


@dataclass(slots=True, frozen=True)
class Remark:
    """An entry for the log."""

    what: str
    text: str
    warning: bool = False


class Reality:
    """Of one plan at a time."""

    def __init__(self) -> None:
        self.begin(0, "")

    def begin(self, epoch: int, reason: str) -> None:
        """A plan comes into use; `reason`: why that one."""
        self._epoch, self._reason = epoch, reason
        self._heard: dict[bytes, tuple[int, int, int]] = {}  # stretches, bytes, microseconds since the last look
        self._expected_s = self._achieved_s = self._said_s = 0.0
        self._timed_bytes = 0
        self._far_since: float | None = None
        self._warned = False
        self._slow_looks = 0
        self.slower: float | None = None  # so many times as long as expected ops take, if it is much; None: not known

    def report(self, peer: bytes, achieved: m.Achieved) -> None:
        """A member tells what it has timed; what ran by an older plan does not count."""
        if achieved.epoch == self._epoch and achieved.stretches and achieved.bytes:
            stretches, nbytes, busy_us = self._heard.get(peer, (0, 0, 0))
            more = (stretches + achieved.stretches, nbytes + achieved.bytes, busy_us + achieved.busy_us)
            self._heard[peer] = more

    def look(self, now: float, predict: Predict) -> list[Remark]:
        """Compares what was heard since the last look with what `predict` gives for so many bytes, in seconds."""
        self._expected_s = predict(float(REFERENCE_BYTES))
        heard, self._heard = self._heard, {}
        if not heard or self._expected_s <= 0:
            return []
        ratio = _ratio(list(heard.values()), predict)
        self._timed_bytes += max(nbytes for _, nbytes, _ in heard.values())
        self._achieved_s = ratio * self._expected_s
        self._judge(ratio)
        return [*self._news(), *self._warning(now, ratio)]

    def status(self) -> m.Reality | None:
        """What `pccl status` shows."""
        if not self._expected_s:
            return None
        return m.Reality(min(self._expected_s, 1e9), min(self._achieved_s, 1e9), self._timed_bytes)

    def _judge(self, ratio: float) -> None:
        self._slow_looks = self._slow_looks + 1 if ratio >= SLOWER else 0
        if not self._slow_looks:
            self.slower = 1.0
        elif self._slow_looks >= SLOWER_LOOKS:
            self.slower = ratio

    def _news(self) -> list[Remark]:
        if self._said_s and 1 / NEWS < self._achieved_s / self._said_s < NEWS:
            return []
        self._said_s = self._achieved_s
        return [Remark("reality", self._in_words())]

    def _warning(self, now: float, ratio: float) -> list[Remark]:
        if 1 / FAR < ratio < FAR:
            self._far_since = None
            return []
        if self._far_since is None:
            self._far_since = now
        lasts_s = now - self._far_since
        if self._warned or lasts_s < WARN_AFTER_S:
            return []
        self._warned = True
        text = f"for {lasts_s:.0f} s {self._in_words()}; the plan: {self._reason}"
        return [Remark("far from the prediction", text, warning=True)]

    def _in_words(self) -> str:
        return f"64 MiB: {self._achieved_s:.3g} s achieved, {self._expected_s:.3g} s expected"


def _ratio(heard: list[tuple[int, int, int]], predict: Predict) -> float:
    """Achieved over expected time, where it is least. One prediction serves all: they ran the same ops."""
    usual = sum(nbytes for _, nbytes, _ in heard) / sum(stretches for stretches, _, _ in heard)
    expected_s = predict(usual)
    return min(busy_us / 1e6 / (expected_s * nbytes / usual) for _, nbytes, busy_us in heard)
