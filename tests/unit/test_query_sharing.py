"""Queries that scan together are answered as if each had scanned alone, whatever becomes of the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from covector.errors import Corrupt, InvalidInput, NotFound, Unavailable
from covector.types import Space
from covector_server.limits import Limits
from covector_server.query.cancellation import never
from covector_server.query.engine import top_k
from covector_server.query.question import Question, TopKAnswer
from covector_server.query.sharing import SharedScans
from covector_server.query.workers import Workers
from covector_server.storage.damage import OnDamage
from covector_server.storage.view import CollectionView, Strip, StripSource
from covector_server.testing.memory import MemoryCheckpoint, MemoryCollection, memory_collection

DIM, ROWS, WAIT_S = 20, 400, 30


@dataclass
class Gate:
    """Holds scans: each strip waits for ``open``, but for those of the first ``passing`` scans. ``scans``: how many
    were begun."""

    open: threading.Event = field(default_factory=threading.Event)
    reached: threading.Event = field(default_factory=threading.Event)
    scans: int = 0
    passing: int = 0

    def let_pass(self, first: Future[TopKAnswer]) -> None:
        """Lets the first scan end; returns when the second is held."""
        self.passing = 1
        first.result(WAIT_S)
        until(lambda: self.scans == 2)


@dataclass(frozen=True)
class GatedStrip:
    source: StripSource
    gate: Gate
    scan: int

    def prefetch(self) -> bool:
        return self.source.prefetch()

    def load(self, on_damage: OnDamage | None = None) -> Strip:
        self.gate.reached.set()
        until(lambda: self.gate.open.is_set() or self.scan <= self.gate.passing)
        return self.source.load(on_damage)


@dataclass(frozen=True)
class GatedCheckpoint(MemoryCheckpoint):
    gate: Gate = field(default_factory=Gate)

    def strips(self, rows_max: int, row_id_range: tuple[int, int] | None = None) -> Iterator[StripSource]:
        self.gate.scans += 1
        number = self.gate.scans
        sources = super().strips(rows_max, row_id_range)
        return (GatedStrip(source, self.gate, number) for source in sources)


@dataclass
class Rig:
    """Some threads that ask a gated collection. ``held``: views that are open."""

    view: MemoryCollection
    gate: Gate
    workers: Workers | None
    held: int = 0
    asking: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(24))
    shared: SharedScans = field(init=False)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.shared = SharedScans(self.open_view, Limits(), self.workers)

    @contextmanager
    def open_view(self, name: str) -> Iterator[CollectionView]:
        if name != "c":
            raise NotFound(f"no collection {name!r}")
        with self.lock:
            self.held += 1
        try:
            yield self.view
        finally:
            with self.lock:
                self.held -= 1

    def ask(
        self, question: Question, k: int = 5, cancelled: Callable[[], bool] = never, offset: int = 0
    ) -> Future[TopKAnswer]:
        def call() -> TopKAnswer:
            with self.shared.top_k("c", question, k, offset=offset, cancelled=cancelled) as (_, answer):
                return answer

        return self.asking.submit(call)

    def ask_behind(self, *args: object, **options: object) -> Future[TopKAnswer]:
        """Asks, and returns once the query stands in line."""
        before = self.in_line()
        future = self.ask(*args, **options)  # type: ignore[arg-type]
        until(lambda: self.in_line() > before)
        return future

    def in_line(self) -> int:
        return self.shared.lines.waiting_count()


def until(holds: Callable[[], bool]) -> None:
    waited = threading.Event()
    for _ in range(3000):
        if holds():
            return
        waited.wait(0.01)
    raise AssertionError("it did not come to that")


@pytest.fixture(params=["one thread", "workers"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((ROWS, DIM))
    plain = memory_collection("c", Space(dim=DIM), {"a": (range(ROWS), rows)}, chunk_rows=37)
    gate, stored = Gate(), plain.checkpoints["a"].stored
    view = replace(plain, checkpoints={"a": GatedCheckpoint("a", stored, chunk_rows=37, gate=gate)})
    workers = Workers(2) if request.param == "workers" else None
    made = Rig(view, gate, workers)
    yield made
    gate.open.set()
    made.asking.shutdown()
    made.shared.close()
    if workers is not None:
        workers.close()
    assert made.held == 0


def question(seed: int, count: int = 1, **changes: object) -> Question:
    vectors = np.random.default_rng(seed).standard_normal((1, count, DIM)).astype(np.float32)
    return replace(Question(vectors=vectors), **changes)  # type: ignore[arg-type]


def check(rig: Rig, answer: TopKAnswer, asked: Question, k: int = 5) -> None:
    rig.gate.open.set()
    alone = top_k(rig.view, asked, k)
    assert len(answer.results) == len(alone.results)
    for found, wanted in zip(answer.results, alone.results, strict=True):
        for end, expected in ((found.proponents, wanted.proponents), (found.opponents, wanted.opponents)):
            assert end.keys == expected.keys
            np.testing.assert_array_equal(end.scores, expected.scores)


def test_those_that_wait_share_the_next_scan(rig: Rig) -> None:
    asked = [question(seed, 1 + seed % 3) for seed in range(9)]
    first = rig.ask(asked[0])
    assert rig.gate.reached.wait(WAIT_S)
    others = [rig.ask_behind(each, k=3 + place) for place, each in enumerate(asked[1:])]
    rig.gate.open.set()
    answers = [future.result(WAIT_S) for future in (first, *others)]
    assert rig.gate.scans == 2
    check(rig, answers[0], asked[0])
    for place, (answer, each) in enumerate(zip(answers[1:], asked[1:], strict=True)):
        check(rig, answer, each, 3 + place)
        assert answer.stages[1].rows_in == ROWS


def test_pages_share_too(rig: Rig) -> None:
    first = rig.ask(question(0))
    assert rig.gate.reached.wait(WAIT_S)
    pages = [rig.ask_behind(question(1), k=4, offset=offset) for offset in (0, 4, 396)]
    rig.gate.open.set()
    first.result(WAIT_S)
    whole = top_k(rig.view, question(1), ROWS).results[0].proponents
    for future, offset in zip(pages, (0, 4, 396), strict=True):
        assert future.result(WAIT_S).results[0].proponents.keys == whole.keys[offset : offset + 4]


def test_groups_and_their_maximum_share_too(rig: Rig) -> None:
    asked = [question(1, 4, groups=[0, 1, 1, 2], reduce="max"), question(2, 3, reduce="mean"), question(3, 2)]
    first = rig.ask(question(0))
    assert rig.gate.reached.wait(WAIT_S)
    others = [rig.ask_behind(each) for each in asked]
    rig.gate.open.set()
    first.result(WAIT_S)
    for future, each in zip(others, asked, strict=True):
        check(rig, future.result(WAIT_S), each)
    assert rig.gate.scans == 2 + len(asked)  # `check` scans alone


def test_other_scorers_and_filters_do_not_wait(rig: Rig) -> None:
    asked = [question(1), question(2, scorer="cosine"), question(3, damaged="omit")]
    futures = [rig.ask(each) for each in asked]
    until(lambda: rig.gate.scans == 3)
    rig.gate.open.set()
    for future, each in zip(futures, asked, strict=True):
        check(rig, future.result(WAIT_S), each)


def test_one_that_is_cancelled_in_line_leaves_it(rig: Rig) -> None:
    first = rig.ask(question(0))
    assert rig.gate.reached.wait(WAIT_S)
    stop = threading.Event()
    leaving, staying = rig.ask_behind(question(1), cancelled=stop.is_set), rig.ask_behind(question(2))
    stop.set()
    with pytest.raises(Unavailable, match="cancelled"):
        leaving.result(WAIT_S)
    assert not first.done()
    assert rig.in_line() == 1
    rig.gate.open.set()
    check(rig, staying.result(WAIT_S), question(2))
    check(rig, first.result(WAIT_S), question(0))


@pytest.mark.parametrize("place", [0, 1])
def test_one_that_is_cancelled_while_it_is_scanned_for(place: int, rig: Rig) -> None:
    """Two share the second scan, which is held; one of them goes at once. The other is answered."""
    first = rig.ask(question(0))
    assert rig.gate.reached.wait(WAIT_S)
    stops = [threading.Event(), threading.Event()]
    both = [rig.ask_behind(question(1 + number), cancelled=stop.is_set) for number, stop in enumerate(stops)]
    rig.gate.let_pass(first)
    stops[place].set()
    with pytest.raises(Unavailable, match="cancelled"):
        both[place].result(WAIT_S)
    assert not both[1 - place].done()
    rig.gate.open.set()
    check(rig, both[1 - place].result(WAIT_S), question(2 - place))


def test_a_scan_that_nobody_wants_ends(rig: Rig) -> None:
    stop = threading.Event()
    future = rig.ask(question(0), cancelled=stop.is_set)
    assert rig.gate.reached.wait(WAIT_S)
    stop.set()
    rig.gate.open.set()
    with pytest.raises(Unavailable, match="cancelled"):
        future.result(WAIT_S)
    check(rig, rig.ask(question(1)).result(WAIT_S), question(1))


def test_a_wrong_question_is_refused_alone(rig: Rig) -> None:
    first = rig.ask(question(0))
    assert rig.gate.reached.wait(WAIT_S)
    wrong = rig.ask_behind(Question(vectors=np.ones((1, 1, DIM + 1), dtype=np.float32)))
    right, too_many = rig.ask_behind(question(2)), rig.ask_behind(question(3), k=0)
    rig.gate.open.set()
    with pytest.raises(InvalidInput, match=f"the query has dim {DIM + 1}"):
        wrong.result(WAIT_S)
    with pytest.raises(InvalidInput, match="k must be at least 1"):
        too_many.result(WAIT_S)
    check(rig, right.result(WAIT_S), question(2))
    first.result(WAIT_S)


def test_damage_is_told_to_all_that_met_it(rig: Rig) -> None:
    checkpoint = rig.view.checkpoints["a"]
    rig.view = replace(rig.view, checkpoints={"a": replace(checkpoint, damaged=frozenset({200}))})
    first = rig.ask(question(0))
    assert rig.gate.reached.wait(WAIT_S)
    others = [rig.ask_behind(question(seed)) for seed in (1, 2)]
    rig.gate.open.set()
    for future in (first, *others):
        with pytest.raises(Corrupt, match="damaged on purpose"):
            future.result(WAIT_S)


def test_a_collection_that_is_not_there(rig: Rig) -> None:
    with pytest.raises(NotFound), rig.shared.top_k("absent", question(0), 1):
        pass


def test_many_clients_at_once(rig: Rig) -> None:
    """Sixteen that ask again and again, each with its own questions, one of them always gone before its answer."""
    rig.gate.open.set()

    def client(number: int) -> list[tuple[Question, TopKAnswer]]:
        answers = []
        for place in range(6):
            asked = question(100 * number + place, 1 + place % 2)
            with rig.shared.top_k("c", asked, 4) as (view, answer):
                assert view is rig.view
                answers.append((asked, answer))
        return answers

    def gone(seed: int) -> None:
        with pytest.raises(Unavailable), rig.shared.top_k("c", question(seed), 4, cancelled=lambda: True):
            pass

    futures = [rig.asking.submit(client, number) for number in range(16)]
    for seed in range(6):
        rig.asking.submit(gone, seed).result(WAIT_S)
    for future in futures:
        for asked, answer in future.result(WAIT_S):
            check(rig, answer, asked, 4)
    assert len(rig.shared.lines) <= 1
