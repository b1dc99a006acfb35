"""Where the bytes of a row lie: the arithmetic of uncompressed Zarr v3 shards.

A shard file is its chunks in order, each followed by its CRC-32C, then an index of (offset, size) pairs, then the
index's own CRC-32C. Nothing is compressed, so every place is known when the file is made.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from crc32c import crc32c

CHECKSUM_BYTES = 4
MISSING = 0xFFFF_FFFF_FFFF_FFFF
SHARD_ROWS_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Sizes:
    """About how large the pieces of a store are. ``recent_keys``: keys in memory before they become a run."""

    chunk_bytes: int = 1 << 20
    shard_bytes: int = 256 << 20
    log_file_bytes: int = 256 << 20
    recent_keys: int = 1 << 19


@dataclass(frozen=True)
class ArrayLayout:
    """The layout of one array of rows: ``item_shape`` is (dim,) for gradients, () for a column."""

    name: str
    dtype: str
    item_shape: tuple[int, ...]
    chunk_rows: int
    shard_rows: int

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.item_shape, dtype=np.int64))

    @cached_property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk's rows, without its checksum."""
        return self.chunk_rows * self.row_bytes

    @cached_property
    def stride_bytes(self) -> int:
        """From one chunk to the next."""
        return self.chunk_bytes + CHECKSUM_BYTES

    @cached_property
    def chunks_per_shard(self) -> int:
        """Chunks in a shard."""
        return self.shard_rows // self.chunk_rows

    @cached_property
    def index_offset_bytes(self) -> int:
        """Where the index starts."""
        return self.chunks_per_shard * self.stride_bytes

    @cached_property
    def shard_bytes(self) -> int:
        """The size of every shard file, full or not."""
        return self.index_offset_bytes + 16 * self.chunks_per_shard + CHECKSUM_BYTES

    def row_offset_bytes(self, row: int) -> int:
        """Where a row lies, counted from the start of its shard."""
        chunk, row_in_chunk = divmod(row, self.chunk_rows)
        return chunk * self.stride_bytes + row_in_chunk * self.row_bytes

    def shard_file(self, shard: int) -> str:
        """The shard's path below the array's directory."""
        return "/".join(["c", str(shard)] + ["0"] * len(self.item_shape))

    def index(self, chunk_count: int) -> bytes:
        """The shard's index when its first ``chunk_count`` chunks are written and the rest are missing."""
        entries = np.full((self.chunks_per_shard, 2), MISSING, dtype="<u8")
        entries[:chunk_count, 0] = np.arange(chunk_count, dtype=np.uint64) * np.uint64(self.stride_bytes)
        entries[:chunk_count, 1] = self.stride_bytes
        return (encoded := entries.tobytes()) + crc32c(encoded).to_bytes(CHECKSUM_BYTES, "little")

    def zarr_document(self, row_count: int) -> dict[str, Any]:
        """The array's ``zarr.json``, as zarr-python writes it, for ``row_count`` rows."""
        import zarr
        from zarr.codecs import Crc32cCodec
        from zarr.storage import MemoryStore

        store = MemoryStore()
        zarr.create_array(
            store=store,
            shape=(row_count, *self.item_shape),
            chunks=(self.chunk_rows, *self.item_shape),
            shards=(self.shard_rows, *self.item_shape),
            dtype=self.dtype,
            compressors=[Crc32cCodec()],
            fill_value=0,
        )
        return dict(json.loads(store._store_dict["zarr.json"].to_bytes()))


def load_zarr() -> None:
    """Imports what ``zarr_document`` needs, which takes the better part of a second: rather when a server starts than
    when its first row comes."""
    import zarr.codecs  # noqa: F401


def checkpoint_layouts(dim: int, chunk_rows: int, shard_rows: int) -> tuple[ArrayLayout, ...]:
    """The arrays of a checkpoint. A column's chunk is a whole shard, so that it is contiguous in the file."""
    return (
        ArrayLayout("gradients", "<f2", (dim,), chunk_rows, shard_rows),
        ArrayLayout("scales", "<f4", (), shard_rows, shard_rows),
        ArrayLayout("row_ids", "<u8", (), shard_rows, shard_rows),
        ArrayLayout("trak_q", "<f4", (), shard_rows, shard_rows),
    )


def position_bytes(dim: int) -> int:
    """Bytes that one position takes in the four arrays, without checksums."""
    return sum(layout.row_bytes for layout in checkpoint_layouts(dim, 1, 1))


def rows_for(dim: int, chunk_bytes: int, shard_bytes: int) -> tuple[int, int]:
    """(chunk_rows, shard_rows), both powers of two, for about so many bytes of float16 gradients each."""
    row_bytes = 2 * dim
    shard_rows = min(_power_of_two(shard_bytes // row_bytes), SHARD_ROWS_MAX)
    return min(_power_of_two(chunk_bytes // row_bytes), shard_rows), shard_rows


def _power_of_two(limit: int) -> int:
    return 1 << (max(limit, 1).bit_length() - 1)
