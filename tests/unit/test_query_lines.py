"""Who goes together, and what leaders wait for."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from covector.errors import Unavailable
from covector_server.query import lines as lines_module
from covector_server.query.lines import SHARED_VECTORS, Lines, Waiting
from covector_server.query.question import Question

KEY = ("c", (), "dot", "omit")
OTHER = ("d", (), "dot", "omit")


def waiting(count: int = 1) -> Waiting:
    return Waiting(Question(vectors=np.ones((1, count, 2), dtype=np.float32)), 5, 0)


@pytest.fixture
def led() -> list[lines_module.LineKey]:
    return []


@pytest.fixture
def lines(led: list[lines_module.LineKey]) -> Lines:
    return Lines(led.append)


def test_the_first_is_led_and_the_others_go_with_the_next(lines: Lines, led: list[lines_module.LineKey]) -> None:
    ones = [waiting() for _ in range(4)]
    lines.join(KEY, ones[0])
    assert led == [KEY]
    assert lines.take(KEY) == ones[:1]
    for one in ones[1:]:
        lines.join(KEY, one)
    assert led == [KEY]
    lines.hand_over(KEY, 1, 0.0)
    assert led == [KEY, KEY]
    assert lines.take(KEY) == ones[1:]
    lines.hand_over(KEY, 3, 0.0)
    assert led == [KEY, KEY]


def test_lines_do_not_wait_for_each_other(lines: Lines, led: list[lines_module.LineKey]) -> None:
    lines.join(KEY, waiting())
    lines.join(OTHER, waiting())
    assert led == [KEY, OTHER]
    for key in led[:2]:
        assert len(lines.take(key)) == 1
    lines.hand_over(KEY, 1, 0.0)
    assert len(lines) == 2
    lines.hand_over(OTHER, 1, 0.0)
    assert len(lines) == 1  # that which nobody stands in is forgotten, but for the last one


def test_no_more_go_together_than_the_vectors_allow(lines: Lines) -> None:
    ones = [waiting(SHARED_VECTORS - 1), waiting(2), waiting(1), waiting(SHARED_VECTORS + 9), waiting()]
    for one in ones:
        lines.join(KEY, one)
    taken: list[list[Waiting]] = []
    while sum(map(len, taken)) < len(ones):
        taken.append(lines.take(KEY))
        lines.hand_over(KEY, len(taken[-1]), 0.0)
    assert taken == [ones[:1], ones[1:3], ones[3:4], ones[4:]]


def test_one_that_is_cancelled_is_not_taken(lines: Lines) -> None:
    gone, stays = waiting(), waiting()
    lines.join(KEY, gone)
    lines.join(KEY, stays)
    assert gone.future.cancel()
    assert lines.waiting_count() == 1
    assert lines.take(KEY) == [stays]
    assert not gone.succeed(1)
    gone.fail(Unavailable("late"))
    assert gone.future.cancelled()


def test_something_becomes_of_each_once() -> None:
    one = waiting()
    assert one.is_wanted
    assert one.succeed("first")
    assert not one.succeed("second")
    one.fail(Unavailable("third"))
    assert one.future.result(0) == "first"
    assert not one.future.cancel()


def test_a_leader_waits_for_those_who_are_expected(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three were answered by a long scan; the first that is back waits for the others, and no longer."""
    monkeypatch.setattr(lines_module, "LINGER_S_MAX", 30.0)
    lines.join(KEY, waiting())
    lines.take(KEY)
    lines.hand_over(KEY, 3, 120.0)
    ones = [waiting() for _ in range(3)]
    lines.join(KEY, ones[0])
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(lines.take, KEY)
        for one in ones[1:]:
            assert not taken.done()
            lines.join(KEY, one)
        assert taken.result(30) == ones


def test_a_leader_does_not_wait_for_ever(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "LINGER_S_MAX", 0.05)
    lines.join(KEY, waiting())
    lines.take(KEY)
    lines.hand_over(KEY, 9, 1.0)
    one = waiting()
    lines.join(KEY, one)
    assert lines.take(KEY) == [one]


def test_who_waits_is_told_that_there_are_no_threads(led: list[lines_module.LineKey]) -> None:
    pool = ThreadPoolExecutor(1)
    lines = Lines(lambda key: pool.submit(led.append, key))
    pool.shutdown()
    one = waiting()
    lines.join(KEY, one)
    with pytest.raises(Unavailable, match="the server stops"):
        one.future.result(0)


def test_many_threads_join_and_leave() -> None:
    """Each is taken once, or left before."""
    taken: list[Waiting] = []
    taking = threading.Lock()
    pool = ThreadPoolExecutor(4)

    def lead(key: lines_module.LineKey) -> None:
        some = many.take(key)
        with taking:
            taken.extend(some)
        many.hand_over(key, len(some), 0.0)
        for one in some:
            one.succeed(None)

    many = Lines(lambda key: pool.submit(lead, key))

    def client(seed: int) -> list[Waiting]:
        asked = []
        for number in range(50):
            asked.append(waiting())
            many.join((KEY, OTHER)[(seed + number) % 2], asked[-1])
            if number % 5 == seed % 5:
                asked[-1].future.cancel()
            else:
                asked[-1].future.result(30)
        return asked

    with ThreadPoolExecutor(8) as clients:
        asked = [one for some in clients.map(client, range(8)) for one in some]
    pool.shutdown()
    assert len(set(map(id, taken))) == len(taken)
    assert {id(one) for one in asked if not one.future.cancelled()} <= set(map(id, taken))
    assert many.waiting_count() == 0
