"""Checking what is derived from the row log: runs of the key table, and postings. Each file vouches for itself.

A run of the key table (``keys/<number>.run``): a header of 64 bytes with the sizes of four sections, the CRC-32C of
their four CRC-32C, and its own; then the sections. Postings (``postings/<number>.postings``): their CRC-32C in the last
four bytes, and in the catalog as well.

A damaged one is taken out by a repair: the server makes it again from the row log.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from crc32c import crc32c

from covector_server.check.checked_collection import CheckedCollection
from covector_server.check.findings import Finding
from covector_server.check.reading import CheckedFile, ShortRead
from covector_server.check.repairs import forget_derived
from covector_server.metadata.catalog import Table, number, numbers

_RUN_HEADER = struct.Struct("<4sHHQQQQII")  # magic, version, bucket bits, entries, rows, filter words, checksums
_RUN_HEADER_BYTES = 64
_CHECKSUM_BYTES = 4

Check = Callable[[CheckedFile, dict[str, Any]], str]  # the file, its record -> what is wrong, or nothing


@dataclass(frozen=True, slots=True)
class DerivedFiles:
    """A directory of derived files, the table that names them, and how one is checked."""

    table: Table
    suffix: str
    check: Check

    def run(self, collection: CheckedCollection, directory: str) -> None:
        """Checks all that the catalog names, and explains the others."""
        context, state = collection.context, collection.state
        if not state.is_whole:
            context.claims.tree(directory)
            return
        context.claims.directory(directory)
        for key, value in state.scan(self.table, number(collection.record.id)):
            path = f"{directory}/{numbers(key)[1]:08d}{self.suffix}"
            context.claims.file(path)
            self._check_file(collection, key, path, json.loads(value))
        found = context.data / directory
        for name in (path.name for path in found.iterdir()) if found.is_dir() else ():
            if re.fullmatch(rf"\d+{re.escape(self.suffix)}(\.tmp)?", name):
                context.claims.explain(f"{directory}/{name}", "it is derived, and was replaced or never finished")

    def _check_file(self, collection: CheckedCollection, key: bytes, path: str, record: dict[str, Any]) -> None:
        context = collection.context
        try:
            with context.open(path) as file:
                trouble = self.check(file, record)
                if file.size_bytes != record["size_bytes"]:
                    trouble = f"the file has {file.size_bytes} bytes, {record['size_bytes']} are right"
        except FileNotFoundError:
            trouble = "the file is missing"
        except (OSError, ShortRead) as error:
            trouble = f"it cannot be read: {error}"
        if trouble:
            context.add(
                Finding(
                    kind="derived",
                    message=f"{trouble}; the server makes it again from the row log",
                    path=path,
                    collection=collection.record.name,
                    repair=forget_derived(context.data, self.table, key, path, context.aside),
                    repair_note="take it out of the catalog",
                )
            )


def _check_run(file: CheckedFile, record: dict[str, Any]) -> str:
    header = file.read(0, _RUN_HEADER_BYTES)
    magic, version, bits, count, first, stop, words, checksums, own = _RUN_HEADER.unpack_from(header)
    size = _RUN_HEADER.size
    if crc32c(header[: size - _CHECKSUM_BYTES]) != own or any(header[size:]):
        return "its header does not match its checksum"
    if (magic, version) != (b"CVKR", 1):
        return f"it is of version {version}, which this program does not know"
    if (count, first, stop) != (record["count"], record["first"], record["stop"]):
        return "it is of other rows than the catalog says"
    offset, found = _RUN_HEADER_BYTES, b""
    for entries in (1 << bits, count, count, words):
        found += file.checksum(offset, 8 * entries).to_bytes(_CHECKSUM_BYTES, "little")
        offset += 8 * entries
    return "" if crc32c(found) == checksums else "its sections do not match their checksum"


def _check_postings(file: CheckedFile, record: dict[str, Any]) -> str:
    body_bytes = max(file.size_bytes - _CHECKSUM_BYTES, 0)
    stored = int.from_bytes(file.read(body_bytes, _CHECKSUM_BYTES), "little")
    if file.checksum(0, body_bytes) == stored == record["checksum"]:
        return ""
    return "it does not match its checksum"


KEY_RUNS = DerivedFiles("key_runs", ".run", _check_run)
POSTINGS = DerivedFiles("postings", ".postings", _check_postings)
