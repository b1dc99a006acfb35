"""Checking approximate search structures: each directory that the catalog names, its manifest, and every file in it.

``manifest.json`` has the sizes and CRC-32C of the other files; its own size and CRC-32C stand in the catalog, with the
sizes of all. A damaged index is taken out by a repair: queries search exactly, and it can be built again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from crc32c import crc32c

from covector_server.check.checked_collection import CheckedCollection
from covector_server.check.findings import Finding
from covector_server.check.reading import ShortRead
from covector_server.check.repairs import forget_derived
from covector_server.metadata.catalog import number
from covector_server.metadata.records import CheckpointCounters, CheckpointRecord, IndexRecord
from covector_server.storage.index_files import MANIFEST


def check_indexes(collection: CheckedCollection, directory: str) -> None:
    """Checks all that the catalog names, and explains the others."""
    context, state = collection.context, collection.state
    if not state.is_whole:
        context.claims.tree(directory)
        return
    context.claims.directory(directory)
    for key, value in state.scan("indexes", number(collection.record.id)):
        try:
            record = IndexRecord.decode(value)
        except (ValueError, TypeError) as error:
            message = f"table 'indexes', key {key.hex()}: the record cannot be read: {error}"
            context.add(Finding(kind="catalog_entry", message=message, collection=collection.record.name))
            continue
        _IndexCheck(collection, key, record, f"{directory}/{record.directory}").run()
    found = context.data / directory
    for path in found.iterdir() if found.is_dir() else ():
        context.claims.explain(f"{directory}/{path.name}", "it is an index that was replaced or never finished")


@dataclass(frozen=True, slots=True)
class _IndexCheck:
    """One index, in ``directory`` below the data directory."""

    collection: CheckedCollection
    key: bytes
    record: IndexRecord
    directory: str

    def run(self) -> None:
        claims = self.collection.context.claims
        claims.directory(self.directory)
        for name in self.record.files:
            claims.file(f"{self.directory}/{name}")
        self._check_parts()
        manifest = self._manifest()
        if manifest is None:
            return
        for name, size_bytes in self.record.files.items():
            if name != MANIFEST:
                self._check_file(name, size_bytes, manifest.get("files", {}).get(name, {}))

    def _check_parts(self) -> None:
        """That it speaks of rows that there are."""
        for part in self.record.covered:
            key = number(self.collection.record.id, part.checkpoint_id)
            value = self.collection.state.get("checkpoints", key)
            counters = CheckpointCounters.decode(self.collection.state.get("checkpoint_counters", key) or b"{}")
            if value is None or CheckpointRecord.decode(value).generation != part.generation:
                self._add("it is of another generation of its checkpoint", self.directory)
            elif counters.row_count < part.row_count:
                self._add(f"it covers {part.row_count} rows of {counters.row_count}", self.directory)

    def _manifest(self) -> dict[str, Any] | None:
        path = f"{self.directory}/{MANIFEST}"
        try:
            with self.collection.context.open(path) as file:
                data = file.read(0, file.size_bytes)
        except (OSError, ShortRead) as error:
            self._add(f"its manifest cannot be read: {error}", path)
            return None
        if crc32c(data) != self.record.checksum:
            self._add("its manifest is not the one that the catalog lists", path)
            return None
        return dict(json.loads(data))

    def _check_file(self, name: str, size_bytes: int, entry: dict[str, int]) -> None:
        path = f"{self.directory}/{name}"
        try:
            with self.collection.context.open(path) as file:
                if file.size_bytes != size_bytes:
                    self._add(f"the file has {file.size_bytes} bytes, {size_bytes} are right", path)
                elif file.checksum(0, size_bytes) != entry.get("checksum"):
                    self._add("it does not match its checksum", path)
        except (OSError, ShortRead) as error:
            self._add(f"it cannot be read: {error}", path)

    def _add(self, trouble: str, path: str) -> None:
        context = self.collection.context
        context.add(
            Finding(
                kind="derived",
                message=f"index {self.record.id}: {trouble}; queries search exactly, build it again",
                path=path,
                collection=self.collection.record.name,
                repair=forget_derived(context.data, "indexes", self.key, self.directory, context.aside),
                repair_note="take it out of the catalog",
            )
        )
