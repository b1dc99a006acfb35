"""Fits under faults: while they are learnt, while their rows move or are erased, and in their files.

Fault model: a kill is a copy of the files as they are at a step of the protocol, opened as a store of its own; a step,
a write or a sync fails; a fit is cancelled, or its server stopped, between two steps; a byte of a file is flipped, a
file is cut or gone. The judge is the fit on the decoded rows: whatever happened, what is served is this fit or refused.
"""

from __future__ import annotations

import errno
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.faults.test_index_faults import StepDisk, damage
from tests.fit_rig import FitRig
from tests.index_rig import decaying

from covector.attribution import fit as fit_arrays
from covector.attribution.learning import FitJob
from covector.blocks import encode_key
from covector.errors import Conflict, Corrupt, NotFound, Unavailable
from covector_server.check.store import check_store, repair_store
from covector_server.fit.spec import FitSpec
from covector_server.jobs import fit_building
from covector_server.jobs.compaction import Rules
from covector_server.jobs.operations import CANCELLED, FAILED, SUCCEEDED
from covector_server.jobs.scrub import Scrubber
from covector_server.metadata.catalog import number
from covector_server.storage.fit_files import put_fit
from covector_server.storage.restore import restore
from covector_server.storage.snapshot import Snapshots
from covector_server.testing.faulty_disk import Fault

DIM, COUNT = 32, 1_000
ROWS, OTHERS = decaying(COUNT, DIM), decaying(COUNT, DIM, seed=9)
Q = np.random.default_rng(1).uniform(0.05, 1, COUNT).astype(np.float32)
QUERIES = decaying(4, DIM, seed=5).astype(np.float64)
BOTH = np.stack([QUERIES, QUERIES])
STEPS = ("fit.created", "fit.saved", "fit.save_listed", "fit.written", "fit.registered", "fit.part_listed")
ERASE, MOVE = Rules(0.0, 5.0), Rules(0.01, 5.0)
METHODS = ("trak", "trackstar", "datainf")


@pytest.fixture(autouse=True)
def saving_after_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_building, "SAVE_SHARE", 0)


@pytest.fixture
def disk() -> StepDisk:
    return StepDisk()


@pytest.fixture
def rig(tmp_path: Path, disk: StepDisk) -> Iterator[FitRig]:
    made = FitRig(tmp_path / "store", DIM, disk=disk, save_s=0.0)
    made.write(range(COUNT), ROWS, trak_q=Q)
    made.write(range(COUNT), OTHERS, checkpoint="two", trak_q=Q)
    yield made
    disk.fault = None
    made.close()


def rows_of(rig: FitRig, keys: range | list[int] = range(COUNT)) -> dict[str, np.ndarray]:
    return {name: rig.stored(keys, name) for name in ("one", "two")}


def expected_of(method: str, learnt: dict[str, np.ndarray], rows: dict[str, np.ndarray], q: np.ndarray = Q) -> Any:
    """Scores over both checkpoints of a fit that learnt from some rows, float64[m, n] of others."""
    is_trak = method == "trak"
    named = {"one": q, "two": q}
    fit = fit_arrays(method, learnt, trak_q={"one": Q, "two": Q} if is_trak else None, by_layer=False)
    return fit.scores({"one": QUERIES, "two": QUERIES}, rows, trak_q=named if is_trak else None)


