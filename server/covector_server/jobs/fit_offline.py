"""``python -m covector_server.jobs.fit_offline``: fits of a store, without a server or beside a running one, as
``jobs.offline`` works on its files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from covector.attribution.held_out import CANDIDATES, HELD_OUT
from covector.attribution.methods import method_names
from covector.errors import Conflict, Corrupt, InvalidInput
from covector.types import Space
from covector_server.command_line import Parser, answer, table
from covector_server.fit.spec import FitSpec
from covector_server.jobs.fit_building import ATTEMPTS, FitBuild, FitPlace, plan_facts, plans_of, summary
from covector_server.jobs.offline import OfflineFiles, Report, checkpoint_named, checkpoint_names, collection_named
from covector_server.limits import Limits, memory_half_bytes
from covector_server.metadata.catalog import number
from covector_server.metadata.lmdb_catalog import beside
from covector_server.metadata.records import CollectionCounters, CollectionRecord, FitRecord
from covector_server.storage.disk import Disk
from covector_server.storage.drafts import Moved
from covector_server.storage.fit_files import FITS, advance_fit, drop_fit, listed_fits
from covector_server.storage.index_files import INDEXES, remove_fitless


@dataclass(frozen=True, slots=True)
class OfflineFits:
    """The fits of the collections at ``files``. Raises NotFound for what is not there. ``memory_bytes_max``: of one."""

    files: OfflineFiles
    memory_bytes_max: int

    def fit(self, name: str, spec: FitSpec, report: Report) -> dict[str, Any]:
        """Learns a fit and lists it; returns what a server's operation would."""
        for _ in range(ATTEMPTS):
            try:
                return self._fit(name, spec, report)
            except Moved:
                continue
        raise Conflict(f"rows of {name!r} were compacted {ATTEMPTS} times meanwhile; try again")

    def fits(self, name: str) -> list[FitRecord]:
        """The fits of a collection, oldest first, those on their way included."""
        with self.files.catalog() as reader:
            found = listed_fits(reader, collection_named(reader, name).id)
        return sorted(found, key=lambda record: record.started_at_s)

    def drop(self, name: str, fit_id: str) -> None:
        """Takes a fit and its indexes off the list. Files are removed here, or by the server that may read them."""
        with beside(self.files.path()) as catalog, catalog.write() as writer:
            collection = collection_named(writer, name)
            directories = drop_fit(writer, collection.id, fit_id)
            gone = remove_fitless(writer, collection.id)
        self.files.remove(self.files.directory(collection) / FITS, directories)
        self.files.remove(self.files.directory(collection) / INDEXES, [index.directory for index in gone])

    def _fit(self, name: str, spec: FitSpec, report: Report) -> dict[str, Any]:
        files = self.files
        with files.catalog() as reader:
            collection = collection_named(reader, name)
            names = list(spec.checkpoints) or checkpoint_names(reader, collection) or [""]
            found = [checkpoint_named(reader, collection, one) for one in names]
            counters = CollectionCounters.decode(reader.get("collection_counters", number(collection.id)) or b"{}")
        views = [files.view(collection, one) for one in found]
        records = [one.record for one in found]
        place = FitPlace(
            collection_directory=files.directory(collection),
            space=Space.from_json(collection.space_json),
            row_id_count=counters.next_row_id,
            disk=files.disk,
            save_s=files.limits.fit_save_s,
            memory_bytes_max=self.memory_bytes_max,
        )
        tell_plan(plan_facts(place, views, plans_of(place, spec, views)))
        looking = files.looking(collection.id, records, report)
        try:
            return summary(*FitBuild(place, spec, _Ledger(self, collection), looking).run(views))
        except (Corrupt, FileNotFoundError):
            for record in records:
                files.check_current(collection.id, record)  # it is no damage if the files went by a compaction
            raise


@dataclass(frozen=True, slots=True)
class _Ledger:
    """``fit_building.Ledger`` of a collection that another process may have open."""

    fits: OfflineFits
    collection: CollectionRecord

    def listed(self) -> list[FitRecord]:
        with self.fits.files.catalog() as reader:
            return listed_fits(reader, self.collection.id)

    def advance(self, record: FitRecord, before: FitRecord | None, generations: Mapping[int, int]) -> None:
        files = self.fits.files
        with beside(files.path()) as catalog, catalog.write() as writer:
            gone = advance_fit(
                writer, self.collection.id, record, before, generations=generations, fits_max=files.limits.fits
            )
            fitless = remove_fitless(writer, self.collection.id)
            files.disk.step("fit.registered")
        files.remove(files.directory(self.collection) / FITS, gone)
        files.remove(files.directory(self.collection) / INDEXES, [index.directory for index in fitless])


