"""Answers to requests are kept for days, not for ever, and not without bound."""

from __future__ import annotations

from pathlib import Path

from covector.types import Space
from covector_server.limits import Limits
from covector_server.metadata.catalog import number
from covector_server.metadata.memory_catalog import MemoryCatalog
from covector_server.storage.requests import answered, forget_old, remember
from covector_server.storage.store import Store

NOW_S = 1_800_000_000


def kept(catalog: MemoryCatalog) -> set[str]:
    with catalog.read() as reader:
        return {key.decode() for key, _ in reader.scan("requests")}


def test_an_answer_comes_back() -> None:
    catalog = MemoryCatalog()
    with catalog.write() as writer:
        remember(writer, "r", 5, NOW_S)
        remember(writer, "", 6, NOW_S)
        writer.put("requests", b"of format 1", number(7))
    with catalog.read() as reader:
        assert [answered(reader, name) for name in ("r", "of format 1", "unknown", "")] == [5, 7, None, None]


def test_old_answers_are_forgotten() -> None:
    catalog, limits = MemoryCatalog(), Limits(request_age_s=100)
    with catalog.write() as writer:
        for age_s in (0, 99, 100, 101, 10_000):
            remember(writer, f"{age_s}", age_s, NOW_S - age_s)
        writer.put("requests", b"of format 1", number(7))
        forget_old(writer, NOW_S, limits)
    assert kept(catalog) == {"0", "99", "100", "of format 1"}
    with catalog.write() as writer:
        forget_old(writer, NOW_S + 100, limits)
    assert kept(catalog) == {"0", "of format 1"}
    with catalog.read() as reader:
        assert answered(reader, "of format 1") == 7
    with catalog.write() as writer:
        forget_old(writer, NOW_S + 101, limits)
    assert kept(catalog) == set()


def test_the_oldest_of_too_many_are_forgotten() -> None:
    catalog = MemoryCatalog()
    with catalog.write() as writer:
        for age_s in range(20):
            remember(writer, f"{age_s}", 1, NOW_S - age_s)
        forget_old(writer, NOW_S, Limits(requests_kept=3))
    assert kept(catalog) == {"0", "1", "2"}


def test_a_store_forgets_by_itself(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", limits=Limits(requests_kept=3))
    with store.catalog.write() as writer:
        for place in range(10):
            remember(writer, f"old {place}", 1, NOW_S - 1_000_000_000 + place)
    made = store.create_collection("c", Space(dim=2), exist_ok=False, request_id="make")
    assert store.create_collection("c", Space(dim=2), exist_ok=False, request_id="make") is made
    assert store.delete_collection("c", "delete") == store.delete_collection("c", "delete") == 0
    with store.catalog.read() as reader:
        found = {key.decode() for key, _ in reader.scan("requests")}
    assert found == {"make", "delete"}
    store.close()
