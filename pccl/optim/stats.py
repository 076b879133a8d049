"""stats.py - what a replica tells about its rounds: Round, one fragment's, and Stats, the sums."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Round", "Stats"]


@dataclass(frozen=True, slots=True)
class Round:
    """One committed round of one fragment.

    `number`: how many rounds this fragment had before. `peers`: ids of those who took part; `excluded`: of these, whose
    contribution was left out for a NaN or an infinite value. `retries`: how often it was begun again, by the engine
    after a loss or by the optimizer after an error. `bytes_sent`, `bytes_received`: payload of this peer.
    `delta_norm`: of this replica's delta; `mean_norm`: of the mean; `cosine`: between the two (0.0 if either is 0).
    """

    fragment: int
    number: int
    step: int
    epoch: int
    peers: tuple[bytes, ...]
    excluded: tuple[bytes, ...]
    retries: int
    bytes_sent: int
    bytes_received: int
    delta_norm: float
    mean_norm: float
    cosine: float


@dataclass(slots=True)
class Stats:
    """Sums over the rounds of this replica.

    `rounds`: landed; `dropped`: given up (on_failure="local"); `retries`, `bytes_sent`, `bytes_received`: see Round,
    headers included. `wait_s`: seconds for which `step()` and `flush()` had to wait for the network. `digest`: of the
    shared state at the last boundary, in hex, equal on all peers. `repaired_bytes`: what had to be fetched at
    boundaries; above 0 after the first: this replica had drifted, `differences` says where.
    """

    rounds: int = 0
    dropped: int = 0
    retries: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    wait_s: float = 0.0
    digest: str = ""
    repaired_bytes: int = 0
    differences: tuple[str, ...] = ()
    last: Round | None = None
    tokens: int = 0

    def add(self, done: Round) -> None:
        """Counts a round."""
        self.rounds += 1
        self.retries += done.retries
        self.bytes_sent += done.bytes_sent
        self.bytes_received += done.bytes_received
        self.last = done

    @property
    def bytes_per_token(self) -> float:
        """Bytes sent per token that was counted with `add_tokens`; 0.0 if none was."""
        return self.bytes_sent / self.tokens if self.tokens else 0.0
