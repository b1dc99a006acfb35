"""The repairs: each does one thing that loses no committed row, durably, and may be done again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from covector_server.check.findings import Repair
from covector_server.metadata.catalog import Table, number
from covector_server.metadata.lmdb_catalog import LmdbCatalog
from covector_server.metadata.records import CheckpointCounters
from covector_server.storage.disk import Disk
from covector_server.storage.layout import ArrayLayout

_PIECE_BYTES = 1 << 20


def zero_range(path: Path, start: int, stop: int) -> Repair:
    """Writes zeros over bytes of a file that are not live."""

    def repair(disk: Disk) -> None:
        with _opened(disk, path) as descriptor:
            for offset in range(start, stop, _PIECE_BYTES):
                disk.write(descriptor, bytes(min(_PIECE_BYTES, stop - offset)), offset)
            disk.sync(descriptor)

    return repair


def write_index(path: Path, layout: ArrayLayout, chunk_count: int) -> Repair:
    """Writes the index of a shard: it follows from the layout."""

    def repair(disk: Disk) -> None:
        with _opened(disk, path) as descriptor:
            disk.write(descriptor, layout.index(chunk_count), layout.index_offset_bytes)
            disk.sync(descriptor)

    return repair


def write_document(directory: Path, layout: ArrayLayout, row_count: int) -> Repair:
    """Writes ``zarr.json`` from what the catalog says of the array."""

    def repair(disk: Disk) -> None:
        disk.replace_json(directory / "zarr.json", layout.zarr_document(row_count))

    return repair


def write_documents(arrays: Mapping[Path, ArrayLayout], row_count: int) -> Repair:
    """Writes ``zarr.json`` of several arrays, layouts by directory."""

    def repair(disk: Disk) -> None:
        for directory, layout in arrays.items():
            write_document(directory, layout, row_count)(disk)

    return repair


def finish_seals(
    data: Path, key: tuple[int, int], counters: CheckpointCounters, arrays: Mapping[Path, ArrayLayout]
) -> Repair:
    """Seals the full shards of a checkpoint, as the server does when it opens. ``arrays``: layouts by directory."""

    def repair(disk: Disk) -> None:
        full = 0
        for directory, layout in arrays.items():
            full = counters.row_count // layout.shard_rows
            for shard in range(counters.sealed_shard_count, full):
                write_index(directory / layout.shard_file(shard), layout, layout.chunks_per_shard)(disk)
            write_document(directory, layout, full * layout.shard_rows)(disk)
        catalog = LmdbCatalog(data / "catalog.lmdb")
        try:
            with catalog.write() as writer:
                sealed = replace(counters, sealed_shard_count=full)
                writer.put("checkpoint_counters", number(*key), sealed.encode())
        finally:
            catalog.close()

    return repair


def forget_derived(data: Path, table: Table, key: bytes, path: str, lost_and_found: str) -> Repair:
    """Takes a derived file out of the catalog and sets it aside; what it was derived from is untouched."""

    def repair(disk: Disk) -> None:
        catalog = LmdbCatalog(data / "catalog.lmdb")
        try:
            with catalog.write() as writer:
                writer.delete(table, key)
        finally:
            catalog.close()
        if (data / path).exists():
            set_aside(data, path, lost_and_found)(disk)

    return repair


def set_aside(data: Path, path: str, lost_and_found: str) -> Repair:
    """Moves a file or directory below ``lost+found``; nothing is deleted."""

    def repair(disk: Disk) -> None:
        target = data / lost_and_found / path
        disk.make_directories(target.parent)
        (data / path).rename(target)
        disk.sync_directory(target.parent)
        disk.sync_directory((data / path).parent)

    return repair


@contextmanager
def _opened(disk: Disk, path: Path) -> Iterator[int]:
    descriptor = disk.open(path, 0)
    try:
        yield descriptor
    finally:
        disk.close(descriptor)
