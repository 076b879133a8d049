"""PcclStrategy under the real Lightning: what it trains is what "ddp" trains on gloo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from integration.torch_run import free_port, run_ranks

pytest.importorskip("pytorch_lightning", reason="Lightning is not installed")

RANKS = 2
MISSING = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in ("lightning", "pytorch_lightning"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import pccl.torch.lightning
"""


@pytest.fixture(scope="module")
def found(forked: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both ranks have seen, by strategy."""
    ports = [str(free_port()) for _ in range(4)]
    return run_ranks(forked, "lightning_peer.py", tmp_path_factory.mktemp("lightning"), RANKS, *ports)


@pytest.mark.parametrize("name", ["pccl", "name"])
def test_losses_and_parameters_are_those_of_gloo(found: list[dict[str, Any]], name: str) -> None:
    for seen in found:
        ours, theirs = seen[name], seen["gloo"]
        assert (ours["backend"], theirs["backend"]) == ("pccl", "gloo")
        assert len(ours["losses"]) == 12 and ours["losses"][-1] < ours["losses"][0]
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
        assert ours["parameters"] == pytest.approx(theirs["parameters"], rel=1e-5)
        assert ours["logged"] == pytest.approx(theirs["logged"], rel=1e-5)
        assert ours["parameters"] == found[0][name]["parameters"]
    assert found[0][name]["losses"] != found[1][name]["losses"], "each rank has data of its own"


def test_what_lightning_asks_besides_is_answered_as_on_gloo(found: list[dict[str, Any]]) -> None:
    for seen in found:
        for name in ("gloo", "pccl"):
            assert seen[name]["mean of integers"] == [0, 4]
            assert seen[name]["told"] == {"rank": 0}


def test_a_hook_is_used_on_processors_too(found: list[dict[str, Any]]) -> None:
    for seen in found:
        assert seen["bf16"]["parameters"] != seen["pccl"]["parameters"]
        assert seen["bf16"]["losses"] == pytest.approx(seen["pccl"]["losses"], rel=1e-2)


def test_another_backend_is_refused() -> None:
    from pccl.torch.lightning import PcclStrategy

    with pytest.raises(TypeError, match="takes no process_group_backend"):
        PcclStrategy(process_group_backend="gloo")


def test_without_lightning_an_error_says_what_to_install(tmp_path: Path) -> None:
    """Not forked: there Lightning is imported already."""
    (tmp_path / "program.py").write_text(MISSING)
    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "ImportError: pccl.torch.lightning wants Lightning: pip install pytorch-lightning" in done.stderr
