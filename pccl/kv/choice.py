"""choice.py - by which codec a group travels: what both sides agree to, and what is quicker on this link. Pure.

A wish is of a side: "auto" (raw or without loss, whichever is quicker), "raw", "bf16" (without loss wherever that can
be, whatever the link), "int8" (with loss). It takes two for a loss, and one against any codec.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from pccl.errors import ArgumentError
from pccl.kv.codecs import CODECS, Codec, pays
from pccl.kv.layout import Group, Layout
from pccl.kv.parcel import PARCEL_BYTES
from pccl.kv.ticket import CodecWish
from pccl.kv.unit import split_of

__all__ = ["RATIO", "Offer", "Path", "Ratios", "check_wish", "choose", "settle", "usable"]

_LOSSLESS, _LOSSY = "bf16-exp", "int8-kc-vt"
#: What exponents are worth on values with a spread like a normal distribution's, until others have been seen.
RATIO = 1.4
#: So long it is believed what was seen.
_BELIEVE_S = 60.0
_WEIGHT = 0.25


@dataclass(frozen=True, slots=True)
class Path:
    """What is known of the link to the receiver. 0: nothing."""

    bytes_per_s: float
    rtt_s: float


@dataclass(frozen=True, slots=True)
class Offer:
    """What the two sides can do: codecs of both, and the plain bytes that either takes a second by one thread."""

    encodes: Mapping[str, float]
    decodes: Mapping[str, float]

    def rate(self, name: str) -> float:
        """Of the slower side; 0: one of them does not know it."""
        return min(self.encodes.get(name, 0.0), self.decodes.get(name, 0.0))


class Ratios:
    """How much smaller the values of each group have become lately. A group that does not get smaller is tried again
    after a minute. Any thread.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[int, str], tuple[float, float]] = {}

    def note(self, group: int, codec: str, plain: int, encoded: int, now: float) -> None:
        """So many bytes have become so many."""
        known = self.of(group, codec, now)
        self._seen[group, codec] = known + _WEIGHT * (plain / encoded - known), now

    def of(self, group: int, codec: str, now: float) -> float:
        """To be expected."""
        ratio, when = self._seen.get((group, codec), (RATIO, now))
        return ratio if now <= when + _BELIEVE_S else RATIO


def check_wish(wish: str, layout: Layout) -> CodecWish:
    """ArgumentError if it is none, or the layout's `codec_ok` lacks what it wants."""
    if wish not in get_args(CodecWish):
        raise ArgumentError(f"codec must be one of {', '.join(get_args(CodecWish))}, not {wish!r}")
    wanted = {"bf16": _LOSSLESS, "int8": _LOSSY}.get(wish)
    if wanted is not None and wanted not in layout.codec_ok:
        raise ArgumentError(f"codec is {wish!r}, but the layout's codec_ok lacks {wanted!r}: {layout.codec_ok}")
    return wish  # type: ignore[return-value]


def settle(ours: CodecWish, theirs: CodecWish) -> CodecWish:
    """What both sides' wishes come to."""
    both = {ours, theirs}
    if "raw" in both:
        return "raw"
    if both == {"int8"}:
        return "int8"
    return "bf16" if "bf16" in both else "auto"


def usable(name: str, group: Group) -> bool:
    """Whether slabs of a group can travel in parcels by this codec: one that loses something needs them whole."""
    codec, split = CODECS[name], split_of(group.bytes_per_block_layer)
    part = group.bytes_per_block_layer // split
    return part <= PARCEL_BYTES and codec.takes(group) and (part % 2 == 0 if codec.lossless else split == 1)


def choose(wish: CodecWish, group: Group, nbytes: int, path: Path, offer: Offer, ratio: float) -> Codec:
    """For so many bytes of a group. `ratio`: what "bf16" is expected to save."""
    can = {name for name in (_LOSSLESS, _LOSSY) if offer.rate(name) > 0 and usable(name, group)}
    if wish == "int8" and _LOSSY in can:
        return CODECS[_LOSSY]
    if _LOSSLESS in can and (wish == "bf16" or (wish != "raw" and _is_quicker(nbytes, path, offer, ratio))):
        return CODECS[_LOSSLESS]
    return CODECS["raw"]


def _is_quicker(nbytes: int, path: Path, offer: Offer, ratio: float) -> bool:
    """Pipelined, by the slower of link and codec; a parcel is asked for when it is announced, raw bytes before: that
    costs a round trip.
    """
    rate = offer.rate(_LOSSLESS)
    if path.bytes_per_s <= 0 or not pays(path.bytes_per_s, rate, ratio):
        return False
    coded_s = nbytes / min(rate, ratio * path.bytes_per_s) + path.rtt_s + min(nbytes, PARCEL_BYTES) / rate
    return coded_s < nbytes / path.bytes_per_s
