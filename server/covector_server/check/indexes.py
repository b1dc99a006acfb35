"""Checking approximate search structures: each directory that the catalog names, as ``check.listed_directories``. A
damaged index is taken out by a repair: queries search exactly, and it can be built again."""

from __future__ import annotations

from covector_server.check.checked_collection import CheckedCollection
from covector_server.check.findings import Finding
from covector_server.check.listed_directories import DirectoryCheck
from covector_server.metadata.catalog import number
from covector_server.metadata.records import IndexRecord


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
        _check(collection, key, record, f"{directory}/{record.directory}")
    found = context.data / directory
    for path in found.iterdir() if found.is_dir() else ():
        context.claims.explain(f"{directory}/{path.name}", "it is an index that was replaced or never finished")


def _check(collection: CheckedCollection, key: bytes, record: IndexRecord, directory: str) -> None:
    check = DirectoryCheck(
        collection=collection,
        directory=directory,
        files=record.files,
        checksum=record.checksum,
        what=f"index {record.id}",
        entry=("indexes", key),
        consequence="queries search exactly, build it again",
    )
    for part in record.covered:
        check.check_rows(part.checkpoint_id, part.generation, part.row_count)
    check.run()
