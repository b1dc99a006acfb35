"""Builds, erasure and compaction of the kinds that stand on a library, under faults.

Fault model, beside that of ``test_index_faults``: the process that builds a structure is killed, fails, or loses
whoever asked; the library is not installed. The judge is exact search.
"""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.faults.test_index_faults import ERASE, MOVE, StepDisk, damage
from tests.index_rig import IndexRig, decaying, keys_of, recall

from covector.errors import InvalidInput
from covector_server.check.store import check_store
from covector_server.index import annoy_parts, part_job, scann_parts
from covector_server.index.coded import members
from covector_server.index.contract import Spec
from covector_server.index.part_files import LIST, part_file
from covector_server.index.part_job import PartJob
from covector_server.jobs.compaction import Rules
from covector_server.jobs.operations import CANCELLED, FAILED, SUCCEEDED
from covector_server.query import choosing
from covector_server.testing.faulty_disk import Fault

DIM, ROW_COUNT = 64, 4_000
ROWS = decaying(ROW_COUNT + 500, DIM)
QUERIES = decaying(8, DIM, seed=5)
STEPS = ("created", "basis", "coded", "parts", "measured", "synced", "registered", "listed")
BUILD_STEPS = tuple(f"index.{step}" for step in STEPS)
LIBRARIES = {"scann": scann_parts, "annoy": annoy_parts}


@pytest.fixture(params=list(LIBRARIES))
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(autouse=True)
def by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index is used wherever one fits, and has two parts or three."""
    monkeypatch.setattr(choosing, "index_cost", lambda *given: 0.0)
    for library in (scann_parts.ScannLibrary, annoy_parts.AnnoyLibrary):
        monkeypatch.setattr(library, "part_rows", lambda self, width, memory_bytes: 2_000)


@pytest.fixture
def disk() -> StepDisk:
    return StepDisk()


@pytest.fixture
def rig(tmp_path: Path, disk: StepDisk) -> Iterator[IndexRig]:
    made = IndexRig(tmp_path / "store", DIM, disk=disk)
    made.add(0, ROWS[:ROW_COUNT])
    yield made
    disk.fault = None
    made.close()


def directory_of(rig: IndexRig) -> Path:
    return rig.collection.directory / "indexes" / rig.records()[0].directory


def test_a_kill_at_any_step_leaves_the_old_index_or_the_new(
    rig: IndexRig, disk: StepDisk, tmp_path: Path, kind: str
) -> None:
    rig.build(kind=kind)
    (old,) = rig.records()
    rig.add(ROW_COUNT, ROWS[ROW_COUNT:])
    copies: dict[str, Path] = {}

    def copy(name: str) -> None:
        if name.startswith("index."):
            copies[name] = tmp_path / name
            shutil.copytree(rig.data, copies[name])

    disk.at_step = copy
    assert rig.build(kind=kind).state == SUCCEEDED
    disk.at_step = lambda name: None
    assert tuple(copies) == BUILD_STEPS
    for step, copied in copies.items():
        (copied / "catalog.lmdb-lock").unlink()
        killed = IndexRig(copied, DIM)
        (record,) = killed.records()
        assert (record.id == old.id) == (step != "index.listed")
        assert killed.directories() == [record.directory]
        assert recall(killed, QUERIES) >= 0.9
        killed.close()
        assert check_store(copied, ask_lmdb=False).findings == []


def test_files_name_no_place(rig: IndexRig, kind: str) -> None:
    rig.build(kind=kind)
    files = list(directory_of(rig).iterdir())
    assert len(files) > 6
    for path in files:
        data = path.read_bytes()
        assert str(rig.data).encode() not in data
        assert b"/tmp" not in data
        assert path.suffix not in {".pkl", ".pickle"}


@pytest.mark.parametrize("step", ["index.created", "index.coded", "index.parts"])
def test_a_cancelled_build_leaves_the_old_index(rig: IndexRig, disk: StepDisk, kind: str, step: str) -> None:
    rig.build(kind=kind)
    (old,) = rig.records()

    def cancel(name: str) -> None:
        if name == step:
            rig.operations.cancel(rig.operations.list()[0].id)

    disk.at_step = cancel
    assert rig.build(kind=kind).state in ({CANCELLED, SUCCEEDED} if step == "index.parts" else {CANCELLED})
    if step != "index.parts":
        assert rig.directories() == [old.directory]
    assert recall(rig, QUERIES) >= 0.9


class Processes:
    """Those that build parts. ``at_look`` is called with each while it runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[subprocess.Popen[bytes]] = []
        self.at_look: Any = lambda process: None
        is_running = part_job._is_running

        def look(process: subprocess.Popen[bytes]) -> bool:
            if process not in self.started:
                self.started.append(process)
                self.at_look(process)
            return is_running(process)

        monkeypatch.setattr(part_job, "_is_running", look)


