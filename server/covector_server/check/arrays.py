"""Checking one array of a checkpoint: its document, each shard's size, chunks and index, and the tail up to the commit.

A whole chunk is held against the checksum behind it, the rows of the last, partial chunk against the catalog. Past the
committed rows nothing is live, except that a published tail has padding under a checksum of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from covector_server.check.context import Context
from covector_server.check.documents import BadDocument, published_row_count
from covector_server.check.findings import Finding, Repair, Severity
from covector_server.check.reading import CheckedFile, ShortRead
from covector_server.check.repairs import write_document, write_index, zero_range
from covector_server.metadata.records import CheckpointCounters
from covector_server.storage.layout import CHECKSUM_BYTES, ArrayLayout

NameRows = Callable[[int, int], tuple[str, ...]]  # first position, count -> the first few keys


class Rows(NamedTuple):
    """Positions in the checkpoint."""

    first: int
    row_count: int


@dataclass(slots=True)
class ArrayCheck:
    """The check of one array. After ``run``, ``bad_rows`` says which positions must not be believed, ``published``
    how many rows the document speaks of (None if it cannot be read). ``may_repair``: the catalog is whole."""

    context: Context
    collection: str
    checkpoint: str
    directory: str
    layout: ArrayLayout
    counters: CheckpointCounters
    name_rows: NameRows
    may_repair: bool = True
    published: int | None = None
    bad_rows: list[Rows] = field(default_factory=list)

    def run(self) -> None:
        """Checks the document and all shards with committed rows."""
        self.context.claims.directory(f"{self.directory}/c")
        self._check_document()
        for shard in range(-(-self.counters.row_count // self.layout.shard_rows)):
            self._check_shard(shard)
        self._explain_leftovers()

    @property
    def sealed_row_count(self) -> int:
        """Rows in shards that are marked as sealed."""
        return self.counters.sealed_shard_count * self.layout.shard_rows

    def _check_document(self) -> None:
        path = f"{self.directory}/zarr.json"
        self.context.claims.file(path)
        self.context.claims.explain(f"{path}.tmp", "a process died while it replaced zarr.json")
        row_count = self.counters.row_count
        full = row_count // self.layout.shard_rows
        directory = self.context.data / self.directory
        note, repair = "write it from the catalog", write_document(directory, self.layout, self.sealed_row_count)
        try:
            shards = range(self.counters.sealed_shard_count, full + 1)  # those not sealed yet may be published
            allowed = {row_count, self.sealed_row_count} | {shard * self.layout.shard_rows for shard in shards}
            self.published = published_row_count(self.context.data / path, self.layout, allowed)
        except FileNotFoundError:
            self._add("missing", "the file is missing", path, repair=repair, note=note)
        except (BadDocument, OSError) as error:
            self._add("zarr_json", str(error), path, repair=repair, note=note)

    def _check_shard(self, shard: int) -> None:
        path = f"{self.directory}/{self.layout.shard_file(shard)}"
        self.context.claims.file(path)
        rows = min(self.layout.shard_rows, self.counters.row_count - shard * self.layout.shard_rows)
        try:
            with self.context.open(path) as file:
                if file.size_bytes != self.layout.shard_bytes:
                    message = f"the file has {file.size_bytes} bytes, {self.layout.shard_bytes} are right"
                    self._add_rows("size", message, path, Rows(shard * self.layout.shard_rows, rows))
                _ShardCheck(self, file, path, shard, rows).run()
        except FileNotFoundError:
            self._lose("missing", "the shard is missing", path, Rows(shard * self.layout.shard_rows, rows))
        except OSError as error:
            message = f"the shard cannot be read: {error.strerror}"
            self._lose("unreadable", message, path, Rows(shard * self.layout.shard_rows, rows))

    def _explain_leftovers(self) -> None:
        """Shards begun for rows that were not committed."""
        shard = -(-self.counters.row_count // self.layout.shard_rows)
        why = "it was begun for rows that were not committed"
        while (self.context.data / self.directory / (entry := f"c/{shard}")).exists():
            self.context.claims.explain(f"{self.directory}/{entry}", why)
            shard += 1

    def _lose(self, kind: str, message: str, path: str, rows: Rows) -> None:
        """Rows that cannot be believed."""
        self.bad_rows.append(rows)
        self._add_rows(kind, message, path, rows)

    def _add_rows(self, kind: str, message: str, path: str, rows: Rows) -> None:
        self.context.add(
            Finding(
                kind=kind,
                message=message,
                path=path,
                collection=self.collection,
                checkpoint=self.checkpoint,
                first_row=rows.first,
                row_count=rows.row_count,
                keys=self.name_rows(rows.first, rows.row_count),
            )
        )

    def _add(
        self,
        kind: str,
        message: str,
        path: str,
        *,
        severity: Severity = Severity.DAMAGE,
        repair: Repair | None = None,
        note: str = "",
    ) -> None:
        self.context.add(
            Finding(
                kind=kind,
                message=message,
                path=path,
                collection=self.collection,
                checkpoint=self.checkpoint,
                severity=severity,
                repair=repair if self.may_repair else None,
                repair_note=note if self.may_repair else "",
            )
        )


class _ShardCheck:
    """The check of one shard file. ``rows``: committed rows in it."""

    def __init__(self, array: ArrayCheck, file: CheckedFile, path: str, shard: int, rows: int) -> None:
        self._array = array
        self._layout = array.layout
        self._file = file
        self._path = path
        self._first_row = shard * array.layout.shard_rows
        self._rows = rows
        self._whole_chunks, self._tail_rows = divmod(rows, array.layout.chunk_rows)
        self._is_sealed = shard < array.counters.sealed_shard_count
        published = array.published or 0
        self._is_published = not self._is_sealed and published > self._first_row

    def run(self) -> None:
        for chunk in range(self._whole_chunks):
            self._check_chunk(chunk)
        if self._tail_rows:
            self._check_tail()
        if self._is_sealed or self._is_published:
            self._check_index()
        if self._rows < self._layout.shard_rows:
            self._check_past_commit()

    def _check_chunk(self, chunk: int) -> None:
        try:
            trouble = "" if self._chunk_is_sound(chunk) else "a chunk does not match its checksum"
        except ShortRead as error:
            trouble = f"a chunk is cut off: {error}"
        if trouble:
            start = self._first_row + chunk * self._layout.chunk_rows
            self._array._lose("chunk", trouble, self._path, Rows(start, self._layout.chunk_rows))

    def _chunk_is_sound(self, chunk: int) -> bool:
        start = chunk * self._layout.stride_bytes
        checksum = self._file.checksum(start, self._layout.chunk_bytes)
        stored = self._file.read(start + self._layout.chunk_bytes, CHECKSUM_BYTES)
        return checksum == int.from_bytes(stored, "little")

    def _check_tail(self) -> None:
        """The rows of the partial chunk against the catalog; if they are published, the whole chunk as well."""
        expected = self._array.counters.checksums.get(self._layout.name, 0)
        start = self._whole_chunks * self._layout.stride_bytes
        try:
            found = self._file.checksum(start, self._tail_rows * self._layout.row_bytes)
            trouble = "" if found == expected else "the last committed rows do not match their checksum"
        except ShortRead as error:
            trouble = f"the last committed rows are cut off: {error}"
        if trouble:
            first = self._first_row + self._whole_chunks * self._layout.chunk_rows
            self._array._lose("chunk", trouble, self._path, Rows(first, self._tail_rows))
        elif self._is_published:
            self._check_padding()

    def _check_padding(self) -> None:
        try:
            is_sound = self._chunk_is_sound(self._whole_chunks)
        except ShortRead:
            is_sound = False
        if not is_sound:
            directory = self._array.context.data / self._array.directory
            self._array._add(
                "padding",
                "the rows are sound, but what pads their published chunk, or its checksum, is not",
                self._path,
                repair=write_document(directory, self._layout, self._array.sealed_row_count),
                note="take the partial shard out of zarr.json; the server publishes it again",
            )

    def _check_index(self) -> None:
        chunk_count = -(-self._rows // self._layout.chunk_rows)
        expected = self._layout.index(chunk_count)
        try:
            is_sound = self._file.read(self._layout.index_offset_bytes, len(expected)) == expected
        except ShortRead:
            is_sound = False
        if not is_sound:
            self._array._add(
                "index",
                "the shard's index is not the one that follows from its layout",
                self._path,
                repair=write_index(self._array.context.data / self._path, self._layout, chunk_count),
                note="write the index, which follows from the layout",
            )

    def _check_past_commit(self) -> None:
        """Bytes between the committed rows and the index."""
        start, stop = self._layout.row_offset_bytes(self._rows), self._layout.index_offset_bytes
        if self._is_published:
            start = -(-self._rows // self._layout.chunk_rows) * self._layout.stride_bytes
        found = self._file.first_nonzero(start, stop)
        if found is not None:
            self._array._add(
                "past_commit",
                f"bytes from {found} on lie past the committed rows, which end at {start}",
                self._path,
                severity=Severity.LEFTOVER,
                repair=zero_range(self._array.context.data / self._path, start, stop),
                note="write zeros over them",
            )
