"""Checking approximate search structures: each directory that the catalog names, as ``check.listed_directories``. A
damaged index is taken out by a repair: queries search exactly, and it can be built again."""

from __future__ import annotations

from covector_server.check.checked_collection import CheckedCollection
from covector_server.check.listed_directories import DirectoryCheck, check_listed
from covector_server.metadata.records import IndexRecord


def check_indexes(collection: CheckedCollection, directory: str) -> None:
    """Checks all that the catalog names, and explains the others."""

    def check(key: bytes, record: IndexRecord) -> None:
        one = DirectoryCheck(
            collection=collection,
            directory=f"{directory}/{record.directory}",
            files=record.files,
            checksum=record.checksum,
            what=f"index {record.id}",
            entry=("indexes", key),
            consequence="queries search exactly, build it again",
        )
        for part in record.covered:
            one.check_rows(part.checkpoint_id, part.generation, part.row_count)
        one.run()

    check_listed(collection, directory, "indexes", IndexRecord, check)
