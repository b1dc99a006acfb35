"""``covector delete``: rows out of a collection, by key or by a filter."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from covector.cli.options import add_connection, command_parser, connected, parsed_filter
from covector.cli.row_files import Columns, is_row_file, row_file
from covector.collection import Collection
from covector.errors import InvalidInput
from covector.types import Key

_BLOCK_KEYS = 50_000


def main(arguments: list[str]) -> int:
    """Deletes; status 1 if the user, when asked, says no."""
    given = _parser().parse_args(arguments)
    where = parsed_filter(given.where)
    keys = None if where is not None else list(_keys(given))
    with connected(given) as client:
        collection = client.collection(given.collection)
        if not given.yes and sys.stdin.isatty() and not _confirmed(_question(collection, keys, where)):
            print("nothing was deleted", file=sys.stderr)
            return 1
        deleted = collection.delete(where=where) if keys is None else _delete(collection, keys)
    print(json.dumps({"deleted": deleted}) if given.json else _sentence(given, deleted))
    if (
        not deleted
        and keys
        and not given.integer_keys
        and all(isinstance(key, str) and _is_number(key) for key in keys)
    ):
        print("covector: these keys were taken as strings; --integer-keys takes them as integers", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "delete",
        "Delete rows at all checkpoints. A key that is unknown is passed over. No query sees the rows any more;\n"
        "`covector compact` takes their bytes out of the files.",
        'covector delete my-model --where \'{"source": "withdrawn"}\'',
    )
    parser.add_argument("collection", metavar="COLLECTION")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--key", action="append", metavar="KEY", help="may be repeated")
    which.add_argument(
        "--keys-file",
        type=Path,
        metavar="FILE",
        help="a key a line; or the field `key` of JSON lines (.jsonl) or of Parquet (.parquet)",
    )
    which.add_argument("--where", metavar="JSON", help="a filter on metadata; '{}' is every row")
    parser.add_argument("--integer-keys", action="store_true", help="the keys are integers, not strings")
    parser.add_argument("--yes", action="store_true", help="do not ask, as is done on a terminal")
    add_connection(parser)
    return parser


def _keys(given: argparse.Namespace) -> Iterator[Key]:
    """The keys that were typed, or those in a file."""
    path: Path | None = given.keys_file
    if path is not None and is_row_file(path):
        for row, key in enumerate(row_file(path, Columns(key="key")).keys()):
            if key is None:
                raise InvalidInput(f"{path}: row {row} has no key")
            yield key
        return
    lines = [] if path is None else path.read_text(encoding="utf-8").split("\n")
    for key in given.key if path is None else filter(None, (line.removesuffix("\r") for line in lines)):
        if given.integer_keys and not _is_number(key):
            raise InvalidInput(f"key {key!r} is no integer; leave --integer-keys out")
        yield int(key) if given.integer_keys else key


def _delete(collection: Collection, keys: list[Key]) -> int:
    left = iter(keys)
    deleted = 0
    while block := list(islice(left, _BLOCK_KEYS)):
        deleted += collection.delete(block)
    return deleted


def _question(collection: Collection, keys: list[Key] | None, where: dict[str, Any] | None) -> str:
    what = f"the rows of {len(keys):,} keys" if keys is not None else f"{collection.count(where):,} rows"
    return f"delete {what} of the {collection.count():,} rows of {collection.name}? [y/N] "


def _confirmed(question: str) -> bool:
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _is_number(key: str) -> bool:
    try:
        return str(int(key)) == key
    except ValueError:
        return False


def _sentence(given: argparse.Namespace, deleted: int) -> str:
    return f"{deleted:,} rows deleted from {given.collection}"