def assert_serves(rig: FitRig, method: str, keys: list[int], expected: np.ndarray) -> None:
    found = rig.scored(BOTH, method, ["one", "two"])
    assert sorted(found) == keys
    ours = np.stack([found[key] for key in keys], axis=1)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def learnt_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each update of a job brings, from here on."""
    seen: list[int] = []
    update = FitJob.update

    def counting(job: FitJob, block: Any) -> None:
        seen.append(len(block.rows))
        update(job, block)

    monkeypatch.setattr(FitJob, "update", counting)
    return seen


@pytest.mark.parametrize("method", METHODS)
def test_every_step_of_a_fit_is_known(rig: FitRig, disk: StepDisk, method: str) -> None:
    rig.fitted(method)
    assert {step for step in disk.steps if step.startswith("fit.")} == set(STEPS)


@pytest.mark.parametrize("place", [0, 2, -1], ids=["first", "third", "last"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("method", ["trackstar", "datainf"])
def test_a_fit_killed_at_any_step_goes_on(
    rig: FitRig, disk: StepDisk, tmp_path: Path, method: str, step: str, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[Path] = []

    def copy(name: str) -> None:
        if name == step:
            copies.append(tmp_path / f"killed-{len(copies)}")
            shutil.copytree(rig.data, copies[-1])

    disk.at_step = copy
    seen = learnt_rows(monkeypatch)
    rig.fitted(method)
    disk.at_step = lambda name: None
    whole = sum(seen)
    rows = rows_of(rig)
    copied = copies[min(place, len(copies) - 1)]
    (copied / "catalog.lmdb-lock").unlink()
    assert check_store(copied, ask_lmdb=False).damage == []
    killed = FitRig(copied, DIM, save_s=0.0)
    try:
        assert killed.fit_directories() == killed.listed_directories()
        stood = [status.record for status in killed.fits()]
        is_begun = bool(stood) and (stood[0].state is not None or bool(stood[0].parts))
        seen.clear()
        ended = killed.fit(method)
        assert ended.state == SUCCEEDED, ended.error_message
        assert (sum(seen) < whole) == is_begun
        assert_serves(killed, method, list(range(COUNT)), expected_of(method, rows, rows))
        assert len(killed.fits()) == 1
        assert killed.fit_directories() == killed.listed_directories()
    finally:
        killed.close()
    assert check_store(copied, ask_lmdb=False).findings == []


@pytest.mark.parametrize("step", ["fit.save_listed", "fit.part_listed"])
def test_a_fit_that_was_stopped_goes_on_to_the_same_bits(rig: FitRig, disk: StepDisk, step: str) -> None:
    """Cancelled, or cut off by the end of the server: what was saved stands, and leads to the very same sums."""
    straight = rig.fit_record(rig.fitted("influence"))
    (part, _) = straight.covered
    root = rig.collection.directory / "fits"
    unit = (root / part.stored.directory / "arrays/map.unit/c/0/0").read_bytes()
    rig.fitter.drop("c", straight.id)

    def cancel(name: str) -> None:
        if name == step:
            disk.at_step = lambda name: None
            rig.operations.cancel(rig.operations.list()[0].id)

    disk.at_step = cancel
    assert rig.fit("influence").state == CANCELLED
    (status,) = rig.fits()
    assert not status.record.is_finished
    with pytest.raises(NotFound, match="needs a fit"):
        rig.scored(BOTH, "influence", ["one", "two"])
    assert rig.fit_directories() == rig.listed_directories()
    rig.restart()
    again = rig.fit_record(rig.fitted("influence"))
    assert again.id == status.record.id
    assert (root / again.covered[0].stored.directory / "arrays/map.unit/c/0/0").read_bytes() == unit


def test_a_fit_that_is_dropped_while_it_is_learnt(rig: FitRig, disk: StepDisk) -> None:
    def drop(name: str) -> None:
        if name == "fit.save_listed":
            disk.at_step = lambda name: None
            (status,) = rig.fits()
            rig.fitter.drop("c", status.record.id)

    disk.at_step = drop
    ended = rig.fit("influence")
    assert (ended.state, ended.error_kind) == (FAILED, Conflict.kind)
    assert "was dropped" in ended.error_message
    assert rig.fits() == []
    assert rig.fit_directories() == []


def test_rows_that_go_while_a_fit_is_learnt(rig: FitRig, disk: StepDisk) -> None:
    rows = rows_of(rig)

    def disturb(name: str) -> None:
        if name == "fit.save_listed":
            disk.at_step = lambda name: None
            rig.delete(range(600, 650))
            rig.write(range(COUNT, COUNT + 20), ROWS[:20], trak_q=Q[:20])
            rig.write(range(COUNT, COUNT + 20), OTHERS[:20], checkpoint="two", trak_q=Q[:20])

    disk.at_step = disturb
    rig.fitted("trak")
    (status,) = rig.fits()
    assert (status.lost_row_count, status.fresh_row_count) == (100, 40)
    keys = [key for key in range(COUNT + 20) if not 600 <= key < 650]
    q = np.concatenate([Q, Q[:20]])[keys]
    assert_serves(rig, "trak", keys, expected_of("trak", rows, rows_of(rig, keys), q))


@pytest.mark.parametrize("step", STEPS)
def test_a_failed_step_leaves_the_old_fit(rig: FitRig, disk: StepDisk, step: str) -> None:
    old = rig.fitted("influence")
    learnt = rows_of(rig)
    rig.write([COUNT], ROWS[:1])
    rig.write([COUNT], OTHERS[:1], checkpoint="two")
    disk.fault = Fault(step)
    assert rig.fit("influence").state == FAILED
    rig.restart()
    assert old in [status.record.id for status in rig.fits()]
    assert rig.fit_directories() == rig.listed_directories()
    keys = list(range(COUNT + 1))
    assert_serves(rig, "influence", keys, expected_of("influence", learnt, rows_of(rig, keys)))
    new = rig.fitted("influence")
    assert [status.record.id for status in rig.fits()] == [new]
    assert rig.fit_directories() == rig.listed_directories()


@pytest.mark.parametrize("after", [0, 1, 3, 8])
@pytest.mark.parametrize("operation", ["write", "sync", "open"])
def test_a_full_disk_leaves_nothing(rig: FitRig, disk: StepDisk, operation: str, after: int) -> None:
    def arm(name: str) -> None:
        if name == "fit.created":
            disk.at_step = lambda name: None
            disk.fault = Fault(operation, after, errno.ENOSPC)

    disk.at_step = arm
    assert rig.fit("influence").state == FAILED
    assert rig.fit_directories() == rig.listed_directories()
    assert disk.retried == []
    assert rig.fit("influence").state == SUCCEEDED


def test_what_a_process_left_is_swept_but_not_what_is_being_made(rig: FitRig, disk: StepDisk) -> None:
    orphan = rig.collection.directory / "fits" / "trak-orphaned"
    orphan.mkdir(parents=True)
    (orphan / "zarr.json").write_bytes(b"x")
    swept: list[bool] = []

    def sweep(name: str) -> None:
        if name == "fit.written":
            rig.fitter._sweeper._sweep_at_s = 0.0
            rig.fitter.step()
            swept.append(not orphan.exists())

    disk.at_step = sweep
    rig.fitted("trak")
    disk.at_step = lambda name: None
    rig.restart()
    assert swept
    assert rig.fit_directories() == rig.listed_directories()
    rows = rows_of(rig)
    assert_serves(rig, "trak", list(range(COUNT)), expected_of("trak", rows, rows))


OFFLINE = """
import pathlib, sys
from covector_server.fit.spec import FitSpec
from covector_server.jobs import fit_building
from covector_server.jobs.fit_offline import OfflineFits
from covector_server.jobs.offline import OfflineFiles
from covector_server.limits import Limits
from covector_server.testing.killable import KillableDisk
fit_building.SAVE_SHARE = 0
files = OfflineFiles(pathlib.Path(sys.argv[1]), KillableDisk(sys.argv[2]), Limits(fit_save_s=0.0))
OfflineFits(files, 1 << 32).fit("c", FitSpec(method="trak"), lambda done, total: None)
"""


@pytest.mark.parametrize("step", STEPS)
def test_a_process_killed_while_it_fits_beside_an_open_store(rig: FitRig, step: str) -> None:
    done = subprocess.run([sys.executable, "-c", OFFLINE, str(rig.data), step], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    learnt = rows_of(rig)
    rig.write([COUNT], ROWS[:1], trak_q=Q[:1])
    rig.write([COUNT], OTHERS[:1], checkpoint="two", trak_q=Q[:1])
    rig.fitter._sweeper._sweep_at_s = 0.0
    rig.fitter.step()
    assert rig.fit_directories() == rig.listed_directories()
    for status in rig.fits():  # what stood goes on with the rows that it was begun with
        assert not status.record.is_finished
        rig.fitter.drop("c", status.record.id)
    assert rig.fit_directories() == []
    rig.delete([COUNT])
    rig.fitted("trak")
    assert_serves(rig, "trak", list(range(COUNT)), expected_of("trak", learnt, learnt))


# Damage


def served_files(rig: FitRig) -> list[str]:
    """Files of a part that queries read, and of the state that more rows are added to."""
    (part, _) = rig.fits()[0].record.covered
    return sorted(part.stored.files)


@pytest.mark.parametrize("how", ["first", "middle", "last", "cut", "gone"])
def test_every_damaged_file_is_found_and_refused(rig: FitRig, how: str) -> None:
    fit_id = rig.fitted("trackstar")
    (part, _) = rig.fit_record(fit_id).covered
    names = [name for name in served_files(rig) if part.stored.files[name]]
    assert {
        "manifest.json",
        "arrays/zarr.json",
        "arrays/map.unit/c/0/0",
        "arrays/row_factors/c/0",
        "arrays/job.sums.total.0/c/0/0",
    } <= set(names)
    root = rig.data / "collections/1/fits" / part.stored.directory
    rig.close()
    for name in names:
        sound = (root / name).read_bytes()
        damage(root / name, how)
        report = check_store(rig.data, ask_lmdb=False)
        assert {finding.kind for finding in report.damage} == {"derived"}, name
        assert any(finding.path.endswith(f"{part.stored.directory}/{name}") for finding in report.damage), name
        rig.open()
        if name.startswith("arrays/job."):  # queries do not need it: it is learnt anew where it would be gone on from
            rig.scored(BOTH, "trackstar", ["one", "two"])
        else:
            for _ in range(2):
                with pytest.raises(Corrupt, match="fit again"):
                    rig.scored(BOTH, "trackstar", ["one", "two"])
            assert rig.store.damages.found()
        scrubber = Scrubber(rig.store.catalog, rig.data, rig.store.damages, 1 << 40)
        rig.store.damages._found.clear()
        while scrubber.progress.round_count == 0:
            scrubber.step()
        assert any(where.path.endswith(name) for _, where in rig.store.damages.found()), name
        rig.close()
        (root / name).write_bytes(sound)
    damage(root / "arrays/map.unit/c/0/0", how)
    report = check_store(rig.data, ask_lmdb=False)
    repaired = repair_store(rig.data, report, ask_lmdb=False)
    assert repaired.failed == []
    assert repaired.after.damage == []
    rig.open()
    assert rig.fits() == []
    rows = rows_of(rig)
    rig.fitted("trackstar")
    assert_serves(rig, "trackstar", list(range(COUNT)), expected_of("trackstar", rows, rows))


@pytest.mark.parametrize("method", ["influence", "trackstar"])
def test_sums_that_are_damaged_are_learnt_anew(rig: FitRig, method: str) -> None:
    fit_id = rig.fitted(method)
    (part, _) = rig.fit_record(fit_id).covered
    damage(rig.collection.directory / "fits" / part.stored.directory / "arrays/job.sums.total.0/c/0/0", "middle")
    rig.write([COUNT], ROWS[:1])
    rig.write([COUNT], OTHERS[:1], checkpoint="two")
    rig.fitted(method)
    rows = rows_of(rig, range(COUNT + 1))
    assert_serves(rig, method, list(range(COUNT + 1)), expected_of(method, rows, rows))


def test_a_sound_fit_has_no_finding(rig: FitRig) -> None:
    rig.fitted("trackstar")
    rig.delete(range(10))
    scrubber = Scrubber(rig.store.catalog, rig.data, rig.store.damages, 1 << 40)
    while scrubber.progress.round_count == 0:
        scrubber.step()
    assert rig.store.damages.found() == []
    rig.close()
    assert check_store(rig.data, ask_lmdb=False).findings == []
    (rig.data / "collections/1/fits/trak-left").mkdir()
    (leftover,) = check_store(rig.data, ask_lmdb=False).findings
    assert leftover.severity == "leftover"
    rig.open()
    assert "trak-left" not in rig.fit_directories()


def test_a_record_of_other_rows_is_found(rig: FitRig) -> None:
    record = rig.fit_record(rig.fitted("influence"))
    with rig.store.catalog.write() as writer:
        put_fit(writer, 1, replace(record, parts=[{**record.parts[0], "generation": 7}, record.parts[1]]))
    rig.close()
    (finding,) = check_store(rig.data, ask_lmdb=False).damage
    assert "another generation" in finding.message
    rig.open()


# Erasure and compaction


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rules", [ERASE, MOVE], ids=["erase", "move"])
def test_a_fit_follows_its_rows(rig: FitRig, rules: Rules, method: str) -> None:
    learnt = rows_of(rig)
    fit_id = rig.fitted(method)
    rig.delete(range(0, 300, 3))
    rig.write(range(500, 520), OTHERS[:20], trak_q=Q[500:520])  # replaced at one of the checkpoints
    keys = [key for key in range(COUNT) if key >= 300 or key % 3]
    expected = expected_of(method, learnt, rows_of(rig, keys), Q[keys])
    assert_serves(rig, method, keys, expected)
    result = rig.compact(rules)
    assert result["fits_dropped"] == []
    assert result["fits_influenced"] == {fit_id: 2 * 100 + 20}
    record = rig.fit_record(fit_id)
    assert {part.generation for part in record.covered} == {1}
    assert rig.fit_directories() == rig.listed_directories()
    assert_serves(rig, method, keys, expected)
    assert_no_weights_of_the_dead(rig, record, keys)
    rig.restart()
    assert_serves(rig, method, keys, expected)
    assert rig.compact(rules)["fits_influenced"] == {fit_id: 220}
    rig.fitted(method)  # anew, without them
    rows = rows_of(rig, keys)
    fit = fit_arrays(
        method, rows, trak_q={"one": Q[keys], "two": Q[keys]} if method == "trak" else None, by_layer=False
    )
    mine = fit.scores(
        {"one": QUERIES, "two": QUERIES}, rows, trak_q={"one": Q[keys], "two": Q[keys]} if method == "trak" else None
    )
    assert_serves(rig, method, keys, mine)
    assert rig.compact(rules)["fits_influenced"] == {}


def assert_no_weights_of_the_dead(rig: FitRig, record: Any, keys: list[int]) -> None:
    for part in record.covered:
        path = rig.collection.directory / "fits" / part.stored.directory / "arrays/row_factors/c/0"
        if not path.exists():
            continue
        with rig.collection.reading() as view:
            live = view.row_ids_of([encode_key(key) for key in keys])
        known = np.flatnonzero(np.isfinite(np.fromfile(path, "<f8")))
        assert set(known.tolist()) <= set(live.tolist())
        assert len(known) >= len(keys) - 20


@pytest.mark.parametrize("rules", [ERASE, MOVE], ids=["erase", "move"])
def test_rows_that_come_and_go_while_rows_move(rig: FitRig, disk: StepDisk, rules: Rules) -> None:
    learnt = rows_of(rig)
    rig.fitted("trackstar")
    rig.delete(range(200))

    def disturb(name: str) -> None:
        if name == "compact.copied":
            disk.at_step = lambda name: None
            rig.delete(range(200, 250))
            rig.write(range(COUNT, COUNT + 5), ROWS[:5])
            rig.write(range(COUNT, COUNT + 5), ROWS[:5], checkpoint="two")

    disk.at_step = disturb
    rig.compact(rules)
    keys = list(range(250, COUNT + 5))
    assert_serves(rig, "trackstar", keys, expected_of("trackstar", learnt, rows_of(rig, keys)))
    rig.compact(rules)
    (status,) = rig.fits()
    assert_no_weights_of_the_dead(rig, status.record, keys)
    assert rig.fit_directories() == rig.listed_directories()


@pytest.mark.parametrize("rules", [ERASE, MOVE], ids=["erase", "move"])
def test_a_kill_while_a_fit_follows(rig: FitRig, disk: StepDisk, tmp_path: Path, rules: Rules) -> None:
    learnt = rows_of(rig)
    rig.fitted("trackstar")
    rig.delete(range(0, 300, 3))
    keys = [key for key in range(COUNT) if key >= 300 or key % 3]
    expected = expected_of("trackstar", learnt, rows_of(rig, keys))
    copies: list[tuple[str, Path]] = []

    def copy(name: str) -> None:
        if name.startswith(("compact.", "fit.")):
            copies.append((name, tmp_path / f"{len(copies)}-{name}"))
            shutil.copytree(rig.data, copies[-1][1])

    disk.at_step = copy
    rig.compact(rules)
    disk.at_step = lambda name: None
    assert {"fit.created", "compact.copied", "compact.switched"} <= {name for name, _ in copies}
    for name, path in copies:
        (path / "catalog.lmdb-lock").unlink(missing_ok=True)
        killed = FitRig(path, DIM)
        assert killed.fit_directories() == killed.listed_directories(), name
        assert_serves(killed, "trackstar", keys, expected)
        killed.compact(rules)
        (status,) = killed.fits()
        assert_no_weights_of_the_dead(killed, status.record, keys)
        assert_serves(killed, "trackstar", keys, expected)
        killed.close()
        assert check_store(path, ask_lmdb=False).damage == []


def test_a_fit_whose_rows_are_moved_begins_again(rig: FitRig, disk: StepDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.delete(range(100))
    seen = learnt_rows(monkeypatch)

    def compact(name: str) -> None:
        if name == "fit.save_listed":
            disk.at_step = lambda name: None
            with suppress(Unavailable):  # the fit itself is a reader that began before
                rig.compact(Rules(0.01, 0.0))

    disk.at_step = compact
    rig.fitted("datainf")
    keys = list(range(100, COUNT))
    assert sum(seen) > 2 * 2 * len(keys)
    rows = rows_of(rig, keys)
    assert_serves(rig, "datainf", keys, expected_of("datainf", rows, rows))
    assert rig.fit_directories() == rig.listed_directories()


def test_a_damaged_fit_is_dropped_by_erasure(rig: FitRig) -> None:
    fit_id = rig.fitted("trackstar")
    (part, _) = rig.fit_record(fit_id).covered
    index = rig.build(scorer=fit_id).result["index"]
    damage(rig.collection.directory / "fits" / part.stored.directory / "arrays/row_factors/c/0", "middle")
    rig.delete(range(50))
    result = rig.compact(ERASE)
    assert (result["fits_dropped"], result["indexes_dropped"]) == ([fit_id], [index])
    assert rig.fits() == []
    assert rig.fit_directories() == []
    assert (rig.records(), rig.directories()) == ([], [])


def test_a_state_goes_when_its_rows_move(rig: FitRig, disk: StepDisk) -> None:
    """Single rows wait in it to be added: they must not outlive an erasure."""

    def cancel(name: str) -> None:
        if name == "fit.save_listed":
            disk.at_step = lambda name: None
            rig.operations.cancel(rig.operations.list()[0].id)

    disk.at_step = cancel
    assert rig.fit("influence").state == CANCELLED
    assert rig.fits()[0].record.state is not None
    rig.delete([0])
    rig.compact(ERASE)
    assert rig.fits()[0].record.state is None
    assert rig.fit_directories() == rig.listed_directories()
    keys = list(range(1, COUNT))
    rig.fitted("influence")
    rows = rows_of(rig, keys)
    assert_serves(rig, "influence", keys, expected_of("influence", rows, rows))


# Copies


def test_a_snapshot_has_the_fits(rig: FitRig, tmp_path: Path) -> None:
    fit_id = rig.fitted("trackstar")
    rows = rows_of(rig)
    expected = expected_of("trackstar", rows, rows)
    snapshots = Snapshots(rig.store)
    snapshots.reserve("monday")
    snapshots.create("monday")
    restore(rig.data / "snapshots/monday", tmp_path / "again", lambda done, total: None)
    again = FitRig(tmp_path / "again", DIM)
    assert [status.record.id for status in again.fits()] == [fit_id]
    assert_serves(again, "trackstar", list(range(COUNT)), expected)
    again.delete(range(100))
    again.compact(ERASE)
    again.close()
    assert check_store(tmp_path / "again", ask_lmdb=False).damage == []
    assert_serves(rig, "trackstar", list(range(COUNT)), expected)


def test_a_deleted_collection_takes_its_fits(rig: FitRig, disk: StepDisk) -> None:
    rig.fitted("influence")

    def delete(name: str) -> None:
        if name == "fit.save_listed":
            disk.at_step = lambda name: None
            rig.committer.call(lambda: rig.store.delete_collection("c")).result()

    disk.at_step = delete
    started = rig.fitter.start("c", FitSpec(method="trak"))
    assert rig.operations.wait(started.id, 60).state == FAILED
    with rig.store.catalog.read() as reader:
        assert list(reader.scan("fits", number(1))) == []
    assert not (rig.data / "collections/1").exists()
