"""``python -m covector_server.jobs.index_offline``: indexes of a store, without a server or beside a running one.

A build only reads rows, and lists what it made in one transaction. The catalog is opened for that moment alone; a
server that has it open too sees the new list with its next query. The rows are those committed when the build began:
committed rows do not change in their place, and if a compaction moves them meanwhile, the build begins again.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covector.errors import Conflict, Corrupt, CovectorError, InvalidInput, NotFound, near_matches
from covector.types import Space
from covector_server.index.contract import Spec
from covector_server.index.kinds import kinds
from covector_server.jobs.index_building import ATTEMPTS, Place, build_index, check_spec, summary
from covector_server.jobs.indexing import drop_listed
from covector_server.limits import Limits
from covector_server.metadata.catalog import Reader, number
from covector_server.metadata.lmdb_catalog import beside
from covector_server.metadata.records import CheckpointCounters, CheckpointRecord, CollectionRecord, IndexRecord
from covector_server.storage.array import ZarrArray
from covector_server.storage.checkpoint import StoredCheckpoint
from covector_server.storage.collection import dead_positions
from covector_server.storage.damage import DamageLog, DamageReporter
from covector_server.storage.disk import Disk
from covector_server.storage.index_files import INDEXES, Moved, list_index, listed
from covector_server.storage.shard_cache import ShardCache

LOOK_S = 2.0  # between two looks whether the rows were moved

Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class OfflineStore:
    """The collections at ``data``, of which another process may be the owner. Raises NotFound for what is not there,
    InvalidInput if ``data`` is no store."""

    data: Path
    disk: Disk
    limits: Limits

    def build(self, name: str, checkpoint: str, spec: Spec, report: Report) -> dict[str, Any]:
        """Builds an index and lists it; returns what a server's operation would."""
        for _ in range(ATTEMPTS):
            try:
                return self._build(name, checkpoint, spec, report)
            except Moved:
                continue
        raise Conflict(f"collection {name!r} was compacted {ATTEMPTS} times while it was indexed; try again")

    def indexes(self, name: str) -> list[IndexRecord]:
        """The indexes of a collection, oldest first."""
        with self._catalog() as reader:
            found = listed(reader, _collection(reader, name).id)
        return sorted(found, key=lambda record: record.built_at_s)

    def drop(self, name: str, index_id: str) -> None:
        """Takes an index off the list. Its files are removed here, or by the server that may read them."""
        with beside(self._path()) as catalog, catalog.write() as writer:
            collection = _collection(writer, name)
            directory = drop_listed(writer, collection.id, index_id)
        self._remove(collection.id, [directory])

    def _build(self, name: str, checkpoint: str, spec: Spec, report: Report) -> dict[str, Any]:
        with self._catalog() as reader:
            collection = _collection(reader, name)
            record, counters, dead = _checkpoint(reader, collection, checkpoint)
        dim = Space.from_json(collection.space_json).dim
        check_spec(spec, dim)
        directory = self.data / "collections" / str(collection.id)
        stored = StoredCheckpoint(
            record,
            directory / str(record.id) / str(record.generation),
            dim,
            lambda path, layout: ZarrArray(path, layout, self.disk, ShardCache(self.limits.mapped_shards)),
        )
        stored.counters, stored.dead = counters, dead
        view = stored.view(DamageReporter(name, self.data, DamageLog(self.limits.damages)))
        replaced: list[IndexRecord] = []

        def list_it(built: IndexRecord) -> None:
            with beside(self._path()) as catalog, catalog.write() as writer:
                replaced.extend(list_index(writer, collection.id, built, self.limits.indexes))
                self.disk.step("index.registered")

        looking = self._looking(collection.id, record, report)
        try:
            built = build_index(Place(directory, dim, self.disk), view, spec, looking, list_it)
        except (Corrupt, FileNotFoundError):
            self._check_current(collection.id, record)  # it is no damage if the files went because of a compaction
            raise
        self._remove(collection.id, [one.directory for one in replaced])
        return summary(built, record.name)

    def _looking(self, collection_id: int, record: CheckpointRecord, report: Report) -> Report:
        """``report``, and now and then a look whether the rows are where they were."""
        look_at_s = time.monotonic() + LOOK_S

        def looking(done: int, total: int) -> None:
            nonlocal look_at_s
            report(done, total)
            if time.monotonic() >= look_at_s:
                self._check_current(collection_id, record)
                look_at_s = time.monotonic() + LOOK_S

        return looking

    def _check_current(self, collection_id: int, record: CheckpointRecord) -> None:
        with self._catalog() as reader:
            value = reader.get("checkpoints", number(collection_id, record.id))
        if value is None:
            raise Conflict("the collection was deleted while it was indexed")
        if CheckpointRecord.decode(value).generation != record.generation:
            raise Moved(f"checkpoint {record.name!r} was compacted while it was indexed")

    def _remove(self, collection_id: int, directories: list[str]) -> None:
        """Removes directories that are not listed any more, unless a server may have readers of them."""
        with _owned(self.data) as is_owned:
            for directory in directories if is_owned else ():
                self.disk.remove_tree(self.data / "collections" / str(collection_id) / INDEXES / directory)

    @contextmanager
    def _catalog(self) -> Iterator[Reader]:
        with beside(self._path()) as catalog, catalog.read() as reader:
            yield reader

    def _path(self) -> Path:
        path = self.data / "catalog.lmdb"
        if not path.exists():
            raise InvalidInput(f"{self.data} is no store: it has no catalog.lmdb", field="data")
        if (self.data / "snapshot.json").exists():
            raise Conflict(f"{self.data} is a snapshot, which stays as it is; restore it first")
        return path


