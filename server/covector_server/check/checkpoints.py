"""Checking one checkpoint: its four arrays, and that its row ids make sense together."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from covector_server.check.arrays import ArrayCheck
from covector_server.check.catalog_state import CatalogState
from covector_server.check.context import Context
from covector_server.check.findings import KEYS_NAMED, Finding, Repair, Severity
from covector_server.check.reading import ShortRead
from covector_server.check.repairs import finish_seals, write_documents
from covector_server.check.row_keys import RowKeys
from covector_server.metadata.catalog import number, numbers
from covector_server.metadata.records import CheckpointCounters, CheckpointRecord, CollectionRecord
from covector_server.storage.layout import ArrayLayout, checkpoint_layouts

Ids = npt.NDArray[np.int64]


@dataclass(slots=True)
class CheckpointCheck:
    """The check of one checkpoint; ``next_row_id``: ids of rows lie below it."""

    context: Context
    state: CatalogState
    collection: CollectionRecord
    record: CheckpointRecord
    counters: CheckpointCounters
    dim: int
    next_row_id: int
    keys: RowKeys
    _ids: Ids = field(default_factory=lambda: np.empty(0, dtype=np.int64))  # -1 where they cannot be believed

    @property
    def directory(self) -> str:
        """Where the arrays lie, below the data directory."""
        return f"collections/{self.collection.id}/{self.record.id}/{self.record.generation}"

    def run(self) -> None:
        """Checks the arrays, row ids first: they name the rows of the others."""
        layouts = checkpoint_layouts(self.dim, self.record.chunk_rows, self.record.shard_rows)
        ordered = sorted(layouts, key=lambda layout: layout.name != "row_ids")
        self._ids = self._read_row_ids(ordered[0])
        arrays = []
        for layout in ordered:
            arrays.append(self._array(layout))
            arrays[-1].run()
            for first, count in arrays[-1].bad_rows if layout.name == "row_ids" else ():
                self._ids[first : first + count] = -1
        self._check_publication(arrays)
        self._check_seals(arrays)
        dead = self._dead_positions()
        self._check_row_ids(dead)

    def _array(self, layout: ArrayLayout) -> ArrayCheck:
        return ArrayCheck(
            self.context,
            self.collection.name,
            self.record.name,
            f"{self.directory}/{layout.name}",
            layout,
            self.counters,
            self._named,
            may_repair=self.state.is_whole,
        )

    def _named(self, first: int, count: int) -> tuple[str, ...]:
        ids = self._ids[first : first + min(count, KEYS_NAMED)]
        return self.keys.named(int(id_) for id_ in ids if id_ >= 0)

    def _read_row_ids(self, layout: ArrayLayout) -> Ids:
        """The ids as they lie there, -1 where they cannot be read."""
        ids = np.full(self.counters.row_count, -1, dtype=np.int64)
        for shard in range(-(-len(ids) // layout.shard_rows)):
            start = shard * layout.shard_rows
            count = min(layout.shard_rows, len(ids) - start)
            try:
                with self.context.open(f"{self.directory}/row_ids/{layout.shard_file(shard)}") as file:
                    ids[start : start + count] = np.frombuffer(file.read(0, count * 8), "<u8").astype(np.int64)
            except (OSError, ShortRead):
                continue
        return ids

    def _check_publication(self, arrays: list[ArrayCheck]) -> None:
        """The arrays speak of the same rows, unless a process died while it published or sealed."""
        spoken = {array.published for array in arrays} - {None}
        if len(spoken) > 1:
            sealed = self.counters.sealed_shard_count * self.record.shard_rows
            documents = {self.context.data / array.directory: array.layout for array in arrays}
            self._leftover(
                "publication",
                f"the arrays' zarr.json speak of {' and '.join(sorted(map(str, spoken)))} rows",
                write_documents(documents, sealed),
                "let all of them speak of the sealed shards; the server publishes the rest again",
            )

    def _check_seals(self, arrays: list[ArrayCheck]) -> None:
        full = self.counters.row_count // self.record.shard_rows
        if self.counters.sealed_shard_count > full:
            self._add("counters", f"{self.counters.sealed_shard_count} shards are marked sealed, {full} are full")
        if self.counters.sealed_shard_count >= full or not self.state.is_whole:
            return
        layouts = {self.context.data / array.directory: array.layout for array in arrays}
        key = (self.collection.id, self.record.id)
        message = f"shards {self.counters.sealed_shard_count} to {full - 1} are full and not sealed"
        repair = finish_seals(self.context.data, key, self.counters, layouts)
        self._leftover("unfinished_seal", message, repair, "seal them")

    def _dead_positions(self) -> Ids:
        found = [np.empty(0, dtype=np.int64)]
        for key, value in self.state.scan("tombstones", number(self.collection.id, self.record.id)):
            positions = np.frombuffer(value[: len(value) // 4 * 4], "<u4").astype(np.int64)
            dead = positions + numbers(key)[2] * self.record.shard_rows
            if len(value) % 4 or (np.diff(dead) <= 0).any() or (positions >= self.record.shard_rows).any():
                self._add("tombstones", f"the list of dead positions {key.hex()} is not in order")
            if (dead >= self.counters.row_count).any():
                self._add("tombstones", "dead positions lie past the committed rows")
            found.append(dead[dead < self.counters.row_count])
        return np.concatenate(found)

    def _check_row_ids(self, dead: Ids) -> None:
        """Ids of live rows exist and are there once. Without all of the catalog, nobody knows which rows are live."""
        readable = np.flatnonzero(self._ids >= 0)
        unknown = readable[self._ids[readable] >= self.next_row_id]
        if len(unknown):
            self._add("row_ids", f"{len(unknown)} rows have ids that were never given out", int(unknown[0]))
        if not self.state.is_whole:
            return
        live = np.ones(len(self._ids), dtype=bool)
        live[dead] = False
        ids, counts = np.unique(self._ids[live & (self._ids >= 0)], return_counts=True)
        twice = ids[counts > 1]
        if len(twice):
            keys = self.keys.named(twice[:KEYS_NAMED].tolist())
            self._add("row_ids", f"{len(twice)} rows are there more than once", row_count=len(twice), keys=keys)

    def _add(
        self,
        kind: str,
        message: str,
        first_row: int | None = None,
        *,
        row_count: int = 0,
        keys: tuple[str, ...] = (),
    ) -> None:
        self.context.add(
            Finding(
                kind=kind,
                message=message,
                path=self.directory,
                collection=self.collection.name,
                checkpoint=self.record.name,
                first_row=first_row,
                row_count=row_count,
                keys=keys,
            )
        )

    def _leftover(self, kind: str, message: str, repair: Repair, note: str) -> None:
        self.context.add(
            Finding(
                kind=kind,
                message=message,
                path=self.directory,
                collection=self.collection.name,
                checkpoint=self.record.name,
                severity=Severity.LEFTOVER,
                repair=repair if self.state.is_whole else None,
                repair_note=note if self.state.is_whole else "",
            )
        )
