"""pccl.torch: gloo is the oracle. The same programs give the same on both; what goes wrong is said on every rank."""

from __future__ import annotations

import math
from typing import Any

import pytest
from integration.torch_run import free_port, run_ranks

RANKS = 3


@pytest.fixture(scope="module")
def found(forked: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What all ranks have seen; they are started once, since importing torch takes longer than all they do."""
    return run_ranks(forked, "torch_peer.py", tmp_path_factory.mktemp("torch"), RANKS)


def test_collectives_give_what_gloo_gives(found: list[dict[str, Any]]) -> None:
    for seen in found:
        assert seen["wrong"] == []
        assert seen["count"] > 1000


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "sparse"])
def test_stock_scripts_train_to_the_losses_of_gloo(found: list[dict[str, Any]], kind: str) -> None:
    for seen in found:
        assert seen[f"{kind} pccl"] == pytest.approx(seen[f"{kind} gloo"], rel=1e-5)
        assert seen[f"{kind} pccl"][-1] < seen[f"{kind} pccl"][0]
        assert seen[f"{kind} pccl"] == found[0][f"{kind} pccl"]


@pytest.mark.parametrize(("hook", "nearness"), [("bf16", 1e-3), ("int8", 1e-2), ("e3m0", 0.1)])
def test_hooks_train_almost_as_well(found: list[dict[str, Any]], hook: str, nearness: float) -> None:
    plain, coded = found[0]["ddp pccl"], found[0][f"hook {hook}"]
    assert coded == pytest.approx(plain, rel=nearness)
    assert coded != plain
    assert all(math.isfinite(loss) for loss in coded)


def test_a_hook_lets_sparse_gradients_travel_as_they_are(found: list[dict[str, Any]]) -> None:
    for seen in found:
        assert seen["sparse bf16"] == pytest.approx(seen["sparse gloo"], rel=1e-2)
        assert seen["sparse bf16"] != seen["sparse gloo"]


@pytest.fixture(scope="module")
def faults(forked: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What ranks 0 and 1 of three have seen; rank 2 is killed in the end."""
    folder = tmp_path_factory.mktemp("faults")
    return run_ranks(forked, "torch_faults.py", folder, 3, str(free_port()), killed=(2,))


WRONG = {
    "avg of integers": ("TypeError", "ReduceOp.AVG does not exist for torch.int32"),
    "bits of floats": ("TypeError", "ReduceOp.BAND is for integers and bool"),
    "premul": ("TypeError", "ReduceOp.PREMUL_SUM is for floating types, not torch.int32"),
    "sparse bool": ("TypeError", "SUM of torch.bool is not there; SUM, AVG and PREMUL_SUM of numbers are"),
    "sparse min": ("TypeError", "MIN of torch.float32 is not there; SUM, AVG and PREMUL_SUM of numbers are"),
    "sparse codec": ("TypeError", "int8 is for dense tensors"),
    "compressed": ("TypeError", "the tensor is sparse (torch.sparse_csr)"),
    "dtype": ("TypeError", "torch.float8_e4m3fn cannot be reduced"),
    "sparse": ("TypeError", "the tensor is sparse"),
    "sizes": ("ValueError", "the input must have 3 x 2 elements of torch.float32, not 7"),
    "lists": ("ValueError", "tensor_list: expected 3 tensors, one for each rank, got 2"),
    "splits": ("ValueError", "the split sizes [1, 1, 2] must be 3 numbers with the sum 3"),
    "uneven": ("ValueError", "4 rows cannot be split evenly over 3 ranks"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments_are_named(faults: list[dict[str, Any]], what: str) -> None:
    for seen in faults:
        assert seen[what][0] == WRONG[what][0]
        assert WRONG[what][1] in seen[what][2]


@pytest.mark.parametrize(
    ("what", "cause"), [("mismatch", "MismatchError"), ("sparse mismatch", "MismatchError"), ("late", "Timeout")]
)
def test_what_fails_fails_on_all_ranks_and_the_group_goes_on(
    faults: list[dict[str, Any]], what: str, cause: str
) -> None:
    for seen in faults:
        assert seen[what][:2] == ["DistBackendError", cause]


def test_works_and_futures_are_those_of_torch(faults: list[dict[str, Any]]) -> None:
    completed, early = faults[0]["early"]
    assert not completed
    assert early[:2] == ["DistBackendError", "Timeout"]
    for seen in faults:
        assert seen["done"] == [True, True, True, [3, 3, 3]]
        assert seen["future"] == [3, 3, 3]
        assert seen["chained"] == [6, 6]
        assert seen["sparse futures"] == [[6, 6, 6], [3, 3, 3]]
        assert seen["failed future"][1] == "MismatchError"
        assert seen["polled"] == [1, 1, 1]
        assert seen["destroyed"] is False


def test_a_lost_rank_is_told_and_the_rest_can_be_configured_anew(faults: list[dict[str, Any]]) -> None:
    for rank, seen in enumerate(faults):
        assert seen["lost"][:2] == seen["refused"][:2] == ["DistBackendError", "PeerLost"]
        assert seen["sparse lost"][:2] == ["DistBackendError", "PeerLost"]
        assert "rank 2 of the process group is gone" in seen["refused"][2]
        assert seen["retried"] == [2, 2, 2]
        assert seen["gather"][1] == "PeerLost"
        assert seen["configured"] == [rank, 2, [2, 2, 2]]


def test_ranks_join_the_run_that_the_environment_names(faults: list[dict[str, Any]]) -> None:
    for seen in faults:
        assert seen["elsewhere"] == [[2, 2], True]
