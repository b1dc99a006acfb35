"""Compares what a store holds with what it may hold: nothing acknowledged lost, nothing twice, nothing half.

A reader is a server asked through the client, or a store opened in this process. Findings are sentences; none is good.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from tests.faults.journal import ABSENT, CollectionRows, Expected, History, Operation
from tests.faults.made_rows import DIM, Float32, Key, metadata_of, stored_gradients_of, text_of

import covector
from covector.blocks import decode_key, encode_key
from covector.errors import NotFound
from covector_server.storage.store import Store

FINDINGS_MAX = 5  # of a kind in a report
_STEP = 2_000


@dataclass(frozen=True, slots=True)
class FoundRows:
    """Rows as a reader gave them. gradients: float32[n, DIM] or None for rows without."""

    keys: Sequence[Key]
    gradients: Float32 | None
    texts: Sequence[str | None]
    metadata: Sequence[dict[str, Any] | None]


class Reader(Protocol):
    """One collection of a store that nobody changes."""

    def row_count(self) -> int:
        """Rows with or without gradients."""
        ...

    def checkpoints(self) -> Mapping[str, int]:
        """Their row counts, by name."""
        ...

    def keys(self, checkpoint: str) -> list[Key]:
        """The keys of all rows of a checkpoint, each as often as it is found."""
        ...

    def rows(self, checkpoint: str | None, keys: Sequence[Key]) -> FoundRows:
        """Rows by key. Raises NotFound if one is not there."""
        ...


class ServerReader:
    """Asks a server."""

    def __init__(self, collection: covector.Collection) -> None:
        self._collection = collection

    def row_count(self) -> int:
        return self._collection.count()

    def checkpoints(self) -> Mapping[str, int]:
        return {checkpoint.name: checkpoint.row_count for checkpoint in self._collection.checkpoints()}

    def keys(self, checkpoint: str) -> list[Key]:
        query = {checkpoint: np.ones(DIM, dtype=np.float32)}
        blocks = self._collection.scores(query, checkpoints=[checkpoint])
        return [key for keys, _ in blocks for key in keys]

    def rows(self, checkpoint: str | None, keys: Sequence[Key]) -> FoundRows:
        found = self._collection.get(list(keys), gradients=checkpoint is not None, checkpoint=checkpoint)
        vectors = None
        if checkpoint is not None:
            nothing = np.full(DIM, np.nan, dtype=np.float32)
            vectors = np.stack([nothing if row.gradient is None else row.gradient for row in found])
        return FoundRows([row.key for row in found], vectors, [r.text for r in found], [r.metadata for r in found])


class StoreReader:
    """Reads an open store."""

    def __init__(self, store: Store, name: str) -> None:
        self._collection = store.collection(name)

    def row_count(self) -> int:
        with self._collection.reading() as view:
            return view.row_count

    def checkpoints(self) -> Mapping[str, int]:
        with self._collection.reading() as view:
            return {name: checkpoint.row_count for name, checkpoint in view.checkpoints.items()}

    def keys(self, checkpoint: str) -> list[Key]:
        with self._collection.reading() as view:
            found = [view.keys_of(tile.row_ids) for tile in view.checkpoints[checkpoint].tiles(_STEP)]
        return [decode_key(key) for key in itertools.chain.from_iterable(found)]

    def rows(self, checkpoint: str | None, keys: Sequence[Key]) -> FoundRows:
        with self._collection.reading() as view:
            row_ids = view.row_ids_of([encode_key(key) for key in keys])
            if (row_ids < 0).any():
                raise NotFound(f"no row {keys[int(np.argmax(row_ids < 0))]!r}")
            details = view.details_of(row_ids)
            vectors = None
            if checkpoint is not None:
                tile = view.checkpoints[checkpoint].gather(row_ids)
                vectors = np.asarray(tile.rows.astype(np.float32) * tile.scales[:, None], dtype=np.float32)
        found = [decode_key(row.key) for row in details]
        return FoundRows(found, vectors, [row.text for row in details], [row.metadata for row in details])


def judge_collection(name: str, rows: CollectionRows, reader: Reader) -> list[str]:
    """What is wrong with a collection that nobody writes to."""
    findings: list[str] = []
    stored_at = reader.checkpoints()
    present: set[Key] = set()
    for checkpoint in sorted({checkpoint for checkpoint, _ in rows.gradients} | set(stored_at)):
        expected = {key: history for (at, key), history in rows.gradients.items() if at == checkpoint}
        stored = reader.keys(checkpoint) if checkpoint in stored_at else []
        present.update(stored)
        where = f"{name}/{checkpoint}"
        findings += _judge_keys(where, expected, stored)
        if stored_at.get(checkpoint, 0) != len(stored):
            findings.append(f"{where}: counts {stored_at[checkpoint]} rows and gives {len(stored)}")
        known = [key for key in dict.fromkeys(stored) if key in expected]
        findings += judge_rows(where, {key: expected[key] for key in known}, reader)
    findings += _judge_details(name, rows, reader, present)
    return findings


def _judge_keys(where: str, expected: Mapping[Key, History], stored: Sequence[Key]) -> Iterator[str]:
    once = set(stored)
    lost = [key for key, history in expected.items() if ABSENT not in history.possible and key not in once]
    if lost:
        yield f"{where}: LOST {len(lost)} acknowledged rows: {lost[:FINDINGS_MAX]}"
    if len(once) < len(stored):
        twice = [key for key in once if stored.count(key) > 1][:FINDINGS_MAX]
        yield f"{where}: DUPLICATED {len(stored) - len(once)} rows: {twice}"
    strange = [key for key in once if key not in expected or expected[key].possible == {ABSENT}]
    if strange:
        yield f"{where}: {len(strange)} rows that nobody sent, or that were deleted: {strange[:FINDINGS_MAX]}"


def judge_rows(where: str, expected: Mapping[Key, History], reader: Reader) -> list[str]:
    """What is wrong with these rows of a checkpoint (``collection/name``), all of which are stored."""
    findings: list[str] = []
    checkpoint = where.rpartition("/")[2]
    keys = list(expected)
    for start in range(0, len(keys), _STEP):
        part = keys[start : start + _STEP]
        try:
            found = reader.rows(checkpoint, part)
        except NotFound as error:
            findings.append(f"{where}: LOST a row: {error}")
            continue
        assert found.gradients is not None
        findings += _judge_details_of(where, found)
        bad = [key for key, ok in zip(part, _right_gradients(checkpoint, expected, found), strict=True) if not ok]
        if bad:
            states = [(key, sorted(expected[key].possible)) for key in bad[:FINDINGS_MAX]]
            findings.append(f"{where}: HALF or wrong: {len(bad)} gradients are none of their versions: {states}")
    return findings


def _right_gradients(checkpoint: str, expected: Mapping[Key, History], found: FoundRows) -> np.ndarray[Any, Any]:
    assert found.gradients is not None
    right = np.zeros(len(found.keys), dtype=bool)
    possible = [expected[key].possible for key in found.keys]
    for version in set().union(*possible) - {ABSENT} if possible else ():
        chosen = np.array([version in states for states in possible])
        picked = [key for key, is_chosen in zip(found.keys, chosen, strict=True) if is_chosen]
        wanted = stored_gradients_of(picked, checkpoint, version)
        right[chosen] |= (found.gradients[chosen] == wanted).all(axis=1)
    return right


def _judge_details_of(where: str, found: FoundRows) -> Iterator[str]:
    bad = [
        key
        for key, text, metadata in zip(found.keys, found.texts, found.metadata, strict=True)
        if text != text_of(key) or metadata != metadata_of(key)
    ]
    if bad:
        yield f"{where}: HALF: {len(bad)} rows with another text or other metadata: {bad[:FINDINGS_MAX]}"


def _judge_details(name: str, rows: CollectionRows, reader: Reader, present: set[Key]) -> Iterator[str]:
    """Rows without gradients, and that there are no rows beside those that are known."""
    certain = [key for key, history in rows.details.items() if ABSENT not in history.possible]
    for start in range(0, len(certain), _STEP):
        try:
            found = reader.rows(None, certain[start : start + _STEP])
        except NotFound as error:
            yield f"{name}: LOST a row without gradients: {error}"
        else:
            yield from _judge_details_of(name, found)
    low, high = len(present | set(certain)), len(present | set(rows.details))
    if not low <= (count := reader.row_count()) <= high:
        yield f"{name}: has {count} rows; from {low} to {high} are known"


def judge_store(expected: Expected, store: Store) -> list[str]:
    """What is wrong with an open store."""
    findings: list[str] = []
    stored = {collection.record.name for collection in store.collections()}
    for name, rows in expected.collections.items():
        if name in stored:
            findings += judge_collection(name, rows, StoreReader(store, name))
        elif any(ABSENT not in history.possible for history in [*rows.gradients.values(), *rows.details.values()]):
            findings.append(f"LOST collection {name}")
    return findings


def judge_puts(puts: Sequence[Operation], store: Store) -> list[str]:
    """What is wrong with rows that were put once, and must be in an open store."""
    findings: list[str] = []
    places = {(put.collection, put.checkpoint) for put in puts}
    for name, checkpoint in sorted(places):
        keys = [key for put in puts if (put.collection, put.checkpoint) == (name, checkpoint) for key in put.keys]
        try:
            findings += judge_rows(
                f"{name}/{checkpoint}", {key: History([0]) for key in keys}, StoreReader(store, name)
            )
        except NotFound as error:
            findings.append(f"LOST collection {name}: {error}")
    return findings
