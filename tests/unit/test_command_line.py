"""Programs of the server's package at the command line: errors of arguments are one line, a closed pipe is no error."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from covector_server.check.__main__ import main as check
from covector_server.command_line import table
from covector_server.config import parse
from covector_server.jobs.compact_offline import main as compact
from covector_server.jobs.fit_offline import main as fit
from covector_server.jobs.index_offline import main as index

PROGRAMS: list[tuple[Callable[[list[str]], object], list[str]]] = [
    (parse, ["--data", "store", "--shard-mib", "many"]),
    (parse, []),
    (check, ["--data", "store", "--bogus"]),
    (compact, ["resumes", "--data", "store", "--compact-share", "half"]),
    (fit, ["create", "resumes", "trak", "--data", "store", "--rank", "low"]),
    (index, ["build", "resumes", "--data", "store", "--recall", "most"]),
    (index, ["list", "resumes"]),
    (fit, ["forget", "resumes", "--data", "store"]),
]


@pytest.mark.parametrize(("program", "arguments"), PROGRAMS)
def test_an_error_of_arguments_is_one_line(
    program: Callable[[list[str]], object], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        program(arguments)
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("covector: error: ")
    assert captured.err.count("\n") == 1


def test_a_reader_that_has_left_is_no_error() -> None:
    code = "from covector_server.command_line import print_json; print_json(['x' * 100] * 10_000)"
    assert into_a_closed_pipe(["-c", code]) == (0, b"")


def test_a_reader_that_has_left_before_a_short_answer_is_none_either() -> None:
    code = """
import sys
from covector.cli import main, status
status.main = lambda arguments: print("a line that waits in the buffer") or 0
sys.exit(main(["status"]))
"""
    assert into_a_closed_pipe(["-c", code]) == (0, b"")


def into_a_closed_pipe(arguments: list[str]) -> tuple[int, bytes]:
    """The exit status of a program whose stdout is buffered, as it is by default, and what it said on stderr."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, *arguments]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            command, stdout=writing, stderr=subprocess.PIPE, env=environment, check=False, timeout=60
        )
    finally:
        os.close(writing)
    return ended.returncode, ended.stderr


def test_columns_of_a_table_are_as_wide_as_their_widest_cell() -> None:
    rows = [("trak-1", "12,000"), ("influence-22", "5")]
    assert table(("id", "rows"), rows) == "id            rows\ntrak-1        12,000\ninfluence-22  5"
