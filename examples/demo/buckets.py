"""Gradients in a few flat buckets, each reduced over the peers as soon as the backward pass has filled it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import pccl

Submit = Callable[[str, Tensor], pccl.Work]  # (tag, tensor) -> the all-reduce of that tensor, begun


@dataclass
class _Bucket:
    tag: str
    flat: Tensor
    parameters: int
    missing: int = 0


class GradientBuckets:
    """Makes every parameter's .grad a view into one of `count` flat tensors.

    The backward pass reaches the last parameters first, so the buckets hold them in reverse. Tags name the buckets, so
    no peer needs to submit them in the order of another.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        parameters = list(reversed(list(model.parameters())))
        self._buckets = [self._fill(f"grads{number}", group) for number, group in enumerate(_split(parameters, count))]
        self._works: list[pccl.Work] = []
        self._submit: Submit | None = None

    def __len__(self) -> int:
        return len(self._buckets)

    def begin(self, submit: Submit) -> None:
        """Clears the gradients; the next backward pass hands each bucket to `submit` when it is full."""
        self._submit = submit
        self._works = []
        for bucket in self._buckets:
            bucket.flat.zero_()
            bucket.missing = bucket.parameters

    def finish(self) -> list[pccl.Result]:
        """Waits until every bucket holds the gradients of the whole group."""
        assert len(self._works) == len(self._buckets), "the backward pass did not reach every parameter"
        return [work.wait() for work in self._works]

    def _fill(self, tag: str, parameters: list[nn.Parameter]) -> _Bucket:
        flat = torch.zeros(sum(parameter.numel() for parameter in parameters))
        bucket = _Bucket(tag, flat, len(parameters))
        views = flat.split([parameter.numel() for parameter in parameters])
        for parameter, view in zip(parameters, views, strict=True):
            parameter.grad = view.view_as(parameter)
            parameter.register_post_accumulate_grad_hook(lambda _, bucket=bucket: self._arrived(bucket))
        return bucket

    def _arrived(self, bucket: _Bucket) -> None:
        bucket.missing -= 1
        if bucket.missing == 0:
            assert self._submit is not None, "begin() comes before backward()"
            self._works.append(self._submit(bucket.tag, bucket.flat))


def _split(parameters: list[nn.Parameter], count: int) -> list[list[nn.Parameter]]:
    """Consecutive groups of about equal size, none of them empty."""
    share = sum(parameter.numel() for parameter in parameters) / count
    groups: list[list[nn.Parameter]] = [[]]
    size = 0
    for parameter in parameters:
        if size >= share * len(groups) and len(groups) < count:
            groups.append([])
        groups[-1].append(parameter)
        size += parameter.numel()
    return groups
