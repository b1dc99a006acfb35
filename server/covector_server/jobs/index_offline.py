"""``python -m covector_server.jobs.index_offline``: indexes of a store, without a server or beside a running one, as
``jobs.offline`` works on its files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covector.errors import Conflict, Corrupt
from covector.types import Space
from covector_server.command_line import Parser, answer, table
from covector_server.fit.cache import FitCache
from covector_server.index.contract import Spec
from covector_server.index.kinds import kinds
from covector_server.jobs.index_building import ATTEMPTS, Place, build_index, check_spec, summary
from covector_server.jobs.index_rules import rule_of
from covector_server.jobs.indexing import drop_listed
from covector_server.jobs.offline import (
    OfflineFiles,
    OfflineState,
    Report,
    checkpoint_ids,
    checkpoint_named,
    collection_named,
)
from covector_server.limits import Limits
from covector_server.metadata.lmdb_catalog import beside
from covector_server.metadata.records import IndexRecord
from covector_server.storage.disk import Disk
from covector_server.storage.drafts import Moved
from covector_server.storage.index_files import INDEXES, list_index, listed


@dataclass(frozen=True, slots=True)
class OfflineStore:
    """The collections at ``data``, of which another process may be the owner. Raises NotFound for what is not there,
    InvalidInput if ``data`` is no store."""

    data: Path
    disk: Disk
    limits: Limits

    @property
    def files(self) -> OfflineFiles:
        """What it lies in."""
        return OfflineFiles(self.data, self.disk, self.limits)

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
        with self.files.catalog() as reader:
            found = listed(reader, collection_named(reader, name).id)
        return sorted(found, key=lambda record: record.built_at_s)

    def checkpoints(self, name: str) -> dict[int, str]:
        """The names of a collection's checkpoints by id."""
        with self.files.catalog() as reader:
            return checkpoint_ids(reader, collection_named(reader, name))

    def drop(self, name: str, index_id: str) -> None:
        """Takes an index off the list. Its files are removed here, or by the server that may read them."""
        with beside(self.files.path()) as catalog, catalog.write() as writer:
            collection = collection_named(writer, name)
            directory = drop_listed(writer, collection.id, index_id)
        self.files.remove(self.files.directory(collection) / INDEXES, [directory])

    def _build(self, name: str, checkpoint: str, spec: Spec, report: Report) -> dict[str, Any]:
        files = self.files
        with files.catalog() as reader:
            collection = collection_named(reader, name)
            found = checkpoint_named(reader, collection, checkpoint)
        dim = Space.from_json(collection.space_json).dim
        view, state = files.view(collection, found), OfflineState(files, collection)
        looking = files.looking(collection.id, [found.record], report)
        rule = rule_of(state, view, spec, FitCache(self.limits.fit_cache_bytes), lambda: looking(0, 0))
        check_spec(rule.spec, dim)
        replaced: list[IndexRecord] = []

        def list_it(built: IndexRecord) -> None:
            with beside(files.path()) as catalog, catalog.write() as writer:
                replaced.extend(list_index(writer, collection.id, built, self.limits.indexes))
                self.disk.step("index.registered")

        try:
            built = build_index(Place(files.directory(collection), dim, self.disk), view, rule, looking, list_it)
        except (Corrupt, FileNotFoundError):
            files.check_current(collection.id, found.record)  # it is no damage if the files went by a compaction
            raise
        files.remove(files.directory(collection) / INDEXES, [one.directory for one in replaced])
        return summary(built, found.record.name)


def main(arguments: list[str] | None = None) -> int:
    """Prints the result, as JSON unless it is a list for people; returns the exit status."""
    given = _parser().parse_args(arguments)
    quiet = given.json or not sys.stderr.isatty()
    store = OfflineStore(given.data, Disk(), Limits())
    is_for_people = given.command == "list" and not given.json
    return answer(
        lambda: _run(store, given, lambda done, total: None if quiet else _show(done, total)),
        (lambda found: _table(found, given.collection)) if is_for_people else None,
    )


def _table(found: Sequence[dict[str, Any]], collection: str) -> str:
    """A list of indexes for people."""
    if not found:
        return f"no indexes yet; build one: covector index build {collection}"
    head = ("id", "checkpoint", "scorer", "rows", "size", "recall")
    return table(head, [_cells(one) for one in found])


def _cells(one: dict[str, Any]) -> tuple[str, ...]:
    shares = ", ".join(f"{name} {share:.3f}" for name, share in one["recall"].items())
    told = f"{shares}; {one['warning']}" if one["warning"] else shares
    size = f"{one['size_bytes'] / (1 << 20):.1f} MiB"
    return one["index"], one["checkpoint"], one["fit"] or one["scorer"], f"{one['rows']:,}", size, told


def _run(store: OfflineStore, given: argparse.Namespace, report: Report) -> Any:
    if given.command == "build":
        parameters = {name: value for name in ("rank", "trees") if (value := getattr(given, name)) is not None}
        spec = Spec(
            kind=given.kind, scorer=given.scorer, fit=given.fit or "", recall=given.recall, parameters=parameters
        )
        return store.build(given.collection, given.checkpoint or "", spec, report)
    if given.command == "drop":
        store.drop(given.collection, given.id)
        return {"dropped": given.id}
    names = store.checkpoints(given.collection)
    return [
        summary(record, ", ".join(names.get(part.checkpoint_id, "?") for part in record.covered))
        for record in store.indexes(given.collection)
    ]


def _parser() -> Parser:
    parser = Parser(
        prog="covector index",
        description="Build, list and drop indexes of a store, without a server or beside a running one.",
        epilog="example: covector index build resumes --data ./store --kind subspace --recall 0.99",
    )
    parser.add_argument("command", choices=("build", "list", "drop"))
    parser.add_argument("collection", metavar="COLLECTION")
    parser.add_argument("id", nargs="?", metavar="ID", help="of the index to drop")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="where the store is")
    parser.add_argument("--kind", default=kinds()[0], help=" or ".join(kinds()))
    parser.add_argument("--checkpoint", metavar="NAME")
    parser.add_argument("--scorer", default="dot")
    parser.add_argument("--fit", metavar="ID")
    parser.add_argument("--recall", type=float, metavar="SHARE")
    parser.add_argument("--rank", type=int, metavar="N")
    parser.add_argument("--trees", type=int, metavar="N")
    parser.add_argument("--json", action="store_true", help="print JSON, and no progress")
    return parser


def _show(done: int, total: int) -> None:
    print(f"\rindexing: {done} of {total} rows", end="\n" if done == total else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
