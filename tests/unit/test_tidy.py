"""The size of things: functions fit a screen, modules can be read at a sitting. The generated code is left out."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 400
SOURCES = ("client", "server", "scripts")


def _modules(repository: Path) -> Iterator[Path]:
    for source in SOURCES:
        for path in sorted((repository / source).rglob("*.py")):
            if not path.is_relative_to(repository / "client/covector/v1"):
                yield path


def _functions(path: Path) -> Iterator[tuple[str, int]]:
    """Each function's name and its lines, the docstring left out."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            docstring = node.body[0] if ast.get_docstring(node) is not None else None
            docstring_lines = (docstring.end_lineno or 0) - docstring.lineno + 1 if docstring else 0
            yield node.name, node.end_lineno - node.lineno + 1 - docstring_lines


def test_functions_fit_a_screen(repository: Path) -> None:
    sizes = [(lines, path.name, name) for path in _modules(repository) for name, lines in _functions(path)]
    assert [size for size in sizes if size[0] > FUNCTION_LINES_MAX] == []
    nine_in_ten = sorted(size[0] for size in sizes)[len(sizes) * 9 // 10]
    assert nine_in_ten < 25


def test_modules_can_be_read_at_a_sitting(repository: Path) -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in _modules(repository)}
    assert {str(path): length for path, length in lengths.items() if length > MODULE_LINES_MAX} == {}


def test_no_grab_bags(repository: Path) -> None:
    assert [path for path in _modules(repository) if path.stem in {"utils", "util", "helpers", "misc", "common"}] == []
