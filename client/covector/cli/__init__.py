"""``covector``: one program for people at a shell.

Each command is a module with a ``main(arguments) -> exit status``. Here they are dispatched, and errors become one
line on stderr. Exit status: 0 done, 1 a finding (such as a demo whose ranking is not as expected), 2 wrong use, or an
error on the way.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from importlib import import_module

from covector._version import __version__
from covector.cli.options import Parser
from covector.errors import CovectorError

_COMMANDS = {
    "serve": "serve a data directory",
    "fsck": "check a store at rest, and repair what can be",
    "ingest": "store gradients from .npy, .npz, .safetensors or Zarr files",
    "query": "name the rows that pushed a behaviour up or down",
    "index": "build, list and drop approximate search structures",
    "fit": "learn, list and drop what scorers such as trak need",
    "evaluate": "say which scorer and which sketch is best here, judged by retrained models",
    "delete": "delete rows by key or by a filter",
    "collections": "list what a server holds",
    "status": "say how a store is: space, damage, what takes no rows",
    "compact": "take the bytes of deleted rows out of the files",
    "snapshot": "make, list and delete snapshots of a store",
    "demo": "fine-tune a small model, and ask which rows taught it a fact",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command, and returns its exit status."""
    given = _parser().parse_args(arguments)
    command: Callable[[list[str]], int] = import_module(f"covector.cli.{given.command}").main
    try:
        return command(given.arguments)
    except CovectorError as error:
        return _say(error.message)
    except BrokenPipeError:  # the reader, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt as interrupt:
        return _say(str(interrupt) or "interrupted; what was acknowledged is stored", status=130)


def _say(message: str, status: int = 2) -> int:
    line = " ".join(message.split())
    print(f"covector: error: {line}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, _COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {what}" for name, what in _COMMANDS.items())
    parser = Parser(
        prog="covector",
        description="A gradient vector database: which training rows taught a model what it does.",
        epilog=f"commands (covector COMMAND --help tells more):\n{listed}\n\n"
        "example: covector serve --data ./store --listen 127.0.0.1:7337",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"covector {__version__}")
    parser.add_argument("command", choices=_COMMANDS, metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments")
    return parser
