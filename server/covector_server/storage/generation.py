"""The switch to a new generation of a checkpoint: how dead rows leave its files while ingest and queries go on.

The next generation is made in a directory of its own, which nothing names yet, from the committed rows of the standing
one: in the background as far as these go, then again for what was committed meanwhile, and the little that is left
where nothing else changes the store. One catalog transaction makes it the checkpoint's, with its tombstones. Until then
the standing generation serves, and a crash leaves a directory that recovery removes. Afterwards the old one serves
those who read it, and goes with the last of them. ``docs/design/008-erasure-and-compaction.md`` has the failures.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol, TypeVar

from covector.errors import Conflict, CovectorError, Unavailable
from covector_server.metadata.catalog import Writer, number
from covector_server.metadata.records import CheckpointCounters
from covector_server.storage.array import ZarrArray
from covector_server.storage.checkpoint import StoredCheckpoint
from covector_server.storage.collection import StoredCollection, positions_by_shard
from covector_server.storage.contract import ArrayState
from covector_server.storage.erased import put_erased_in_shards
from covector_server.storage.layout import position_bytes
from covector_server.storage.positions import NO_POSITIONS
from covector_server.storage.store import Store
from covector_server.storage.view import Positions

LEFT_BYTES = 4 << 20  # about what may be left to copy where nothing else changes the store
PASSES_MAX = 8
_log = logging.getLogger(__name__)

T = TypeVar("T")
Check = Callable[[], None]  # called at safe points; what it raises ends the work


class Exclusive(Protocol):
    """Runs a piece of work where nothing else changes the store, and returns what it returned."""

    def __call__(self, work: Callable[[], T]) -> T: ...


class GenerationCopy(ABC):
    """The next generation of ``old``, on its way. ``row_count``: rows of the old one that were taken over, the dead
    included; ``unsound``: what could not be verified."""

    def __init__(self, old: StoredCheckpoint, new: StoredCheckpoint) -> None:
        self.old = old
        self.new = new
        self.row_count = 0
        self.unsound: list[str] = []
        self.rewritten_shards: set[int] = set()

    @abstractmethod
    def advance(self, counters: CheckpointCounters, dead: Positions, check: Check) -> None:
        """Takes over, durably, what was committed since the last time: up to ``counters``, with these dead ones."""

    @abstractmethod
    def states(self) -> dict[str, ArrayState]:
        """How far the new arrays are written."""

    @abstractmethod
    def dead(self, dead: Positions) -> Positions:
        """Where in the new arrays positions lie that are dead in the old ones, those that still exist. Sorted."""

    @abstractmethod
    def erased(self) -> Mapping[int, int]:
        """By shard of the new arrays, how many of the dead positions hold nothing."""

    def dropped(self) -> Positions:
        """Positions below ``row_count`` of the old arrays that the new ones leave out, sorted."""
        return NO_POSITIONS

    def full_shard_count(self) -> int:
        """Full shards of the new arrays: all are sealed."""
        return self.states()["gradients"].row_count // self.new.record.shard_rows

    def publish_full_shards(self) -> None:
        """Makes the full shards readable by Zarr tools, durably."""
        row_count = self.full_shard_count() * self.new.record.shard_rows
        for array in self.new.arrays.values():
            if array.published_row_count() != row_count:
                array.set_published(row_count)


class Follower(Protocol):
    """What derives from the positions of a checkpoint, and changes with its generation."""

    def prepare(self, copy: GenerationCopy, check: Check) -> None:
        """Beside the store's other work: what the copy has taken over stays as it is."""
        ...

    def commit(self, writer: Writer, copy: GenerationCopy) -> None:
        """In the transaction of the switch."""
        ...


def array_files(checkpoint: StoredCheckpoint) -> dict[str, ZarrArray]:
    """The arrays of a checkpoint, as the files that they are."""
    found: dict[str, ZarrArray] = {}
    for name, array in checkpoint.arrays.items():
        assert isinstance(array, ZarrArray)
        found[name] = array
    return found


@contextmanager
def next_generation(store: Store, collection: StoredCollection, old: StoredCheckpoint) -> Iterator[StoredCheckpoint]:
    """Empty arrays for the next generation. If the block raises, they are removed, unless they may be committed."""
    new = collection.checkpoint_at(replace(old.record, generation=old.record.generation + 1))
    try:
        new.create()
        store.disk.step("compact.created")
        yield new
    except BaseException:
        if collection.read_only is None:
            new.close()
            try:
                store.disk.remove_tree(new.directory)
            except OSError:
                _log.exception("%s could not be removed; the next start removes it", new.directory)
        raise


