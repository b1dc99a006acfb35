"""Queries leave nothing to the garbage collector, which looks rarely: a cycle would keep shards mapped, and the disk
space of removed files taken, long after the last reader."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.index_rig import IndexRig, decaying

from covector.types import Space
from covector_server.ingest.batch import WriterSpec
from covector_server.ingest.committer import Committer
from covector_server.limits import Limits
from covector_server.query import choosing
from covector_server.query.engine import scores, top_k
from covector_server.query.question import Question
from covector_server.query.sharing import SharedScans
from covector_server.query.workers import Workers
from covector_server.storage.store import Sizes, Store
from covector_server.testing.batches import batch_of

DIM, ROWS = 64, 600
GRADIENTS = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "store", Sizes(chunk_bytes=2 * DIM * 16, shard_bytes=2 * DIM * 128))
    committer = Committer(made, Limits())
    made.create_collection("c", Space(dim=DIM), False)
    committer.submit(WriterSpec("c", "w", "one"), batch_of(1, list(range(ROWS)), GRADIENTS)).result()
    committer.stop()
    yield made
    made.close()


def ask(store: Store, count: int = 1, **changes: object) -> None:
    question = Question(vectors=GRADIENTS[:count][None], **changes)  # type: ignore[arg-type]
    workers = Workers(2)
    with store.collection("c").reading() as view:
        top_k(view, question, 10, workers=workers)
    workers.close()


def ask_for_scores(store: Store) -> None:
    with store.collection("c").reading() as view:
        for _ in scores(view, Question(vectors=GRADIENTS[:2][None])).blocks:
            pass


def ask_together(shared: SharedScans) -> None:
    futures = [shared.ask("c", Question(vectors=GRADIENTS[place][None, None]), 5) for place in range(6)]
    assert all(future is not None and future.result(60) is not None for future in futures)
    with shared.top_k("c", Question(vectors=GRADIENTS[:1][None]), 500):
        pass


def garbage_of(query: Callable[[], object]) -> list[type]:
    """Types of what a second call leaves in cycles; what is made once may be in one."""
    query()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        query()
        gc.collect()
        return [type(one) for one in gc.garbage if type(one).__module__.startswith(("covector_server", "numpy"))]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize(
    "query",
    [
        ask,
        lambda store: ask(store, scorer="cosine"),
        lambda store: ask(store, 9),
        lambda store: ask(store, damaged="omit"),
        ask_for_scores,
    ],
    ids=["dot", "cosine", "many", "omit", "scores"],
)
def test_a_query_leaves_no_cycle(store: Store, query: Callable[[Store], None]) -> None:
    assert garbage_of(lambda: query(store)) == []


def test_a_query_by_an_index_leaves_no_cycle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "index_cost", lambda *given: 0.0)
    rig = IndexRig(tmp_path / "indexed", DIM)
    rig.add(0, decaying(3_000, DIM))
    rig.build()
    queries = decaying(1, DIM, seed=5)
    assert rig.ask(queries).index
    assert garbage_of(lambda: rig.ask(queries)) == []
    rig.close()


def test_queries_that_share_a_scan_leave_no_cycle(store: Store) -> None:
    workers = Workers(2)
    shared = SharedScans(lambda name: store.collection(name).reading(), Limits(), workers)
    assert garbage_of(lambda: ask_together(shared)) == []
    shared.close()
    workers.close()
