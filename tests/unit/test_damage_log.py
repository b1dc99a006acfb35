"""The damage log holds each damage once, and never more than its limit."""

import threading

from covector_server.storage.damage import Damage, DamageLog


def damage(number: int, collection: str = "c") -> Damage:
    return Damage(collection, "one", f"collections/1/1/0/gradients/c/{number}/0", "bad", 4)


def test_a_damage_is_held_once() -> None:
    log = DamageLog()
    assert log.add(damage(1))
    assert log.add(damage(2))
    assert not log.add(damage(1))
    assert log.damages() == [damage(1), damage(2)]


def test_a_full_log_counts_what_it_drops() -> None:
    log = DamageLog(damages_max=3)
    added = [log.add(damage(number)) for number in (*range(5), 0)]
    assert added == [True] * 3 + [False] * 3
    assert len(log.damages()) == 3
    assert log.dropped_count == 2


def test_a_collection_is_forgotten() -> None:
    log = DamageLog()
    log.add(damage(1))
    log.add(damage(2, "d"))
    log.forget("c")
    assert log.damages() == [damage(2, "d")]


def test_threads_share_a_log() -> None:
    log = DamageLog(damages_max=64)
    threads = [threading.Thread(target=lambda: [log.add(damage(n)) for n in range(100)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(log.damages()) == 64
    assert log.dropped_count == 4 * 36
