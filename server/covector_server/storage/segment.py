"""A shard mapped into memory, each chunk checked against its checksum the first time it is touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from covector_server.kernels.pages import lost_part
from covector_server.kernels.rows import checksums_of
from covector_server.storage.contract import BadRows, Places, Rows, Span
from covector_server.storage.damage import check_shortage
from covector_server.storage.layout import ArrayLayout
from covector_server.storage.mapping import map_file, prefetch_mapped


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
        self._address = np.frombuffer(self._bytes, np.uint8).ctypes.data
        self._verified = verified

    def rows(self, start: int, stop: int, complete_chunks: int) -> Rows:
        """Rows [start, stop), which must lie in one chunk, as a view of the file.

        complete_chunks: how many chunks of the shard are committed whole, and so have a checksum. Raises BadRows if
        theirs does not match, or a page of a chunk without one was lost.
        """
        layout = self._layout
        chunk, row_in_chunk = divmod(start, layout.chunk_rows)
        if chunk >= complete_chunks:
            for bad in self._lost(start, stop):
                raise bad
        elif not self._verified[chunk]:
            for bad in self._verify(chunk, chunk + 1):
                raise bad
        offset_bytes = chunk * self._stride_bytes + row_in_chunk * self._row_bytes
        shape = (stop - start, *layout.item_shape)
        return np.ndarray(shape, self._dtype, self._bytes, offset_bytes)

    def span(self, start: int, stop: int, complete_chunks: int, wanted: Places | None = None) -> Span:
        """Rows [start, stop) where they lie, and the chunks among them that do not match their checksum, or lost a page
        before they had one; of the chunks ``wanted``, if some are named."""
        layout = self._layout
        low, high = start // layout.chunk_rows, -(-stop // layout.chunk_rows)
        chunks: Rows = np.ndarray(
            (high - low, layout.chunk_rows, *layout.item_shape),
            self._dtype,
            self._bytes,
            low * self._stride_bytes,
            (self._stride_bytes, self._row_bytes, *(self._dtype.itemsize,) * len(layout.item_shape)),
        )
        bad = self._verify(low, min(high, complete_chunks), wanted)
        if stop > complete_chunks * layout.chunk_rows:
            bad += self._lost(max(start, complete_chunks * layout.chunk_rows), stop)
        return Span(chunks, start - low * layout.chunk_rows, bad)

    def prefetch(self, start: int, stop: int) -> bool:
        """Begins to read rows [start, stop), if some are not in memory; returns whether."""
        first_byte = self._layout.row_offset_bytes(start)
        return prefetch_mapped(
            self._bytes, first_byte, self._layout.row_offset_bytes(stop - 1) + self._row_bytes - first_byte
        )

    def _verify(self, low: int, high: int, wanted: Places | None = None) -> tuple[BadRows, ...]:
        """Checks those of the chunks [low, high) that were not found good before; two threads may check the same."""
        bad: list[BadRows] = []
        known = self._verified[low : max(high, low)]
        if wanted is not None and not known.all():
            others = np.ones(len(known) + 1, dtype=bool)
            others[np.minimum(wanted - low, len(known))] = False  # the last stands for chunks without a checksum
            known = known | others[:-1]
        for first, stop in _runs_of_false(known):
            found = self._matching(low + first, low + stop)
            self._verified[low + first : low + stop] = found
            bad += [self._bad(low + first + place) for place in np.flatnonzero(~found).tolist()]
        return tuple(bad)

    def _lost(self, start: int, stop: int) -> tuple[BadRows, ...]:
        """Rows [start, stop), of the last chunk, which has no checksum yet, if they lie where pages were lost."""
        layout = self._layout
        first_byte, stop_byte = lost_part(self._address)
        end_byte = layout.row_offset_bytes(stop - 1) + self._row_bytes
        if stop_byte <= layout.row_offset_bytes(start) or first_byte >= end_byte:
            return ()
        reason = "part of the last chunk cannot be read"
        return (BadRows(reason, self._path, self._first_row + start, self._first_row + stop),)

    def _matching(self, low: int, high: int) -> npt.NDArray[np.bool_]:
        layout, stride_bytes = self._layout, self._stride_bytes
        shape, first_byte = (high - low,), low * stride_bytes
        stored = np.ndarray(shape, "<u4", self._bytes, first_byte + layout.chunk_bytes, (stride_bytes,))
        pieces = np.ndarray(
            (high - low, layout.chunk_bytes), np.uint8, self._bytes, first_byte, (stride_bytes, 1)
        )  # without the checksums between them
        matching: npt.NDArray[np.bool_] = checksums_of(pieces) == stored
        return matching

    def _bad(self, chunk: int) -> BadRows:
        first = self._first_row + chunk * self._layout.chunk_rows
        return BadRows("a chunk does not match its checksum", self._path, first, first + self._layout.chunk_rows)


def _runs_of_false(values: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    if values.all():
        return []
    edges = np.flatnonzero(np.diff(np.concatenate([[True], values, [True]])))
    return [(first, stop) for first, stop in edges.reshape(-1, 2).tolist()]
