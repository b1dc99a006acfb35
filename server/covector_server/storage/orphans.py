"""What a crash left of a compaction, an index build or a fit, removed when the store is opened: generations, key runs,
files of the row log, indexes and parts of fits that the catalog does not name."""

from __future__ import annotations

from covector_server.metadata.catalog import number, numbers
from covector_server.metadata.records import BlockRecord
from covector_server.storage.collection import StoredCollection
from covector_server.storage.disk import Disk
from covector_server.storage.fit_files import remove_unlisted_fits
from covector_server.storage.index_files import fitless, remove_fitless, remove_unlisted


def remove_orphans(collection: StoredCollection, disk: Disk) -> None:
    """Call it when the collection is loaded, before anything reads or writes it."""
    _remove_generations(collection, disk)
    _remove_fitless_indexes(collection)
    remove_unlisted(collection.directory, collection.record.id, collection.catalog, disk)
    remove_unlisted_fits(collection.directory, collection.record.id, collection.catalog, disk)
    collection.keys.remove_orphans()
    _remove_uncommitted_logs(collection, disk)
    forget_logs(collection, empty_logs(collection, retired_logs(collection)))


def _remove_fitless_indexes(collection: StoredCollection) -> None:
    """Indexes whose fit a repair took out."""
    with collection.catalog.read() as reader:
        found = fitless(reader, collection.record.id)
    if found:
        with collection.catalog.write() as writer:
            remove_fitless(writer, collection.record.id)


def retired_logs(collection: StoredCollection) -> list[int]:
    """The files of the row log that a compaction has begun to empty."""
    with collection.catalog.read() as reader:
        return [numbers(key)[1] for key, _ in reader.scan("retired_logs", number(collection.record.id))]


def empty_logs(collection: StoredCollection, files: list[int]) -> list[int]:
    """Those of some files of the row log, before the one that is appended to, in which no block lies any more."""
    if not files:
        return []
    with collection.catalog.read() as reader:
        records = reader.scan("row_blocks", number(collection.record.id))
        named = {BlockRecord.decode(value).file for _, value in records}
    return [file for file in files if file not in named]


def forget_logs(collection: StoredCollection, files: list[int]) -> None:
    """Removes empty files of the row log, durably, and then what says that they are being emptied. On the commit
    thread, where no reader is left that needs them."""
    for file in files:
        collection.log.close_file(file)
        collection.log.remove_file(file)
    if files:
        with collection.catalog.write() as writer:
            for file in files:
                writer.delete("retired_logs", number(collection.record.id, file))


def _remove_uncommitted_logs(collection: StoredCollection, disk: Disk) -> None:
    """Files past the committed end of the row log: of a group or a move that was not committed."""
    for path in (collection.directory / "rows").glob("*.blocks"):
        if path.stem.isdecimal() and int(path.stem) > collection.counters.log_file:
            disk.remove_file(path)


def _remove_generations(collection: StoredCollection, disk: Disk) -> None:
    for checkpoint in collection.checkpoints.values():
        for directory in checkpoint.directory.parent.iterdir():
            if directory.name.isdecimal() and directory != checkpoint.directory:
                disk.remove_tree(directory)
