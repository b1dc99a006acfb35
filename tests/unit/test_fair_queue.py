"""Writers take turns, each in its own order; other work goes first."""

import random
import threading

from covector_server.ingest.fair_queue import FairQueue


def test_writers_take_turns() -> None:
    queue: FairQueue[str, str] = FairQueue()
    for n in range(3):
        queue.put("busy", f"busy {n}")
    queue.put("late", "late 0")
    queue.put("busy", "busy 3")
    assert [queue.take() for _ in range(6)] == ["busy 0", "late 0", "busy 1", "busy 2", "busy 3", None]


def test_the_order_of_each_writer_is_kept() -> None:
    rng = random.Random(0)
    queue: FairQueue[tuple[str, int], str] = FairQueue()
    sent: dict[str, list[int]] = {name: [] for name in "abc"}
    taken: dict[str, list[int]] = {name: [] for name in "abc"}
    for n in range(500):
        name = rng.choice("abc")
        queue.put(name, (name, n))
        sent[name].append(n)
        if rng.random() < 0.6 and (entry := queue.take()) is not None:
            taken[entry[0]].append(entry[1])
    while (entry := queue.take()) is not None:
        taken[entry[0]].append(entry[1])
    assert taken == sent


def test_waiting_ends_with_work_with_a_condition_or_with_the_end() -> None:
    queue: FairQueue[str, str] = FairQueue()
    assert queue.wait(otherwise=lambda: True)
    queue.put_call("call")
    assert queue.wait(otherwise=lambda: False)
    assert (queue.take_call(), queue.take_call()) == ("call", None)
    woken = threading.Event()
    thread = threading.Thread(target=lambda: woken.set() if queue.wait(otherwise=lambda: False) else None)
    thread.start()
    queue.put("w", "entry")
    thread.join(timeout=10)
    assert woken.is_set()
    queue.close()
    assert queue.wait(otherwise=lambda: False)  # something is left
    queue.take()
    assert not queue.wait(otherwise=lambda: False)
