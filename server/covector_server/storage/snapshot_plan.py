"""Which files one committed state of a store consists of, and what each of them may still become.

The plan is read from a *copy* of the catalog, never from the live one, so it speaks of one moment. What it names only
grows after that moment: sealed shards, full files of the row log and derived runs never change any more and may be
shared by hard link; of a shard or a log file that is still filled, the bytes committed then stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from covector.types import Space
from covector_server.metadata.catalog import Reader, Table, number, numbers
from covector_server.metadata.records import (
    BlockRecord,
    CheckpointCounters,
    CheckpointRecord,
    CollectionCounters,
    CollectionRecord,
    FitRecord,
    IndexRecord,
)
from covector_server.storage.drafts import directories_of
from covector_server.storage.layout import ArrayLayout, checkpoint_layouts

_DERIVED: tuple[tuple[Table, str, str], ...] = (("key_runs", "keys", "run"), ("postings", "postings", "postings"))


@dataclass(frozen=True, slots=True)
class Finished:
    """A file that never changes any more. ``size_bytes``: at least so many are needed."""

    path: PurePosixPath
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Growing:
    """A file of which the first ``size_bytes`` are committed."""

    path: PurePosixPath
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Tail:
    """A shard without its mark of being sealed. ``row_count`` rows of it are committed; ``checksum`` is the CRC-32C of
    those in its last, partial chunk (0 when there is none)."""

    path: PurePosixPath
    layout: ArrayLayout
    row_count: int
    checksum: int

    @property
    def size_bytes(self) -> int:
        """Bytes from its start to the end of the last committed row, checksums of full chunks included."""
        return self.layout.row_offset_bytes(self.row_count)


@dataclass(frozen=True, slots=True)
class Shape:
    """The ``zarr.json`` of an array in which ``row_count`` rows are committed."""

    path: PurePosixPath
    row_count: int
    size_bytes: int = 0  # next to nothing


PlannedFile = Finished | Growing | Tail | Shape


@dataclass(frozen=True, slots=True)
class PlannedCollection:
    """A collection as it was. ``row_id_count``: row ids given out, those of deleted rows included."""

    id: int
    name: str
    row_id_count: int
    row_count: int


@dataclass(slots=True)
class Plan:
    """What a copy of the store consists of, besides ``catalog.lmdb``. Paths are relative to the data directory."""

    collections: list[PlannedCollection] = field(default_factory=list)
    directories: list[PurePosixPath] = field(default_factory=list)
    files: list[PlannedFile] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, shared ones included."""
        return sum(file.size_bytes for file in self.files)

    @property
    def copied_bytes(self) -> int:
        """Bytes that are copied even where files can be shared."""
        return sum(file.size_bytes for file in self.files if not isinstance(file, Finished))


def plan_of(reader: Reader) -> Plan:
    """The plan of the state that ``reader`` sees."""
    plan = Plan(directories=[PurePosixPath("collections")])
    for _, value in reader.scan("collections"):
        _plan_collection(reader, CollectionRecord.decode(value), plan)
    return plan


def _plan_collection(reader: Reader, collection: CollectionRecord, plan: Plan) -> None:
    id_, directory = number(collection.id), PurePosixPath("collections", str(collection.id))
    counters = CollectionCounters.decode(reader.get("collection_counters", id_) or b"{}")
    deleted_count = sum(len(offsets) // 2 for _, offsets in reader.scan("deleted_rows", id_))  # two bytes each
    row_count = counters.next_row_id - deleted_count
    plan.collections.append(PlannedCollection(collection.id, collection.name, counters.next_row_id, row_count))
    plan.directories += [directory, directory / "rows"]
    plan.files += _row_log_files(reader, id_, counters, directory / "rows")
    for table, name, suffix in _DERIVED:
        found = [(numbers(key)[1], json.loads(value)) for key, value in reader.scan(table, id_)]
        plan.directories += [directory / name] if found else []
        plan.files += [
            Finished(directory / name / f"{file_number:08d}.{suffix}", record.get("size_bytes", 1))
            for file_number, record in found
        ]
    indexes = [IndexRecord.decode(value) for _, value in reader.scan("indexes", id_)]
    fits = [FitRecord.decode(value) for _, value in reader.scan("fits", id_)]
    _plan_listed(directory / "indexes", [(one.directory, one.files) for one in indexes], plan)
    _plan_listed(directory / "fits", [(one.directory, one.files) for fit in fits for one in fit.stored], plan)
    dim = Space.from_json(collection.space_json).dim
    for key, value in reader.scan("checkpoints", id_):
        checkpoint = CheckpointRecord.decode(value)
        checkpoint_counters = CheckpointCounters.decode(reader.get("checkpoint_counters", key) or b"{}")
        _plan_checkpoint(checkpoint, checkpoint_counters, dim, directory, plan)


def _plan_listed(directory: PurePosixPath, listed: list[tuple[str, dict[str, int]]], plan: Plan) -> None:
    """The files of an index or a fit never change. ``listed``: directories and the sizes of their files."""
    plan.directories += [directory] if listed else []
    for name, files in listed:
        plan.directories.append(directory / name)
        plan.directories += [directory / name / below for below in sorted(directories_of(files) - {"."})]
        plan.files += [Finished(directory / name / file, size_bytes) for file, size_bytes in files.items()]


def _row_log_files(
    reader: Reader, id_: bytes, counters: CollectionCounters, directory: PurePosixPath
) -> Iterator[PlannedFile]:
    """A file is full once the committed end of the log lies in a later one."""
    ends: dict[int, int] = {}
    for _, value in reader.scan("row_blocks", id_):
        block = BlockRecord.decode(value)
        ends[block.file] = max(ends.get(block.file, 0), block.offset_bytes + block.size_bytes)
    for file, end_bytes in sorted(ends.items()):
        path = directory / f"{file:08d}.blocks"
        yield Finished(path, end_bytes) if file < counters.log_file else Growing(path, end_bytes)


def _plan_checkpoint(
    record: CheckpointRecord, counters: CheckpointCounters, dim: int, directory: PurePosixPath, plan: Plan
) -> None:
    checkpoint = directory / str(record.id)
    generation = checkpoint / str(record.generation)
    plan.directories += [checkpoint, generation]
    for layout in checkpoint_layouts(dim, record.chunk_rows, record.shard_rows):
        array = generation / layout.name
        plan.directories += [array, array / "c"]
        plan.files.append(Shape(array / "zarr.json", counters.row_count))
        for shard in range(-(-counters.row_count // record.shard_rows)):
            path = array / layout.shard_file(shard)
            plan.directories += [path.parent] if path.parent != array / "c" else []
            rows = min(counters.row_count - shard * record.shard_rows, record.shard_rows)
            if shard < counters.sealed_shard_count:
                plan.files.append(Finished(path, layout.shard_bytes))
            else:
                checksum = counters.checksums.get(layout.name, 0) if rows < record.shard_rows else 0
                plan.files.append(Tail(path, layout, rows, checksum))
