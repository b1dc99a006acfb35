"""Pages of a list: a token is the name of the last entry of the page before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from covector.errors import InvalidInput
from covector_server.limits import Limits

T = TypeVar("T")


def page_of(
    entries: Sequence[T], name_of: Callable[[T], str], page_size: int, page_token: str, limits: Limits
) -> tuple[Sequence[T], str]:
    """The page after ``page_token`` and the next token, empty on the last page."""
    if page_size < 0:
        raise InvalidInput(f"page_size is {page_size}; it is 0 for the default, or more")
    size = min(page_size or limits.page_size, limits.page_size)
    start = 0
    if page_token:
        names = [name_of(entry) for entry in entries]
        if page_token not in names:
            raise InvalidInput("the page token is not known any more; start again from the first page")
        start = names.index(page_token) + 1
    page = entries[start : start + size]
    return page, name_of(page[-1]) if start + size < len(entries) else ""
