"""Loaded fits of a store, and the columns of weights made for them: made when a query first wants them, the least
recently used let go above a limit.

What is let go stays readable for queries that hold it. A fit whose files turned out to be damaged is remembered, so
that it is not read again with every query.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Protocol, TypeVar

from covector.errors import Corrupt
from covector_server.fit.columns import EMPTY, Column, Pieces
from covector_server.fit.stored import StoredPart, is_served, open_part
from covector_server.kernels.pages import Losses
from covector_server.metadata.records import FilesRecord
from covector_server.storage.drafts import Check
from covector_server.storage.fit_files import open_fit_files
from covector_server.storage.view import ListedFit


class Sized(Protocol):
    """Something with a size."""

    @property
    def size_bytes(self) -> int: ...


S = TypeVar("S", bound=Sized)


class FitCache:
    """Any thread may ask. ``bytes_max``: of what all of it keeps, mapped or not; the latest stays, whatever its
    size."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._kept: OrderedDict[Hashable, Sized] = OrderedDict()
        self._damaged: dict[Hashable, str] = {}
        self._losses = Losses()
        self._changing = threading.Lock()
        self._opening = threading.Lock()  # so that a fit is not verified twice at the same time

    @property
    def size_bytes(self) -> int:
        """Bytes that it keeps."""
        with self._changing:
            return sum(one.size_bytes for one in self._kept.values())

    def part(self, listed: ListedFit, stored: FilesRecord, check: Check) -> StoredPart:
        """A part of a fit. Raises Corrupt if its files are damaged, which is reported, Unavailable for want of memory
        or descriptors, and what ``check`` raises."""
        directory = listed.root / stored.directory
        key = (str(directory), stored.checksum)
        with self._opening:
            known = self._known(key, StoredPart)
            if known is not None:
                return known
            if key in self._damaged:
                raise Corrupt(self._damaged[key], path=str(directory))
            try:
                part = open_part(open_fit_files(listed.root, stored, check, is_served))
            except Corrupt as error:
                self._damaged[key] = error.message
                listed.report(error.message)
                raise
            self._keep(key, part)
            return part

    def column(
        self, key: Hashable, position_count: int, base: Column, fresh: Callable[[int], Pieces], *, is_kept: bool
    ) -> Column:
        """The column under ``key`` for a view of ``position_count`` positions: as it is kept, or with what is newer, by
        ``fresh`` (first position -> pieces). ``base``: what it begins with, for a view that is not older than it.
        ``is_kept``: False where rows may be left out."""
        known = self._known(key, Column) if is_kept else None
        start = known or base
        if start.position_count > position_count:  # the view is older: rows may have been replaced since
            start, is_kept = EMPTY, False
        if start.position_count == position_count and start is known:
            return start
        made = start
        if start.position_count < position_count:
            made = start.extended(fresh(start.position_count), position_count)
        if is_kept:
            self._keep(key, made)
        return made

    def forget(self, directory: Path) -> None:
        """Lets go of what is kept of a directory whose files were removed."""
        with self._changing:
            for kept in (self._kept, self._damaged):
                for key in [key for key in kept if isinstance(key, tuple) and key[0] == str(directory)]:
                    del kept[key]

    def _known(self, key: Hashable, kind: type[S]) -> S | None:
        with self._changing:
            if self._losses.grew():
                self._kept.clear()  # what could not be read may be theirs, or what they were made of
            found = self._kept.get(key)
            if not isinstance(found, kind):
                return None
            self._kept.move_to_end(key)
            return found

    def _keep(self, key: Hashable, one: Sized) -> None:
        with self._changing:
            self._kept[key] = one
            self._kept.move_to_end(key)
            kept_bytes = sum(other.size_bytes for other in self._kept.values())
            while kept_bytes > self._bytes_max and len(self._kept) > 1:
                kept_bytes -= self._kept.popitem(last=False)[1].size_bytes
