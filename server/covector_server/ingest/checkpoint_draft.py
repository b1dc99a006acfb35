"""What a group of batches would change in one checkpoint: where its rows went, and what the catalog will say."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from covector.errors import Internal
from covector_server.ingest.batch import Batch
from covector_server.metadata.catalog import Writer, number
from covector_server.metadata.records import CheckpointCounters
from covector_server.storage.checkpoint import StoredCheckpoint
from covector_server.storage.collection import positions_by_shard
from covector_server.storage.contract import ArrayState
from covector_server.storage.view import RowIds


@dataclass(slots=True)
class CheckpointDraft:
    """One checkpoint with the group's rows."""

    stored: StoredCheckpoint
    is_new: bool
    states: dict[str, ArrayState]
    zero_row_count: int
    positions: dict[int, int]  # row id -> position, of the group's rows
    dead: list[int]  # positions replaced

    @property
    def row_count(self) -> int:
        """Positions used, the group's included."""
        return self.states["gradients"].row_count

    def find(self, row_ids: RowIds) -> npt.NDArray[np.int64]:
        """The positions of rows, the group's included, -1 for none."""
        found = self.stored.positions.find(row_ids)
        if self.positions:
            own = np.fromiter((self.positions.get(row_id, -1) for row_id in row_ids.tolist()), np.int64, len(row_ids))
            found = np.where(own >= 0, own, found)
        return found

    def counters(self) -> CheckpointCounters:
        """What the catalog will say."""
        checksums = {name: state.checksum for name, state in self.states.items()}
        return replace(
            self.stored.counters, row_count=self.row_count, zero_row_count=self.zero_row_count, checksums=checksums
        )


def commit_checkpoint(writer: Writer, collection_id: int, draft: CheckpointDraft) -> None:
    """Puts the checkpoint's state into a transaction, if the catalog still says what the draft began from."""
    record = draft.stored.record
    key = number(collection_id, record.id)
    committed = CheckpointCounters.decode(writer.get("checkpoint_counters", key) or b"{}")
    if committed.row_count != draft.stored.counters.row_count:
        raise Internal(
            f"checkpoint {record.name!r} has {committed.row_count} rows in the catalog, "
            f"{draft.stored.counters.row_count} in memory; restart the server"
        )
    if draft.is_new:
        writer.put("checkpoints", key, record.encode())
    writer.put("checkpoint_counters", key, draft.counters().encode())
    if draft.dead:
        for shard, positions in positions_by_shard(merged(draft.stored.dead, draft.dead), record.shard_rows):
            writer.put("tombstones", number(collection_id, record.id, shard), positions)


def merged(dead: npt.NDArray[np.int64], more: list[int]) -> npt.NDArray[np.int64]:
    """Sorted positions, with more of them."""
    return np.union1d(dead, np.array(more, dtype=np.int64)) if more else dead


def same_content(draft: CheckpointDraft, position: int, batch: Batch, row: int) -> bool:
    """Whether a row of the batch is, to the bit, what stands at a position."""
    assert batch.rows is not None
    committed = draft.stored.counters.row_count
    stored = {name: array.read(position, position + 1, committed)[0] for name, array in draft.stored.arrays.items()}
    same_q = stored["trak_q"] == batch.trak_q[row] or (
        math.isnan(float(stored["trak_q"])) and math.isnan(float(batch.trak_q[row]))
    )
    same_rows = np.array_equal(stored["gradients"].view(np.uint16), batch.rows[row].view(np.uint16))
    return bool(same_rows and same_q and stored["scales"] == batch.scales[row])
