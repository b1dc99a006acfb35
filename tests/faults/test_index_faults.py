"""Index builds, erasure and compaction of indexes, under faults.

Fault model: a kill is a copy of the files as they are at a step of the protocol, opened as a store of its own; a step,
a write or a sync fails; a build is cancelled between two steps; a byte of a file is flipped, a file is cut or gone. The
judge is exact search: whatever happened, an answer by an index has exact scores, live rows, and enough recall.
"""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.index_rig import IndexRig, decaying, keys_of, recall

from covector.errors import Corrupt, Unavailable
from covector_server.check.store import check_store, repair_store
from covector_server.index.contract import Spec
from covector_server.index.subspace import Subspace
from covector_server.jobs.compaction import Rules
from covector_server.jobs.operations import CANCELLED, FAILED, SUCCEEDED, Cancelled, Progress
from covector_server.jobs.scrub import Scrubber
from covector_server.metadata.catalog import number
from covector_server.query import choosing
from covector_server.storage.index_files import put_index
from covector_server.storage.restore import restore
from covector_server.storage.snapshot import Snapshots
from covector_server.testing.faulty_disk import Fault, FaultyDisk

DIM = 64
ROWS = decaying(3_000, DIM)
QUERIES = decaying(8, DIM, seed=5)
BUILD_STEPS = (
    "index.created",
    "index.basis",
    "index.coded",
    "index.measured",
    "index.synced",
    "index.registered",
    "index.listed",
)
ERASE, MOVE = Rules(0.0, 5.0), Rules(0.01, 5.0)


class StepDisk(FaultyDisk):
    """Calls ``at_step`` at each step, and remembers them."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[str] = []
        self.at_step: Callable[[str], None] = lambda name: None

    def step(self, name: str) -> None:
        self.steps.append(name)
        self.at_step(name)
        super().step(name)


@pytest.fixture(autouse=True)
def by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index is used wherever one fits."""
    monkeypatch.setattr(choosing, "index_cost", lambda *given: 0.0)


@pytest.fixture
def disk() -> StepDisk:
    return StepDisk()


@pytest.fixture
def rig(tmp_path: Path, disk: StepDisk) -> Iterator[IndexRig]:
    made = IndexRig(tmp_path / "store", DIM, disk=disk)
    made.add(0, ROWS[:2_000])
    yield made
    disk.fault = None
    made.close()


def test_every_step_of_a_build_is_known(rig: IndexRig, disk: StepDisk) -> None:
    rig.build()
    assert tuple(step for step in disk.steps if step.startswith("index.")) == BUILD_STEPS


@pytest.mark.parametrize("step", BUILD_STEPS)
def test_a_kill_at_any_step_leaves_the_old_index_or_the_new(
    rig: IndexRig, disk: StepDisk, tmp_path: Path, step: str
) -> None:
    rig.build()
    (old,) = rig.records()
    rig.add(2_000, ROWS[2_000:])
    copies: list[Path] = []

    def copy(name: str) -> None:
        if name == step:
            copies.append(tmp_path / "killed")
            shutil.copytree(rig.data, copies[-1])

    disk.at_step = copy
    assert rig.build().state == SUCCEEDED
    (copied,) = copies
    (copied / "catalog.lmdb-lock").unlink()
    killed = IndexRig(copied, DIM)
    (record,) = killed.records()
    assert (record.id == old.id) == (step != "index.listed")
    assert killed.directories() == [record.directory]
    assert recall(killed, QUERIES) >= 0.9
    killed.close()
    assert check_store(copied, ask_lmdb=False).findings == []