def take_over(
    store: Store,
    collection: StoredCollection,
    copy: GenerationCopy,
    run: Exclusive,
    check: Check,
    follower: Follower | None = None,
) -> None:
    """Fills the next generation and switches to it; ``follower`` with it."""
    old = copy.old
    row_bytes = position_bytes(collection.space.dim)
    for _ in range(PASSES_MAX):
        copy.advance(old.counters, old.dead, check)
        if (old.counters.row_count - copy.row_count) * row_bytes <= LEFT_BYTES:
            break
    copy.publish_full_shards()
    check()
    if follower is not None:
        follower.prepare(copy, check)
    store.disk.step("compact.copied")
    run(lambda: _switch(store, collection, copy, follower))


def check_alive(collection: StoredCollection) -> None:
    """Raises why a collection may not be changed."""
    if collection.fault is not None:
        raise collection.fault
    if collection.read_only is not None:
        raise collection.read_only


def check_not_deleted(writer: Writer, collection: StoredCollection) -> None:
    """Raises Conflict if the collection is not in the catalog any more."""
    if writer.get("collections", number(collection.record.id)) is None:
        raise Conflict(f"collection {collection.record.name!r} was deleted")


def _switch(store: Store, collection: StoredCollection, copy: GenerationCopy, follower: Follower | None) -> None:
    """On the commit thread: what is left, and the transaction."""
    old, new = copy.old, copy.new
    check_alive(collection)
    if collection.checkpoints.get(old.record.name) is not old:
        raise Conflict(f"checkpoint {old.record.name!r} was changed meanwhile; start again")
    copy.advance(old.counters, old.dead, lambda: None)
    copy.publish_full_shards()
    store.disk.step("compact.caught_up")
    states = copy.states()
    dead = copy.dead(old.dead)
    counters = replace(
        old.counters,
        row_count=states["gradients"].row_count,
        sealed_shard_count=copy.full_shard_count(),
        checksums={name: state.checksum for name, state in states.items()},
    )
    new.counters, new.dead = counters, dead
    if old.is_published():
        new.publish()
    _commit(store, collection, copy, follower)
    with following(collection):
        store.disk.step("compact.switched")
        with collection.changing:
            collection.checkpoints[new.record.name] = new
    _remove_later(store, collection, old)


def _remove_later(store: Store, collection: StoredCollection, old: StoredCheckpoint) -> None:
    old.close()

    def remove() -> None:
        old.close()
        store.disk.remove_tree(old.directory)

    collection.remove_later(remove)


@contextmanager
def following(collection: StoredCollection) -> Iterator[None]:
    """The block makes memory follow a commit. The collection is closed if it cannot; then it raises Unavailable."""
    try:
        yield
    except Exception as error:
        reason = Unavailable(
            f"collection {collection.record.name!r} was compacted, but memory could not follow ({error!r}); "
            "restart the server",
            final="true",
        )
        collection.fault = collection.read_only = reason
        raise reason from error


def _commit(store: Store, collection: StoredCollection, copy: GenerationCopy, follower: Follower | None) -> None:
    new, erased = copy.new, copy.erased()
    id_, record = collection.record.id, new.record
    key = number(id_, record.id)
    try:
        with store.catalog.write() as writer:
            check_not_deleted(writer, collection)
            writer.put("checkpoints", key, record.encode())
            writer.put("checkpoint_counters", key, new.counters.encode())
            for stale in [stale for stale, _ in writer.scan("tombstones", key)]:
                writer.delete("tombstones", stale)
            for shard, positions in positions_by_shard(new.dead, record.shard_rows):
                writer.put("tombstones", number(id_, record.id, shard), positions)
            put_erased_in_shards(writer, id_, record.id, erased)
            if follower is not None:
                follower.commit(writer, copy)
    except Conflict:
        raise
    except (CovectorError, OSError) as error:  # whether it is committed is for a restart to find out
        collection.read_only = Unavailable(
            f"collection {collection.record.name!r} is read-only: the switch to a new generation of checkpoint "
            f"{record.name!r} failed ({error}); look at the disk, then restart the server",
            final="true",
        )
        raise collection.read_only from error
