"""policies.py - who decides in a simulation: fixed rules, the model's threshold, and what pccl.kv itself does.

    local          nothing is offloaded
    remote         everything is
    threshold:T    what has more than T uncached tokens
    model          the same, by the throughput model's t, solved anew as requests come
    greedy         pccl.kv's own: predicted times to the first token above a floor that moves (decide.py, controller.py)

Only the last two see the load. All of them pull a prefix over the link where that is sooner than to compute it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pccl.errors import ArgumentError
from pccl.kv.model.controller import Controller, Pace
from pccl.kv.model.decide import Decision, Load, Paths, Where, decide, predict
from pccl.kv.numbers import at_least_zero
from pccl.kv.simulator.cluster import Topology

__all__ = ["POLICIES", "Policy", "policy_of"]

POLICIES = ("local", "remote", "threshold:T", "model", "greedy")

Choose = Callable[[float, int, int, int, Load], Decision]


@dataclass(frozen=True)
class Policy:
    """`choose(now_s, total_tokens, cached_local, cached_remote, load)`. Of one simulation: it may remember."""

    name: str
    choose: Choose


def policy_of(name: str, topology: Topology, pace: Pace | None = None) -> Policy:
    """The policy of a name as in the list above. ArgumentError if there is none."""
    kind, _, number = name.partition(":")
    if kind == "threshold":
        try:
            tokens = float(number)
        except ValueError:
            raise ArgumentError(f"policy {name!r}: write threshold:8000, tokens") from None
        return Policy(name, _fixed(at_least_zero("threshold", tokens), topology))
    if name == "local":
        return Policy(name, _fixed(float("inf"), topology))
    if name == "remote":
        return Policy(name, _fixed(-1.0, topology))
    if name in ("model", "greedy"):
        controller = Controller(
            topology.paths, topology.n_remote, topology.n_p, topology.n_d, topology.decode_per_s, pace
        )
        return Policy(name, (_model if name == "model" else _greedy)(controller))
    raise ArgumentError(f"policy must be one of {', '.join(POLICIES)}, not {name!r}")


def _fixed(threshold: float, topology: Topology) -> Choose:
    paths = topology.paths

    def choose(now_s: float, total: int, cached_local: int, cached_remote: int, load: Load) -> Decision:
        return _by_threshold(threshold, "the fixed threshold", total, cached_local, cached_remote, load, paths)

    return choose


def _model(controller: Controller) -> Choose:
    def choose(now_s: float, total: int, cached_local: int, cached_remote: int, load: Load) -> Decision:
        controller.tick(now_s, load)
        controller.saw(now_s, total - cached_local)
        threshold = controller.solution.threshold_tokens if controller.solution is not None else float("inf")
        return _by_threshold(threshold, "the model's t", total, cached_local, cached_remote, load, controller.paths)

    return choose


def _greedy(controller: Controller) -> Choose:
    def choose(now_s: float, total: int, cached_local: int, cached_remote: int, load: Load) -> Decision:
        plan = controller.tick(now_s, load)
        controller.saw(now_s, total - cached_local)
        return decide(total, cached_local, cached_remote, load, controller.paths, plan)

    return choose


def _by_threshold(
    threshold: float, reason: str, total: int, cached_local: int, cached_remote: int, load: Load, paths: Paths
) -> Decision:
    found = predict(total, cached_local, cached_remote, load, paths)
    uncached = total - cached_local
    predicted: dict[Where, float] = {"local": found.local_s, "remote": found.remote_s}
    if uncached > threshold:
        return Decision("remote", threshold, predicted, reason, uncached > paths.remote.longest, found.pull_tokens)
    return Decision("local", threshold, predicted, reason, uncached > paths.local.longest)