@pytest.mark.parametrize("step", BUILD_STEPS)
def test_a_cancelled_build_leaves_the_old_index(rig: IndexRig, disk: StepDisk, step: str) -> None:
    rig.build()
    (old,) = rig.records()

    def cancel(name: str) -> None:
        if name == step:
            rig.operations.cancel(rig.operations.list()[0].id)

    disk.at_step = cancel
    state = rig.build().state
    disk.at_step = lambda name: None
    is_too_late = step in {"index.synced", "index.registered", "index.listed", "index.measured"}
    assert state in ({SUCCEEDED, CANCELLED} if is_too_late else {CANCELLED})
    (record,) = rig.records()
    assert (record.id == old.id) == (state == CANCELLED)
    assert rig.directories() == [record.directory]
    assert recall(rig, QUERIES) >= 0.9


@pytest.mark.parametrize("step", BUILD_STEPS[:-1])
def test_a_failed_step_leaves_the_old_index(rig: IndexRig, disk: StepDisk, step: str) -> None:
    rig.build()
    (old,) = rig.records()
    disk.fault = Fault(step)
    assert rig.build().state == FAILED
    assert [record.id for record in rig.records()] == [old.id]
    rig.restart()
    assert rig.directories() == [old.directory]
    assert recall(rig, QUERIES) >= 0.9
    assert rig.build().state == SUCCEEDED


@pytest.mark.parametrize("after", range(5))
@pytest.mark.parametrize("operation", ["write", "sync", "open"])
def test_a_full_disk_leaves_the_old_index(rig: IndexRig, disk: StepDisk, operation: str, after: int) -> None:
    rig.build()
    (old,) = rig.records()

    def arm(name: str) -> None:
        if name == "index.created":
            disk.fault = Fault(operation, after, errno.ENOSPC)

    disk.at_step = arm
    ended = rig.build()
    disk.at_step = lambda name: None
    assert ended.state == FAILED
    assert rig.directories() == [old.directory]
    assert recall(rig, QUERIES) >= 0.9
    assert disk.retried == []


def test_what_a_process_left_is_swept_but_not_what_is_being_made(rig: IndexRig, disk: StepDisk) -> None:
    orphan = rig.collection.directory / "indexes" / "subspace-orphaned"
    orphan.mkdir(parents=True)
    (orphan / "codes").write_bytes(b"x")
    seen: list[list[str]] = []

    def sweep(name: str) -> None:
        if name == "index.coded":
            rig.indexer._sweeper._sweep_at_s = 0.0
            rig.indexer.step()
            seen.append(rig.directories())

    disk.at_step = sweep
    assert rig.build().state == SUCCEEDED
    assert len(seen[0]) >= 1
    disk.at_step = lambda name: None
    assert rig.directories() == [rig.records()[0].directory]
    assert recall(rig, QUERIES) >= 0.9


OFFLINE = """
import pathlib, sys
from covector_server.index.contract import Spec
from covector_server.jobs.index_offline import OfflineStore
from covector_server.limits import Limits
from covector_server.testing.killable import KillableDisk
store = OfflineStore(pathlib.Path(sys.argv[1]), KillableDisk(sys.argv[2]), Limits())
store.build("c", "one", Spec(kind="subspace"), lambda done, total: None)
"""


@pytest.mark.parametrize("step", BUILD_STEPS)
def test_a_process_killed_while_it_builds_beside_an_open_store(rig: IndexRig, step: str) -> None:
    """In the middle of its transaction too, with LMDB's lock held: the store goes on to commit."""
    rig.build()
    (old,) = rig.records()
    done = subprocess.run([sys.executable, "-c", OFFLINE, str(rig.data), step], check=False)
    assert done.returncode == -signal.SIGKILL
    rig.add(2_000, ROWS[2_000:])
    (record,) = rig.records()
    assert (record.id == old.id) == (step != "index.listed")
    assert rig.ask(QUERIES).index == record.id
    assert recall(rig, QUERIES) >= 0.9
    rig.indexer._sweeper._sweep_at_s = 0.0
    rig.indexer.step()
    assert rig.directories() == [record.directory]
    assert rig.build().state == SUCCEEDED


# Damage


def _files(rig: IndexRig) -> list[str]:
    return sorted(rig.records()[0].files)


