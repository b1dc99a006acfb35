"""What building the package does beside copying files: it compiles the kernels (``native/compile.py``).

Without a compiler the package is built without them, and numpy does their work, slower.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelHook(BuildHookInterface[Any]):
    """Called by hatchling for a wheel, an editable one too."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        compiled = subprocess.run([sys.executable, str(Path(self.root) / "native" / "compile.py")], check=False)
        if compiled.returncode:
            self.app.display_warning("the kernels were not compiled; numpy will do their work, slower")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        build_data["artifacts"].append("server/covector_server/kernels/*.so")
