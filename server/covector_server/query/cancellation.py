"""How a query is told to stop: a callable that it asks before every piece of work."""

from __future__ import annotations

from collections.abc import Callable

from covector.errors import Unavailable

Cancelled = Callable[[], bool]


def never() -> bool:
    """The ``cancelled`` of a query that nothing stops."""
    return False


def check_cancelled(cancelled: Cancelled) -> None:
    """Raises Unavailable if the query is no longer wanted."""
    if cancelled():
        raise Unavailable("cancelled: the caller went away or its deadline passed; ask again")
