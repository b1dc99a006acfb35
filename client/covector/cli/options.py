"""What the commands share: a parser whose errors are one line, the options of a connection, filters, missing extras."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from covector.client import Client, connect
from covector.errors import InvalidInput

DEFAULT_ADDRESS = "127.0.0.1:7337"


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with status 2."""
        self.exit(2, f"covector: error: {message}; see {self.prog} --help\n")


def command_parser(command: str, description: str, example: str) -> Parser:
    """A parser for ``covector COMMAND`` with an example in its help."""
    return Parser(
        prog=f"covector {command}",
        description=description,
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def named_command(program: str, summary: str, words: Mapping[str, str], example: str, arguments: list[str]) -> str:
    """The command that ``covector PROGRAM COMMAND ...`` names; ``words``: what each is for."""
    listed = "\n".join(f"  {name:6} {what}" for name, what in words.items())
    parser = command_parser(program, f"{summary}\n\n{listed}", example)
    parser.add_argument("command", choices=words, metavar="COMMAND", help="one of those above")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments")
    return str(parser.parse_args(arguments).command)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Adds the option to work on files."""
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="work on this directory, without a server or beside a running one"
    )


def become(module: str, arguments: Sequence[str]) -> NoReturn:
    """Replaces this process by ``python -m module``."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say where the server is, and ``--json``."""
    add_server(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, for machines")


def add_server(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds the options that say where the server is."""
    parser.add_argument(
        "--to",
        default=os.environ.get("COVECTOR_ADDRESS", DEFAULT_ADDRESS),
        metavar="HOST:PORT",
        help=f"the server, or unix:/path (default: $COVECTOR_ADDRESS, else {DEFAULT_ADDRESS})",
    )
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="the API key (default: $COVECTOR_API_KEY)")
    parser.add_argument("--tls", action="store_true", help="encrypt, trusting the system's certificate authorities")
    parser.add_argument("--tls-ca", metavar="FILE", help="encrypt, trusting the authorities in this PEM file")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="for an answer (default 30)")


def connected(given: argparse.Namespace) -> Client:
    """A client for the server that the options name."""
    api_key = given.api_key_file.read_text().strip() if given.api_key_file else os.environ.get("COVECTOR_API_KEY")
    return connect(given.to, api_key=api_key or None, tls=given.tls_ca or given.tls or None, timeout_s=given.timeout)


def require(modules: Sequence[str], extra: str, what: str) -> None:
    """Raises InvalidInput naming the line to install ``extra`` with, unless all modules are there."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise InvalidInput(f'{what} needs {", ".join(missing)}; install it: pip install "covector[{extra}]"')


def parsed_filter(where: str | None) -> dict[str, Any] | None:
    """The filter behind ``--where``, None for none. Raises InvalidInput for what is no JSON object."""
    if where is None:
        return None
    try:
        parsed = json.loads(where)
    except ValueError as error:
        raise InvalidInput(f'--where is not JSON, such as {{"source": "wikipedia"}}: {error}') from error
    if not isinstance(parsed, dict):
        raise InvalidInput('--where is a JSON object, such as {"source": "wikipedia"}')
    return parsed
