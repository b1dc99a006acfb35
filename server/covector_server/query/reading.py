"""Strips read for a query, side by side where there are threads for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from covector_server.query.cancellation import Cancelled, check_cancelled
from covector_server.query.workers import Workers
from covector_server.storage.damage import OnDamage
from covector_server.storage.view import Strip, StripSource


class Reader(Protocol):
    """Who reads. Without ``on_damage`` a damaged chunk raises Corrupt, with it its rows are left out, which any thread
    may tell it; without ``workers`` the caller's thread reads."""

    @property
    def cancelled(self) -> Cancelled: ...
    @property
    def on_damage(self) -> OnDamage | None: ...
    @property
    def workers(self) -> Workers | None: ...


def each_strip(
    reader: Reader,
    sources: Iterable[StripSource],
    use: Callable[[Strip], None],
    finish: Callable[[], None] | None = None,
) -> None:
    """Gives ``use`` the strips that have rows, in no order, from any thread and several at a time. A thread that finds
    none left calls ``finish``. Raises Unavailable once the query is cancelled, and what the two raise."""

    def work(source: StripSource) -> None:
        check_cancelled(reader.cancelled)
        strip = source.load(reader.on_damage)
        if len(strip.row_ids):
            use(strip)

    if reader.workers is not None:
        reader.workers.each(work, sources, finish)
        return
    for source in sources:
        work(source)
