"""One Zarr array of rows, written so that each row is written once.

The shard that is still being filled, the tail, has its final size from the start: rows go to their final place, a
chunk's checksum follows when the chunk is full, and sealing writes the index that was all-missing until then. The
checksum of the chunk in progress is carried along, over the bytes as they were received; it is committed with the row
count, so a chunk's checksum never comes from reading back what the disk made of it.

``ArrayState`` says how far the array is committed. Nothing here changes it: ``write`` returns the next one, and the
catalog decides whether it holds. Bytes past it are as good as absent, and are written over.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from crc32c import crc32c

from covector.errors import Corrupt, Unavailable
from covector_server.kernels.rows import joined_checksum
from covector_server.limits import Limits
from covector_server.storage.contract import ArrayState, BadRows, Piece, Places, Rows, Span
from covector_server.storage.disk import Disk, SyncFailed
from covector_server.storage.layout import CHECKSUM_BYTES, ArrayLayout
from covector_server.storage.segment import MappedShard
from covector_server.storage.shard_cache import ShardCache
from covector_server.storage.syncs import Syncs

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_COPIED_BYTES = 8 << 20  # at once


class ZarrArray:
    """The array in ``directory``. Writing belongs to one thread; shards may be read by any."""

    def __init__(self, directory: Path, layout: ArrayLayout, disk: Disk, shards: ShardCache | None = None) -> None:
        self.directory = directory
        self.layout = layout
        self._disk = disk
        self._descriptors: dict[int, int] = {}  # shard -> open file, of the thread that writes
        self._shards = shards or ShardCache(Limits().mapped_shards)
        self._asked: dict[int, Path] = {}  # shard -> path, of those that were asked for
        self._published: int | None = None  # the shape in zarr.json, once read

    def create(self) -> None:
        """Makes the empty array, durably."""
        self._disk.make_directories(self.shard_path(0).parent if self.layout.item_shape else self.directory / "c")
        self._disk.replace_json(self.directory / "zarr.json", self.layout.zarr_document(0))
        self._published = 0

    def write(self, state: ArrayState, pieces: Sequence[Piece], syncs: Syncs) -> ArrayState:
        """Writes rows after those of ``state``, returns the state with them. Not durable before ``syncs`` are done."""
        parts: list[bytes | memoryview] = []
        start, begun = state.row_count, state.row_count
        for piece in pieces:
            for rows in self._cut(piece, state.row_count):
                if begun // self.layout.shard_rows != state.row_count // self.layout.shard_rows:
                    self._write_parts(begun, parts, syncs)
                    parts, begun = [], state.row_count
                state = self._add(parts, state, rows)
        if state.row_count > start:
            self._write_parts(begun, parts, syncs)
        return state

    def close_after(self, row_count: int) -> None:
        """Closes the files of shards that hold nothing but rows past ``row_count``: their group failed."""
        for shard in [shard for shard in self._descriptors if shard * self.layout.shard_rows >= row_count]:
            self._disk.close(self._descriptors.pop(shard))

    def put_chunk(self, shard: int, chunk: int, data: bytes, checksum: int | None, syncs: Syncs) -> None:
        """Writes a chunk of a shard from its first row on; ``checksum``: that of a whole one. For whoever makes an
        array out of another: the state is theirs to know. Not durable before ``syncs`` are done."""
        descriptor = self._open(shard, syncs)
        self._write_piece(descriptor, chunk * self.layout.stride_bytes, data, checksum)
        syncs.add_file(descriptor)

    def link_shard(self, shard: int, source: Path, syncs: Syncs) -> None:
        """Takes over a sealed shard of another array, which neither of the two will ever change; as a copy where the
        file system knows no links."""
        path = self.shard_path(shard)
        if self.layout.item_shape:
            path.parent.mkdir(exist_ok=True)
        try:
            self._disk.link(source, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._copy_file(source, path)
        self._add_directories(path, syncs)

    def seal(self, shard: int) -> None:
        """Completes a full shard, all of it committed: its index, durably. Doing it again changes nothing. May run
        beside ``write``, which has done with that shard."""
        self._write_index(shard, self.layout.chunks_per_shard)
        written = self._descriptors.pop(shard, None)
        if written is not None:
            self._disk.close(written)

    def complete_tail(self, state: ArrayState) -> None:
        """Pads the last chunk of ``state`` and writes the partial shard's index, durably: then ``set_published`` may
        speak of all rows."""
        layout = self.layout
        shard, row = divmod(state.row_count, layout.shard_rows)
        if not row:
            return
        chunk, row_in_chunk = divmod(row, layout.chunk_rows)
        if row_in_chunk:
            padding = bytes((layout.chunk_rows - row_in_chunk) * layout.row_bytes)
            with self._disk.opened(self.shard_path(shard), layout.shard_bytes) as descriptor:
                self._write_piece(descriptor, layout.row_offset_bytes(row), padding, crc32c(padding, state.checksum))
        self._write_index(shard, chunk + (row_in_chunk > 0))

    def published_row_count(self) -> int:
        """Rows that Zarr tools can read now."""
        if self._published is None:
            self._published = int(self._document()["shape"][0])
        return self._published

    def set_published(self, row_count: int) -> None:
        """Sets the shape in ``zarr.json``, durably."""
        document = self._document()
        document["shape"][0] = row_count
        self._published = max(self.published_row_count(), row_count)  # should it fail, this is the safe side
        self._disk.replace_json(self.directory / "zarr.json", document)
        self._published = row_count

    def read(self, start: int, stop: int, row_count: int) -> Rows:
        """Rows [start, stop), which must lie in one chunk, as a view of the mapped file.

        row_count: committed rows; a chunk that they fill is checked on its first touch. Raises BadRows if it is bad.
        """
        shard, row = divmod(start, self.layout.shard_rows)
        complete_chunks = (row_count - shard * self.layout.shard_rows) // self.layout.chunk_rows
        return self._map(shard).rows(row, row + stop - start, complete_chunks)

    def span(self, start: int, stop: int, row_count: int, wanted: Places | None = None) -> Span:
        """Rows [start, stop) of one shard where they lie; the chunks that the committed rows fill are checked on their
        first touch."""
        shard, row = divmod(start, self.layout.shard_rows)
        complete_chunks = (row_count - shard * self.layout.shard_rows) // self.layout.chunk_rows
        if wanted is not None:
            wanted = (wanted - (start - row)) // self.layout.chunk_rows
        return self._map(shard).span(row, row + stop - start, complete_chunks, wanted)

    def prefetch(self, start: int, stop: int) -> bool:
        """Begins to read rows [start, stop) of one shard, if some are not in memory; returns whether."""
        shard, row = divmod(start, self.layout.shard_rows)
        with suppress(BadRows, Unavailable):  # who reads the rows will say so
            return self._map(shard).prefetch(row, row + stop - start)
        return False

    def checksum_of_tail(self, row_count: int) -> int:
        """CRC-32C of the rows of the last, partial chunk as they are on disk now."""
        shard, row = divmod(row_count, self.layout.shard_rows)
        row_in_chunk = row % self.layout.chunk_rows
        if not row_in_chunk:
            return 0
        with self.shard_path(shard).open("rb") as file:
            file.seek(self.layout.row_offset_bytes(row - row_in_chunk))
            return int(crc32c(file.read(row_in_chunk * self.layout.row_bytes)))

    def close(self) -> None:
        """Closes the files; mapped shards stay valid for those who hold them."""
        with suppress(KeyError):  # one by one: sealing may be closing some of them
            while True:
                self._disk.close(self._descriptors.popitem()[1])
        for path in list(self._asked.values()):
            self._shards.forget(path)
        self._asked.clear()

    def forget(self, shard: int) -> None:
        """Drops the map of a shard whose file was removed or replaced; views of it stay valid."""
        self._shards.forget(self.shard_path(shard))

    def shard_path(self, shard: int) -> Path:
        """Where a shard's file lies."""
        return self.directory / self.layout.shard_file(shard)

    def _document(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.directory / "zarr.json").read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise Corrupt(f"{self.directory / 'zarr.json'} cannot be read: {error}") from error

    def _map(self, shard: int) -> MappedShard:
        path = self._asked.get(shard)
        if path is None:
            path = self._asked.setdefault(shard, self.shard_path(shard))
        return self._shards.shard(path, self.layout, shard)

    def _copy_file(self, source: Path, path: Path) -> None:
        with source.open("rb") as file, self._disk.opened(path, self.layout.shard_bytes) as descriptor:
            offset_bytes = 0
            while piece := file.read(_COPIED_BYTES):
                self._disk.write(descriptor, piece, offset_bytes)
                offset_bytes += len(piece)
            self._disk.sync(descriptor)

    def _cut(self, piece: Piece, row_count: int) -> Iterator[Piece]:
        """A piece that goes behind ``row_count`` rows, cut where chunks end."""
        start = 0
        while start < len(piece.rows):
            stop = start + self.layout.chunk_rows - (row_count + start) % self.layout.chunk_rows
            checksums = None if piece.checksums is None else piece.checksums[start:stop]
            yield Piece(piece.rows[start:stop], checksums)
            start = stop

    def _add(self, parts: list[bytes | memoryview], state: ArrayState, piece: Piece) -> ArrayState:
        """Appends rows of one chunk to ``parts`` as they lie in the file: a chunk that becomes full has its checksum
        behind it. Returns the state with them."""
        layout = self.layout
        rows = np.ascontiguousarray(piece.rows, dtype=layout.dtype)
        data = memoryview(rows.reshape(-1).view(np.uint8).data)
        checksum, row_count = joined_checksum(state.checksum, data, layout.row_bytes, piece.checksums), len(rows)
        parts.append(data)
        row_count += state.row_count
        if row_count % layout.chunk_rows == 0:
            parts.append(checksum.to_bytes(CHECKSUM_BYTES, "little"))
            checksum = 0
        return ArrayState(row_count, checksum)

    def _write_parts(self, row_count: int, parts: list[bytes | memoryview], syncs: Syncs) -> None:
        """Writes parts of one shard behind its rows."""
        shard, row = divmod(row_count, self.layout.shard_rows)
        descriptor = self._open(shard, syncs)
        self._disk.write_parts(descriptor, parts, self.layout.row_offset_bytes(row))
        syncs.add_file(descriptor)

    def _write_piece(self, descriptor: int, offset_bytes: int, piece: memoryview | bytes, checksum: int | None) -> None:
        self._disk.write(descriptor, piece, offset_bytes)
        if checksum is not None:
            self._disk.write(descriptor, checksum.to_bytes(CHECKSUM_BYTES, "little"), offset_bytes + len(piece))

    def _write_index(self, shard: int, chunk_count: int) -> None:
        """With a descriptor of its own: it syncs what was written before by any."""
        with self._disk.opened(self.shard_path(shard), self.layout.shard_bytes) as descriptor:
            self._disk.write(descriptor, self.layout.index(chunk_count), self.layout.index_offset_bytes)
            try:
                self._disk.sync(descriptor)
            except OSError as error:
                raise SyncFailed(error.errno, error.strerror) from error

    def _open(self, shard: int, syncs: Syncs) -> int:
        descriptor = self._descriptors.get(shard)
        if descriptor is None:
            path = self.shard_path(shard)
            is_new = not path.exists()
            if is_new and self.layout.item_shape:
                path.parent.mkdir(exist_ok=True)
            descriptor = self._descriptors[shard] = self._disk.open(path, self.layout.shard_bytes)
            self._add_directories(path, syncs)  # also of a file that stands: its maker may have died before its sync
            if is_new:
                self._disk.write(descriptor, self.layout.index(0), self.layout.index_offset_bytes)
        return descriptor

    def _add_directories(self, path: Path, syncs: Syncs) -> None:
        syncs.add_directory(path.parent)
        if self.layout.item_shape:
            syncs.add_directory(path.parent.parent)
