"""Writers: gradients in, durable rows out."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy.typing as npt

from covector.connection import Connection
from covector.inputs import GradientRows, Keys, given_rows, gradient_array, origin_of
from covector.row_stream import OnConflict, RowStream, StreamOptions
from covector.rows import checked_checkpoint, missing_keys
from covector.types import Gradients, Key, Metadata, Space


class Writer:
    """Writes rows to one checkpoint of a collection: batches them, sends many at once, retries, reconnects.

    Made by ``Collection.writer``. ``add`` returns when the rows are buffered, and waits while too much is in flight;
    ``flush``, and the end of the ``with`` block, return when every row is durably stored. An exception inside the block
    drops what was not acknowledged; what was, stays. A failure is raised by the next call. Thread-safe.
    """

    def __init__(
        self,
        connection: Connection,
        collection: str,
        space: Space,
        checkpoint: str,
        *,
        eta: float = 1.0,
        on_conflict: OnConflict = "error",
        progress: bool = False,
        retry_s: float = 60.0,
    ) -> None:
        self._connection = connection
        self._collection = collection
        self._space = space
        self._checkpoint = checked_checkpoint(checkpoint)
        options = StreamOptions(
            collection=collection,
            checkpoint=checkpoint,
            eta=eta,
            on_conflict=on_conflict,
            progress=progress,
            retry_s=retry_s,
        )
        self._stream = RowStream(connection, options)

    @property
    def checkpoint(self) -> str:
        """The checkpoint that is written to."""
        return self._checkpoint

    @property
    def acknowledged(self) -> int:
        """Rows durably stored, those included that stood already; after the ``with`` block, all of them."""
        return self._stream.acknowledged_row_count

    @property
    def zero_rows(self) -> int:
        """How many of the acknowledged rows have a gradient that is all zero."""
        return self._stream.zero_row_count

    def add(
        self,
        keys: Keys,
        gradients: GradientRows,
        texts: Sequence[str | None] | None = None,
        metadata: Sequence[Metadata | None] | None = None,
        trak_q: npt.ArrayLike | None = None,
    ) -> None:
        """Adds rows.

        keys: str or int [n]; gradients: float[n, dim] or Gradients; texts, metadata (flat dicts): [n], None where a row
        has none; trak_q: float[n], TRAK's 1 - p (taken from Gradients if not given). Raises InvalidInput naming the
        row, and takes none of the rows then; or the error with which the server ended the stream.
        """
        array = gradient_array(gradients, self._space.dim)
        origin = origin_of(gradients, self._space, self._collection)
        if trak_q is None and isinstance(gradients, Gradients):
            trak_q = gradients.trak_q
        self._stream.add(given_rows(keys, texts, metadata, gradients=array, trak_q=trak_q), origin)

    def flush(self) -> None:
        """Returns when every row added so far is durably stored. Raises the failure if it cannot be."""
        self._stream.flush()

    def missing(self, keys: Keys) -> list[Key]:
        """Which of the keys have no gradient at this checkpoint yet, in their order. Rows still under way count as
        missing: ``flush`` first."""
        return missing_keys(self._connection, self._collection, keys, self._checkpoint)

    def close(self) -> None:
        """Flushes, and ends the stream. A second time does nothing."""
        self._stream.close()

    def abort(self) -> None:
        """Ends the stream at once and drops the rows that were not acknowledged, though some may arrive still."""
        self._stream.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()
