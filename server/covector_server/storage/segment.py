"""A shard mapped into memory, each chunk checked against its checksum the first time it is touched."""

from __future__ import annotations

import mmap
import threading
from pathlib import Path

import numpy as np
from crc32c import crc32c

from covector.errors import Corrupt
from covector_server.storage.contract import Rows
from covector_server.storage.layout import CHECKSUM_BYTES, ArrayLayout


class MappedShard:
    """The rows of one shard file, readable while the file grows to its committed rows.

    The file has its final size from the start, so one mapping serves from the first row to the last. Rows past the
    committed count must not be asked for.
    """

    def __init__(self, path: Path, layout: ArrayLayout) -> None:
        self._path = path
        self._layout = layout
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), layout.shard_bytes, access=mmap.ACCESS_READ)
        except (ValueError, FileNotFoundError) as error:
            raise Corrupt(
                f"{path}: the shard is missing or cut short; restore it from a snapshot", path=path
            ) from error
        self._verified = np.zeros(layout.chunks_per_shard, dtype=bool)
        self._verifying = threading.Lock()

    def rows(self, start: int, stop: int, complete_chunks: int) -> Rows:
        """Rows [start, stop), which must lie in one chunk, as a view of the file.

        complete_chunks: how many chunks of the shard are committed whole, and so have a checksum. Raises Corrupt
        naming the rows if theirs does not match.
        """
        layout = self._layout
        chunk = start // layout.chunk_rows
        if chunk < complete_chunks and not self._verified[chunk]:
            self._verify(chunk)
        count = (stop - start) * int(np.prod(layout.item_shape, dtype=np.int64))
        flat = np.frombuffer(self._map, layout.dtype, count=count, offset=layout.row_offset_bytes(start))
        return flat.reshape(stop - start, *layout.item_shape)

    def _verify(self, chunk: int) -> None:
        layout, start = self._layout, chunk * self._layout.stride_bytes
        with memoryview(self._map) as view, self._verifying:
            stop = start + layout.chunk_bytes
            stored = int.from_bytes(view[stop : stop + CHECKSUM_BYTES], "little")
            if crc32c(view[start:stop]) != stored:
                first = chunk * layout.chunk_rows
                raise Corrupt(
                    f"{self._path}: rows {first} to {first + layout.chunk_rows - 1} of the shard do not match their "
                    "checksum; restore the file from a snapshot",
                    path=self._path,
                )
            self._verified[chunk] = True