@contextmanager
def _owned(data: Path) -> Iterator[bool]:
    """Whether no other process has the store open; none opens it while the block runs then."""
    descriptor = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _collection(reader: Reader, name: str) -> CollectionRecord:
    id_ = reader.get("names", name.encode())
    value = None if id_ is None else reader.get("collections", id_)
    if value is None:
        names = [key.decode() for key, _ in reader.scan("names")]
        raise NotFound(f"no collection {name!r}; {near_matches(name, names)}", collection=name)
    return CollectionRecord.decode(value)


def _checkpoint(
    reader: Reader, collection: CollectionRecord, name: str
) -> tuple[CheckpointRecord, CheckpointCounters, Any]:
    """The record, the counters and the dead positions of a checkpoint, or of the only one for an empty name."""
    entries = list(reader.scan("checkpoints", number(collection.id)))
    known = {record.name: (key, record) for key, record in ((k, CheckpointRecord.decode(v)) for k, v in entries)}
    if not name and len(known) == 1:
        (name,) = known
    if not name and known:
        raise InvalidInput(f"collection {collection.name!r} has several checkpoints; say which: {', '.join(known)}")
    if name not in known:
        raise NotFound(f"no checkpoint {name!r} in {collection.name!r}; {near_matches(name, known)}", checkpoint=name)
    key, record = known[name]
    counters = CheckpointCounters.decode(reader.get("checkpoint_counters", key) or b"{}")
    return record, counters, dead_positions(reader, key, record.shard_rows)


def main(arguments: list[str] | None = None) -> int:
    """Prints the result as JSON; returns the exit status."""
    given = _parser().parse_args(arguments)
    quiet = given.json or not sys.stderr.isatty()
    store = OfflineStore(given.data, Disk(), Limits())
    try:
        result = _run(store, given, lambda done, total: None if quiet else _show(done, total))
    except (CovectorError, OSError) as error:
        print(f"covector: error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result, indent=2))
    return 0


def _run(store: OfflineStore, given: argparse.Namespace, report: Report) -> Any:
    if given.command == "build":
        parameters = {} if given.rank is None else {"rank": given.rank}
        spec = Spec(kind=given.kind, scorer=given.scorer, recall=given.recall, parameters=parameters)
        return store.build(given.collection, given.checkpoint or "", spec, report)
    if given.command == "drop":
        store.drop(given.collection, given.id)
        return {"dropped": given.id}
    return [summary(record, "") for record in store.indexes(given.collection)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="covector index",
        description="Build, list and drop indexes of a store, without a server or beside a running one.",
        epilog="example: covector index build resumes --data ./store --kind subspace --recall 0.99",
    )
    parser.add_argument("command", choices=("build", "list", "drop"))
    parser.add_argument("collection", metavar="COLLECTION")
    parser.add_argument("id", nargs="?", metavar="ID", help="of the index to drop")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="where the store is")
    parser.add_argument("--kind", choices=kinds(), default=kinds()[0])
    parser.add_argument("--checkpoint", metavar="NAME")
    parser.add_argument("--scorer", default="dot")
    parser.add_argument("--recall", type=float, metavar="SHARE")
    parser.add_argument("--rank", type=int, metavar="N")
    parser.add_argument("--json", action="store_true", help="print no progress")
    return parser


def _show(done: int, total: int) -> None:
    print(f"\rindexing: {done} of {total} rows", end="\n" if done == total else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
