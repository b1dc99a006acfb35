"""The generated code that is checked in is what the oldest supported tools make of the .proto files."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

from google.protobuf import descriptor_pool


def _files(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text(encoding="utf-8")
        for path in (root / "covector" / "v1").iterdir()
        if path.is_file()
    }


def test_checked_in_stubs_are_what_the_generator_makes(repository: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, repository / "scripts/generate_stubs.py", tmp_path], check=True)
    made, checked_in = _files(tmp_path), _files(repository / "client")
    assert set(checked_in) == {*made, "covector/v1/__init__.py"}, "a .proto file came or went: make stubs"
    stale = [name for name, text in made.items() if checked_in[name] != text]
    assert not stale, "make stubs"


def test_package_is_a_docstring_only(repository: Path) -> None:
    text = (repository / "client/covector/v1/__init__.py").read_text(encoding="utf-8")
    assert text.startswith('"""')
    assert len(text.splitlines()) == 1


def test_floors_are_those_of_the_generator(repository: Path) -> None:
    spec = importlib.util.spec_from_file_location("generate_stubs", repository / "scripts/generate_stubs.py")
    assert spec is not None
    assert spec.loader is not None
    generate_stubs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate_stubs)
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tools = generate_stubs.TOOLS_VERSION
    assert f"grpcio>={tools.removesuffix('.0')}" in project["dependencies"]
    assert f"grpcio-tools=={tools}" in project["optional-dependencies"]["dev"]
    header = (repository / "client/covector/v1/types_pb2.py").read_text(encoding="utf-8")
    gencode = next(line.split()[-1] for line in header.splitlines() if line.startswith("# Protobuf Python Version"))
    assert f"protobuf>={gencode}" in project["dependencies"]


def test_every_proto_file_has_a_module(repository: Path) -> None:
    for path in (repository / "proto").rglob("*.proto"):
        name = str(path.relative_to(repository / "proto"))
        importlib.import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2")
        assert descriptor_pool.Default().FindFileByName(name).package == "covector.v1"
