"""``covector fit``: what scorers learn of stored rows, through a server or on the files of a store."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from covector.cli.fit_options import add_layers, damping_of
from covector.cli.options import (
    Parser,
    add_connection,
    add_data,
    become,
    command_parser,
    connected,
    named_command,
    require,
)
from covector.cli.table import print_table, said_bytes
from covector.collection import Collection
from covector.errors import InvalidInput
from covector.types import FitInfo

_WORDS = {
    "create": "learn one; the same again goes on where it was cut off, or follows newer rows",
    "list": "list them, with their damping",
    "drop": "drop one, and the indexes built for it; rows are not touched",
}


def main(arguments: list[str]) -> int:
    """Runs one of the commands, and returns its exit status."""
    summary = "Learn what scorers need of the stored rows: trak, influence, datainf, trackstar, less."
    example = "covector fit create my-model trak --checkpoint epoch-1"
    command = named_command("fit", summary, _WORDS, example, arguments)
    given = _parser(command).parse_args(arguments[1:])
    if given.data is not None:
        return _on_files(command, given)
    with connected(given) as client:
        collection = client.collection(given.collection)
        if command == "create":
            return _create(collection, given)
        if command == "drop":
            collection.drop_fit(given.id)
            print(json.dumps({"dropped": given.id}) if given.json else f"fit {given.id} is dropped")
            return 0
        return _print_fits(collection.fits(), given)


def _parser(command: str) -> Parser:
    examples = {"create": "my-model trak", "list": "my-model", "drop": "my-model trak-1a2b3c4d"}
    parser = command_parser(f"fit {command}", f"{_WORDS[command]}.", f"covector fit {command} {examples[command]}")
    parser.add_argument("collection", metavar="COLLECTION")
    if command == "drop":
        parser.add_argument("id", metavar="ID", help="as covector fit list names it")
    if command == "create":
        parser.add_argument("method", metavar="METHOD", help="trak, influence, datainf, trackstar or less")
        parser.add_argument(
            "--checkpoint", action="append", metavar="NAME", help="may be given several times (default: all)"
        )
        parser.add_argument(
            "--damping",
            action="append",
            metavar="X",
            help="in the method's unit (default: the method's); given several times, or as held_out for a decade "
            "around the usual default, rows held out of the moments choose",
        )
        parser.add_argument("--rank", type=int, metavar="N", help="of a low-rank fit (default: dense)")
        add_layers(parser)
        parser.add_argument("--unit-rows", action="store_true", help="rows and queries count by direction alone")
        parser.add_argument(
            "--task-gradients",
            type=Path,
            metavar="FILE",
            help="for trackstar: a .npy of float[m, dim], or [checkpoints, m, dim] in the order of --checkpoint",
        )
    add_data(parser)
    add_connection(parser)
    return parser


def _create(collection: Collection, given: argparse.Namespace) -> int:
    operation = collection.fit(
        given.method,
        checkpoints=given.checkpoint,
        damping=damping_of(given.damping),
        rank=given.rank,
        by_layer=given.by_layer,
        task_gradients=None if given.task_gradients is None else _task_gradients(given),
        unit_rows=given.unit_rows,
    )
    if not given.json:
        print(f"at most {said_bytes(operation.metadata.get('memory_bytes', 0))} of memory", file=sys.stderr)
    fit = operation.wait(progress=not given.json)
    if given.json:
        print(json.dumps(asdict(fit), indent=2))
        return 0
    print(f"fit {fit.id}: {fit.row_count:,} rows, damping {fit.damping:g} x {fit.damping_unit or 'nothing'}")
    if fit.damping_scores:
        print(f"chosen by rows held out: {', '.join(f'{one:g} ({score:.4g})' for one, score in fit.damping_scores)}")
    for note in fit.notes:
        print(f"note: {note}")
    return 0


def _task_gradients(given: argparse.Namespace) -> Mapping[str, Any] | Any:
    found = np.load(given.task_gradients, allow_pickle=False)
    if found.ndim != 3:
        return found
    names = given.checkpoint or []
    if len(names) != len(found):
        raise InvalidInput(f"{given.task_gradients} is for {len(found)} checkpoints; name as many with --checkpoint")
    return dict(zip(names, found, strict=True))


def _on_files(command: str, given: argparse.Namespace) -> int:
    """Replaces this process by one that works on the files."""
    require(["covector_server", "lmdb"], "server", "covector fit --data")
    what = {"create": "method", "drop": "id"}.get(command)
    told = [command, given.collection, *([getattr(given, what)] if what else []), "--data", str(given.data)]
    if command == "create":
        for name in given.checkpoint or ():
            told += ["--checkpoint", name]
        for damping in given.damping or ():
            told += ["--damping", damping]
        for name in ("rank", "task_gradients"):
            value = getattr(given, name)
            told += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
        told += [] if given.by_layer is None else ["--by-layer" if given.by_layer else "--one-layer"]
        told += ["--unit-rows"] if given.unit_rows else []
    told += ["--json"] if given.json else []
    become("covector_server.jobs.fit_offline", told)


def _print_fits(found: list[FitInfo], given: argparse.Namespace) -> int:
    if given.json:
        print(json.dumps([asdict(fit) for fit in found], indent=2))
    elif not found:
        print(f"no fits yet; learn one: covector fit create {given.collection} trak")
    else:
        print_table(["id", "checkpoints", "rows", "newer", "gone", "size", "damping"], [_line(fit) for fit in found])
    return 0


def _line(fit: FitInfo) -> list[str]:
    return [
        fit.id,
        ", ".join(fit.checkpoints),
        f"{fit.row_count:,}",
        f"{fit.fresh_row_count:,}",
        f"{fit.lost_row_count:,}",
        said_bytes(fit.size_bytes),
        f"{fit.damping:g} x {fit.damping_unit}" if fit.finished else "not finished",
    ]
