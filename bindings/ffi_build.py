"""The cffi builder of pccl._core: the declarations are csrc/include/pccl_api.h as it stands, the sources the engine.

setuptools finds it as `bindings/ffi_build.py:ffibuilder`; `cffi-gen-src exec-python` would take it too. Paths are
relative to the root of the repository, which is where build back ends run. The rules of the border are in README.md
beside this file.
"""

from pathlib import Path

from cffi import FFI

_ROOT = Path(__file__).resolve().parent.parent
_HEADER = "csrc/include/pccl_api.h"


def _files(*patterns: str) -> list[str]:
    """Files of the repository that match, in a fixed order, relative to its root."""
    return sorted(str(path.relative_to(_ROOT)) for pattern in patterns for path in _ROOT.glob(pattern))


ffibuilder = FFI()
ffibuilder.cdef((_ROOT / _HEADER).read_text(encoding="utf-8"))
ffibuilder.set_source(
    "pccl._core",
    '#include "pccl.h"',
    sources=_files("csrc/*.c", "transports/*.c"),
    depends=_files("csrc/*.h", "csrc/include/*.h", "transports/*.h", "bindings/ffi_build.py"),
    include_dirs=["csrc/include"],
    # -iquote, not -I: csrc/limits.h must not stand before the system's <limits.h>. -g1, not the -g of Python's own
    # flags, which takes a quarter longer to build and thrice the room: names and lines are enough for a backtrace.
    extra_compile_args=["-std=c11", "-O3", "-g1", "-D_GNU_SOURCE", "-fvisibility=hidden", "-pthread", "-iquotecsrc"],
    libraries=["dl"],
    extra_link_args=["-pthread"],
)
