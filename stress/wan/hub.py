"""hub.py - the coordinator at a site of an emulated WAN, for benchmarks whose peers are workers (lines.py).

Runs as a script against the installed package. Takes its job as JSON in argv[1]: "coordinator" (where it listens),
"run", "secret", "peers"; says that it is ready in a line of JSON; ends with its input, so also when the benchmark is
killed.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main(job: dict[str, Any]) -> None:
    """Serves the run until the input ends."""
    from pccl.coordinator.server import Coordinator

    coordinator = Coordinator(
        bind=job["coordinator"], run=job["run"], secret=job["secret"], min_peers=job["peers"], lease_s=10.0
    )
    coordinator.start()
    print(json.dumps({"ready": True}), flush=True)
    sys.stdin.read()
    coordinator.close()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