FILES = ("basis", "codes", "deviations", "factors", "gains", "manifest.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["first", "middle", "last", "cut", "longer", "gone"])
def test_a_damaged_file_is_found_and_passed_over(rig: IndexRig, name: str, how: str) -> None:
    rig.build()
    assert tuple(_files(rig)) == FILES
    (record,) = rig.records()
    rig.close()
    path = rig.data / "collections/1/indexes" / record.directory / name
    damage(path, how)
    report = check_store(rig.data, ask_lmdb=False)
    assert {finding.kind for finding in report.damage} == {"derived"}
    assert any(finding.path.endswith(f"{record.directory}/{name}") for finding in report.damage)
    rig.open()
    found = rig.ask(QUERIES)
    assert not found.index
    assert f"index {record.id} is damaged" in found.reason
    assert f"index {record.id} is damaged" in rig.ask(QUERIES).reason
    ((_, told),) = rig.store.damages.found()
    assert told.path.endswith(record.directory)
    scrubbed = Scrubber(rig.store.catalog, rig.data, rig.store.damages, 1 << 40)
    rig.store.damages._found.clear()
    assert scrubbed.step() or how == "gone"
    reported = [where.path for _, where in rig.store.damages.found()]
    if how == "longer":  # every byte that counts is sound
        assert reported == []
    else:
        assert any(place.endswith(name) for place in reported)
    rig.close()
    repaired = repair_store(rig.data, report, ask_lmdb=False)
    assert repaired.failed == []
    assert repaired.after.damage == []
    rig.open()
    assert rig.records() == []
    assert rig.build().state == SUCCEEDED
    assert recall(rig, QUERIES) >= 0.9


def damage(path: Path, how: str) -> None:
    if how == "gone":
        path.unlink()
        return
    data = bytearray(path.read_bytes())
    if how == "cut":
        data = data[:-1]
    elif how == "longer":
        data += b"\0"
    else:
        data[{"first": 0, "middle": len(data) // 2, "last": len(data) - 1}[how]] ^= 4
    path.write_bytes(data)


def test_a_sound_index_has_no_finding(rig: IndexRig) -> None:
    rig.build()
    rig.delete(range(10))
    scrubber = Scrubber(rig.store.catalog, rig.data, rig.store.damages, 1 << 40)
    scrubber.step()
    while scrubber.progress.round_count == 0:
        scrubber.step()
    assert rig.store.damages.found() == []
    rig.close()
    report = check_store(rig.data, ask_lmdb=False)
    assert report.findings == []
    (rig.data / "collections/1/indexes/subspace-left").mkdir()
    (leftover,) = check_store(rig.data, ask_lmdb=False).findings
    assert leftover.severity == "leftover"
    rig.open()
    assert "subspace-left" not in rig.directories()


def test_a_record_of_other_rows_is_found(rig: IndexRig) -> None:
    rig.build()
    (record,) = rig.records()
    with rig.store.catalog.write() as writer:
        put_index(writer, 1, replace(record, parts=[{**record.parts[0], "generation": 7}]))
    assert not rig.ask(QUERIES).index
    rig.close()
    (finding,) = check_store(rig.data, ask_lmdb=False).damage
    assert "another generation" in finding.message
    rig.open()


def test_a_damaged_list_does_not_stop_queries(rig: IndexRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.build()

    def damaged(*given: object) -> Any:
        raise Corrupt("catalog table 'indexes': the value does not match its checksum")

    monkeypatch.setattr("covector_server.storage.collection.listed", damaged)
    assert "the list of indexes is damaged" in rig.ask(QUERIES).reason


# Erasure and compaction


@pytest.mark.parametrize("rules", [ERASE, MOVE], ids=["erase", "move"])
def test_an_index_follows_its_rows(rig: IndexRig, rules: Rules) -> None:
    rig.build()
    (before,) = rig.records()
    gone = sorted({key for ends in rig.ask(QUERIES).results for end in keys_of(ends) for key in end})
    rig.delete(gone)
    rig.add(500, ROWS[2_500:2_600])  # replaced
    result = rig.compact(rules)
    (after,) = rig.records()
    assert result["indexes_dropped"] == []
    assert after.id == before.id
    assert after.covered[0].generation == 1
    assert rig.directories() == [after.directory]
    dead = rig.collection.checkpoints["one"].dead
    assert after.covered[0].blank_count == len(dead)
    assert (after.covered[0].row_count < 2_000) == (rules is MOVE)
    assert recall(rig, QUERIES) >= 0.9
    assert_blank(rig)
    rig.restart()
    assert recall(rig, QUERIES) >= 0.9
    again = rig.compact(rules)
    assert again["indexes_dropped"] == []
    assert [record.directory for record in rig.records()] == [after.directory]  # nothing to do


def assert_blank(rig: IndexRig) -> None:
    """No dead position has a code, every live row that is not zero has one, and it is the code of that very row."""
    (record,) = rig.records()
    root = rig.collection.directory / "indexes" / record.directory
    rank, row_count = record.parameters["rank"], record.covered[0].row_count
    codes = np.fromfile(root / "codes", np.int8).reshape(row_count, rank).astype(np.float64)
    factors = np.fromfile(root / "factors", "<f4")
    basis = np.fromfile(root / "basis", "<f2").reshape(rank, DIM).astype(np.float64)
    deviations = np.fromfile(root / "deviations", "<f4")
    checkpoint = rig.collection.checkpoints["one"]
    live = np.ones(row_count, dtype=bool)
    live[checkpoint.dead[checkpoint.dead < row_count]] = False
    assert not codes[~live].any()
    assert not factors[~live].any()
    with rig.collection.reading() as view:
        strips = [source.load() for source in view.checkpoints["one"].strips_at(np.flatnonzero(live), 1_000)]
    rows = np.concatenate([strip.rows.copied() for strip in strips]).astype(np.float64)
    products = codes[live] * factors[live][:, None] * deviations
    np.testing.assert_allclose(products, rows @ basis.T, atol=float(np.abs(products).max()) * 0.02)


@pytest.mark.parametrize("rules", [ERASE, MOVE], ids=["erase", "move"])
def test_rows_that_come_and_go_while_rows_move(rig: IndexRig, disk: StepDisk, rules: Rules) -> None:
    rig.build()
    rig.delete(range(400))

    def disturb(name: str) -> None:
        if name == "compact.copied":
            disk.at_step = lambda name: None
            rig.delete(range(400, 450))
            rig.add(3_000, 20 * QUERIES)

    disk.at_step = disturb
    rig.compact(rules)
    assert recall(rig, QUERIES) >= 0.9
    assert_blank(rig)
    found = keys_of(rig.ask(QUERIES[:1], k=1, scorer="cosine").results[0])
    assert found[0] == [3_000]
    assert len(rig.directories()) == 1


@pytest.mark.parametrize("rules", [ERASE, MOVE], ids=["erase", "move"])
def test_a_kill_while_an_index_follows(rig: IndexRig, disk: StepDisk, tmp_path: Path, rules: Rules) -> None:
    rig.build()
    rig.delete(range(0, 1_000, 3))
    copies: dict[str, Path] = {}

    def copy(name: str) -> None:
        if name.startswith(("compact.", "index.")) and name not in copies:
            copies[name] = tmp_path / name
            shutil.copytree(rig.data, copies[name])

    disk.at_step = copy
    rig.compact(rules)
    disk.at_step = lambda name: None
    wanted = {"compact.copied", "compact.switched", "compact.marked"}
    assert copies.keys() >= wanted | ({"index.blanked", "index.switched"} if rules is ERASE else {"index.created"})
    for name, path in copies.items():
        (path / "catalog.lmdb-lock").unlink(missing_ok=True)
        killed = IndexRig(path, DIM)
        (record,) = killed.records()
        assert killed.directories() == [record.directory], name
        assert recall(killed, QUERIES) >= 0.9, name
        killed.compact(rules)
        assert_blank(killed)
        assert recall(killed, QUERIES) >= 0.9, name
        killed.close()
        assert check_store(path, ask_lmdb=False).damage == []


@pytest.mark.parametrize("rules", [ERASE, MOVE], ids=["erase", "move"])
def test_a_cancelled_or_failed_compaction_leaves_the_index(rig: IndexRig, disk: StepDisk, rules: Rules) -> None:
    rig.build()
    rig.delete(range(0, 1_000, 3))
    progress = Progress(lambda done, total: None)
    progress.cancel()
    with pytest.raises(Cancelled):
        rig.compact(rules, progress=progress)
    disk.fault = Fault("compact.copied")
    with pytest.raises(Unavailable):
        rig.compact(rules)
    assert recall(rig, QUERIES) >= 0.9
    assert rig.directories() == [rig.records()[0].directory]
    rig.compact(rules)
    assert recall(rig, QUERIES) >= 0.9
    assert rig.directories() == [rig.records()[0].directory]


@pytest.mark.parametrize("rules", [ERASE, MOVE], ids=["erase", "move"])
def test_a_damaged_index_is_dropped_by_erasure(rig: IndexRig, rules: Rules) -> None:
    rig.build()
    (record,) = rig.records()
    damage(rig.collection.directory / "indexes" / record.directory / "codes", "middle")
    rig.delete(range(0, 1_000, 3))
    assert rig.compact(rules)["indexes_dropped"] == [record.id]
    assert rig.records() == []
    assert rig.directories() == []
    assert "no index" in rig.ask(QUERIES).reason


def test_a_kind_that_cannot_leave_rows_out_is_dropped(rig: IndexRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.build()
    (record,) = rig.records()
    monkeypatch.setattr(Subspace, "rewrite", lambda *given: None)
    rig.delete(range(100))
    assert rig.compact(ERASE)["indexes_dropped"] == [record.id]
    assert rig.directories() == []


def test_readers_keep_the_index_that_they_began_with(rig: IndexRig) -> None:
    rig.build()
    rig.delete(range(0, 1_000, 3))
    with rig.collection.reading() as view:
        (listed,) = view.listed_indexes()
        with pytest.raises(Unavailable):
            rig.compact(Rules(0.01, readers_wait_s=0.0))
        assert (listed.directory / "codes").exists()
        assert rig.cache.open(listed, lambda: None) is not None
    assert not listed.directory.exists()
    assert rig.cache.open_count == 0


# Copies


def test_a_snapshot_has_the_indexes(rig: IndexRig, tmp_path: Path) -> None:
    rig.build()
    (record,) = rig.records()
    snapshots = Snapshots(rig.store)
    snapshots.reserve("monday")
    snapshots.create("monday")
    inside = rig.data / "snapshots/monday/collections/1/indexes" / record.directory
    assert sorted(path.name for path in inside.iterdir()) == list(FILES)
    restore(rig.data / "snapshots/monday", tmp_path / "again", lambda done, total: None)
    again = IndexRig(tmp_path / "again", DIM)
    assert [found.id for found in again.records()] == [record.id]
    assert recall(again, QUERIES) >= 0.9
    again.delete(range(100))
    again.compact(ERASE)
    again.close()
    assert recall(rig, QUERIES) >= 0.9
    assert json.loads((inside / "manifest.json").read_bytes())["kind"] == "subspace"


def test_a_deleted_collection_takes_its_indexes(rig: IndexRig, disk: StepDisk) -> None:
    rig.build()

    def delete(name: str) -> None:
        if name == "index.synced":
            disk.at_step = lambda name: None
            rig.committer.call(lambda: rig.store.delete_collection("c")).result()

    disk.at_step = delete
    started = rig.indexer.start("c", "one", Spec(kind="subspace"))
    assert rig.operations.wait(started.id, 60).state == FAILED
    with rig.store.catalog.read() as reader:
        assert list(reader.scan("indexes", number(1))) == []
    assert not (rig.data / "collections/1").exists()
