"""Programs that load and break pccl, and those that measure it: see README.md here.

They run from the repository's root, `python -m stress.<name>`, against the installed pccl: the sources beside them have
no compiled core, so the root comes last where modules are looked for.
"""

import sys
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parents[1])
sys.path[:] = [*(entry for entry in sys.path if entry not in ("", _ROOT)), _ROOT]
