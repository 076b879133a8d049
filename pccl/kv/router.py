"""router.py - which instance of a cluster takes a request: prefix affinity, unless the time to the first token breaks.

DualMap (arXiv 2602.06502): the first blocks of a prompt, by two independent hashes, give two candidates. All requests
with that beginning meet at these two, which so have its KV cache; and a beginning that is asked for much has two places
to go. Of the candidates the one with the longer hit is taken, unless its predicted time to the first token breaks the
SLO: then the one that is sooner. A prompt without a whole block has no affinity: of two nodes by its id the one with
fewer queued tokens is taken. Pure: what is known of the nodes is an argument, and each answer says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pccl.errors import ArgumentError
from pccl.kv.model.profile import Curve
from pccl.kv.numbers import ahead, at_least_zero, count, positive
from pccl.kv.ring import TwoRings

__all__ = ["Move", "Node", "Queued", "Route", "Router"]


@dataclass(frozen=True, slots=True)
class Node:
    """An instance as it is now: tokens that wait to be prefilled before a new request; whether it takes any."""

    queued_tokens: int
    up: bool = True

    def __post_init__(self) -> None:
        count("queued_tokens", self.queued_tokens)


@dataclass(frozen=True, slots=True)
class Route:
    """`node` takes the request. `predicted`: seconds to the first token at each candidate."""

    node: str
    candidates: tuple[str, ...]
    predicted: dict[str, float]
    reason: str


@dataclass(frozen=True, slots=True)
class Queued:
    """A request that waits at `node` and has not begun. `hits`: tokens of its prompt that nodes have cached."""

    request_id: str
    node: str
    key: bytes
    total_tokens: int
    hits: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Move:
    """Take the request from one node's queue to the other's: `gain_s` sooner."""

    request_id: str
    source: str
    target: str
    gain_s: float


class Router:
    """`prefill_s`: T(l) of an instance. `key_blocks`: how many of the first blocks make the key: as many as the system
    prompts of one application have in common. `hot`: a queue this many times the mean is a hotspot.
    """

    def __init__(
        self, nodes: Sequence[str], prefill_s: Curve, *, slo_s: float = 5.0, key_blocks: int = 2, hot: float = 1.5
    ) -> None:
        self.rings = TwoRings(nodes)
        self.prefill_s = prefill_s
        self.slo_s = positive("slo_s", slo_s)
        self.key_blocks = count("key_blocks", key_blocks, 1)
        self.hot = positive("hot", hot)

    def key(self, hashes: Sequence[bytes]) -> bytes:
        """What candidates are found by: prefix hashes tell all blocks before them, so one is enough. Empty for none."""
        return hashes[min(self.key_blocks, len(hashes)) - 1] if hashes else b""

    def route(
        self,
        request_id: str,
        hashes: Sequence[bytes],
        total_tokens: int,
        hits: Mapping[str, int],
        nodes: Mapping[str, Node],
        *,
        now_s: float = 0.0,
        deadline_s: float | None = None,
    ) -> Route:
        """`hashes`: of the whole blocks of the prompt. `hits`: tokens of it that nodes have cached; none where missing.
        `nodes`: all that are known. `deadline_s`: of the first token, instead of the SLO. ArgumentError names what is
        wrong; there must be a node that is up.
        """
        count("total_tokens", total_tokens, 1)
        allowed_s = self.slo_s if deadline_s is None else ahead("deadline_s", deadline_s, now_s) - now_s
        key = self.key(hashes)
        pair = self._up(self.rings.candidates(key or request_id.encode()), nodes)
        fallback = not key or not pair
        if not pair:
            pair = self._others(request_id, nodes)
        predicted = {name: self.predict(total_tokens, hits.get(name, 0), nodes[name]) for name in pair}
        if fallback:
            node = min(pair, key=lambda name: nodes[name].queued_tokens)
            reason = (
                "no whole block: fewer queued tokens" if not key else "both candidates are down: fewer queued tokens"
            )
            return Route(node, pair, predicted, reason)
        return Route(*_affinity(pair, hits, predicted, allowed_s))

    def predict(self, total_tokens: int, hit_tokens: int, node: Node) -> float:
        """Seconds to the first token: what is queued, then what is not cached."""
        at_least_zero("hits", hit_tokens)
        return self.prefill_s.at(node.queued_tokens) * (node.queued_tokens > 0) + self.prefill_s.at(
            max(0, total_tokens - hit_tokens)
        )

    def rebalance(self, queued: Sequence[Queued], nodes: Mapping[str, Node]) -> list[Move]:
        """Which waiting requests should go to their other candidate: from hotspots (queues of more than `hot` times
        the mean), the last of a queue first, as long as each comes sooner by that and its queue is one.
        """
        tokens = {name: node.queued_tokens for name, node in nodes.items() if node.up}
        moves: list[Move] = []
        if not tokens:
            return moves
        limit = self.hot * sum(tokens.values()) / len(tokens)
        for request in reversed(queued):
            target = self._other(request, tokens)
            if target is None or tokens[request.node] <= limit:
                continue
            work = {name: request.total_tokens - request.hits.get(name, 0) for name in (request.node, target)}
            here = self.predict(work[request.node], 0, Node(max(0, tokens[request.node] - work[request.node])))
            gain_s = here - self.predict(work[target], 0, Node(tokens[target]))
            if gain_s > 0:
                tokens[request.node] = max(0, tokens[request.node] - work[request.node])
                tokens[target] += work[target]
                moves.append(Move(request.request_id, request.node, target, gain_s))
        return moves

    def _other(self, request: Queued, tokens: Mapping[str, int]) -> str | None:
        others = [
            name for name in self.rings.candidates(request.key or request.request_id.encode()) if name != request.node
        ]
        return others[0] if others and others[0] in tokens and request.node in tokens else None

    def _up(self, names: tuple[str, ...], nodes: Mapping[str, Node]) -> tuple[str, ...]:
        return tuple(name for name in names if name in nodes and nodes[name].up)

    def _others(self, request_id: str, nodes: Mapping[str, Node]) -> tuple[str, ...]:
        """Two nodes that are up, by the id of the request."""
        up = [name for name, node in nodes.items() if node.up]
        if not up:
            raise ArgumentError("nodes has none that is up")
        return TwoRings(up).candidates(request_id.encode())


def _affinity(
    pair: tuple[str, ...], hits: Mapping[str, int], predicted: dict[str, float], allowed_s: float
) -> tuple[str, tuple[str, ...], dict[str, float], str]:
    """The rule."""
    warm = max(pair, key=lambda name: (hits.get(name, 0), -predicted[name]))
    if len(pair) == 1:
        return warm, pair, predicted, "the only candidate that is up"
    soon = min(pair, key=lambda name: predicted[name])
    if len({hits.get(name, 0) for name in pair}) == 1:
        return soon, pair, predicted, "equal hits: sooner"
    if predicted[warm] <= allowed_s or soon == warm:
        return warm, pair, predicted, "the longer hit"
    return soon, pair, predicted, "the longer hit would break the SLO: sooner"