def tell_plan(facts: dict[str, Any]) -> None:
    """Says on stderr what the fit will take, before it begins."""
    rows = sum(one["rows"] for one in facts["checkpoints"].values())
    print(f"fitting {rows:,} rows, at most {facts['memory_bytes'] >> 20:,} MiB of memory", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Prints the result, as JSON unless it is a list for people; returns the exit status."""
    given = _parser().parse_args(arguments)
    quiet = given.json or not sys.stderr.isatty()
    files = OfflineFiles(given.data, Disk(), Limits())
    memory = memory_half_bytes() if given.memory_mib is None else given.memory_mib << 20
    fits = OfflineFits(files, memory)
    is_for_people = given.command == "list" and not given.json
    return answer(
        lambda: _run(fits, given, lambda done, total: None if quiet else _show(done, total)),
        (lambda found: _table(found, given.collection)) if is_for_people else None,
    )


def _table(found: Sequence[dict[str, Any]], collection: str) -> str:
    """A list of fits for people."""
    if not found:
        return f"no fits yet; learn one: covector fit create {collection} trak"
    return table(("id", "checkpoints", "rows", "size", "damping"), [_cells(one) for one in found])


def _cells(one: dict[str, Any]) -> tuple[str, ...]:
    damping = f"{one['damping']:g} x {one['damping_unit']}" if one["finished"] else "not finished"
    size = f"{one['size_bytes'] / (1 << 20):.1f} MiB"
    return one["fit"], ", ".join(one["checkpoints"]), f"{one['rows']:,}", size, damping


def _run(fits: OfflineFits, given: argparse.Namespace, report: Report) -> Any:
    if given.command == "drop":
        fits.drop(given.collection, given.what)
        return {"dropped": given.what}
    if given.command == "list":
        return [
            summary(record, is_new=False) | {"finished": record.is_finished} for record in fits.fits(given.collection)
        ]
    spec = FitSpec(
        method=given.what,
        checkpoints=given.checkpoint or (),
        damping=_damping(given.damping),
        rank=given.rank,
        by_layer=given.by_layer,
        unit_rows=given.unit_rows,
        tasks=None if given.task_gradients is None else _tasks(given.task_gradients),
    )
    return fits.fit(given.collection, spec, report)


def _tasks(path: Path) -> Any:
    """Gradients of the query task: a .npy of float[m, dim] or float[checkpoints, m, dim]."""
    found = np.load(path, allow_pickle=False).astype(np.float32)
    return found[None] if found.ndim == 2 else found


def _damping(given: Sequence[str] | None) -> float | Sequence[float] | None:
    """What ``--damping`` says: one, candidates, or None. Raises InvalidInput."""
    if not given:
        return None
    if list(given) == [HELD_OUT]:
        return CANDIDATES
    try:
        values = [float(one) for one in given]
    except ValueError:
        raise InvalidInput(f"--damping is a number or {HELD_OUT}, not {' '.join(given)!r}", field="damping") from None
    return values if len(values) > 1 else values[0]


def _parser() -> Parser:
    parser = Parser(
        prog="covector fit",
        description="Learn, list and drop fits of a store, without a server or beside a running one.",
        epilog="example: covector fit create resumes trak --data ./store",
    )
    parser.add_argument("command", choices=("create", "list", "drop"))
    parser.add_argument("collection", metavar="COLLECTION")
    parser.add_argument("what", nargs="?", metavar="METHOD|ID", help=f"{', '.join(method_names())}; or a fit to drop")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="where the store is")
    parser.add_argument("--checkpoint", action="append", metavar="NAME", help="may be given several times")
    parser.add_argument("--damping", action="append", metavar="X")
    parser.add_argument("--rank", type=int, metavar="N")
    layers = parser.add_mutually_exclusive_group()
    layers.add_argument("--by-layer", action="store_true", default=None)
    layers.add_argument("--one-layer", action="store_false", dest="by_layer")
    parser.add_argument("--unit-rows", action="store_true")
    parser.add_argument("--task-gradients", type=Path, metavar="FILE")
    parser.add_argument("--memory-mib", type=int, metavar="MIB")
    parser.add_argument("--json", action="store_true", help="print JSON, and no progress")
    return parser


def _show(done: int, total: int) -> None:
    print(f"\rfitting: {done} of {total} rows", end="\n" if done == total else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
