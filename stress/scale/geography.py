"""geography.py - random places for peers: sites in real cities or anywhere on the globe, a LAN in each, uneven lines.

Pure and seeded: (seed, peers, where) gives one geography. Peers are numbered in the order of joining. What is drawn:

* site: 1, 2, 4 or 8 peers (each as likely; a quarter of all at most), within 30 km of one of CITIES (each as likely)
  or uniformly anywhere on the sphere; the peers of all sites join in random order
* round trip between sites: 1 ms + 1.4 * 2 * d / 200,000 km/s for the great-circle distance d: light in fibre, on
  routes 1.4 times as long; within a site 0.2 ms
* uplink of a peer: log-uniform, 0.2 to 4 Gbit/s for its site, times log-normal (sigma 0.15) for itself; the downlink
  is as fast, in three of ten sites three times as fast; the paths to all other sites share them
* a path between sites, each direction: log-normal, median 800 Mbit/s, sigma 0.7, and no more than uplink and downlink
* a path within a site: 10 Gbit/s, and none of the uplink
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pccl.coordinator.cost import Measurements
from pccl.coordinator.figures import Figures
from pccl.types import MemberInfo

EARTH_KM = 6371.0
FIBRE_KM_PER_S = 200_000.0
DETOUR = 1.4
ACCESS_RTT_S = 1e-3
LAN_RTT_S = 0.2e-3
LAN_BYTES_PER_S = 10e9 / 8
SITE_SIZES = (1, 2, 4, 8)
SITE_KM = 30.0
UP_BITS_PER_S = (0.2e9, 4e9)
UP_SIGMA = 0.15
FAST_DOWN_SHARE, FAST_DOWN = 0.3, 3.0
PATH_BYTES_PER_S, PATH_SIGMA = 800e6 / 8, 0.7

#: Degrees north and east.
CITIES = {
    "Amsterdam": (52.4, 4.9), "Ashburn": (39.0, -77.5), "Atlanta": (33.7, -84.4), "Cape Town": (-33.9, 18.4),
    "Chicago": (41.9, -87.6), "Dallas": (32.8, -96.8), "Denver": (39.7, -105.0), "Dubai": (25.2, 55.3),
    "Dublin": (53.3, -6.3), "Frankfurt": (50.1, 8.7), "Helsinki": (60.2, 24.9), "Hong Kong": (22.3, 114.2),
    "Jakarta": (-6.2, 106.8), "Johannesburg": (-26.2, 28.0), "London": (51.5, -0.1), "Los Angeles": (34.1, -118.2),
    "Madrid": (40.4, -3.7), "Melbourne": (-37.8, 145.0), "Mexico City": (19.4, -99.1), "Miami": (25.8, -80.2),
    "Milan": (45.5, 9.2), "Montreal": (45.5, -73.6), "Mumbai": (19.1, 72.9), "New York": (40.7, -74.0),
    "Osaka": (34.7, 135.5), "Paris": (48.9, 2.4), "San Jose": (37.3, -121.9), "Santiago": (-33.4, -70.7),
    "Sao Paulo": (-23.6, -46.6), "Seattle": (47.6, -122.3), "Seoul": (37.6, 127.0), "Singapore": (1.4, 103.8),
    "Stockholm": (59.3, 18.1), "Sydney": (-33.9, 151.2), "Tel Aviv": (32.1, 34.8), "Tokyo": (35.7, 139.7),
    "Toronto": (43.7, -79.4), "Vienna": (48.2, 16.4), "Warsaw": (52.2, 21.0), "Zurich": (47.4, 8.5),
}  # fmt: skip

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Geography:
    """Peers in the order of joining: matrices [from, to], and of each peer its `site`, and bytes/s `up` and `down`."""

    members: tuple[MemberInfo, ...]
    site: NDArray[np.int64]
    rtt_s: Array
    bytes_per_s: Array
    lan: NDArray[np.bool_]
    up: Array
    down: Array

    def measured(self, with_caps: bool = True) -> Measurements:
        """What a coordinator knows once every path was measured alone; the shared lines only `with_caps`."""
        ids = [member.id for member in self.members]
        slots = {peer: slot for slot, peer in enumerate(ids)}
        itself = np.eye(len(ids), dtype=np.bool_)
        return Measurements(
            rtt_s=Figures(slots, np.where(itself, np.nan, self.rtt_s)),
            bytes_per_s=Figures(slots, np.where(itself, np.nan, self.bytes_per_s)),
            up=dict(zip(ids, self.up.tolist(), strict=True)) if with_caps else {},
            down=dict(zip(ids, self.down.tolist(), strict=True)) if with_caps else {},
        )


def geography(peers: int, seed: int, where: str = "cities") -> Geography:
    """`where`: "cities" or "sphere"."""
    chance = np.random.default_rng([seed, peers])
    site = _sites(chance, peers)
    count = int(site.max()) + 1
    rtt_s = _rtt_s(_places(chance, count, where))[np.ix_(site, site)]
    lan = site[:, None] == site[None, :]
    rtt_s[lan] = LAN_RTT_S
    up, down = _lines(chance, site, count)
    paths = PATH_BYTES_PER_S * np.exp(chance.normal(0.0, PATH_SIGMA, (peers, peers)))
    rate = np.where(lan, LAN_BYTES_PER_S, np.minimum(paths, np.minimum(up[:, None], down[None, :])))
    for matrix in (rtt_s, rate):
        np.fill_diagonal(matrix, 0.0)
    members = tuple(MemberInfo(chance.bytes(16), 0, f"10.{k >> 8}.{k & 255}.1:4000", f"peer{k}") for k in range(peers))
    return Geography(members, site, rtt_s, rate, lan, up, down)


def _sites(chance: np.random.Generator, peers: int) -> NDArray[np.int64]:
    """The site of each peer, in random order."""
    sizes = chance.choice([size for size in SITE_SIZES if size <= max(1, peers // 4)], peers)
    return chance.permutation(np.repeat(np.arange(peers), sizes)[:peers])


def _places(chance: np.random.Generator, count: int, where: str) -> Array:
    """Unit vectors."""
    anywhere = chance.normal(size=(count, 3))
    if where == "sphere":
        return _unit(anywhere)
    north, east = np.radians(np.array(list(CITIES.values()))[chance.integers(len(CITIES), size=count)]).T
    cities = np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)], axis=1)
    return _unit(cities + _unit(anywhere) * chance.uniform(0, SITE_KM / EARTH_KM, (count, 1)))


def _unit(vectors: Array) -> Array:
    unit: Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _rtt_s(places: Array) -> Array:
    distance_km = EARTH_KM * np.arccos(np.clip(places @ places.T, -1.0, 1.0))
    rtt_s: Array = ACCESS_RTT_S + DETOUR * 2 * distance_km / FIBRE_KM_PER_S
    return rtt_s


def _lines(chance: np.random.Generator, site: NDArray[np.int64], count: int) -> tuple[Array, Array]:
    """Bytes/s up and down of each peer."""
    low, high = np.log(UP_BITS_PER_S)
    of_site = np.exp(chance.uniform(low, high, count)) / 8
    factor = np.where(chance.random(count) < FAST_DOWN_SHARE, FAST_DOWN, 1.0)
    up = of_site[site] * np.exp(chance.normal(0.0, UP_SIGMA, len(site)))
    return up, up * factor[site]
