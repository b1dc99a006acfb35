"""Where blocks of the row log lay before they were moved, for the readers that began before the move.

A reader finds a block's place in the catalog, in a transaction of its own, so it may find the new place of a block in
which rows are erased that it still sees. It then asks here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from covector_server.metadata.records import BlockRecord


@dataclass(frozen=True, slots=True)
class Move:
    """Blocks of new rows that were moved in one transaction: where each lay, by its first row id. ``epoch``: that of
    the last readers that began before it."""

    epoch: int
    places: Mapping[int, BlockRecord]


class Relocations:
    """The moves that some reader may have to look behind, oldest first. Any thread may ask; one changes."""

    def __init__(self) -> None:
        self._moves: tuple[Move, ...] = ()

    def add(self, move: Move) -> None:
        """Call before the move is committed: who finds the new place must find the old one too."""
        self._moves = (*self._moves, move)

    def remove(self, move: Move) -> None:
        """Call when no reader is left that began before the move, or if it was not committed."""
        self._moves = tuple(other for other in self._moves if other is not move)

    def seen_from(self, epoch: int) -> Callable[[BlockRecord], BlockRecord]:
        """Where a reader of an epoch finds a block that the catalog says is somewhere: ask after the catalog."""

        def place_of(record: BlockRecord) -> BlockRecord:
            for move in self._moves:
                if move.epoch >= epoch and record.first in move.places:
                    return move.places[record.first]
            return record

        return place_of
