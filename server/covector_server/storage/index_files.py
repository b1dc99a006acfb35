"""The files of indexes: directories below ``indexes/`` of a collection, made as ``storage.drafts`` says, which the
catalog's table of that name lists."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from covector.errors import Conflict, Corrupt, LimitExceeded
from covector_server.metadata.catalog import Catalog, Reader, Writer, number
from covector_server.metadata.records import CheckpointRecord, IndexRecord
from covector_server.storage import drafts
from covector_server.storage.disk import Disk
from covector_server.storage.drafts import MANIFEST, Check, Draft, DraftFile, Listed, Moved, map_draft
from covector_server.storage.drafts import MappedFiles as IndexFiles
from covector_server.storage.fit_files import fit_key

INDEXES = "indexes"
REMEDY = "build the index again"
DECODED = 1024  # records that are kept as values

__all__ = ["INDEXES", "MANIFEST", "Check", "Draft", "DraftFile", "IndexFiles", "Moved", "map_draft"]

# Records


def listed(reader: Reader, collection_id: int) -> list[IndexRecord]:
    """The indexes of a collection. Raises Corrupt for a damaged entry."""
    return [_decoded(value) for _, value in reader.scan("indexes", number(collection_id))]


@lru_cache(maxsize=DECODED)
def _decoded(value: bytes) -> IndexRecord:
    """The record in a value: every query asks for the same ones."""
    return IndexRecord.decode(value)


def put_index(writer: Writer, collection_id: int, record: IndexRecord) -> None:
    """Lists an index, or what is new of it."""
    writer.put("indexes", index_key(collection_id, record.id), record.encode())


def list_index(writer: Writer, collection_id: int, record: IndexRecord, indexes_max: int) -> list[IndexRecord]:
    """Lists a new index in the place of those that it replaces, which are returned. Raises Moved if a checkpoint has
    another generation by now, Conflict if it or the collection is gone, LimitExceeded."""
    for part in record.covered:
        value = writer.get("checkpoints", number(collection_id, part.checkpoint_id))
        if value is None or writer.get("collections", number(collection_id)) is None:
            raise Conflict("the collection was deleted while the index was built")
        if CheckpointRecord.decode(value).generation != part.generation:
            raise Moved("the checkpoint was compacted while the index was built; build it again")
    if not _has_fit(writer, collection_id, record):
        raise Conflict(f"fit {record.fit} was dropped or replaced while the index was built; build it again")
    others = listed(writer, collection_id)
    replaced = [other for other in others if record.replaces(other)]
    if len(others) - len(replaced) >= indexes_max:
        raise LimitExceeded(
            f"the collection has {len(others)} indexes: the limit is indexes={indexes_max}; drop one first",
            limit="indexes",
            value=len(others) + 1,
        )
    for other in replaced:
        remove_index(writer, collection_id, other.id)
    put_index(writer, collection_id, record)
    return replaced


def remove_index(writer: Writer, collection_id: int, index_id: str) -> None:
    """Takes an index off the list."""
    writer.delete("indexes", index_key(collection_id, index_id))


def remove_fitless(writer: Writer, collection_id: int) -> list[IndexRecord]:
    """Takes indexes whose fit is not listed any more off the list, and returns them: an index serves the queries of its
    fit alone, so it goes in the transaction in which that goes."""
    gone = fitless(writer, collection_id)
    for record in gone:
        remove_index(writer, collection_id, record.id)
    return gone


def fitless(reader: Reader, collection_id: int) -> list[IndexRecord]:
    """Indexes whose fit is not listed; none where the list is damaged."""
    try:
        return [one for one in listed(reader, collection_id) if not _has_fit(reader, collection_id, one)]
    except Corrupt:
        return []


def _has_fit(reader: Reader, collection_id: int, record: IndexRecord) -> bool:
    return not record.fit or reader.get("fits", fit_key(collection_id, record.fit)) is not None


def index_key(collection_id: int, index_id: str) -> bytes:
    """The key of an index in its table."""
    return number(collection_id) + index_id.encode()


# Files


@contextmanager
def drafting(collection_directory: Path, kind: str, disk: Disk) -> Iterator[Draft]:
    """A new directory for an index of this kind, as ``drafts.drafting``."""
    with drafts.drafting(collection_directory / INDEXES, kind, disk, "index.created") as draft:
        yield draft


def remove_unlisted(collection_directory: Path, collection_id: int, catalog: Catalog, disk: Disk) -> int:
    """Removes directories of indexes that are orphans, as ``drafts.remove_unlisted``."""
    return drafts.remove_unlisted(collection_directory / INDEXES, _listing(collection_id, catalog), disk)


def unlisted(collection_directory: Path, collection_id: int, catalog: Catalog) -> list[Path]:
    """Directories of indexes that the catalog does not list, some of which may be being filled. Raises Corrupt."""
    return drafts.unlisted(collection_directory / INDEXES, _listing(collection_id, catalog))


def open_files(directory: Path, record: IndexRecord, check: Check) -> IndexFiles:
    """Maps and verifies the files of an index, as ``drafts.open_files``."""
    return drafts.open_files(directory, record.checksum, REMEDY, check)


def _listing(collection_id: int, catalog: Catalog) -> Listed:
    def names() -> set[str]:
        with catalog.read() as reader:
            return {record.directory for record in listed(reader, collection_id)}

    return names
