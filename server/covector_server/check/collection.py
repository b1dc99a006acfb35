"""Checking one collection: its rows, its checkpoints, what is derived from them, and what lies beside them.

Derived files have checkers of their own in ``DERIVED``, by the directory they check. A directory without one is claimed
as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from covector.errors import InvalidInput
from covector.types import Space
from covector_server.check.catalog_state import CatalogState
from covector_server.check.checked_collection import CheckedCollection
from covector_server.check.checkpoints import CheckpointCheck
from covector_server.check.context import Context
from covector_server.check.derived import KEY_RUNS, POSTINGS
from covector_server.check.findings import Finding
from covector_server.check.fits import check_fits
from covector_server.check.indexes import check_indexes
from covector_server.check.rows import RowsCheck
from covector_server.metadata.catalog import Table, number, numbers
from covector_server.metadata.records import (
    CheckpointCounters,
    CheckpointRecord,
    CollectionCounters,
    CollectionRecord,
    Record,
)

R = TypeVar("R", bound=Record)
FIELD_TYPES = (b"string", b"number", b"boolean")


DerivedChecker = Callable[[CheckedCollection, str], None]  # the collection, the directory below the data directory
DERIVED: dict[str, DerivedChecker | None] = {
    "keys": KEY_RUNS.run,
    "postings": POSTINGS.run,
    "indexes": check_indexes,
    "fits": check_fits,
}


def check_collection(context: Context, state: CatalogState, id_: bytes) -> None:
    """Checks all that belongs to the collection with this id."""
    record = _decode(context, state, CollectionRecord, "collections", id_)
    if record is None:
        return
    directory = f"collections/{record.id}"
    context.claims.directory(directory)
    counters = _decode(context, state, CollectionCounters, "collection_counters", id_)
    if counters is None:
        message = "the catalog does not say how many rows there are; its files are checked by what they say themselves"
        context.add(Finding(kind="catalog_entry", message=message, path=directory, collection=record.name))
        return
    if not (context.data / directory).is_dir():
        _missing(context, record, directory, counters.next_row_id)
    rows = RowsCheck(context, state, record, counters)
    rows.run()
    context.report.rows += counters.next_row_id
    _check_fields(context, state, record, id_)
    for key, _ in state.scan("checkpoints", id_):
        _check_checkpoint(context, state, record, key, rows)
    collection = CheckedCollection(context, state, record)
    for name, checker in DERIVED.items():
        path = f"{directory}/{name}"
        context.claims.tree(path) if checker is None else checker(collection, path)
    _explain_leftovers(context, state, record, counters)


def _check_checkpoint(
    context: Context, state: CatalogState, collection: CollectionRecord, key: bytes, rows: RowsCheck
) -> None:
    record = _decode(context, state, CheckpointRecord, "checkpoints", key)
    if record is None:
        return
    counters = _decode(context, state, CheckpointCounters, "checkpoint_counters", key)
    directory = f"collections/{collection.id}/{record.id}"
    context.claims.directory(directory)
    if counters is None:
        message = "the catalog does not say how many rows the checkpoint has; its files are checked by what they say"
        context.add(
            Finding(
                kind="catalog_entry",
                message=message,
                path=directory,
                collection=collection.name,
                checkpoint=record.name,
            )
        )
        return
    context.claims.directory(f"{directory}/{record.generation}")
    try:
        dim = Space.from_json(collection.space_json).dim
    except InvalidInput as error:
        message = f"its space cannot be read: {error}"
        context.add(Finding(kind="catalog_entry", message=message, collection=collection.name))
        return
    next_row_id = rows.counters.next_row_id
    check = CheckpointCheck(context, state, collection, record, counters, dim, next_row_id, rows.keys)
    check.run()
    for name in _names(context, directory):
        if name.isdecimal() and int(name) != record.generation:
            context.claims.explain(f"{directory}/{name}", "it is a generation that the catalog does not name")


def _check_fields(context: Context, state: CatalogState, record: CollectionRecord, id_: bytes) -> None:
    for key, value in state.scan("fields", id_):
        if value not in FIELD_TYPES:
            message = f"field {key[8:]!r} has the type {value!r}"
            context.add(Finding(kind="catalog_entry", message=message, collection=record.name))


def _explain_leftovers(
    context: Context, state: CatalogState, record: CollectionRecord, counters: CollectionCounters
) -> None:
    """Directories of checkpoints that were begun and not committed: their ids follow those given out."""
    directory = f"collections/{record.id}"
    following = counters.next_checkpoint_id
    while (context.data / directory / str(following)).exists():
        context.claims.explain(f"{directory}/{following}", "it was begun for a checkpoint that was not committed")
        following += 1
    known = {numbers(key)[1] for key, _ in state.scan("checkpoints", number(record.id))}
    for name in _names(context, directory):
        if name.isdecimal() and 0 < int(name) < counters.next_checkpoint_id and int(name) not in known:
            context.claims.explain(f"{directory}/{name}", "it belongs to a checkpoint that is no more")


def _decode(context: Context, state: CatalogState, kind: type[R], table: Table, key: bytes) -> R | None:
    """The record, with its defaults where the whole catalog has none; None if it cannot be had."""
    value = state.get(table, key)
    if value is None:
        return kind.decode(b"{}") if state.is_whole and table.endswith("counters") else None
    try:
        return kind.decode(value)
    except (ValueError, TypeError) as error:
        message = f"table {table!r}, key {key.hex()}: the record cannot be read: {error}"
        context.add(Finding(kind="catalog_entry", message=message, collection=state.collection_name(table, key)))
        return None


def _missing(context: Context, record: CollectionRecord, directory: str, row_count: int) -> None:
    message = "the collection's directory is missing"
    context.add(
        Finding(
            kind="missing", message=message, path=directory, collection=record.name, first_row=0, row_count=row_count
        )
    )


def _names(context: Context, directory: str) -> list[str]:
    path = context.data / directory
    return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
