"""By which codec a group travels: what two wishes come to, what is quicker, what cannot be."""

from __future__ import annotations

from itertools import product
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pccl.errors import ArgumentError
from pccl.kv.choice import RATIO, Offer, Path, Ratios, check_wish, choose, settle, usable
from pccl.kv.layout import Group, Layout
from pccl.kv.speed import speed, speeds
from pccl.kv.ticket import CodecWish

EVERY = ("int8-kc-vt", "bf16-exp", "raw")
FAST = Offer(dict.fromkeys(EVERY, 1e9), dict.fromkeys(EVERY, 2e9))
SLOW_LINK = Path(1e8, 0.03)
LARGE = 1 << 30
WISHES: tuple[CodecWish, ...] = get_args(CodecWish)


def group(**changes: Any) -> Group:
    facts: dict[str, Any] = {
        "name": "g", "layers": ("L",), "block_tokens": 16, "heads": (0, 4, 4), "planes": 2,
        "bytes_per_block_layer": 2 * 16 * 4 * 128,
    }  # fmt: skip
    return Group(**(facts | changes))


STATE = group(kind="state", block_tokens=None, heads=None, planes=1)


@pytest.mark.parametrize(("ours", "theirs"), list(product(WISHES, WISHES)))
def test_a_loss_takes_both_and_one_is_enough_for_raw(ours: CodecWish, theirs: CodecWish) -> None:
    found = settle(ours, theirs)
    assert found == settle(theirs, ours)
    assert (found == "raw") == ("raw" in (ours, theirs))
    assert (found == "int8") == (ours == theirs == "int8")
    assert (found == "bf16") == ("bf16" in (ours, theirs) and "raw" not in (ours, theirs))


def test_a_wish_that_is_none_or_that_the_layout_does_not_allow() -> None:
    plain = Layout(model_id="m", groups=(group(),))
    assert [check_wish(wish, plain) for wish in ("auto", "raw", "bf16")] == ["auto", "raw", "bf16"]
    with pytest.raises(ArgumentError, match="codec_ok lacks 'int8-kc-vt'"):
        check_wish("int8", plain)
    with pytest.raises(ArgumentError, match="not 'zstd'"):
        check_wish("zstd", plain)
    assert check_wish("int8", Layout(model_id="m", groups=(group(),), codec_ok=EVERY)) == "int8"


def test_what_can_travel_by_what() -> None:
    assert usable("int8-kc-vt", group()) and usable("bf16-exp", group())
    assert usable("bf16-exp", STATE) and not usable("int8-kc-vt", STATE)
    assert not usable("bf16-exp", group(dtype="fp8_e4m3"))
    large = group(bytes_per_block_layer=12 << 20)  # three parts: without loss, each for itself
    assert usable("bf16-exp", large) and not usable("int8-kc-vt", large)
    assert not usable("int8-kc-vt", group(block_tokens=1, bytes_per_block_layer=2 * 4 * 128))  # scales alone are more
    assert not usable("bf16-exp", group(heads=None, planes=1, bytes_per_block_layer=1001, block_tokens=1))


def test_a_wish_is_met_as_far_as_both_sides_can() -> None:
    def chosen(wish: CodecWish, of: Group = group(), path: Path = SLOW_LINK, offer: Offer = FAST) -> str:  # noqa: B008
        return choose(wish, of, LARGE, path, offer, RATIO).name

    assert [chosen(wish) for wish in WISHES] == ["bf16-exp", "raw", "bf16-exp", "int8-kc-vt"]
    assert [chosen(wish, STATE) for wish in WISHES] == ["bf16-exp", "raw", "bf16-exp", "bf16-exp"]
    fast = Path(5e9, 0.001)
    assert [chosen(wish, path=fast) for wish in WISHES] == ["raw", "raw", "bf16-exp", "int8-kc-vt"]
    unknown = Path(0.0, 0.03)
    assert [chosen(wish, path=unknown) for wish in WISHES] == ["raw", "raw", "bf16-exp", "int8-kc-vt"]
    one_sided = Offer(FAST.encodes, {"raw": 1.0})
    assert {chosen(wish, offer=one_sided) for wish in WISHES} == {"raw"}


def test_auto_counts_the_round_trip_and_the_slower_side() -> None:
    def chosen(nbytes: int, path: Path = SLOW_LINK, rate: float = 2e9, ratio: float = RATIO) -> str:
        return choose("auto", group(), nbytes, path, Offer({"bf16-exp": rate}, {"bf16-exp": 4e9}), ratio).name

    assert chosen(LARGE) == "bf16-exp"
    assert chosen(8 << 20) == "raw"  # saves 24 ms of 84, costs 30
    assert chosen(32 << 20) == "bf16-exp"
    assert chosen(LARGE, rate=1.04e8) == chosen(LARGE, ratio=1.04) == "raw"
    assert chosen(LARGE, rate=1.2e8) == "bf16-exp"


@given(st.floats(1e6, 1e11), st.floats(1e6, 1e11), st.floats(1.0, 2.0), st.integers(1, 1 << 34), st.floats(0, 0.3))
def test_auto_never_costs_time(link: float, rate: float, ratio: float, nbytes: int, rtt_s: float) -> None:
    offer = Offer({"bf16-exp": rate}, {"bf16-exp": rate})
    if choose("auto", group(), nbytes, Path(link, rtt_s), offer, ratio).name == "bf16-exp":
        assert max(nbytes / rate, nbytes / ratio / link) + rtt_s <= nbytes / link


def test_ratios_follow_what_was_seen_and_are_forgotten() -> None:
    ratios = Ratios()
    assert ratios.of(0, "bf16-exp", 5.0) == RATIO
    for at in range(20):
        ratios.note(0, "bf16-exp", 1000, 1000, float(at))
    assert ratios.of(0, "bf16-exp", 19.0) == pytest.approx(1.0, abs=0.01)
    assert ratios.of(1, "bf16-exp", 19.0) == RATIO
    assert ratios.of(0, "bf16-exp", 1000.0) == RATIO


def test_speeds_are_measured_once_and_only_of_what_is_of_use() -> None:
    assert speed("bf16-exp") is speed("bf16-exp") and min(speed("bf16-exp")) > 1e6
    assert set(speeds(EVERY, [group()])) == {"int8-kc-vt", "bf16-exp"}
    assert set(speeds(("new", *EVERY), [STATE])) == {"bf16-exp"}
    assert speeds(EVERY, [group(dtype="fp8_e4m3")]) == speeds(("raw",), [group()]) == {}
