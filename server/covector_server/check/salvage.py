"""What can be said of files when the catalog cannot be believed: they are held against what they say themselves.

An array's ``zarr.json`` gives its layout and a shard's index its chunks, each with a checksum behind it; the row log is
searched for headers of blocks. So damage to files is found all the same. How many rows were committed is not known, nor
which of them were replaced or deleted.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from crc32c import crc32c

from covector.errors import Corrupt
from covector_server.check.catalog_state import CatalogState
from covector_server.check.context import Context
from covector_server.check.findings import Finding
from covector_server.check.reading import CheckedFile, ShortRead
from covector_server.check.row_keys import READ_ERRORS
from covector_server.metadata.catalog import number
from covector_server.storage.layout import CHECKSUM_BYTES, MISSING, ArrayLayout
from covector_server.storage.row_log import Block

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
        """An array: every chunk that an index names, or that fills its place in a shard without an index."""
        try:
            layout = layout_of(json.loads((self._context.data / self._directory / "zarr.json").read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, IndexError, ZeroDivisionError) as error:
            self._bad("zarr_json", f"it cannot be read: {error!r}", f"{self._directory}/zarr.json")
            return
        for path in sorted((self._context.data / self._directory / "c").rglob("*")):
            if path.is_file():
                self._shard(str(path.relative_to(self._context.data)), layout)

    def _shard(self, path: str, layout: ArrayLayout) -> None:
        try:
            with self._context.open(path) as file:
                if file.size_bytes != layout.shard_bytes:
                    self._bad("size", f"the file has {file.size_bytes} bytes, {layout.shard_bytes} are right", path)
                bad = [chunk for chunk in _named_chunks(file, layout) if not _is_sound(file, layout, chunk)]
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
                Block.decode(data[place : place + size])
            except (*READ_ERRORS, Corrupt, zstandard.ZstdError) as error:
                self._bad("row_block", f"at {place}: keys, texts and metadata of its rows: {error}", path)
            place = end = place + size
        self._gap(path, data, end, len(data))

    def _gap(self, path: str, data: bytes, start: int, stop: int) -> None:
        if data[start:stop].strip(b"\0"):
            self._bad("row_block", f"bytes {start} to {stop - 1} are no block whose header can be read", path)

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


def _named_chunks(file: CheckedFile, layout: ArrayLayout) -> list[int]:
    """The chunks in a shard's index; where it is all-missing, those whose checksum says that they were filled."""
    size = 16 * layout.chunks_per_shard
    index = np.frombuffer(file.read(layout.index_offset_bytes, size), "<u8").reshape(-1, 2)
    named = np.flatnonzero(index[:, 0] != MISSING)
    if len(named):
        return [int(chunk) for chunk in named]
    checksums = (file.read((chunk + 1) * layout.stride_bytes - CHECKSUM_BYTES, 4) for chunk in range(len(index)))
    return [chunk for chunk, checksum in enumerate(checksums) if checksum != bytes(4)]


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
