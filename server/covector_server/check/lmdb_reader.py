"""``python -m covector_server.check.lmdb_reader FILE``: LMDB reads a catalog from end to end, and may crash at it.

It prints a line of JSON: how many entries there are, and their digest. The file is not written to, and no lock taken.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import cast

import lmdb

from covector_server.metadata.catalog import TABLES, Table
from covector_server.metadata.content import sum_of
from covector_server.metadata.lmdb_catalog import MAP_BYTES


def main(path: str) -> None:
    """Reads all tables of the file and prints what they hold."""
    with lmdb.open(
        path, subdir=False, readonly=True, lock=False, max_dbs=len(TABLES) + 8, map_size=MAP_BYTES, create=False
    ) as environment:
        entries = list(_entries(environment))
    print(json.dumps({"entries": len(entries), "content": sum_of(entries)}))


def _entries(environment: lmdb.Environment) -> Iterator[tuple[Table, bytes, bytes]]:
    with environment.begin() as transaction:
        names = [bytes(name) for name, _ in transaction.cursor()]
    for name in names:
        table = environment.open_db(name, create=False)
        with environment.begin(db=table) as transaction:
            for key, value in transaction.cursor():
                yield cast("Table", name.decode()), bytes(key), bytes(value)


if __name__ == "__main__":
    main(sys.argv[1])
