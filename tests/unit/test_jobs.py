"""Operations report, stop when asked, and are remembered over a restart. Budgets let in who fits, in turn."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from covector.errors import Conflict, NotFound, Unavailable
from covector_server.ingest.budget import ByteBudget
from covector_server.ingest.committer import Committer
from covector_server.jobs.operations import CANCELLED, FAILED, RUNNING, SUCCEEDED, Operations, Progress
from covector_server.limits import Limits
from covector_server.metadata.memory_catalog import MemoryCatalog
from covector_server.storage.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "store")
    yield opened
    opened.close()


@pytest.fixture
def operations(store: Store) -> Iterator[Operations]:
    committer = Committer(store, Limits())
    made = Operations(store, committer)
    yield made
    made.stop()
    committer.stop()


def test_an_operation_runs_reports_and_ends(operations: Operations) -> None:
    started, go_on = threading.Event(), threading.Event()

    def work(progress: Progress) -> dict[str, Any]:
        progress.report(1, 2)
        started.set()
        assert go_on.wait(10)
        return {"rows": 5}

    record = operations.start("publish", "c", work, "request-1")
    assert started.wait(10)
    seen = operations.get(record.id)
    assert (seen.state, seen.steps_done, seen.steps_total) == (RUNNING, 1, 2)
    assert operations.start("publish", "c", work, "request-1").id == record.id
    assert operations.wait(record.id, timeout_s=0.01).state == RUNNING
    go_on.set()
    done = operations.wait(record.id, timeout_s=10)
    assert (done.state, done.result) == (SUCCEEDED, {"rows": 5})


def test_an_operation_stops_when_asked(operations: Operations) -> None:
    started, cancelled = threading.Event(), threading.Event()

    def work(progress: Progress) -> dict[str, Any]:
        started.set()
        assert cancelled.wait(10)
        progress.report(1, 2)
        return {}

    record = operations.start("publish", "c", work)
    assert started.wait(10)
    operations.cancel(record.id)
    cancelled.set()
    assert operations.wait(record.id, timeout_s=10).state == CANCELLED
    assert operations.cancel(record.id).state == CANCELLED


def test_a_failure_keeps_its_reason_over_a_restart(store: Store, operations: Operations) -> None:
    def work(progress: Progress) -> dict[str, Any]:
        raise Conflict("that does not fit")

    record = operations.start("publish", "c", work)
    failed = operations.wait(record.id, timeout_s=10)
    assert (failed.state, failed.error_kind, failed.error_message) == (FAILED, "conflict", "that does not fit")
    committer = Committer(store, Limits())
    again = Operations(store, committer)
    assert again.get(record.id) == failed
    again.stop()
    committer.stop()


def test_an_operation_that_a_stop_interrupted_says_so(store: Store, operations: Operations) -> None:
    started, release = threading.Event(), threading.Event()

    def work(progress: Progress) -> dict[str, Any]:
        started.set()
        release.wait(10)
        return {}

    record = operations.start("publish", "c", work)
    assert started.wait(10)
    committer = Committer(store, Limits())
    after_a_kill = Operations(store, committer)
    assert after_a_kill.get(record.id).state == FAILED
    assert "start it again" in after_a_kill.get(record.id).error_message
    release.set()
    after_a_kill.stop()
    committer.stop()


def test_the_oldest_that_ended_are_forgotten(store: Store) -> None:
    committer = Committer(store, Limits())
    operations = Operations(store, committer, threads=1, limits=Limits(operations_kept=3))
    release, started = threading.Event(), threading.Event()

    def wait(progress: Progress) -> dict[str, Any]:
        started.set()
        assert release.wait(30)
        return {}

    ended = [operations.start("publish", "c", lambda progress: {}).id for _ in range(5)]
    for operation_id in ended[2:]:
        assert operations.wait(operation_id, timeout_s=10).state == SUCCEEDED
    runs = operations.start("publish", "c", wait)
    assert started.wait(10)
    assert [record.id for record in operations.list()] == [runs.id, *reversed(ended[2:])]
    assert [operations.knows(operation_id) for operation_id in ended] == [False, False, True, True, True]
    release.set()
    operations.wait(runs.id, timeout_s=10)
    operations.stop()
    again = Operations(store, committer)
    assert [record.id for record in again.list()] == [runs.id, ended[4], ended[3]]
    again.stop()
    committer.stop()


def test_an_operation_that_cannot_be_recorded_is_not_started(store: Store, operations: Operations) -> None:
    class Full(MemoryCatalog):
        def write(self) -> Any:
            raise Unavailable("no room")

    catalog, store.catalog = store.catalog, Full()
    with pytest.raises(Unavailable):
        operations.start("publish", "c", lambda progress: {}, "request-1")
    assert not operations.knows("request-1")
    store.catalog = catalog
    operations.start("publish", "c", lambda progress: {}, "request-1")
    assert operations.wait("request-1", timeout_s=10).state == SUCCEEDED


def test_an_end_that_cannot_be_recorded_is_still_an_end(store: Store, operations: Operations) -> None:
    class Full(MemoryCatalog):
        def write(self) -> Any:
            raise Unavailable("no room")

    catalog = store.catalog

    def work(progress: Progress) -> dict[str, Any]:
        store.catalog = Full()
        return {"rows": 1}

    record = operations.start("publish", "c", work)
    assert operations.wait(record.id, timeout_s=10).result == {"rows": 1}
    store.catalog = catalog


def test_an_unknown_operation(operations: Operations) -> None:
    with pytest.raises(NotFound):
        operations.get("nothing")


def test_a_budget_lets_in_who_fits_in_turn() -> None:
    async def run() -> None:
        budget, entered = ByteBudget(10), []

        async def enter(name: str, size_bytes: int) -> None:
            await budget.acquire(size_bytes)
            entered.append(name)

        await enter("a", 6)
        tasks = [asyncio.create_task(enter(name, size)) for name, size in (("b", 6), ("c", 1), ("huge", 99), ("d", 1))]
        await asyncio.sleep(0)
        assert entered == ["a"]
        budget.release(6)
        await asyncio.sleep(0)
        assert entered == ["a", "b", "c"]
        tasks[2].cancel()
        await asyncio.sleep(0)
        budget.release(6)
        await asyncio.sleep(0)
        assert entered == ["a", "b", "c", "d"]
        budget.release(2)
        await enter("huge alone", 99)

    asyncio.run(run())
