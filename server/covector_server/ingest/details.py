"""Texts and metadata that come for rows that stand already: what is given twice must agree, what is new is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from covector.blocks import decode_key
from covector.errors import Conflict
from covector_server.ingest.batch import Batch, metadata_of
from covector_server.metadata.fields import Value
from covector_server.storage.view import RowDetails, RowIds


@dataclass(frozen=True, slots=True)
class News:
    """What a batch tells of one of its rows that was not known: ``row`` is its place in the batch."""

    row: int
    text: bytes | None
    metadata: Mapping[str, Value] | None


def news_of_new_rows(batch: Batch, rows: Sequence[int]) -> list[News]:
    """All that the batch tells of new rows."""
    return [News(row, _text(batch, row), metadata_of(batch.metadata, row)) for row in rows]


def news_of_standing_rows(
    batch: Batch, rows: Sequence[int], known: Sequence[RowDetails], must_agree: bool
) -> list[News]:
    """The texts and metadata that are new to rows that stand; ``known``: what is stored of each of ``rows``. Raises
    Conflict where both are given and differ, if they must agree."""
    found = []
    for row, stored in zip(rows, known, strict=True):
        text, metadata = _text(batch, row), metadata_of(batch.metadata, row)
        old_text = None if stored.text is None else stored.text.encode()
        if must_agree:
            _check_agreement("text", old_text, text, stored.key)
            _check_agreement("metadata", stored.metadata, metadata, stored.key)
        new_text = text if old_text is None else None
        new_metadata = metadata if stored.metadata is None else None
        if new_text is not None or new_metadata is not None:
            found.append(News(row, new_text, new_metadata))
    return found


def rows_with_details(batch: Batch, row_ids: RowIds) -> list[int]:
    """The rows of the batch that stand already (their row id is not -1) and come with a text or metadata."""
    return np.flatnonzero((row_ids >= 0) & batch.has_details()).tolist()


def _text(batch: Batch, row: int) -> bytes | None:
    return None if batch.texts is None else batch.texts.value(row)


def _check_agreement(what: str, known: object, given: object, key: bytes) -> None:
    if known is not None and given is not None and known != given:
        raise Conflict(
            f"key {decode_key(key)!r} has another {what}: {_short(known)} is stored, {_short(given)} was sent; "
            "a row's text and metadata are given once",
            key=decode_key(key),
        )


def _short(value: object) -> str:
    text = repr(value.decode() if isinstance(value, bytes) else value)
    return text if len(text) <= 60 else text[:57] + "..."
