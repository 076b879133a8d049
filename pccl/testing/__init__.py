"""The simulator and fault injection, public, so that users test their own loops.

    from pccl.testing import Cluster, Faults, simulate

`simulate(seeds)` runs the built-in programs under a swarm of faults; `Cluster` runs yours. docs/testing.md has both.
`kill_stream` disturbs a real communicator.
"""

from pccl.testing.checkers import Broken
from pccl.testing.cluster import Cluster, Node, Options
from pccl.testing.couriers import Couriers, Errands
from pccl.testing.faults import Faults
from pccl.testing.live import kill_stream
from pccl.testing.program import SimPeer, Work
from pccl.testing.simulate import Outcome, SimReport, run_seed, simulate
from pccl.testing.stage import SCENARIOS, scenario
from pccl.testing.traffic import Shape, Traffic

__all__ = [
    "SCENARIOS",
    "Broken",
    "Cluster",
    "Couriers",
    "Errands",
    "Faults",
    "Node",
    "Options",
    "Outcome",
    "Shape",
    "SimPeer",
    "SimReport",
    "Traffic",
    "Work",
    "kill_stream",
    "run_seed",
    "scenario",
    "simulate",
]
