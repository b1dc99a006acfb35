"""How many queries and streams of rows may be open, and how many bytes of query vectors they hold together.

A query past a limit is refused: waiting would hold what others wait for. A stream keeps its share until it ends, so a
reader that stalls is counted, and a claim counts only as far as its bytes have come.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from covector.errors import LimitExceeded
from covector_server.limits import Limits


class QueryAdmission:
    """The streams and bytes of all queries. Belongs to the event loop's thread."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.stream_count = 0
        self.used_bytes = 0

    @contextmanager
    def stream(self) -> Iterator[QueryShare]:
        """A stream's share, given back at the end of the block. Raises LimitExceeded past ``query_streams``."""
        if self.stream_count >= self._limits.query_streams:
            raise LimitExceeded(
                f"{self.stream_count} queries are open, query_streams={self._limits.query_streams}; ask again later",
                limit="query_streams",
            )
        self.stream_count += 1
        share = QueryShare(self)
        try:
            yield share
        finally:
            self.stream_count -= 1
            self.used_bytes -= share.size_bytes

    def take(self, size_bytes: int) -> None:
        """Adds bytes. Raises LimitExceeded past ``query_queue_bytes``."""
        if self.used_bytes + size_bytes > self._limits.query_queue_bytes:
            raise LimitExceeded(
                f"the queries that are open hold {self.used_bytes} bytes of vectors, {size_bytes} more exceed "
                f"query_queue_bytes={self._limits.query_queue_bytes}; ask again later",
                limit="query_queue_bytes",
            )
        self.used_bytes += size_bytes


class QueryShare:
    """What one stream holds."""

    def __init__(self, admission: QueryAdmission) -> None:
        self._admission = admission
        self.size_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Adds bytes that came. Raises LimitExceeded if all queries together hold too many."""
        self._admission.take(size_bytes)
        self.size_bytes += size_bytes
