"""Compiles ``native/*.c`` into ``covector_server/kernels``: ``python native/compile.py``.

The result is a shared library without a Python interface (ctypes calls it), so one serves every Python 3. All that it
needs is a C compiler: $CC, or cc.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIBRARY = HERE.parent / "server" / "covector_server" / "kernels" / "libcovector.so"
FLAGS = ("-std=c11", "-O3", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread")


def compile_library() -> Path:
    """Compiles, and puts the library in the place of an older one, which processes may have loaded. Raises OSError or
    CalledProcessError where there is no compiler or it fails."""
    sources = sorted(str(path) for path in HERE.glob("*.c"))
    temporary = LIBRARY.with_suffix(f".{os.getpid()}.tmp")
    try:
        compiler = os.environ.get("CC", "cc").split()
        subprocess.run([*compiler, *FLAGS, *sources, "-o", str(temporary), "-lm"], check=True)
        temporary.replace(LIBRARY)
    finally:
        temporary.unlink(missing_ok=True)
    return LIBRARY


if __name__ == "__main__":
    try:
        print(compile_library())
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"the kernels were not compiled: {error}")
