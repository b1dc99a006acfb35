"""Batches made in process, as a client's would arrive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.blocks import column_of, column_to_message, key_column, scale_rows
from covector.types import Key
from covector.v1 import ingest_pb2, types_pb2
from covector_server.ingest.batch import Batch, parse_batch
from covector_server.limits import Limits
from covector_server.metadata.fields import canonical


def batch_message(
    sequence: int,
    keys: Sequence[Key],
    gradients: npt.ArrayLike | None,
    texts: Sequence[str | None] | None = None,
    metadata: Sequence[Mapping[str, Any] | None] | None = None,
    *,
    trak_q: npt.NDArray[Any] | None = None,
) -> ingest_pb2.Batch:
    """A batch on the wire. gradients: float[n, dim], None for rows without; trak_q: float[n]."""
    message = ingest_pb2.Batch(
        sequence=sequence,
        row_count=len(keys),
        keys=types_pb2.KeyColumn(values=column_to_message(key_column(list(keys)))),
    )
    if gradients is not None:
        rows, scales = scale_rows(gradients)
        message.gradients, message.scales = rows.astype("<f2").tobytes(), scales.astype("<f4").tobytes()
        message.gradients_size = len(message.gradients)
    if trak_q is not None:
        message.trak_q = trak_q.astype("<f4").tobytes()
    if texts is not None:
        encoded = (None if text is None else text.encode() for text in texts)
        message.texts.CopyFrom(column_to_message(column_of(encoded)))
    if metadata is not None:
        objects = (None if entry is None else canonical(entry) for entry in metadata)
        message.metadata.CopyFrom(column_to_message(column_of(objects)))
    return message


def batch_of(
    sequence: int,
    keys: Sequence[Key],
    gradients: npt.ArrayLike | None,
    texts: Sequence[str | None] | None = None,
    metadata: Sequence[Mapping[str, Any] | None] | None = None,
    *,
    trak_q: npt.NDArray[Any] | None = None,
) -> Batch:
    """A batch as the server parses it."""
    message = batch_message(sequence, keys, gradients, texts, metadata, trak_q=trak_q)
    dim = None if gradients is None else np.shape(gradients)[1]
    return parse_batch(message, message.gradients, dim, Limits())
