"""A shard mapped into memory, each chunk checked against its checksum the first time it is touched."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from covector_server.storage.contract import BadRows, Rows
from covector_server.storage.damage import check_shortage
from covector_server.storage.layout import CHECKSUM_BYTES, ArrayLayout
from covector_server.storage.mapping import map_file


class MappedShard:
    """The rows of one shard file, readable while the file grows to its committed rows.

    The file has its final size from the start, so one mapping serves from the first row to the last. Rows past the
    committed count must not be asked for. ``number``: the shard's, so that bad rows are named by their place in the
    array. ``verified``: bool[chunks], which chunks were found good, by this map or one before it.
    """

    def __init__(self, path: Path, layout: ArrayLayout, number: int, verified: npt.NDArray[np.bool_]) -> None:
        self._path = path
        self._layout = layout
        self._first_row = number * layout.shard_rows
        self._dtype = np.dtype(layout.dtype)
        self._row_bytes, self._stride_bytes = layout.row_bytes, layout.stride_bytes  # looked up once: reads are many
        try:
            self._bytes = map_file(path, layout.shard_bytes)
        except (EOFError, OSError) as error:
            if isinstance(error, OSError):
                check_shortage(error, path)
            stop = self._first_row + layout.shard_rows
            raise BadRows(f"the shard is missing or cut short ({error})", path, self._first_row, stop) from error
        self._verified = verified
        self._verifying = threading.Lock()

    def rows(self, start: int, stop: int, complete_chunks: int) -> Rows:
        """Rows [start, stop), which must lie in one chunk, as a view of the file.

        complete_chunks: how many chunks of the shard are committed whole, and so have a checksum. Raises BadRows if
        theirs does not match.
        """
        layout = self._layout
        chunk, row_in_chunk = divmod(start, layout.chunk_rows)
        if chunk < complete_chunks and not self._verified[chunk]:
            self._verify(chunk)
        offset_bytes = chunk * self._stride_bytes + row_in_chunk * self._row_bytes
        shape = (stop - start, *layout.item_shape)
        return np.ndarray(shape, self._dtype, self._bytes, offset_bytes)

    def _verify(self, chunk: int) -> None:
        layout, start = self._layout, chunk * self._layout.stride_bytes
        with self._verifying:
            stop = start + layout.chunk_bytes
            stored = int.from_bytes(self._bytes[stop : stop + CHECKSUM_BYTES], "little")
            if crc32c(self._bytes[start:stop]) != stored:
                first = self._first_row + chunk * layout.chunk_rows
                raise BadRows("a chunk does not match its checksum", self._path, first, first + layout.chunk_rows)
            self._verified[chunk] = True
