"""The topology file: sites, what lies between them, and a timed script; read and checked before anything is built.

`load("mesh4_pair", loss=0.001)` reads a file of `topologies/` or any path. Every mistake is a TopologyError that names
the field. `README.md` beside this file describes the format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

READY_MADE = Path(__file__).parent / "topologies"
SITES_MAX = 64
QUEUE_MS_DEFAULT = 100.0
QUEUE_BYTES_MIN = 256 << 10
ROLES = ("peer", "coordinator")

LINK_FIELDS = {"delay_ms", "rtt_ms", "jitter_ms", "rate_mbit", "queue_kb", "loss", "corrupt", "local"}
CAP_FIELDS = {"up_mbit", "down_mbit", "up_queue_kb", "down_queue_kb"}
WHERE_FIELDS = {"pair", "from", "to"}
LIMITS = {
    "delay_ms": (0.0, 60e3),
    "rtt_ms": (0.0, 120e3),
    "jitter_ms": (0.0, 60e3),
    "rate_mbit": (0.0, 1e6),
    "queue_kb": (1.0, 1e9),
    "loss": (0.0, 1.0),
    "corrupt": (0.0, 1.0),
    "up_mbit": (0.0, 1e6),
    "down_mbit": (0.0, 1e6),
    "up_queue_kb": (1.0, 1e9),
    "down_queue_kb": (1.0, 1e9),
    "at": (0.0, 1e6),
}


class TopologyError(ValueError):
    """The file is wrong; the message begins with the place."""


@dataclass(frozen=True, slots=True)
class Link:
    """One directed pair. A rate of 0 is no limit. A local one does not use the lines that its sites share."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    rate_mbit: float = 0.0
    queue_kb: float | None = None
    loss: float = 0.0
    corrupt: float = 0.0
    local: bool = False

    @property
    def queue_bytes(self) -> int:
        return queue_bytes(self.queue_kb, self.rate_mbit)


@dataclass(frozen=True, slots=True)
class Site:
    """One place: a network namespace with one address. Caps are shared by all its links; 0 is no limit."""

    name: str
    number: int
    region: str = ""
    role: str = "peer"
    up_mbit: float = 0.0
    down_mbit: float = 0.0
    up_queue_kb: float | None = None
    down_queue_kb: float | None = None

    @property
    def address(self) -> str:
        return f"10.{self.number}.0.1"

    @property
    def address6(self) -> str:
        return f"fd70:6363:6c00:{self.number:x}::1"

    @property
    def up_queue_bytes(self) -> int:
        return queue_bytes(self.up_queue_kb, self.up_mbit)

    @property
    def down_queue_bytes(self) -> int:
        return queue_bytes(self.down_queue_kb, self.down_mbit)


@dataclass(frozen=True, slots=True)
class Action:
    """One line of the script: `op` is set, caps, cut or heal; `pairs` or `site` say of what."""

    at: float
    op: str
    pairs: tuple[tuple[str, str], ...] = ()
    site: str = ""
    settings: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        where = self.site or ", ".join(f"{a} -> {b}" for a, b in self.pairs)
        what = " ".join(f"{name}={value:g}" for name, value in self.settings.items())
        return f"{self.op} {where} {what}".rstrip()


@dataclass(frozen=True, slots=True)
class Topology:
    """Everything the emulator needs. `links` has every ordered pair of two sites."""

    name: str
    sites: Mapping[str, Site]
    links: Mapping[tuple[str, str], Link]
    script: tuple[Action, ...] = ()
    seed: int = 1

    @property
    def peers(self) -> list[Site]:
        return [site for site in self.sites.values() if site.role == "peer"]

    @property
    def coordinator(self) -> Site:
        """The site of that role, else the first."""
        return next((s for s in self.sites.values() if s.role == "coordinator"), next(iter(self.sites.values())))

    def expected_mbit(self, a: str, b: str) -> float:
        """Wire rate of a lone flow; 0 is no limit."""
        link = self.links[a, b]
        shared = () if link.local else (self.sites[a].up_mbit, self.sites[b].down_mbit)
        return min((limit for limit in (link.rate_mbit, *shared) if limit > 0), default=0.0)


def queue_bytes(queue_kb: float | None, rate_mbit: float) -> int:
    """What may wait before a line: as told, else what the line sends in 100 ms."""
    if queue_kb is not None:
        return int(queue_kb * 1000)
    return max(QUEUE_BYTES_MIN, int(rate_mbit * 1e6 / 8 * QUEUE_MS_DEFAULT / 1e3))


# -- fields ----------------------------------------------------------------------------------------------------------


