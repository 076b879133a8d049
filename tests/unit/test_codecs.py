"""The Python face of the codecs: the kernels' own tests are in tests/c."""

from __future__ import annotations

import numpy as np
import pytest

from pccl import _codecs
from pccl.arguments import _CODECS
from pccl.errors import ArgumentError


@pytest.mark.parametrize("name", [name for name in _CODECS if name != "none"])
def test_values_survive_a_journey_within_the_codec_and_a_second_one_unchanged(name: str) -> None:
    values = np.random.RandomState(0).standard_normal(1000).astype("f4")
    once = _codecs.quantized(_CODECS[name], values.view(np.uint8))
    error = np.linalg.norm(once.view("f4") - values) / np.linalg.norm(values)
    assert 0 < error < 0.25
    assert np.array_equal(_codecs.quantized(_CODECS[name], once), once)
    assert 0 < _codecs.encoded_bytes(_CODECS[name], 1000) < 4000


def test_an_unknown_codec_is_an_error() -> None:
    with pytest.raises(ArgumentError, match="codec 99"):
        _codecs.quantized(99, np.zeros(16, np.uint8))
