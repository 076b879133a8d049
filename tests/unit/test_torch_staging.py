"""pccl.torch: which tensors are worked on where they lie, and what the reductions are called."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from pccl.errors import ArgumentError
from pccl.torch.exchange import fold
from pccl.torch.reduction import name_of
from pccl.torch.rendezvous import Deadline, store_at
from pccl.torch.staging import Landing, moved, reduced


@pytest.mark.parametrize("keep", [False, True])
def test_a_contiguous_tensor_is_not_copied(keep: bool) -> None:
    tensor = torch.arange(6.0).view(2, 3).requires_grad_()
    landing = Landing(tensor, "x", keep)
    assert landing.is_home
    assert (
        landing.view.data_ptr() == tensor.data_ptr() == moved(tensor, "x").data_ptr() == reduced(tensor, "x").data_ptr()
    )


def test_any_other_is_copied_there_and_back() -> None:
    wide = torch.arange(6.0)
    landing = Landing(wide[::2], "x", keep=True)
    assert not landing.is_home
    assert landing.view.tolist() == [0, 2, 4]
    landing.view.add_(10)
    assert wide.tolist() == [0, 1, 2, 3, 4, 5]
    landing.land()
    assert wide.tolist() == [10, 1, 12, 3, 14, 5]


def test_lazy_negations_are_read_as_they_are_meant() -> None:
    imaginary = torch.tensor([1 + 2j, 3 - 4j]).conj().imag
    assert imaginary.is_neg()
    assert moved(imaginary, "x").tolist() == [-2, 4]


def test_what_only_moves_may_have_any_dtype() -> None:
    assert moved(torch.zeros(3, dtype=torch.complex64), "x").dtype is torch.uint8
    assert moved(torch.zeros(3, dtype=torch.complex64), "x").numel() == 24
    with pytest.raises(TypeError, match=r"x: torch\.complex64 cannot be reduced"):
        reduced(torch.zeros(3, dtype=torch.complex64), "x")


def test_sums_of_bool_are_ors() -> None:
    op = dist.ReduceOp
    assert [name_of(o, torch.bool, "x") for o in (op.SUM, op.PRODUCT, op.BXOR)] == ["max", "min", "bxor"]
    assert [name_of(o, torch.bfloat16, "x") for o in (op.SUM, op.AVG, op.PRODUCT)] == ["sum", "avg", "prod"]


def test_a_fold_rounds_halves_once() -> None:
    rows = torch.tensor([[256.0], [1.0], [1.0]], dtype=torch.bfloat16)  # 256 + 1 is 256 in bfloat16
    out = torch.empty(1, dtype=torch.bfloat16)
    fold(rows, out, "sum")
    assert out.item() == 258
    fold(rows, out, "avg")
    assert out.item() == 86


@pytest.mark.parametrize("address", ["", "host", "host/prefix", ":29500/prefix", "host:port/prefix"])
def test_an_address_that_names_no_store_is_refused(address: str) -> None:
    with pytest.raises(ArgumentError, match="a store's address is 'host:port/prefix'"):
        store_at(address, Deadline(1.0))
