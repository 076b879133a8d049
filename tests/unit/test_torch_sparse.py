"""pccl.torch: what a rank brings to the sum of sparse tensors, and what is made of what the others bring."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from pccl.torch.reduction import factor_of, name_of
from pccl.torch.sparse import DIMS_MAX, Part


def coo(values: list[float], places: list[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.sparse_coo_tensor(
        torch.tensor([places]), torch.tensor(values, dtype=dtype), (5,), check_invariants=True
    )


def test_an_index_is_brought_once() -> None:
    part = Part.of(coo([1, 2, 4], [3, 0, 3]), None)
    assert part.indices.tolist() == [[0, 3]] and part.values.tolist() == [[2], [5]]
    assert Part.of(coo([1, 2], [3, 3]), 0.5).values.tolist() == [[1.5]]


def test_padding_is_taken_off_again() -> None:
    dense = torch.tensor([[0.0, 0, 0], [1, 2, 3], [0, 0, 0], [4, 5, 6]])
    part = Part.of(dense.to_sparse(1), None)
    indices, values = part.padded(4)
    assert indices.shape == (1, 4) and values.shape == (4, 3) and values[2:].eq(0).all()
    assert torch.equal(part.whole(indices, values, 2).to_dense(), dense)
    nothing = Part.of(torch.zeros(4, 3).to_sparse(1), None)
    assert nothing.padded(0)[1].shape == (0, 3)
    assert torch.equal(nothing.whole(*nothing.padded(2), 0).to_dense(), torch.zeros(4, 3))


def test_halves_are_added_as_float32() -> None:
    part = Part.of(coo([1.0], [2], torch.bfloat16), None)
    assert part.whole(part.indices, part.values, 1).dtype is torch.float32


def test_an_index_that_is_out_of_range_is_refused() -> None:
    part = Part.of(coo([1.0], [2]), None)
    with pytest.raises(RuntimeError, match="size is inconsistent with indices"):
        part.whole(torch.tensor([[7]]), part.values, 1)


def test_what_cannot_be_brought_is_named() -> None:
    with pytest.raises(ValueError, match=f"17 dimensions, {DIMS_MAX} at most"):
        Part.of(torch.ones((1,) * 17).to_sparse(), None)
    with pytest.raises(TypeError, match=r"torch\.complex64 cannot be reduced"):
        Part.of(torch.ones(2, dtype=torch.complex64).to_sparse(), None)


@pytest.mark.parametrize("factor", [0.25, torch.tensor(0.25), torch.tensor([0.25], dtype=torch.bfloat16)])
def test_a_factor_may_be_a_number_or_a_tensor(factor: float | torch.Tensor) -> None:
    op = dist._make_nccl_premul_sum(factor)  # type: ignore[attr-defined]
    assert factor_of(op) == 0.25 and name_of(op, torch.float32, "x") == "sum"
    assert factor_of(dist.ReduceOp.SUM) is None
    with pytest.raises(TypeError, match=r"x: ReduceOp.PREMUL_SUM is for floating types, not torch\.int64"):
        name_of(op, torch.int64, "x")
