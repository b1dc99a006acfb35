"""The keys of a collection's rows, by row id, without holding them all: they name rows, and one must not be twice."""

from __future__ import annotations

import bisect
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from covector.blocks import decode_key
from covector.errors import Corrupt, InvalidInput
from covector_server.check.blocks import open_block
from covector_server.check.context import Context
from covector_server.check.findings import KEYS_NAMED
from covector_server.check.reading import ShortRead
from covector_server.metadata.records import BlockRecord

READ_ERRORS = (Corrupt, ShortRead, OSError)


def log_path(directory: str, file: int) -> str:
    """The path of a file of the row log."""
    return f"{directory}/rows/{file:08d}.blocks"


class RowKeys:
    """Keys of rows, from the blocks of new rows that are sound. A hash of each is kept."""

    def __init__(self, context: Context, directory: str) -> None:
        self._context = context
        self._directory = directory
        self._blocks: list[BlockRecord] = []
        self._hashes: list[npt.NDArray[np.uint64]] = []
        self._last: tuple[BlockRecord, list[bytes | None]] | None = None

    def add(self, record: BlockRecord, keys: Iterable[bytes | None]) -> None:
        """Takes in a block that was found sound. Blocks come in the order of their row ids."""
        self._blocks.append(record)
        self._hashes.append(np.fromiter(map(_hash, keys), dtype=np.uint64, count=record.row_count))

    def named(self, row_ids: Iterable[int]) -> tuple[str, ...]:
        """The first few of the rows, as text: their keys where these can be read, else their ids."""
        return tuple(self._name(row_id) for _, row_id in zip(range(KEYS_NAMED), row_ids, strict=False))

    def twice(self, deleted: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
        """Pairs of rows, both there, with the same key; at most a few."""
        if not self._blocks:
            return []
        ids = np.concatenate([np.arange(block.first, block.last + 1, dtype=np.int64) for block in self._blocks])
        hashes = np.concatenate(self._hashes)
        live = ~np.isin(ids, deleted)
        ids, hashes = ids[live], hashes[live]
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])[: 4 * KEYS_NAMED]
        pairs = [(int(ids[order[place]]), int(ids[order[place + 1]])) for place in same]
        return [(one, other) for one, other in pairs if self._key(one) == self._key(other)]

    def _name(self, row_id: int) -> str:
        key = self._key(row_id)
        try:
            return f"row {row_id}" if key is None else repr(decode_key(key))
        except InvalidInput:
            return f"row {row_id}"

    def _key(self, row_id: int) -> bytes | None:
        place = bisect.bisect_right(self._blocks, row_id, key=lambda block: block.first) - 1
        if place < 0 or row_id > self._blocks[place].last:
            return None
        record = self._blocks[place]
        if self._last is None or self._last[0] is not record:
            self._last = (record, self._read(record))
        return self._last[1][row_id - record.first]

    def _read(self, record: BlockRecord) -> list[bytes | None]:
        try:
            with self._context.open(log_path(self._directory, record.file)) as file:
                keys = open_block(file.read(record.offset_bytes, record.size_bytes)).keys
        except READ_ERRORS:
            keys = None
        return [None] * record.row_count if keys is None else keys.values()


def _hash(key: bytes | None) -> int:
    return xxh3_64_intdigest(key or b"")
