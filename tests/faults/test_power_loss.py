"""The power fails, a hundred times: whatever un-synced pages and names are forgotten, what was acknowledged is there.

A server and three clients run under ``record_io.c``, which records every write, sync and change of a name below a
directory, LMDB's and the clients' journals among them. Then the record is cut at a hundred places, and at each
``power_loss`` writes down what may be left on the disk (its fault model stands there), a store is opened on it, takes
new rows, and is judged against the journals as they were at the cut. Disks that break a promise are the controls: the
same judge must find them out.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.power_failures import compile_recorder, judge_failures, record, scratch_directory, unseen_writes

SEEDS = 100
CONTROL_SEEDS = 50
ENOUGH = 5  # losses of a control
CONTROLS = ("UnsyncedDisk", "NamelessDisk", "LateDisk", "UnsyncedCatalogDisk")


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("recorder") / "record_io.so"
    compile_recorder(library)
    return library


@pytest.fixture
def scratch() -> Iterator[Path]:
    with scratch_directory() as directory:
        yield directory


@pytest.mark.timeout(300)
def test_nothing_acknowledged_is_lost_in_a_hundred_power_losses(recorder: Path, scratch: Path, tmp_path: Path) -> None:
    log = record(recorder, scratch)
    assert unseen_writes(log, scratch / "root") == []
    verdict = judge_failures(log, scratch, range(SEEDS))
    if verdict.findings:
        shutil.copy(log, tmp_path / "log")
        again = f"python -m tests.faults.power_failures --log {tmp_path / 'log'} --seed {min(verdict.findings)}"
        pytest.fail(f"{verdict}\nrun it again: {again}")
    assert verdict.judged_count == SEEDS
    assert verdict.acknowledgement_count > 100, "the workload is too small to prove anything"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("disk", CONTROLS)
def test_a_promise_that_is_broken_is_found_out(recorder: Path, scratch: Path, disk: str) -> None:
    log = record(recorder, scratch, disk=f"tests.faults.wrong_disks:{disk}")
    verdict = judge_failures(log, scratch, range(CONTROL_SEEDS), enough=ENOUGH)
    print(f"{disk}: {len(verdict.findings)} of {verdict.judged_count} power losses lost rows or the store")
    assert verdict.findings