def test_a_build_that_is_cancelled_ends_its_process(rig: IndexRig, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    processes = Processes(monkeypatch)
    processes.at_look = lambda process: rig.operations.cancel(rig.operations.list()[0].id)
    assert rig.build(kind=kind).state == CANCELLED
    (process,) = processes.started
    assert process.returncode == -signal.SIGKILL
    assert rig.directories() == []


def test_a_process_that_is_killed_fails_the_build_alone(
    rig: IndexRig, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    rig.build(kind=kind)
    (old,) = rig.records()
    processes = Processes(monkeypatch)
    processes.at_look = lambda process: process.send_signal(signal.SIGBUS)
    ended = rig.build(kind=kind)
    assert ended.state == FAILED
    assert f"the {kind} index could not be built: its process was ended by SIGBUS" in ended.error_message
    assert rig.directories() == [old.directory]
    assert recall(rig, QUERIES) >= 0.9


def test_what_a_process_says_is_told(rig: IndexRig, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(part_job, "asdict", lambda job: {**asdict(job), "rank": 7})
    ended = rig.build(kind=kind)
    assert ended.state == FAILED
    assert "failed with status 1" in ended.error_message
    assert "reshape" in ended.error_message


def test_a_process_follows_whoever_asked(rig: IndexRig, tmp_path: Path) -> None:
    rig.build(kind="annoy")
    rank = rig.records()[0].parameters["rank"]
    job = PartJob(
        kind="annoy", directory=str(directory_of(rig)), rank=rank, width=rank, start=0, stop=4_000, trees=90_000
    )
    command = [sys.executable, "-m", "covector_server.index.part_job", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
        process.stdin.close()
        assert process.wait(60) == 1
    assert not (tmp_path / part_job.FACTS).exists()


@pytest.mark.parametrize("operation", ["write", "sync", "open"])
def test_a_full_disk_leaves_the_old_index(rig: IndexRig, disk: StepDisk, kind: str, operation: str) -> None:
    rig.build(kind=kind)
    (old,) = rig.records()

    def arm(name: str) -> None:
        if name == "index.coded":
            disk.fault = Fault(operation, 1, errno.ENOSPC)

    disk.at_step = arm
    ended = rig.build(kind=kind)
    disk.at_step = lambda name: None
    assert ended.state == FAILED
    assert rig.directories() == [old.directory]
    assert recall(rig, QUERIES) >= 0.9


@pytest.mark.parametrize("how", ["first", "middle", "last", "cut", "gone"])
def test_a_damaged_file_is_found_and_passed_over(rig: IndexRig, kind: str, how: str) -> None:
    rig.build(kind=kind)
    (record,) = rig.records()
    root = directory_of(rig)
    aside = rig.data.parent / "aside"
    shutil.copytree(root, aside)
    for path in sorted(root.iterdir()):
        damage(path, how)
        rig.cache.forget(root)
        found = rig.ask(QUERIES)
        assert not found.index
        assert f"index {record.id} is damaged" in found.reason
        assert any(finding.path.endswith(path.name) for finding in check_store(rig.data, ask_lmdb=False).damage)
        shutil.copy(aside / path.name, path)
    rig.cache.forget(root)
    assert recall(rig, QUERIES) >= 0.9


@pytest.mark.parametrize("rules", [ERASE, MOVE], ids=["erase", "move"])
def test_an_index_follows_its_rows(rig: IndexRig, kind: str, rules: Rules) -> None:
    """Erased rows leave the codes and the structures; a part without any stays as it is."""
    rig.build(kind=kind)
    (before,) = rig.records()
    old = {path.name: path.read_bytes() for path in directory_of(rig).iterdir()}
    ends = [end for both in rig.ask(QUERIES, k=50).results for end in keys_of(both)]
    gone = sorted({key for end in ends for key in end if key >= 2_000})
    rig.delete(gone)
    result = rig.compact(rules)
    (after,) = rig.records()
    assert result["indexes_dropped"] == []
    assert after.id == before.id
    assert after.directory != before.directory
    assert after.covered[0].blank_count == len(rig.collection.checkpoints["one"].dead)
    assert_no_erased(rig, len(gone), rules)
    entries = json.loads((directory_of(rig) / LIST).read_bytes())
    assert [entry["stop"] - entry["start"] for entry in entries] == [2_000, 2_000 - len(gone) * (rules is MOVE)]
    for name in entries[0]["files"]:
        assert (directory_of(rig) / part_file(0, name)).read_bytes() == old[part_file(0, name)]
    assert any(
        (directory_of(rig) / part_file(1, name)).read_bytes() != old[part_file(1, name)] for name in old_names(old)
    )
    assert recall(rig, QUERIES) >= 0.9
    rig.restart()
    assert recall(rig, QUERIES) >= 0.9


def old_names(old: dict[str, bytes]) -> list[str]:
    prefix = part_file(1, "")
    return [name.removeprefix(prefix) for name in old if name.startswith(prefix)]


def assert_no_erased(rig: IndexRig, gone_count: int, rules: Rules) -> None:
    """Every row with a code is live, and the structures hold as many as have one."""
    factors = np.fromfile(directory_of(rig) / "factors", "<f4")
    codes = np.fromfile(directory_of(rig) / "codes", np.int8).reshape(len(factors), -1)
    assert len(factors) == ROW_COUNT - gone_count * (rules is MOVE)
    placed = members(factors)
    assert len(placed) == ROW_COUNT - gone_count
    assert not codes[np.setdiff1d(np.arange(len(factors)), placed)].any()
    assert not np.isin(placed, rig.collection.checkpoints["one"].dead).any()
    entries = json.loads((directory_of(rig) / LIST).read_bytes())
    assert sum(entry["member_count"] for entry in entries) == len(placed)


@pytest.mark.parametrize("rules", [ERASE, MOVE], ids=["erase", "move"])
def test_a_kill_while_an_index_follows(rig: IndexRig, disk: StepDisk, tmp_path: Path, kind: str, rules: Rules) -> None:
    rig.build(kind=kind)
    rig.delete(range(0, 1_000, 3))
    copies: dict[str, Path] = {}

    def copy(name: str) -> None:
        if name.startswith(("compact.", "index.")) and name not in copies:
            copies[name] = tmp_path / name
            shutil.copytree(rig.data, copies[name])

    disk.at_step = copy
    rig.compact(rules)
    disk.at_step = lambda name: None
    assert copies.keys() >= {"compact.copied", "compact.switched", "compact.marked"}
    for name, path in copies.items():
        (path / "catalog.lmdb-lock").unlink(missing_ok=True)
        killed = IndexRig(path, DIM)
        (record,) = killed.records()
        assert killed.directories() == [record.directory], name
        assert recall(killed, QUERIES) >= 0.9, name
        killed.compact(rules)
        assert_no_erased(killed, 334, rules)
        assert recall(killed, QUERIES) >= 0.9, name
        killed.close()
        assert check_store(path, ask_lmdb=False).damage == []


# Without the library


def test_a_build_without_the_library_names_what_to_install(
    rig: IndexRig, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(LIBRARIES[kind], "find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match=rf"pip install 'covector\[{kind}\]'"):
        rig.indexer.start("c", "one", Spec(kind=kind))


def test_an_index_whose_library_is_missing_is_passed_over_and_goes_with_erased_rows(
    rig: IndexRig, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    rig.build(kind=kind)
    (record,) = rig.records()
    monkeypatch.setattr(LIBRARIES[kind], "find_spec", lambda name: None)
    rig.restart()
    for _ in range(2):
        found = rig.ask(QUERIES)
        assert not found.index
        assert f"index {record.id} cannot be used: " in found.reason
        assert "pip install" in found.reason
    assert rig.store.damages.found() == []
    rig.delete(range(10))
    assert rig.compact(ERASE)["indexes_dropped"] == [record.id]
    assert rig.directories() == []
    assert not rig.ask(QUERIES).index


def test_each_serves_the_scorers_of_its_weights_alone(rig: IndexRig, kind: str) -> None:
    for scorer, others, refused in (("dot", ["tracin"], "cosine"), ("cosine", ["less"], "dot")):
        rig.build(kind=kind, scorer=scorer)
        (record,) = [record for record in rig.records() if record.scorer == scorer]
        assert sorted(record.scorers) == sorted([scorer, *others])
        assert refused not in record.scorers
    assert len(rig.records()) == 2
    assert recall(rig, QUERIES) >= 0.9
    assert recall(rig, QUERIES, scorer="cosine") >= 0.9
    by_dot = rig.ask(QUERIES, scorer="tracin").index
    assert by_dot == next(record.id for record in rig.records() if record.scorer == "dot")


def test_libraries_are_loaded_when_wanted_and_no_tensorflow_with_them(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('tensorflow was imported')\n", encoding="utf-8")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import covector_server.index.kinds; "
        "assert not {'scann', 'annoy'} & set(sys.modules); from covector_server.index import scann_parts; "
        "scann_parts._module(); assert 'scann' in sys.modules; assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
