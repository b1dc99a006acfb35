"""What can be said of files when the catalog cannot be believed: they are held against what they say themselves.

An array's ``zarr.json`` gives its layout and the rows that were published, each chunk has its checksum behind it, and
the row log is searched for headers of blocks. So damage to files is found all the same, but for the last chunk of a
tail. How many rows were committed is not known, nor which of them were replaced or deleted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from crc32c import crc32c

from covector.errors import Corrupt
from covector_server.check.blocks import open_block
from covector_server.check.catalog_state import CatalogState
from covector_server.check.context import Context
from covector_server.check.findings import Finding
from covector_server.check.reading import CheckedFile, ShortRead
from covector_server.metadata.catalog import number
from covector_server.storage.layout import CHECKSUM_BYTES, ArrayLayout

_MAGIC = b"CVRB"
_HEADER_BYTES, _SECTIONS_OFFSET, _SECTION_BYTES = 96, 28, 16  # of a block: see docs/design/002-row-log.md


def salvage_tree(context: Context, state: CatalogState, path: str) -> None:
    """Checks a directory that the damaged catalog does not name, as far as that goes."""
    collection = _collection_of(state, path)
    arrays = files = 0
    for directory, names, file_names in os.walk(context.data / path):
        names.sort()
        relative = str(Path(directory).relative_to(context.data))
        if "zarr.json" in file_names:
            _Salvage(context, collection, relative).array()
            names.clear()
            arrays += 1
            continue
        for name in sorted(file_names):
            if name.endswith(".blocks"):
                _Salvage(context, collection, relative).row_log(f"{relative}/{name}")
                files += 1
    message = (
        f"the catalog does not say whose this is; {arrays} arrays and {files} row-log files in it were checked alone"
    )
    context.add(Finding(kind="unclaimed", message=message, path=path, collection=collection))


class _Salvage:
    """Checks files by what they say themselves."""

    def __init__(self, context: Context, collection: str, directory: str) -> None:
        self._context = context
        self._collection = collection
        self._directory = directory

    def array(self) -> None:
        """An array: every chunk of the rows that ``zarr.json`` speaks of, and of others what can be judged."""
        try:
            document = json.loads((self._context.data / self._directory / "zarr.json").read_bytes())
            layout, row_count = layout_of(document), int(document["shape"][0])
        except (OSError, ValueError, KeyError, TypeError, IndexError, ZeroDivisionError) as error:
            self._bad("zarr_json", f"it cannot be read: {error!r}", f"{self._directory}/zarr.json")
            return
        root = self._context.data / self._directory
        for path in sorted((root / "c").rglob("*")):
            name = path.relative_to(root).parts[1]
            if path.is_file() and name.isdecimal():
                published_rows = row_count - int(name) * layout.shard_rows
                self._shard(str(path.relative_to(self._context.data)), layout, published_rows)

    def _shard(self, path: str, layout: ArrayLayout, published_rows: int) -> None:
        try:
            with self._context.open(path) as file:
                if file.size_bytes != layout.shard_bytes:
                    self._bad("size", f"the file has {file.size_bytes} bytes, {layout.shard_bytes} are right", path)
                chunks = _judged_chunks(file, layout, published_rows)
                bad = [chunk for chunk in chunks if not _is_sound(file, layout, chunk)]
        except (OSError, ShortRead) as error:
            self._bad("unreadable", f"the shard cannot be read: {error}", path)
            return
        for chunk in bad:
            rows = f"rows {chunk * layout.chunk_rows} to {(chunk + 1) * layout.chunk_rows - 1} of the shard"
            self._bad("chunk", f"{rows} do not match their checksum", path, layout.chunk_rows)

    def row_log(self, path: str) -> None:
        """A file of the row log: blocks are found by their headers, which have a checksum."""
        try:
            with self._context.open(path) as file:
                data = file.read(0, file.size_bytes)
        except (OSError, ShortRead) as error:
            self._bad("unreadable", f"the file cannot be read: {error}", path)
            return
        place = end = 0
        while (place := data.find(_MAGIC, place)) >= 0:
            size = _block_bytes(data[place : place + _HEADER_BYTES])
            if size is None:
                place += 1
                continue
            self._gap(path, data, end, place)
            try:
                open_block(data[place : place + size])
            except Corrupt as error:
                self._bad("row_block", f"at {place}: keys, texts and metadata of its rows: {error}", path)
            place = end = place + size
        self._gap(path, data, end, len(data))

    def _gap(self, path: str, data: bytes, start: int, stop: int) -> None:
        if data[start:stop].strip(b"\0"):
            self._bad(
                "row_block", f"bytes {start} to {stop - 1} are no block that can be read, or were never committed", path
            )

    def _bad(self, kind: str, message: str, path: str, row_count: int = 0) -> None:
        self._context.add(
            Finding(kind=kind, message=message, path=path, collection=self._collection, row_count=row_count)
        )


def layout_of(document: dict[str, Any]) -> ArrayLayout:
    """The layout that a ``zarr.json`` describes. Raises KeyError, TypeError, IndexError or ValueError."""
    shard_rows = int(document["chunk_grid"]["configuration"]["chunk_shape"][0])
    chunk_rows = int(document["codecs"][0]["configuration"]["chunk_shape"][0])
    items = tuple(int(size) for size in document["shape"][1:])
    dtype = np.dtype(document["data_type"]).newbyteorder("<").str
    if not 0 < chunk_rows <= shard_rows or shard_rows % chunk_rows or min(items, default=1) < 1:
        raise ValueError(f"{chunk_rows} rows a chunk, {shard_rows} rows a shard")
    return ArrayLayout("", dtype, items, chunk_rows, shard_rows)


def _judged_chunks(file: CheckedFile, layout: ArrayLayout, published_rows: int) -> Iterator[int]:
    """The chunks of a shard that must match their checksums. Of published rows, all. Of others, those that have a
    checksum, but for the last: it may be older than the rows, which came after an earlier publication."""
    if published_rows > 0:
        yield from range(-(-min(published_rows, layout.shard_rows) // layout.chunk_rows))
        return
    ends = ((chunk + 1) * layout.stride_bytes for chunk in range(layout.chunks_per_shard))
    filled = [chunk for chunk, end in enumerate(ends) if any(file.read(end - CHECKSUM_BYTES, CHECKSUM_BYTES))]
    yield from filled[:-1]


def _is_sound(file: CheckedFile, layout: ArrayLayout, chunk: int) -> bool:
    start = chunk * layout.stride_bytes
    checksum = file.checksum(start, layout.chunk_bytes)
    return checksum == int.from_bytes(file.read(start + layout.chunk_bytes, CHECKSUM_BYTES), "little")


def _block_bytes(header: bytes) -> int | None:
    """The size of the block that opens with ``header``; None if that is no sound header."""
    body, checksum = header[:-4], header[-4:]
    if len(header) < _HEADER_BYTES or crc32c(body).to_bytes(4, "little") != checksum:
        return None
    stored = (
        int.from_bytes(body[offset + 4 : offset + 8], "little")
        for offset in range(_SECTIONS_OFFSET, len(body), _SECTION_BYTES)
    )
    return _HEADER_BYTES + sum(stored)


def _collection_of(state: CatalogState, path: str) -> str:
    """The name of the collection that a path lies in, or ``#id``."""
    parts = path.split("/")
    if len(parts) < 2 or parts[0] != "collections" or not parts[1].isdecimal():
        return ""
    return state.collection_name("collections", number(int(parts[1])))
