"""What a group of batches would change in one checkpoint: where its rows went, and what the catalog will say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from covector.blocks import decode_key
from covector.errors import Conflict, Internal
from covector_server.ingest.batch import Batch, WriterSpec
from covector_server.metadata.catalog import Writer, number
from covector_server.metadata.records import CheckpointCounters
from covector_server.storage.checkpoint import StoredCheckpoint
from covector_server.storage.collection import positions_by_shard
from covector_server.storage.contract import ArrayState, Piece, Rows
from covector_server.storage.positions import NO_POSITIONS, merged
from covector_server.storage.syncs import Syncs
from covector_server.storage.view import Positions, RowIds

HELD_BYTES = 4 << 20  # of gradients before they are written: each write lets other threads run first
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows of a batch are to be written, the positions of those that they replace, and how many of these are all
    zero."""

    rows: Mask
    replaced: Positions = field(default_factory=lambda: NO_POSITIONS)
    replaced_zero_rows: int = 0


def _nothing_held() -> dict[str, list[Piece]]:
    return {"gradients": [], "scales": [], "row_ids": [], "trak_q": []}


@dataclass(slots=True)
class CheckpointDraft:
    """One checkpoint with the group's rows. ``base_row_count``: rows before the group; ``died``: positions whose row
    the group replaces."""

    stored: StoredCheckpoint
    syncs: Syncs
    is_new: bool
    base_row_count: int
    states: dict[str, ArrayState]
    zero_row_count: int
    dead: Positions  # sorted, the group's included
    row_count: int  # positions used, the group's included
    held: dict[str, list[Piece]] = field(default_factory=_nothing_held)  # by array
    held_bytes: int = 0  # of gradients
    died: Positions = field(default_factory=lambda: NO_POSITIONS)

    @staticmethod
    def after(
        stored: StoredCheckpoint, syncs: Syncs, *, is_new: bool = False, base: CheckpointDraft | None = None
    ) -> CheckpointDraft:
        """A draft that begins where ``base``, a draft not committed yet, ends; None: at what is committed. What it
        writes is added to ``syncs``."""
        if base is None:
            states, zero_row_count, dead = stored.states(), stored.counters.zero_row_count, stored.dead
        else:
            states, zero_row_count, dead = dict(base.states), base.zero_row_count, base.dead
        row_count = states["gradients"].row_count
        return CheckpointDraft(stored, syncs, is_new, row_count, states, zero_row_count, dead, row_count)

    def choose(self, spec: WriterSpec, batch: Batch, row_ids: RowIds, is_new: Mask) -> Choice:
        """What of a batch is to be written: not rows that stand with the same content nor, with ``ignore``, with other
        content. Raises Conflict for these without."""
        chosen = is_new.copy()
        if chosen.all():
            return Choice(chosen)
        known = np.flatnonzero(~is_new)
        self.write_held()
        positions = self.stored.positions.find(row_ids[known], self.row_count, self.dead)
        chosen[known[positions < 0]] = True
        standing, where = known[positions >= 0], positions[positions >= 0]
        if not len(standing) or spec.on_conflict == "ignore":
            return Choice(chosen)
        differs = self._differ(where, batch, standing)
        if not differs.any():
            return Choice(chosen)
        if spec.on_conflict == "error":
            key = decode_key(batch.keys.value(int(standing[differs][0])) or b"")
            raise Conflict(
                f"key {key!r} has another gradient at checkpoint {spec.checkpoint!r}; "
                "on_conflict='replace' takes the new one, 'ignore' keeps the old",
                key=key,
            )
        chosen[standing[differs]] = True
        return Choice(chosen, where[differs], self.zero_rows_at(where[differs]))

    def write(self, batch: Batch, row_ids: RowIds, choice: Choice) -> int:
        """Takes the chosen rows, and returns how many of them are all zero. They are written with those of the group's
        other batches, a few MiB at once: ``write_held``."""
        count = int(np.count_nonzero(choice.rows))
        if not count or batch.rows is None:
            return 0
        chosen = slice(None) if count == len(choice.rows) else choice.rows
        checksums = None if batch.checksums is None else batch.checksums[chosen]
        columns = {
            "gradients": Piece(batch.rows[chosen], checksums),
            "scales": Piece(batch.scales[chosen]),
            "row_ids": Piece(row_ids[chosen].astype(np.uint64)),
            "trak_q": Piece(batch.trak_q[chosen]),
        }
        for name, piece in columns.items():
            self.held[name].append(piece)
        self.held_bytes += columns["gradients"].rows.nbytes
        self.row_count += count
        if self.held_bytes >= HELD_BYTES:
            self._write_held("gradients")
        if len(choice.replaced):
            self.dead, self.died = merged(self.dead, choice.replaced), merged(self.died, choice.replaced)
        zero_rows = count - int(np.count_nonzero(columns["scales"].rows))
        self.zero_row_count += zero_rows - choice.replaced_zero_rows
        return zero_rows

    def write_held(self) -> None:
        """Writes what was taken."""
        for name in self.held:
            self._write_held(name)

    def zero_rows_at(self, positions: Positions) -> int:
        """How many of the rows at positions are all zero."""
        return sum(int((stored["scales"] == 0).sum()) for _, stored in self._stored(("scales",), positions))

    def counters(self) -> CheckpointCounters:
        """What the catalog will say."""
        checksums = {name: state.checksum for name, state in self.states.items()}
        return replace(
            self.stored.counters, row_count=self.row_count, zero_row_count=self.zero_row_count, checksums=checksums
        )

    def commit(self, writer: Writer, collection_id: int) -> None:
        """Puts the checkpoint's state into a transaction, if the catalog says what the draft began from."""
        record = self.stored.record
        key = number(collection_id, record.id)
        committed = CheckpointCounters.decode(writer.get("checkpoint_counters", key) or b"{}")
        if committed.row_count != self.base_row_count:
            raise Internal(
                f"checkpoint {record.name!r} has {committed.row_count} rows in the catalog, the group began from "
                f"{self.base_row_count}; restart the server"
            )
        if self.is_new:
            writer.put("checkpoints", key, record.encode())
        writer.put("checkpoint_counters", key, self.counters().encode())
        put_tombstones(writer, collection_id, self.stored, self.dead, self.died)

    def install(self) -> None:
        """Makes the committed state the checkpoint's."""
        self.stored.dead = self.dead
        self.stored.counters = self.counters()

    def _write_held(self, name: str) -> None:
        if not self.held[name]:
            return
        pieces, self.held[name] = self.held[name], []
        if name == "gradients":
            self.held_bytes = 0
        else:
            pieces = [Piece(np.concatenate([piece.rows for piece in pieces]))]
        self.states[name] = self.stored.arrays[name].write(self.states[name], pieces, self.syncs)

    def _differ(self, positions: Positions, batch: Batch, rows: Positions) -> Mask:
        """Which rows of the batch are not, to the bit, what stands at their positions."""
        assert batch.rows is not None
        differs = np.zeros(len(rows), dtype=bool)
        for here, stored in self._stored(("gradients", "scales", "trak_q"), positions):
            mine = rows[here]
            differs[here] = (stored["gradients"].view(np.uint16) != batch.rows[mine].view(np.uint16)).any(axis=1)
            differs[here] |= stored["scales"] != batch.scales[mine]
            old_q, new_q = stored["trak_q"], batch.trak_q[mine]
            differs[here] |= (old_q != new_q) & ~(np.isnan(old_q) & np.isnan(new_q))
        return differs

    def _stored(self, names: tuple[str, ...], positions: Positions) -> Iterator[tuple[Positions, dict[str, Rows]]]:
        """What stands at positions, chunk by chunk: (places in ``positions``, columns)."""
        chunk_rows = self.stored.record.chunk_rows
        order = np.argsort(positions, kind="stable")
        chunks = positions[order] // chunk_rows
        for chunk in np.unique(chunks).tolist():
            here = order[chunks == chunk]
            start, stop = chunk * chunk_rows, min((chunk + 1) * chunk_rows, self.row_count)
            yield (
                here,
                {
                    name: self.stored.arrays[name].read(start, stop, self.base_row_count)[positions[here] - start]
                    for name in names
                },
            )


def put_tombstones(
    writer: Writer, collection_id: int, stored: StoredCheckpoint, dead: Positions, died: Positions
) -> None:
    """Puts the dead positions of the shards that ``died`` touches into a transaction. Both are sorted."""
    shard_rows = stored.record.shard_rows
    touched = np.unique(died // shard_rows)
    concerned = dead[np.isin(dead // shard_rows, touched)]
    for shard, positions in positions_by_shard(concerned, shard_rows):
        writer.put("tombstones", number(collection_id, stored.record.id, shard), positions)
