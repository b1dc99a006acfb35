"""Checking a whole store, and repairing what can be repaired without losing a row."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from covector.errors import Conflict, InvalidInput, Unavailable
from covector_server.check.catalog_state import CATALOG_FILE, STORE_KEY, CatalogState, read_catalog
from covector_server.check.claims import Unclaimed
from covector_server.check.collection import check_collection
from covector_server.check.context import Context, OnProgress
from covector_server.check.findings import Finding, Report, Severity
from covector_server.check.repairs import set_aside
from covector_server.check.salvage import salvage_tree
from covector_server.metadata.catalog import numbers
from covector_server.metadata.records import FORMAT_VERSION, StoreRecord
from covector_server.storage.disk import Disk


@dataclass(slots=True)
class Repaired:
    """What a repair did: the findings it took on, why it could not go on, and what a second check still finds."""

    done: list[Finding] = field(default_factory=list)
    failed: list[tuple[Finding, str]] = field(default_factory=list)
    after: Report = field(default_factory=Report)


def check_store(data: Path, *, on_progress: OnProgress | None = None, ask_lmdb: bool = True) -> Report:
    """Checks every file of the store at ``data``, which is only read. The caller holds its lock (``locked``).

    ask_lmdb: have LMDB read the catalog too, in a child process. Raises InvalidInput if ``data`` is no store, Conflict
    if its format is newer than this program.
    """
    if not (data / CATALOG_FILE).exists() and not (data / "collections").is_dir():
        raise InvalidInput(f"{data} is no store: it has neither {CATALOG_FILE} nor collections; name a data directory")
    context = Context(data, on_progress)
    context.expected_bytes = sum(_file_bytes(data))
    state = read_catalog(context, ask_lmdb=ask_lmdb)
    record = _store_record(context, state)
    for id_, _ in state.scan("collections"):
        check_collection(context, state, id_)
        context.report.collections += 1
    context.claims.explain("catalog.lmdb.compact", "a process died while it compacted the catalog")
    _explain_collections(context, state, record)
    _check_unclaimed(context, state)
    return context.report


def repair_store(
    data: Path,
    report: Report,
    *,
    disk: Disk | None = None,
    on_progress: OnProgress | None = None,
    ask_lmdb: bool = True,
) -> Repaired:
    """Repairs what the findings of ``report`` can repair, in their order, then checks again. Nothing is deleted, no
    committed row is touched; a repair that fails leaves the others to be done. The caller holds the store's lock."""
    repaired, disk = Repaired(), disk or Disk()
    for finding in report.findings:
        if finding.repair is None:
            continue
        try:
            finding.repair(disk)
            repaired.done.append(finding)
        except OSError as error:
            repaired.failed.append((finding, str(error)))
    repaired.after = check_store(data, on_progress=on_progress, ask_lmdb=ask_lmdb)
    return repaired


@contextmanager
def locked(data: Path) -> Iterator[None]:
    """Keeps servers away from the store while the block runs. Raises Unavailable if one has it open. A snapshot that
    was never opened has no lock, and needs none."""
    try:
        descriptor = os.open(data / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise Unavailable(
            f"{data} is open in a covector server; stop it first, or check a snapshot of it. While it runs, "
            "its scrubber reads everything in turn"
        ) from error
    finally:
        os.close(descriptor)


def _store_record(context: Context, state: CatalogState) -> StoreRecord | None:
    value = state.get("store", STORE_KEY)
    if value is None:
        if state.is_whole and any((context.data / "collections").iterdir()):
            state.is_whole = False
            message = "the catalog is empty while there are collections; restore it from a snapshot"
            context.add(Finding(kind="catalog_entry", message=message, path=CATALOG_FILE))
        return None
    try:
        record = StoreRecord.decode(value)
    except (ValueError, TypeError) as error:
        context.add(Finding(kind="catalog_entry", message=f"the store's record: {error}", path=CATALOG_FILE))
        return None
    if record.format_version > FORMAT_VERSION:
        raise Conflict(
            f"{context.data} has format {record.format_version}, this program knows up to {FORMAT_VERSION}; "
            "use a newer covector"
        )
    return record


def _explain_collections(context: Context, state: CatalogState, record: StoreRecord | None) -> None:
    """Directories of collections that were deleted, or begun and not committed."""
    if record is None or not state.is_whole:
        return
    known = {numbers(key)[0] for key, _ in state.scan("collections")}
    for id_ in range(1, record.next_collection_id):
        if id_ not in known:
            context.claims.explain(f"collections/{id_}", "it belongs to a collection that was deleted")
    why = "it was begun for a collection that was not committed"
    context.claims.explain(f"collections/{record.next_collection_id}", why)


def _check_unclaimed(context: Context, state: CatalogState) -> None:
    for unclaimed in list(context.claims.unclaimed(context.data)):
        if state.is_whole:
            context.add(_extra(context.data, unclaimed, context.aside))
        else:
            salvage_tree(context, state, unclaimed.path)


def _extra(data: Path, unclaimed: Unclaimed, aside: str) -> Finding:
    why = unclaimed.why or "nothing of this store belongs there"
    return Finding(
        kind="orphan" if unclaimed.why else "extra",
        message=why,
        path=unclaimed.path,
        severity=Severity.LEFTOVER if unclaimed.why else Severity.DAMAGE,
        repair=set_aside(data, unclaimed.path, aside),
        repair_note="move it below lost+found",
    )


def _file_bytes(data: Path) -> Iterator[int]:
    """Bytes on disk of the files to read."""
    yield (data / CATALOG_FILE).stat().st_size if (data / CATALOG_FILE).exists() else 0
    for directory, _, names in os.walk(data / "collections"):
        for name in names:
            try:
                found = (Path(directory) / name).lstat()
            except FileNotFoundError:
                continue
            yield min(found.st_size, found.st_blocks * 512)
