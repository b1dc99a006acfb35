"""Files that describe rows, one a gradient: JSON lines, read a line at a time, and Parquet, a batch at a time.

Both say the same: ``key``, ``text``, ``metadata`` and ``trak_q``, all optional; any other field counts as metadata.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol

from covector.cli.options import require
from covector.errors import InvalidInput, near_matches
from covector.types import Key

_PARQUET_ROWS = 8_192  # of a batch that is decoded at once
_INTEGERS = 1 << 63
_decode = json.JSONDecoder().decode
_PARQUET = {".parquet", ".pq"}
_JSON_LINES = {".jsonl", ".ndjson"}


@dataclass(frozen=True, slots=True)
class Columns:
    """Which fields mean what. None for ``key`` or ``text``: the field of that name, if there is one. None for
    ``metadata``: every field that is nothing else."""

    key: str | None = None
    text: str | None = None
    metadata: tuple[str, ...] | None = None

    @property
    def asked_for(self) -> list[str]:
        """The fields that are named, of which each must be somewhere in the file."""
        return [name for name in (self.key, self.text, *(self.metadata or ())) if name is not None]


@dataclass(frozen=True, slots=True)
class Described:
    """What a file says of a row."""

    key: Key | None
    text: str | None
    metadata: dict[str, Any] | None
    trak_q: float | None


class RowFile(Protocol):
    """A file that describes rows. Every iteration reads it from the start; InvalidInput names the place."""

    @property
    def path(self) -> Path:
        """Where it is."""

    def keys(self) -> Iterator[Key | None]:
        """The key of each row, None where it has none."""

    def rows(self) -> Iterator[Described]:
        """The rows."""


def is_row_file(path: Path) -> bool:
    """Whether a file's name says that it describes rows."""
    return path.suffix in _PARQUET | _JSON_LINES


def row_file(path: Path, columns: Columns) -> RowFile:
    """The file at ``path``: Parquet by its ending, else JSON lines. Raises InvalidInput, or OSError."""
    path.stat()
    return ParquetRows(path, columns) if path.suffix in _PARQUET else JsonLines(path, columns)


@dataclass(frozen=True, slots=True)
class JsonLines:
    """An object a line; blank lines are passed over."""

    path: Path
    columns: Columns

    def keys(self) -> Iterator[Key | None]:
        """The key of each row; every line is checked on the way, and at the end that each named field was seen."""
        unseen = set(self.columns.asked_for)
        for place, row in self._parsed():
            unseen -= row.keys()
            yield _described(row, self.columns, place).key
        for name in sorted(unseen):
            raise InvalidInput(f"no row of {self.path} has the field {name!r}", field=name)

    def rows(self) -> Iterator[Described]:
        """The rows."""
        return (_described(row, self.columns, place) for place, row in self._parsed())

    def _parsed(self) -> Iterator[tuple[str, dict[str, Any]]]:
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    place = f"{self.path}, line {number}"
                    yield place, _parsed(line, place)


@dataclass(frozen=True, slots=True)
class ParquetRows:
    """A Parquet file; ``metadata`` is a column of JSON objects or of structs."""

    path: Path
    columns: Columns

    def keys(self) -> Iterator[Key | None]:
        """The key of each row; only that column is read."""
        file = self._open()
        name = self.columns.key or "key"
        if name not in file.schema_arrow.names:
            yield from repeat(None, file.metadata.num_rows)
            return
        for number, row in enumerate(self._plain_rows(file, [name])):
            yield _checked_key(row[name], f"{self.path}, row {number}")

    def rows(self) -> Iterator[Described]:
        """The rows."""
        file = self._open()
        names = None if self.columns.metadata is None else self._used(file.schema_arrow.names)
        for number, row in enumerate(self._plain_rows(file, names)):
            yield _described(row, self.columns, f"{self.path}, row {number}")

    def _used(self, names: list[str]) -> list[str]:
        special = (self.columns.key or "key", self.columns.text or "text", "metadata", "trak_q")
        return [name for name in names if name in {*special, *(self.columns.metadata or ())}]

    def _open(self) -> Any:
        require(["pyarrow"], "ingest", f"reading {self.path}")
        import pyarrow as pa
        from pyarrow import parquet

        try:
            file = parquet.ParquetFile(self.path)
        except pa.ArrowException as error:
            raise InvalidInput(f"{self.path} is no Parquet file: {error}") from error
        known = file.schema_arrow.names
        for name in self.columns.asked_for:
            if name not in known:
                raise InvalidInput(f"{self.path} has no column {name!r}; {near_matches(name, known)}", field=name)
        return file

    def _plain_rows(self, file: Any, names: list[str] | None) -> Iterator[dict[str, Any]]:
        import pyarrow as pa

        times = [field.name for field in file.schema_arrow if pa.types.is_temporal(field.type)]
        try:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=names):
                for row in batch.to_pylist():
                    yield {**row, **_as_text(row, times)} if times else row
        except (pa.ArrowException, OSError) as error:
            raise InvalidInput(f"{self.path} cannot be read on: {error}") from error


def _parsed(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = _decode(str(line, "utf-8"))
    except ValueError as error:
        raise InvalidInput(f"{place} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise InvalidInput(f'{place}: a row is an object such as {{"key": "a", "text": "...", "metadata": {{}}}}')
    return row


def _described(row: dict[str, Any], columns: Columns, place: str) -> Described:
    """A row of any file in one form. ``row`` is used up."""
    if columns.key is not None and columns.key not in row:
        raise InvalidInput(f"{place} has no field {columns.key!r}; {near_matches(columns.key, row)}", field=columns.key)
    key = row.pop(columns.key or "key", _NO_KEY)
    text = row.pop(columns.text or "text", None)
    if text is not None and not isinstance(text, str):
        raise InvalidInput(f"{place}: the text is {type(text).__name__}, not a string", field="text")
    trak_q = row.pop("trak_q", None)
    if trak_q is not None and not isinstance(trak_q, int | float):
        raise InvalidInput(f"{place}: trak_q is {type(trak_q).__name__}, not a number", field="trak_q")
    metadata = _metadata(row.pop("metadata", None), place)
    wanted = row if columns.metadata is None else {name: row[name] for name in columns.metadata if name in row}
    fields = {**wanted, **metadata} if metadata else wanted
    return Described(None if key is _NO_KEY else _checked_key(key, place), text, fields or None, trak_q)


_NO_KEY = object()


def _checked_key(key: object, place: str) -> Key:
    if isinstance(key, str) or (isinstance(key, int) and not isinstance(key, bool) and -_INTEGERS <= key < _INTEGERS):
        return key
    raise InvalidInput(f"{place}: a key is a string or an integer of 64 bits, not {key!r}", field="key")


def _metadata(given: object, place: str) -> Mapping[str, Any]:
    """The fields of a ``metadata`` value: an object, the JSON of one, or pairs as Arrow gives a map."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise InvalidInput(f"{place}: the metadata is not JSON: {error}", field="metadata") from error
    if isinstance(given, list) and all(isinstance(pair, tuple) for pair in given):
        given = dict(given)
    if given is not None and not isinstance(given, dict):
        raise InvalidInput(f"{place}: the metadata is {type(given).__name__}, not an object", field="metadata")
    return given or {}


def _as_text(row: dict[str, Any], times: list[str]) -> dict[str, str]:
    """Dates and times of a row as text that sorts by time."""
    return {name: row[name].isoformat() for name in times if isinstance(row.get(name), dt.date | dt.time)}
