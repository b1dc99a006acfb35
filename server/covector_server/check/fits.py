"""Checking fits: each directory that the catalog names, as ``check.listed_directories``. A damaged fit is taken out by
a repair: queries that name it are refused until then, and it can be learnt again."""

from __future__ import annotations

from covector_server.check.checked_collection import CheckedCollection
from covector_server.check.findings import Finding
from covector_server.check.listed_directories import DirectoryCheck
from covector_server.metadata.catalog import number
from covector_server.metadata.records import FilesRecord, FitRecord


def check_fits(collection: CheckedCollection, directory: str) -> None:
    """Checks all that the catalog names, and explains the others."""
    context, state = collection.context, collection.state
    if not state.is_whole:
        context.claims.tree(directory)
        return
    context.claims.directory(directory)
    for key, value in state.scan("fits", number(collection.record.id)):
        try:
            _check(collection, key, FitRecord.decode(value), directory)
        except (ValueError, TypeError) as error:
            message = f"table 'fits', key {key.hex()}: the record cannot be read: {error}"
            context.add(Finding(kind="catalog_entry", message=message, collection=collection.record.name))
    found = context.data / directory
    for path in found.iterdir() if found.is_dir() else ():
        context.claims.explain(f"{directory}/{path.name}", "it is of a fit that was replaced or never finished")


def _check(collection: CheckedCollection, key: bytes, record: FitRecord, directory: str) -> None:
    for part in record.covered:
        check = _directory_check(collection, key, record, part.stored, directory)
        if record.is_finished:
            check.check_rows(part.checkpoint_id, part.generation, part.row_count)
        check.run()
    if record.state is not None:
        _directory_check(collection, key, record, FilesRecord(**record.state), directory).run()


def _directory_check(
    collection: CheckedCollection, key: bytes, record: FitRecord, stored: FilesRecord, directory: str
) -> DirectoryCheck:
    return DirectoryCheck(
        collection=collection,
        directory=f"{directory}/{stored.directory}",
        files=stored.files,
        checksum=stored.checksum,
        what=f"fit {record.id}",
        entry=("fits", key),
        consequence="queries cannot use it, fit again",
    )
