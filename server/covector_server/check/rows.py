"""Checking a collection's row log: every block in its place and whole, every row id once, no key twice."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from covector.errors import Corrupt
from covector_server.check.blocks import NEW, SUPPLEMENT, Block, open_block
from covector_server.check.catalog_state import CatalogState
from covector_server.check.context import Context
from covector_server.check.findings import Finding, Severity
from covector_server.check.repairs import zero_range
from covector_server.check.row_keys import READ_ERRORS, RowKeys, log_path
from covector_server.metadata.catalog import number, numbers
from covector_server.metadata.records import BlockRecord, CollectionCounters, CollectionRecord

_DELETED_RANGE = 1 << 16


class RowsCheck:
    """The check of one collection's row log."""

    def __init__(
        self, context: Context, state: CatalogState, record: CollectionRecord, counters: CollectionCounters
    ) -> None:
        self._context = context
        self._state = state
        self._record = record
        self.counters = counters
        self._directory = f"collections/{record.id}"
        self.keys = RowKeys(context, self._directory)
        self.deleted = self._deleted_rows()

    def run(self) -> None:
        """Checks all blocks."""
        prefix = number(self._record.id)
        blocks = [
            (numbers(key)[1:], BlockRecord.decode(value)) for key, value in self._state.scan("row_blocks", prefix)
        ]
        self._context.claims.directory(f"{self._directory}/rows")
        for _, block in blocks:
            self._context.claims.file(log_path(self._directory, block.file))
        self._check_places([block for _, block in blocks])
        for (kind, place), block in blocks:
            self._check_block(kind, place, block)
        self._check_coverage([block for (kind, _), block in blocks if kind == NEW])
        for one, other in self.keys.twice(self.deleted):
            message = f"rows {one} and {other} have the same key"
            self._bad("key_twice", message, rows=(one, 2), keys=self.keys.named([one]))
        self._check_past_commit()

    def _check_block(self, kind: int, place: int, record: BlockRecord) -> None:
        path = log_path(self._directory, record.file)
        try:
            with self._context.open(path) as file:
                block = open_block(file.read(record.offset_bytes, record.size_bytes))
            self._check_sense(kind, place, record, block)
        except FileNotFoundError:
            self._bad_block(record, "missing", "the file is missing")
        except READ_ERRORS as error:
            self._bad_block(record, "row_block", f"at {record.offset_bytes}: {error}")
        else:
            if kind == NEW and block.keys is not None:
                self.keys.add(record, block.keys.values())

    def _check_sense(self, kind: int, place: int, record: BlockRecord, block: Block) -> None:
        """The block is the one that the catalog means. Raises Corrupt."""
        if block.kind != kind or kind not in (NEW, SUPPLEMENT):
            raise Corrupt(f"the block is of kind {block.kind}, the catalog says {kind}")
        ends = (int(block.row_ids[0]), int(block.row_ids[-1]), len(block.row_ids))
        if ends != (record.first, record.last, record.row_count):
            raise Corrupt(f"the block holds {ends[2]} rows from {ends[0]} to {ends[1]}, the catalog says otherwise")
        if kind == NEW and (place != record.first or block.keys is None or len(block.keys) != record.row_count):
            raise Corrupt("the block of new rows lacks keys, or stands under another row id")
        if kind == SUPPLEMENT and record.last >= self.counters.next_row_id:
            raise Corrupt("the block belongs to rows that do not exist")

    def _check_places(self, blocks: list[BlockRecord]) -> None:
        """No two blocks overlap, none lies past the end of the log."""
        ordered = sorted(blocks, key=lambda block: (block.file, block.offset_bytes))
        for one, other in itertools.pairwise(ordered):
            if one.file == other.file and one.offset_bytes + one.size_bytes > other.offset_bytes:
                self._bad_block(other, "row_block", f"at {other.offset_bytes}: it overlaps the block before")
        end = (self.counters.log_file, self.counters.log_offset_bytes)
        for block in ordered:
            if (block.file, block.offset_bytes + block.size_bytes) > end:
                self._bad_block(block, "row_block", f"at {block.offset_bytes}: it lies past the end of the log")

    def _check_coverage(self, blocks: list[BlockRecord]) -> None:
        """The blocks of new rows hold each row id once."""
        expected = 0
        for block in sorted(blocks, key=lambda block: block.first):
            if block.first > expected:
                self._bad("row_ids", "no block holds these rows", rows=(expected, block.first - expected))
            elif block.first < expected:
                self._bad("row_ids", "two blocks hold these rows", rows=(block.first, expected - block.first))
            expected = max(expected, block.last + 1)
        if expected != self.counters.next_row_id:
            low, high = sorted((expected, self.counters.next_row_id))
            self._bad("row_ids", f"row ids reach {expected}, the catalog says {high}", rows=(low, high - low))

    def _check_past_commit(self) -> None:
        """Bytes past the committed end of the log; later files."""
        number_, end = self.counters.log_file, self.counters.log_offset_bytes
        if end:
            path = log_path(self._directory, number_)
            try:
                with self._context.open(path) as file:
                    found = file.first_nonzero(end, file.size_bytes)
                    size = file.size_bytes
            except OSError:
                return
            if found is not None and self._state.is_whole:
                self._context.add(
                    Finding(
                        kind="past_commit",
                        message=f"bytes from {found} on lie past the committed end {end}",
                        path=path,
                        collection=self._record.name,
                        severity=Severity.LEFTOVER,
                        repair=zero_range(self._context.data / path, end, size),
                        repair_note="write zeros over them",
                    )
                )
        following = number_ + (end > 0)
        while (self._context.data / log_path(self._directory, following)).exists():
            why = "it was begun for a batch that was not committed"
            self._context.claims.explain(log_path(self._directory, following), why)
            following += 1

    def _deleted_rows(self) -> npt.NDArray[np.int64]:
        found = [np.empty(0, dtype=np.int64)]
        for key, value in self._state.scan("deleted_rows", number(self._record.id)):
            offsets = np.frombuffer(value[: len(value) // 2 * 2], "<u2").astype(np.int64)
            rows = offsets + numbers(key)[1] * _DELETED_RANGE
            if len(value) % 2 or (np.diff(rows) <= 0).any() or (rows >= self.counters.next_row_id).any():
                self._bad(
                    "deleted_rows", f"the list of deleted rows {key.hex()} is not in order, or names rows unknown"
                )
            found.append(rows)
        return np.concatenate(found)

    def _bad_block(self, record: BlockRecord, kind: str, message: str) -> None:
        path = log_path(self._directory, record.file)
        what = f"{message}; keys, texts and metadata of these rows"
        self._bad(kind, what, path, rows=(record.first, record.row_count), keys=self.keys.named([record.first]))

    def _bad(
        self,
        kind: str,
        message: str,
        path: str = "",
        *,
        rows: tuple[int, int] | None = None,
        keys: tuple[str, ...] = (),
    ) -> None:
        first, count = rows or (None, 0)
        self._context.add(
            Finding(
                kind=kind,
                message=message,
                path=path or f"{self._directory}/rows",
                collection=self._record.name,
                first_row=first,
                row_count=count,
                keys=keys,
            )
        )
