"""Checking a directory of files that never change, which the catalog lists: of an index or a fit.

``manifest.json`` has the sizes and CRC-32C of the other files; its own size and CRC-32C stand in the catalog, with the
sizes of all. What is damaged is taken out by a repair: it was made from rows, and can be made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from crc32c import crc32c

from covector_server.check.checked_collection import CheckedCollection
from covector_server.check.findings import Finding
from covector_server.check.reading import ShortRead
from covector_server.check.repairs import forget_derived
from covector_server.metadata.catalog import Table, number
from covector_server.metadata.records import CheckpointCounters, CheckpointRecord, Record
from covector_server.storage.drafts import MANIFEST, directories_of

AnyRecord = TypeVar("AnyRecord", bound=Record)


def check_listed(
    collection: CheckedCollection,
    directory: str,
    table: Table,
    record_type: type[AnyRecord],
    check: Callable[[bytes, AnyRecord], None],
) -> None:
    """Has every entry that the catalog lists of a collection checked, by its key and record, and explains what else
    lies in ``directory``."""
    context, state = collection.context, collection.state
    if not state.is_whole:
        context.claims.tree(directory)
        return
    context.claims.directory(directory)
    for key, value in state.scan(table, number(collection.record.id)):
        try:
            record = record_type.decode(value)
        except (ValueError, TypeError) as error:
            message = f"table {table!r}, key {key.hex()}: the record cannot be read: {error}"
            context.add(Finding(kind="catalog_entry", message=message, collection=collection.record.name))
            continue
        check(key, record)
    found = context.data / directory
    for path in found.iterdir() if found.is_dir() else ():
        context.claims.explain(f"{directory}/{path.name}", f"it is of {table} and was replaced or never finished")


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryCheck:
    """One directory, below the data directory. ``what``: whose it is, such as ``index subspace-1a``; ``entry``: where
    the catalog lists it; ``consequence``: what is to be done if it is damaged."""

    collection: CheckedCollection
    directory: str
    files: Mapping[str, int]
    checksum: int
    what: str
    entry: tuple[Table, bytes]
    consequence: str

    def run(self) -> None:
        """Claims and checks every file."""
        claims = self.collection.context.claims
        claims.directory(self.directory)
        for below in sorted(directories_of(self.files) - {"."}):
            claims.directory(f"{self.directory}/{below}")
        for name in self.files:
            claims.file(f"{self.directory}/{name}")
        manifest = self._manifest()
        if manifest is None:
            return
        for name, size_bytes in self.files.items():
            if name != MANIFEST:
                self._check_file(name, size_bytes, manifest.get("files", {}).get(name, {}))

    def check_rows(self, checkpoint_id: int, generation: int, row_count: int) -> None:
        """That it speaks of rows that there are."""
        key = number(self.collection.record.id, checkpoint_id)
        value = self.collection.state.get("checkpoints", key)
        counters = CheckpointCounters.decode(self.collection.state.get("checkpoint_counters", key) or b"{}")
        if value is None or CheckpointRecord.decode(value).generation != generation:
            self.add("it is of another generation of its checkpoint", self.directory)
        elif counters.row_count < row_count:
            self.add(f"it covers {row_count} rows of {counters.row_count}", self.directory)

    def add(self, trouble: str, path: str) -> None:
        """A finding."""
        context, (table, key) = self.collection.context, self.entry
        context.add(
            Finding(
                kind="derived",
                message=f"{self.what}: {trouble}; {self.consequence}",
                path=path,
                collection=self.collection.record.name,
                repair=forget_derived(context.data, table, key, self.directory, context.aside),
                repair_note="take it out of the catalog",
            )
        )

    def _manifest(self) -> dict[str, Any] | None:
        path = f"{self.directory}/{MANIFEST}"
        try:
            with self.collection.context.open(path) as file:
                data = file.read(0, file.size_bytes)
        except (OSError, ShortRead) as error:
            self.add(f"its manifest cannot be read: {error}", path)
            return None
        if crc32c(data) != self.checksum:
            self.add("its manifest is not the one that the catalog lists", path)
            return None
        return dict(json.loads(data))

    def _check_file(self, name: str, size_bytes: int, entry: dict[str, int]) -> None:
        path = f"{self.directory}/{name}"
        try:
            with self.collection.context.open(path) as file:
                if file.size_bytes != size_bytes:
                    self.add(f"the file has {file.size_bytes} bytes, {size_bytes} are right", path)
                elif file.checksum(0, size_bytes) != entry.get("checksum"):
                    self.add("it does not match its checksum", path)
        except (OSError, ShortRead) as error:
            self.add(f"it cannot be read: {error}", path)
