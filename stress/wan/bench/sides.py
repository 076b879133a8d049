"""Who takes turns on a network: ours as it is, ours with something fixed or encoded, and gloo."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Run:
    """A run of ours, with a coordinator of its own: what is fixed about its plans (`pccl coordinator --help`)."""

    streams: int | None = None
    algorithm: str = "auto"


@dataclass(frozen=True, slots=True)
class Side:
    """`run`: the name of the run whose communicator reduces; "" for gloo. `label` is for people.

    `share`: how often it is measured, of as often as ours.
    """

    label: str
    run: str = ""
    codec: str = ""
    share: float = 1.0


RUNS = {"ours": Run(), "one_stream": Run(streams=1), "ring": Run(algorithm="ring")}

SIDES = {
    "ours": Side("pccl", "ours"),
    "one_stream": Side("pccl, one stream", "one_stream", share=0.5),
    "ring": Side("pccl, best ring", "ring", share=0.5),
    "int8": Side("pccl, int8", "ours", "int8"),
    "e3m0": Side("pccl, e3m0", "ours", "e3m0"),
    "gloo": Side("gloo"),
}


def runs_of(sides: tuple[str, ...]) -> list[str]:
    """The runs that these sides need, in a fixed order."""
    return [run for run in RUNS if any(SIDES[side].run == run for side in sides)]
