"""What is measured: networks, sizes, who takes part, and what is wanted of it. Sides are in sides.py."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..topology import Topology, load
from .targets import Target, at_least, at_most

MIB = 1 << 20
STRIPING = ("one_stream", "gloo")


@dataclass(frozen=True, slots=True)
class Scenario:
    """A topology with its parameters, and what happens there.

    `sides` besides ours. `lead_in`: so many all-reduces that are not measured come right before each that is, for who
    wants warm links. `targets` hold for `nbytes`.
    """

    topology: str
    parameters: dict[str, float] = field(default_factory=dict)
    nbytes: int = 64 * MIB
    sides: tuple[str, ...] = STRIPING
    lead_in: int = 0
    targets: tuple[Target, ...] = ()

    def load(self) -> Topology:
        return load(self.topology, **self.parameters)

    def of_size(self, nbytes: int) -> Scenario:
        return self if nbytes == self.nbytes else replace(self, nbytes=nbytes, targets=())


def pair(*targets: Target, loss: float = 0.0, rtt_ms: float = 80.0) -> Scenario:
    """Every pair of sites has a line of its own: 500 Mbit/s each way."""
    return Scenario("mesh4_pair", {"loss": loss, "rtt_ms": rtt_ms}, targets=targets)


def site(*targets: Target, loss: float = 0.0, rtt_ms: float = 80.0) -> Scenario:
    """Every site has one line, 500 Mbit/s up and down, for all its links."""
    return Scenario("mesh4_site", {"loss": loss, "rtt_ms": rtt_ms}, targets=targets)


PAIR = (at_least("fraction", 0.85), at_least("vs_gloo", 6))
SITE = (at_least("fraction", 0.88), at_least("vs_gloo", 2.5))
HARD = (at_least("fraction", 0.8),)
SMALL = (at_least("vs_delays", 1.0),)
UNEVEN = (at_least("fraction", 0.85), at_least("vs_ring", 1.0), at_least("vs_ring_bound", 1.0))
REGIONS = (at_least("vs_ring", 2.0),)
CODECS = (
    at_most("int8_bytes", 0.27),
    at_most("e3m0_bytes", 0.14),
    at_least("int8_speed", 3),
    at_least("e3m0_speed", 5),
)

SCENARIOS = {
    "pair": pair(*PAIR),
    "pair_0.01": pair(*PAIR, loss=0.0001),
    "pair_0.1": pair(*HARD, loss=0.001),
    "pair_150ms": pair(*HARD, rtt_ms=150),
    "pair_150ms_0.1": pair(*HARD, loss=0.001, rtt_ms=150),
    "site": site(*SITE),
    "site_0.01": site(*SITE, loss=0.0001),
    "site_0.1": site(*HARD, loss=0.001),
    "site_150ms": site(*HARD, rtt_ms=150),
    "small": Scenario("mesh4_pair", {"loss": 0.0}, MIB, ("gloo",), lead_in=4, targets=SMALL),
    "uneven": Scenario("uneven", sides=("ring", "gloo"), targets=UNEVEN),
    "two_regions_lan": Scenario("two_regions_lan", sides=("ring", "gloo"), targets=REGIONS),
    "one_bad_link": Scenario("one_bad_link", sides=("ring", "gloo")),
    "four_continents": Scenario("four_continents"),
    "codecs": Scenario("mesh4_pair", {"loss": 0.0, "rate_mbit": 100}, sides=("int8", "e3m0"), targets=CODECS),
}
