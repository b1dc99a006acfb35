"""Generates the Python modules and type stubs of ``proto/`` below a directory: ``generate_stubs.py DIR``.

They are checked in below ``client`` (``make stubs``), made with the oldest grpcio-tools we support: generated code runs
with the grpcio and protobuf that made it or newer ones, never with older ones. So the version here, the floor of grpcio
in pyproject.toml and the one of protobuf move together; tests/unit/test_stubs.py holds all of this.
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import sys
from pathlib import Path

TOOLS_VERSION = "1.74.0"
PROTO_ROOT = Path(__file__).resolve().parent.parent / "proto"


def generate(target: Path) -> None:
    """Writes ``covector/v1/*_pb2.py``, ``*_pb2.pyi`` and ``*_pb2_grpc.py`` below ``target``.

    Raises RuntimeError if another version of grpcio-tools is installed or the compiler refuses a file.
    """
    from grpc_tools import protoc

    version = importlib.metadata.version("grpcio-tools")
    if version != TOOLS_VERSION:
        raise RuntimeError(f"the stubs need grpcio-tools {TOOLS_VERSION}, not {version}; install it, or `make stubs`")
    target.mkdir(parents=True, exist_ok=True)
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    outputs = [f"--{kind}={target}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    sources = sorted(str(path.relative_to(PROTO_ROOT)) for path in PROTO_ROOT.rglob("*.proto"))
    if protoc.main(["protoc", f"--proto_path={PROTO_ROOT}", f"--proto_path={well_known}", *outputs, *sources]):
        raise RuntimeError("protoc refused the files; its message stands above")


def main() -> int:
    """Runs from the command line. Returns 0, 1 after an error, 2 for wrong use."""
    if len(sys.argv) != 2:
        print(f"usage: {Path(__file__).name} DIR", file=sys.stderr)
        return 2
    try:
        generate(Path(sys.argv[1]))
    except RuntimeError as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
