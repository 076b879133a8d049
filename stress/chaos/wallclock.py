"""Wall clocks that jump, of single processes: by a preloaded library, and a file that says how far off it is."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")


class WallClocks:
    """Builds the library into a directory; each process has its own file there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._library = directory / "wallclock.so"
        options = ["-O2", "-shared", "-fPIC", "-D_GNU_SOURCE"]
        subprocess.run(["cc", *options, "-o", str(self._library), str(SOURCE), "-ldl"], check=True)

    def environment(self, name: str) -> dict[str, str]:
        """Of the process with that name."""
        self.move(name, 0.0)
        return {"LD_PRELOAD": str(self._library), "WALL_CLOCK": str(self._file(name))}

    def move(self, name: str, seconds: float) -> None:
        """So far from the right time, from now on."""
        with self._file(name).open("r+b" if self._file(name).exists() else "wb", buffering=0) as file:
            file.write(struct.pack("=q", round(seconds * 1e9)))

    def _file(self, name: str) -> Path:
        return self._directory / f"{name}.clock"