def mapping(value: Any, place: str, known: set[str]) -> dict[str, Any]:
    """The value as a mapping with no keys but the known ones."""
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise TopologyError(f"{place}: a mapping is needed, not {value!r}")
    for key in value:
        if key not in known:
            raise TopologyError(f"{place}.{key}: unknown; known are {', '.join(sorted(known))}")
    return value


def sequence(value: Any, place: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise TopologyError(f"{place}: a list is needed, not {value!r}")
    return value


def number(value: Any, place: str) -> float:
    low, high = LIMITS[place.rsplit(".", 1)[-1]]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TopologyError(f"{place}: a number is needed, not {value!r}")
    if not low <= value <= high:
        raise TopologyError(f"{place}: {value} is outside {low:g} .. {high:g}")
    return float(value)


def flag(value: Any, place: str) -> bool:
    if not isinstance(value, bool):
        raise TopologyError(f"{place}: true or false is needed, not {value!r}")
    return value


def link_settings(fields: Mapping[str, Any], place: str) -> dict[str, float]:
    """The link fields among `fields`, with `rtt_ms` turned into a one-way delay."""
    given = {name: value for name, value in fields.items() if name in LINK_FIELDS}
    readers = {"local": flag}
    settings = {name: readers.get(name, number)(value, f"{place}.{name}") for name, value in given.items()}
    if "rtt_ms" in settings:
        if "delay_ms" in settings:
            raise TopologyError(f"{place}: either rtt_ms or delay_ms (one way), not both")
        settings["delay_ms"] = settings.pop("rtt_ms") / 2
    return settings


def substitute(value: Any, parameters: Mapping[str, Any], place: str) -> Any:
    """Replaces strings that are a whole `${name}` by the parameter."""
    if isinstance(value, dict):
        return {key: substitute(item, parameters, f"{place}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list):
        return [substitute(item, parameters, f"{place}[{index}]") for index, item in enumerate(value)]
    match = re.fullmatch(r"\$\{(\w+)\}", value) if isinstance(value, str) else None
    if not match:
        return value
    if match[1] not in parameters:
        raise TopologyError(f"{place}: no parameter {match[1]!r}; there are {', '.join(parameters) or 'none'}")
    return parameters[match[1]]


# -- the parts of the file -------------------------------------------------------------------------------------------


def read_sites(value: Any) -> dict[str, Site]:
    sites: dict[str, Site] = {}
    if not isinstance(value, dict) or not 2 <= len(value) <= SITES_MAX:
        raise TopologyError(f"sites: a mapping of 2 to {SITES_MAX} names is needed")
    for index, (name, fields) in enumerate(value.items(), 1):
        place = f"sites.{name}"
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_]{1,32}", name):
            raise TopologyError(f"{place}: a name of at most 32 letters, digits and underscores is needed")
        fields = mapping(fields, place, CAP_FIELDS | {"region", "role"})
        role, region = fields.get("role", "peer"), fields.get("region", "")
        if role not in ROLES:
            raise TopologyError(f"{place}.role: one of {', '.join(ROLES)}, not {role!r}")
        if not isinstance(region, str):
            raise TopologyError(f"{place}.region: a name is needed, not {region!r}")
        caps = {key: number(item, f"{place}.{key}") for key, item in fields.items() if key in CAP_FIELDS}
        sites[name] = Site(name, index, region, role, **caps)
    if sum(site.role == "coordinator" for site in sites.values()) > 1:
        raise TopologyError("sites: at most one has the role coordinator")
    if shared := sites.keys() & {site.region for site in sites.values()}:
        raise TopologyError(f"sites.{min(shared)}: both a site and a region have this name")
    return sites


def members(name: Any, sites: Mapping[str, Site], place: str) -> list[str]:
    """The sites a name stands for: a site, the sites of a region, or `*`."""
    found = [site.name for site in sites.values() if name in (site.name, site.region or None, "*")]
    if name == "*":
        return list(sites)
    if not found:
        raise TopologyError(f"{place}: no site or region {name!r}")
    return found


def pairs_of(fields: Mapping[str, Any], sites: Mapping[str, Site], place: str) -> tuple[tuple[str, str], ...]:
    """The directed pairs that `pair: [a, b]` (both directions) or `from`, `to` name."""
    if "pair" in fields:
        ends = fields["pair"]
        if "from" in fields or "to" in fields:
            raise TopologyError(f"{place}: either pair or from and to")
        if not isinstance(ends, list) or len(ends) != 2:
            raise TopologyError(f"{place}.pair: a list of two names is needed, not {ends!r}")
        left, right = (members(end, sites, f"{place}.pair") for end in ends)
        both = [(a, b) for a in left for b in right] + [(b, a) for a in left for b in right]
    elif "from" in fields and "to" in fields:
        left, right = (members(fields[end], sites, f"{place}.{end}") for end in ("from", "to"))
        both = [(a, b) for a in left for b in right]
    else:
        raise TopologyError(f"{place}: pair: [a, b], or from and to, is needed")
    pairs = tuple(dict.fromkeys((a, b) for a, b in both if a != b))
    if not pairs:
        raise TopologyError(f"{place}: no link of a site to itself")
    return pairs


def read_links(defaults: Any, entries: Any, sites: Mapping[str, Site]) -> dict[tuple[str, str], Link]:
    """Later entries win over earlier ones, all win over the defaults."""
    base = replace(Link(), **link_settings(mapping(defaults, "defaults", LINK_FIELDS), "defaults"))
    links = {(a, b): base for a in sites for b in sites if a != b}
    for index, entry in enumerate(sequence(entries, "links")):
        place = f"links[{index}]"
        entry = mapping(entry, place, LINK_FIELDS | WHERE_FIELDS)
        settings = link_settings(entry, place)
        for pair in pairs_of(entry, sites, place):
            links[pair] = replace(links[pair], **settings)
    return links


def read_action(entry: Any, sites: Mapping[str, Site], place: str) -> Action:
    known = LINK_FIELDS | CAP_FIELDS | WHERE_FIELDS | {"at", "site", "cut", "heal"}
    entry = mapping(entry, place, known)
    if "at" not in entry:
        raise TopologyError(f"{place}.at: missing; seconds since the start are needed")
    at = number(entry["at"], f"{place}.at")
    flags = [flag for flag in ("cut", "heal") if entry.get(flag)]
    settings = link_settings(entry, place)
    caps = {key: number(item, f"{place}.{key}") for key, item in entry.items() if key in CAP_FIELDS}
    if len(flags) + bool(settings) + bool(caps) != 1:
        raise TopologyError(f"{place}: one of cut: true, heal: true, link settings or caps of a site is needed")
    if caps:
        if entry.get("site") not in sites:
            raise TopologyError(f"{place}.site: a site is needed, not {entry.get('site')!r}")
        return Action(at, "caps", site=entry["site"], settings=caps)
    if "site" in entry:
        where = {"pair": [entry["site"], "*"]}
    else:
        where = {key: entry[key] for key in WHERE_FIELDS if key in entry}
    return Action(at, flags[0] if flags else "set", pairs_of(where, sites, place), settings=settings)


def read_script(value: Any, sites: Mapping[str, Site]) -> tuple[Action, ...]:
    entries = enumerate(sequence(value, "script"))
    actions = [read_action(entry, sites, f"script[{index}]") for index, entry in entries]
    return tuple(sorted(actions, key=lambda action: action.at))


# -- the file --------------------------------------------------------------------------------------------------------


def ready_made() -> list[str]:
    """Names of the topologies that come with the package."""
    return [path.stem for path in sorted(READY_MADE.glob("*.yaml"))]


def parse(document: Any, **parameters: Any) -> Topology:
    """The topology that the loaded document describes; `parameters` override its own."""
    known = {"name", "seed", "parameters", "sites", "defaults", "links", "script"}
    document = mapping(document, "file", known)
    own = document.get("parameters") or {}
    if not isinstance(own, dict):
        raise TopologyError("parameters: a mapping of names and values is needed")
    for name in parameters:
        if name not in own:
            raise TopologyError(f"parameters.{name}: the file has none of this name; it has {', '.join(own) or 'none'}")
    parts = substitute({key: item for key, item in document.items() if key != "parameters"}, own | parameters, "")
    seed = parts.get("seed", 1)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise TopologyError(f"seed: a whole number from 0 is needed, not {seed!r}")
    sites = read_sites(parts.get("sites"))
    links = read_links(parts.get("defaults"), parts.get("links"), sites)
    return Topology(str(parts.get("name", "")), sites, links, read_script(parts.get("script"), sites), seed)


def load(source: str | Path, **parameters: Any) -> Topology:
    """Reads a file, or a ready-made topology by its name."""
    try:
        import yaml  # here: the rest of the package does without
    except ImportError:
        raise TopologyError("PyYAML is needed to read a topology: pip install pyyaml") from None
    path = Path(source)
    if not path.exists() and (READY_MADE / f"{source}.yaml").exists():
        path = READY_MADE / f"{source}.yaml"
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TopologyError(f"{source}: no such file; ready-made are {', '.join(ready_made())}") from None
    except yaml.YAMLError as error:
        raise TopologyError(f"{path}: not YAML: {error}") from None
    try:
        return parse(document, **parameters)
    except TopologyError as error:
        raise TopologyError(f"{path}: {error}") from None
