"""The compiled library as other processors would run it."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from covector_server.kernels import library


@pytest.fixture(scope="session")
def other_libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ctypes.CDLL]:
    """For processors without the instructions, ``plain``, or without the wide ones, ``narrow``."""
    sources, found = Path(__file__).resolve().parents[2] / "native", {}
    for name in ("plain", "narrow"):
        built = tmp_path_factory.mktemp(name) / f"{name}.so"
        command = ["cc", "-std=c11", "-O1", "-fPIC", "-shared", f"-DCOVECTOR_{name.upper()}", "-pthread"]
        subprocess.run([*command, *map(str, sorted(sources.glob("*.c"))), "-o", str(built), "-lm"], check=True)
        loaded = library.load(built)
        assert loaded is not None
        found[name] = loaded
    return found


UseLibrary = Callable[..., None]


@pytest.fixture
def use_library(other_libraries: dict[str, ctypes.CDLL], monkeypatch: pytest.MonkeyPatch) -> UseLibrary:
    """``use_library(kind, module, *names)`` puts a library in the place of the one that a module of kernels has under
    these names: the one of ``other_libraries``, none for ``numpy``; ``compiled`` leaves it."""

    def use(kind: str, module: ModuleType, *names: str) -> None:
        assert library.LIBRARY is not None, "python native/compile.py"
        if kind != "compiled":
            for name in names or ("LIBRARY",):
                monkeypatch.setattr(module, name, other_libraries.get(kind))

    return use
