"""Checking fits: each directory that the catalog names, as ``check.listed_directories``. A damaged fit is taken out by
a repair: queries that name it are refused until then, and it can be learnt again."""

from __future__ import annotations

from covector_server.check.checked_collection import CheckedCollection
from covector_server.check.listed_directories import DirectoryCheck, check_listed
from covector_server.metadata.records import FilesRecord, FitRecord


def check_fits(collection: CheckedCollection, directory: str) -> None:
    """Checks all that the catalog names, and explains the others."""

    def check(key: bytes, record: FitRecord) -> None:
        for part in record.covered:
            one = _directory_check(collection, key, record, part.stored, directory)
            if record.is_finished:
                one.check_rows(part.checkpoint_id, part.generation, part.row_count)
            one.run()
        if record.state is not None:
            _directory_check(collection, key, record, FilesRecord(**record.state), directory).run()

    check_listed(collection, directory, "fits", FitRecord, check)


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
