"""Open indexes of a store: opened when a query first wants them, the least recently used let go above a limit.

What is let go stays readable for queries that hold it. An index whose files turned out to be damaged, or whose library
is not installed here, is remembered, so that it is not tried again with every query.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from covector.errors import Corrupt
from covector_server.index.contract import Check, Index, MissingLibrary
from covector_server.index.kinds import backend_of
from covector_server.kernels.pages import Losses
from covector_server.storage.index_files import open_files
from covector_server.storage.view import ListedIndex

_Key = tuple[str, int]  # directory, checksum of the manifest


class IndexCache:
    """Any thread may ask. ``bytes_max``: of what all of them keep, mapped or not; the latest stays, whatever its
    size."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._open: OrderedDict[_Key, Index] = OrderedDict()
        self._unusable: dict[_Key, str] = {}
        self._losses = Losses()
        self._changing = threading.Lock()
        self._opening = threading.Lock()  # so that an index is not verified twice at the same time

    @property
    def size_bytes(self) -> int:
        """Bytes that open indexes keep."""
        with self._changing:
            return sum(index.size_bytes for index in self._open.values())

    @property
    def open_count(self) -> int:
        """Indexes that are open."""
        return len(self._open)

    def trouble(self, listed: ListedIndex) -> str:
        """Why an index cannot be used, as the end of a sentence; empty if nothing is known of it."""
        return self._unusable.get(_key(listed), "")

    def open(self, listed: ListedIndex, check: Check) -> Index | None:
        """The index; None if its files are damaged, which is reported, or its library is missing. Raises Unavailable
        for want of memory or descriptors, and what ``check`` raises."""
        key = _key(listed)
        found = self._known(key)
        if found is not None or key in self._unusable:
            return found
        with self._opening:
            found = self._known(key)
            return found if found is not None else self._opened(key, listed, check)

    def forget(self, directory: Path) -> None:
        """Lets go of an index whose files were removed."""
        with self._changing:
            for key in [key for key in self._open if key[0] == str(directory)]:
                del self._open[key]
            for key in [key for key in self._unusable if key[0] == str(directory)]:
                del self._unusable[key]

    def _known(self, key: _Key) -> Index | None:
        with self._changing:
            if self._losses.grew():
                self._open.clear()  # what could not be read may be theirs: they are verified again
            found = self._open.get(key)
            if found is not None:
                self._open.move_to_end(key)
            return found

    def _opened(self, key: _Key, listed: ListedIndex, check: Check) -> Index | None:
        record = listed.record
        try:
            index = backend_of(record.kind).open(open_files(listed.directory, record, check), check)
        except Corrupt as error:
            self._unusable[key] = f"is damaged: {error.message}"
            listed.report(error.message)
            return None
        except MissingLibrary as error:
            self._unusable[key] = f"cannot be used: {error.message}"
            return None
        with self._changing:
            self._open[key] = index
            kept_bytes = sum(one.size_bytes for one in self._open.values())
            while kept_bytes > self._bytes_max and len(self._open) > 1:
                kept_bytes -= self._open.popitem(last=False)[1].size_bytes
        return index


def _key(listed: ListedIndex) -> _Key:
    return str(listed.directory), listed.record.checksum
