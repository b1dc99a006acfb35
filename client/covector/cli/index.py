"""``covector index``: approximate search structures, through a server or on the files of a store."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

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
from covector.types import IndexInfo

_WORDS = {
    "build": "build one; it takes the place of the one of its kind, which serves until then",
    "list": "list them, with the recall that was measured",
    "drop": "drop one; rows are not touched",
}


def main(arguments: list[str]) -> int:
    """Runs one of the commands, and returns its exit status."""
    summary = "Build, list and drop approximate search structures."
    example = "covector index build my-model --scorer trak --checkpoint epoch-1 --recall 0.99"
    command = named_command("index", summary, _WORDS, example, arguments)
    given = _parser(command).parse_args(arguments[1:])
    if given.data is not None:
        return _on_files(command, given)
    with connected(given) as client:
        collection = client.collection(given.collection)
        if command == "build":
            operation = collection.build_index(
                given.kind,
                scorer=given.fit or given.scorer,
                checkpoint=given.checkpoint,
                recall=given.recall,
                **{name: value for name in ("rank", "trees") if (value := getattr(given, name)) is not None},
            )
            return _print_built(operation.wait(progress=not given.json), given.json)
        if command == "drop":
            collection.drop_index(given.id)
            print(json.dumps({"dropped": given.id}) if given.json else f"index {given.id} is dropped")
            return 0
        return _print_indexes(collection.indexes(), given)


def _parser(command: str) -> Parser:
    examples = {"build": "my-model --recall 0.99", "list": "my-model", "drop": "my-model subspace-1a2b3c4d"}
    parser = command_parser(f"index {command}", f"{_WORDS[command]}.", f"covector index {command} {examples[command]}")
    parser.add_argument("collection", metavar="COLLECTION")
    if command == "drop":
        parser.add_argument("id", metavar="ID", help="as covector index list names it")
    if command == "build":
        parser.add_argument("--kind", default="subspace", metavar="KIND", help="subspace (the default), scann or annoy")
        parser.add_argument("--checkpoint", metavar="NAME", help="needed if there are several")
        parser.add_argument(
            "--scorer", default="dot", help="that it is for, by whom recall is measured (default dot); trak needs a fit"
        )
        parser.add_argument("--fit", metavar="ID", help="that it is for (default: the newest of the scorer)")
        parser.add_argument("--recall", type=float, metavar="SHARE", help="the recall to reach, such as 0.99")
        parser.add_argument("--rank", type=int, metavar="N", help="dimensions of the codes (default: by recall)")
        parser.add_argument("--trees", type=int, metavar="N", help="trees of an annoy index (default: by recall)")
    add_data(parser)
    add_connection(parser)
    return parser


def _on_files(command: str, given: argparse.Namespace) -> int:
    """Replaces this process by one that works on the files."""
    require(["covector_server", "lmdb"], "server", "covector index --data")
    told = [command, given.collection, *([given.id] if command == "drop" else []), "--data", str(given.data)]
    if command == "build":
        told += ["--kind", given.kind, "--scorer", given.scorer]
        for name in ("fit", "checkpoint", "recall", "rank", "trees"):
            value = getattr(given, name)
            told += [] if value is None else [f"--{name}", str(value)]
    told += ["--json"] if given.json else []
    become("covector_server.jobs.index_offline", told)


def _print_built(result: dict[str, Any], as_json: bool) -> int:
    if as_json:
        print(json.dumps(result, indent=2))
        return 0
    shares = ", ".join(f"{name} {share:.3f}" for name, share in result.get("recall", {}).items())
    print(f"index {result.get('index')} is built: {result.get('rows', 0):,} rows, {shares}")
    if result.get("warning"):
        print(f"warning: {result['warning']}")
    return 0


def _print_indexes(found: list[IndexInfo], given: argparse.Namespace) -> int:
    if given.json:
        print(json.dumps([asdict(index) for index in found], indent=2))
    elif not found:
        print(f"no indexes yet; build one: covector index build {given.collection}")
    else:
        head = ["id", "checkpoint", "scorer", "rows", "newer", "size", "recall"]
        print_table(head, [_line(index) for index in found])
    return 0


def _line(index: IndexInfo) -> list[str]:
    shares = ", ".join(f"{name} {share:.3f}" for name, share in index.recall.items())
    return [
        index.id,
        ", ".join(index.checkpoints),
        index.fit or index.recall_scorer,
        f"{index.row_count:,}",
        f"{index.fresh_row_count:,}",
        said_bytes(index.size_bytes),
        f"{shares}; {index.warning}" if index.warning else shares,
    ]
