"""What is erased already: marks in the catalog, so that no file is rewritten twice for the same dead rows.

A mark is a count: of the dead positions in a shard, how many hold nothing any more; of the deleted rows in a range of
row ids, how many have no key, text or metadata in any file. Dead and deleted only grow, and erasing a place erases all
that is dead in it, so equal counts mean that there is nothing to do. A mark that a crash kept from being written costs
a second erasure, which changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from covector_server.metadata.catalog import Reader, Writer, number, numbers
from covector_server.storage.view import Positions

_ROWS = 0  # stands for the rows themselves where a checkpoint's id, from 1 on, would


def erased_in_shards(reader: Reader, collection_id: int, checkpoint_id: int) -> dict[int, int]:
    """By shard of a checkpoint: how many of its dead positions are erased."""
    prefix = number(collection_id, checkpoint_id)
    return {numbers(key)[2]: _count(value) for key, value in reader.scan("erased", prefix)}


def put_erased_in_shards(writer: Writer, collection_id: int, checkpoint_id: int, counts: Mapping[int, int]) -> None:
    """Puts the marks of all shards of a checkpoint into a transaction, in the place of those that stood."""
    prefix = number(collection_id, checkpoint_id)
    for key in [key for key, _ in writer.scan("erased", prefix)]:
        writer.delete("erased", key)
    for shard, count in counts.items():
        if count:
            writer.put("erased", number(collection_id, checkpoint_id, shard), count.to_bytes(4, "little"))


def erased_in_ranges(reader: Reader, collection_id: int) -> dict[int, int]:
    """By range of row ids: how many of its deleted rows are erased."""
    return erased_in_shards(reader, collection_id, _ROWS)


def put_erased_in_ranges(writer: Writer, collection_id: int, counts: Mapping[int, int]) -> None:
    """Puts the marks of some ranges of row ids into a transaction."""
    for range_, count in counts.items():
        writer.put("erased", number(collection_id, _ROWS, range_), count.to_bytes(4, "little"))


def erased_row_count(reader: Reader, collection_id: int) -> int:
    """How many deleted rows of a collection are erased."""
    return sum(erased_in_ranges(reader, collection_id).values())


def counts_by(values: Positions, width: int) -> dict[int, int]:
    """How many values lie in each piece of ``width``, by piece; pieces without any are left out."""
    pieces, counts = np.unique(values // width, return_counts=True)
    return dict(zip(pieces.tolist(), counts.tolist(), strict=True))


def _count(value: bytes) -> int:
    return int.from_bytes(value, "little")
