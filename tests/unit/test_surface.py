"""The public surface: small, documented, and light to import."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import covector

HEAVY = {"torch", "transformers", "peft", "accelerate", "zarr", "lmdb", "annoy", "scann", "redis", "ray", "matplotlib"}
HEAVY |= {"pyarrow", "safetensors"}
NAMES_MAX = 25


def _modules_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after ``statement``."""
    code = f"import sys; {statement}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_covector_is_light() -> None:
    assert not _modules_after("import covector") & HEAVY


def test_import_covector_needs_its_base_dependencies_only() -> None:
    third_party = _modules_after("import covector") - _modules_after("import numpy, grpc, google.protobuf.message")
    assert third_party - sys.stdlib_module_names - {"covector"} == set()


@pytest.mark.parametrize("module", ["covector.cli", "covector.testing"])
def test_the_rest_of_the_client_is_light_too(module: str) -> None:
    if importlib.util.find_spec(module) is not None:
        assert not _modules_after(f"import {module}") & HEAVY


@pytest.mark.parametrize("module", ["covector_server", "covector_server.app"])
def test_the_server_loads_no_torch(module: str) -> None:
    loaded = _modules_after(f"import {module}")
    assert not loaded & {"torch", "transformers", "peft", "accelerate", "matplotlib"}


def test_all_is_small_and_real() -> None:
    assert len(covector.__all__) <= NAMES_MAX
    assert len(set(covector.__all__)) == len(covector.__all__)
    assert [name for name in covector.__all__ if not hasattr(covector, name)] == []


@pytest.mark.parametrize("name", covector.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    value = getattr(covector, name)
    if inspect.ismodule(value) or inspect.isroutine(value) or inspect.isclass(value):
        assert inspect.getdoc(value), f"covector.{name} has no docstring"
    if inspect.isclass(value):
        undocumented = [
            f"{name}.{attribute}"
            for attribute, member in vars(value).items()
            if not attribute.startswith("_") and _promises_something(member) and not inspect.getdoc(member)
        ]
        assert undocumented == []


def test_typed_and_versioned(repository: Path) -> None:
    assert (repository / "client/covector/py.typed").is_file()
    assert (repository / "server/covector_server/py.typed").is_file()
    from covector._version import __version__

    changelog = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changelog or f"## [{__version__}]" in changelog
    assert getattr(covector, "__version__", __version__) == __version__


def test_extras_are_the_settled_ones(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"torch", "server", "ingest", "redis", "ray", "all"} <= set(project["optional-dependencies"])
    assert {dependency.partition(">=")[0] for dependency in project["dependencies"]} == {"grpcio", "numpy", "protobuf"}


def _promises_something(member: object) -> bool:
    return isinstance(member, property | classmethod | staticmethod) or inspect.isfunction(member)
