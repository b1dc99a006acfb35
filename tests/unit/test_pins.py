"""Pins: many at once, none while files are replaced, and the last one gone lets the others go on."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest

from covector_server.storage.pins import Pins


class Asked(Exception):
    """To stop waiting."""


def stop() -> None:
    raise Asked


def test_any_number_may_pin_and_none_replaces_then() -> None:
    pins = Pins()
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(pins.pinned(stop))
        with pytest.raises(Asked), pins.replacing(stop):
            pass
    with pins.replacing(stop):
        for other in (pins.pinned, pins.replacing):
            with pytest.raises(Asked), other(stop):
                pass
    with pins.pinned(stop):
        pass


def test_who_waits_goes_on_when_the_way_is_free() -> None:
    pins, order = Pins(), []
    entered = threading.Event()

    def replace() -> None:
        with pins.replacing():
            order.append("replaced")
            entered.set()

    with pins.pinned():
        thread = threading.Thread(target=replace)
        thread.start()
        assert not entered.wait(0.05)
        order.append("unpinned")
    thread.join(30)
    assert order == ["unpinned", "replaced"]


def test_an_error_in_the_block_takes_the_pin_away() -> None:
    pins = Pins()
    for way in (pins.pinned, pins.replacing):
        with pytest.raises(KeyError), way():
            raise KeyError
    with pins.replacing(stop):
        pass


def test_removals_wait_for_the_last_pin_without_making_anybody_wait() -> None:
    pins, removed = Pins(), []
    pins.when_unpinned(lambda: removed.append("at once"))
    with pins.pinned():
        with pins.pinned():
            pins.when_unpinned(lambda: removed.append("first"))
        pins.when_unpinned(lambda: removed.append("second"))
        assert removed == ["at once"]
    assert removed == ["at once", "first", "second"]
    with pins.pinned():
        pass
    assert len(removed) == 3


def test_pins_and_replacements_never_overlap() -> None:
    pins, inside = Pins(), {"pins": 0, "replacements": 0}
    counting, seen = threading.Lock(), []

    def go_through(kind: str) -> None:
        way = pins.pinned if kind == "pins" else pins.replacing
        for _ in range(200):
            with way():
                with counting:
                    inside[kind] += 1
                    seen.append((inside["pins"], inside["replacements"]))
                with counting:
                    inside[kind] -= 1

    kinds = ("pins", "pins", "replacements", "replacements")
    threads = [threading.Thread(target=go_through, args=(kind,)) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 800
    assert all(replacements <= 1 and not (held and replacements) for held, replacements in seen)
