"""What the programs of this package say at the command line: errors of arguments in one line, results as JSON or, where
a list is for people, as a table."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from covector.errors import CovectorError


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with status 2."""
        self.exit(2, f"covector: error: {message}; see {self.prog} --help\n")


def answer(work: Callable[[], Any], shown: Callable[[Any], str] | None = None) -> int:
    """Prints what ``work`` returns, as ``shown`` writes it or as JSON, or in one line what went wrong. Returns the exit
    status."""
    try:
        result = work()
    except (CovectorError, OSError) as error:
        print(f"covector: error: {error}", file=sys.stderr)
        return 2
    if shown is None:
        print_json(result)
    else:
        print_text(shown(result))
    return 0


def print_json(result: Any) -> None:
    """Prints a result."""
    print_text(json.dumps(result, indent=2))


def print_text(text: str) -> None:
    """Prints all of it at once. That the reader, such as ``head``, has had enough is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes when it ends


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns, each as wide as its widest cell."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
