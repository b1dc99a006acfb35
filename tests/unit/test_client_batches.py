"""Batches: every row once and in order, within the limits, and bytes that protobuf reads as the .proto says."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given as cases

from covector.batches import BatchBuffer, SealedBatch, Sizes
from covector.blocks import column_from_message, keys_of, scale_rows, sum64
from covector.errors import LimitExceeded
from covector.inputs import GivenRows, given_rows
from covector.v1 import ingest_pb2

DIM = 6


def rows_of(start: int, count: int, *, text_length: int = 0, dim: int = DIM, q: bool = False) -> GivenRows:
    rng = np.random.default_rng(start)
    gradients = rng.normal(size=(count, dim)) * np.exp(rng.normal(size=(count, 1)) * 10)
    texts = ["t" * text_length if row % 2 else None for row in range(count)] if text_length else None
    keys = list(range(start, start + count))
    return given_rows(keys, texts, None, gradients=gradients, trak_q=np.full(count, 0.5) if q else None)


def batches_of(given: list[GivenRows], sizes: Sizes) -> list[SealedBatch]:
    buffer = BatchBuffer(sizes)
    found = [batch for rows in given for batch in buffer.add(rows)]
    return [*found, buffer.seal()] if buffer.row_count else found


def parsed(batch: SealedBatch) -> tuple[ingest_pb2.Batch, bytes]:
    """A batch as the server reads it, and all bytes of its gradients."""
    first, *rest = [ingest_pb2.IngestRequest.FromString(message) for message in batch.messages]
    assert first.WhichOneof("message") == "batch"
    assert [part.WhichOneof("message") for part in rest] == ["part"] * len(rest)
    return first.batch, first.batch.gradients + b"".join(part.part.gradients for part in rest)


def keys_in(batch: ingest_pb2.Batch) -> list[Any]:
    return keys_of(column_from_message(batch.keys.values, batch.row_count, "keys"))


def test_the_bytes_are_what_protobuf_would_write() -> None:
    (batch,) = batches_of([rows_of(0, 5, text_length=9, q=True)], Sizes())
    (message,) = batch.messages
    assert ingest_pb2.IngestRequest.FromString(message).SerializeToString(deterministic=True) == message


@cases(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    batch_bytes=st.integers(1, 1500),
    batch_rows=st.integers(1, 30),
    message_bytes=st.integers(150, 700),
    text_length=st.integers(0, 20),
)
def test_every_row_once_in_order_within_the_limits(
    counts: list[int], batch_bytes: int, batch_rows: int, message_bytes: int, text_length: int
) -> None:
    starts = np.cumsum([0, *counts]).tolist()
    given = [rows_of(start, count, text_length=text_length) for start, count in zip(starts, counts, strict=False)]
    sizes = Sizes(batch_bytes, batch_rows, message_bytes, 1 << 20)
    batches = batches_of(given, sizes)
    messages = [parsed(batch) for batch in batches]
    assert [key for batch, _ in messages for key in keys_in(batch)] == list(range(starts[-1]))
    assert [batch.sequence for batch in batches] == list(range(1, len(batches) + 1))
    rows, scales = scale_rows(np.concatenate([g.gradients for g in given if g.gradients is not None]))
    assert b"".join(data for _, data in messages) == rows.tobytes()
    assert b"".join(batch.scales for batch, _ in messages) == scales.tobytes()
    for sealed, (batch, data) in zip(batches, messages, strict=True):
        assert batch.row_count == sealed.row_count <= batch_rows
        assert batch.row_count == 1 or len(data) + len(batch.texts.data) <= batch_bytes
        assert len(data) == batch.gradients_size == 2 * DIM * batch.row_count
        assert batch.gradients_sum64 == sum64(data)
        head = batch.ByteSize() - len(batch.gradients)
        assert len(sealed.messages[0]) <= max(message_bytes, head + 8)
        assert all(len(message) <= message_bytes for message in sealed.messages[1:])


def test_a_row_larger_than_a_message_goes_in_parts() -> None:
    given = rows_of(0, 2, dim=5_000)
    batches = batches_of([given], Sizes(batch_bytes=1_000, message_bytes=1_024))
    assert [batch.row_count for batch in batches] == [1, 1]
    assert all(len(message) <= 1_024 for batch in batches for message in batch.messages)
    assert given.gradients is not None
    assert b"".join(parsed(batch)[1] for batch in batches) == scale_rows(given.gradients)[0].tobytes()


def test_a_key_given_again_goes_into_the_next_batch() -> None:
    batches = batches_of([rows_of(0, 3), rows_of(2, 3)], Sizes())
    assert [keys_in(parsed(batch)[0]) for batch in batches] == [[0, 1, 2], [2, 3, 4]]


def test_columns_that_nobody_gave_are_not_sent() -> None:
    (batch,) = batches_of([rows_of(0, 3)], Sizes())
    message, _ = parsed(batch)
    assert not message.HasField("texts")
    assert not message.HasField("metadata")
    assert message.trak_q == b""


def test_what_some_rows_lack_is_marked() -> None:
    (batch,) = batches_of([rows_of(0, 2, text_length=3, q=True), rows_of(2, 1)], Sizes())
    message, _ = parsed(batch)
    assert column_from_message(message.texts, 3, "texts").strings() == [None, "ttt", None]
    np.testing.assert_array_equal(np.frombuffer(message.trak_q, "<f4"), [0.5, 0.5, np.nan])


def test_rows_without_gradients() -> None:
    (batch,) = batches_of([given_rows(["a", "b"], ["x", None], None)], Sizes())
    message, data = parsed(batch)
    assert data == b""
    assert message.scales == b""
    assert not message.HasField("gradients_sum64")


def test_zero_rows_are_counted() -> None:
    (batch,) = batches_of(
        [given_rows([1, 2, 3], None, None, gradients=np.eye(3)[[0, 1, 1]] * [[1], [0], [0]])], Sizes()
    )
    assert batch.zero_row_count == 2


def test_a_text_that_no_message_holds_is_named_with_the_limit() -> None:
    given = given_rows(["long"], ["x" * 5_000], None, gradients=np.ones((1, DIM)))
    with pytest.raises(LimitExceeded, match=r"key 'long' need 5\d+ bytes.*message_bytes=4096"):
        batches_of([given], Sizes(message_bytes=4_096, message_bytes_max=4_096))


def test_sizes_stay_within_the_servers_limits() -> None:
    opened = ingest_pb2.WriterOpened(message_bytes_max=1 << 16, batch_bytes_max=1 << 18, batch_rows_max=10)
    assert Sizes.of(opened) == Sizes(1 << 15, 10, 1 << 16, 1 << 16)
