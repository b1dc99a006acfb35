"""What ``covector ingest`` reads: files of gradients, each row with what a rows file says of it, a slice at a time.

A command is looked at twice. First the keys alone: are there as many as gradients, are they keys, does none stand
twice? Only then are rows read to be sent, so that a wrong file is refused before anything of it is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.cli.gradient_files import Arrays, GradientFile, RowArray, look_at, reading
from covector.cli.row_files import Columns, Described, RowFile, row_file
from covector.errors import InvalidInput
from covector.types import Key

SLICE_BYTES = 32 << 20
SLICE_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class Numbering:
    """The keys of rows that have none: numbers from ``first`` on, or strings of a prefix and the number."""

    first: int = 0
    prefix: str | None = None

    def key(self, position: int) -> Key:
        """The key of the row at a position, counted over all files of the command."""
        number = self.first + position
        return number if self.prefix is None else f"{self.prefix}{number}"


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive rows of one file, or some of them. ``rows`` are their numbers in it; gradients are not read yet."""

    path: Path
    rows: Sequence[int]
    keys: list[Key]
    texts: list[str | None] | None
    metadata: list[dict[str, Any] | None] | None
    trak_q: npt.NDArray[Any] | None
    source: RowArray

    def only(self, keys: list[Key]) -> Slice:
        """The rows with these keys."""
        if len(keys) == len(self.keys):
            return self
        wanted = set(keys)
        picked = [number for number, key in enumerate(self.keys) if key in wanted]
        return Slice(
            path=self.path,
            rows=[self.rows[number] for number in picked],
            keys=[self.keys[number] for number in picked],
            texts=None if self.texts is None else [self.texts[number] for number in picked],
            metadata=None if self.metadata is None else [self.metadata[number] for number in picked],
            trak_q=None if self.trak_q is None else self.trak_q[picked],
            source=self.source,
        )

    def gradients(self) -> npt.NDArray[Any]:
        """Reads the gradients, [rows, dim]."""
        first, last = self.rows[0], self.rows[-1]
        with reading(self.path, first):
            block = np.asarray(self.source[slice(first, last + 1)])
        return block if len(block) == len(self.rows) else block[np.asarray(self.rows) - first]


@dataclass(frozen=True, slots=True)
class Sources:
    """The files of a command. ``row_files``: one for all files of gradients, or one for each, or none."""

    files: tuple[GradientFile, ...]
    row_files: tuple[RowFile, ...] = ()
    numbering: Numbering = Numbering()

    @property
    def row_count(self) -> int:
        """Rows in all."""
        return sum(file.row_count for file in self.files)

    def check(self, progress: Callable[[int], None]) -> None:
        """Reads all keys. Raises InvalidInput for one that is none or stands twice, and for a rows file with another
        count than its gradients. ``progress`` is told the rows looked at."""
        if not self.row_files and not any(file.has_keys for file in self.files):
            return
        hashes = np.empty(self.row_count, dtype=np.int64)
        done = 0
        for keys in self._keys():
            hashes[done : done + len(keys)] = np.fromiter(map(hash, keys), dtype=np.int64, count=len(keys))
            done += len(keys)
            progress(done)
        hashes.sort()
        repeated = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        if repeated:
            self._refuse_the_same_key(repeated)

    def slices(self) -> Iterator[Slice]:
        """All rows in order, about 32 MiB at a time."""
        rows = self._by_file([file.rows() for file in self.row_files])
        position = 0
        for file, described in zip(self.files, rows, strict=True):
            arrays = file.open()
            for start, stop in _blocks(file, arrays.chunk_rows):
                block = None if described is None else list(islice(described, stop - start))
                yield self._slice(file.path, arrays, range(start, stop), position + start, block)
            position += file.row_count

    def _slice(
        self, path: Path, arrays: Arrays, rows: range, position: int, described: list[Described] | None
    ) -> Slice:
        own = _taken(path, arrays.keys, rows)
        keys = [row.key for row in described] if described is not None else [None] * len(rows)
        q = None if arrays.trak_q is None else np.asarray(_part(path, arrays.trak_q, rows))
        return Slice(
            path=path,
            rows=rows,
            keys=self._filled(keys, own, position),
            texts=None if described is None else [row.text for row in described],
            metadata=None if described is None else [row.metadata for row in described],
            trak_q=_described_q(described) if q is None else q,
            source=arrays.gradients,
        )

    def _keys(self) -> Iterator[list[Key]]:
        """All keys in order, in blocks. Raises InvalidInput at the end of a rows file with too few or too many."""
        streams = [file.keys() for file in self.row_files]
        position = 0
        for index, (file, described) in enumerate(zip(self.files, self._by_file(streams), strict=True)):
            own = file.open().keys if file.has_keys else None
            for start in range(0, file.row_count, SLICE_ROWS):
                rows = range(start, min(start + SLICE_ROWS, file.row_count))
                keys = [None] * len(rows) if described is None else list(islice(described, len(rows)))
                if len(keys) < len(rows):
                    self._refuse_count(index, start + len(keys), position + start + len(keys))
                yield self._filled(keys, _taken(file.path, own, rows), position + start)
            position += file.row_count
            is_last = len(self.row_files) > 1 or index == len(self.files) - 1
            if described is not None and is_last and (more := sum(1 for _ in described)):
                self._refuse_count(index, file.row_count + more, position + more)

    def _by_file(self, streams: Sequence[Iterator[Any]]) -> Sequence[Iterator[Any] | None]:
        """The stream of rows that belongs to each file: the same for all if there is one only."""
        if not streams:
            return [None] * len(self.files)
        return streams if len(streams) > 1 else [streams[0]] * len(self.files)

    def _filled(self, keys: Sequence[Key | None], own: Sequence[Key] | None, position: int) -> list[Key]:
        """The keys of rows from ``position`` on: those of the rows file, else the file's own, else numbered ones."""
        if own is not None:
            return [mine if key is None else key for key, mine in zip(keys, own, strict=True)]
        return [self.numbering.key(place) if key is None else key for place, key in enumerate(keys, position)]

    def _refuse_count(self, index: int, own_count: int, count: int) -> None:
        shared = len(self.row_files) == 1
        described = self.row_files[0 if shared else index]
        found, needed = (count, self.row_count) if shared else (own_count, self.files[index].row_count)
        raise InvalidInput(f"{described.path} has {found} rows for {needed} gradients; one row a gradient is needed")

    def _refuse_the_same_key(self, hashes: set[int]) -> None:
        """Raises InvalidInput for the first key that stands twice; equal hashes may belong to different keys."""
        seen: dict[Key, int] = {}
        position = 0
        for keys in self._keys():
            for key in keys:
                if hash(key) in hashes and (first := seen.setdefault(key, position)) != position:
                    places = f"{self._place(first)} and {self._place(position)}"
                    raise InvalidInput(
                        f"key {key!r} stands twice: at {places}, counted from 0; keys name one row", key=key
                    )
                position += 1

    def _place(self, position: int) -> str:
        for file in self.files:
            if position < file.row_count:
                return f"row {position} of {file.path}"
            position -= file.row_count
        raise AssertionError("a position past the last file")


def sources_of(
    files: Sequence[Path], rows: Sequence[Path], *, array: str, columns: Columns, numbering: Numbering
) -> Sources:
    """Opens the files of a command. Raises InvalidInput, or OSError, for what can be seen without reading rows."""
    if len(rows) not in {0, 1, len(files)}:
        raise InvalidInput(f"{len(rows)} rows files for {len(files)} files of gradients; give one for all, or one each")
    opened = tuple(look_at(path, array) for path in files)
    for file in opened[1:]:
        if file.dim != opened[0].dim:
            raise InvalidInput(f"{file.path} has gradients of dim {file.dim}, {opened[0].path} of dim {opened[0].dim}")
    return Sources(opened, tuple(row_file(path, columns) for path in rows), numbering)


def _blocks(file: GradientFile, chunk_rows: int) -> Iterator[tuple[int, int]]:
    """Starts and ends of runs of rows, of about 32 MiB each, that end where chunks do."""
    step = min(SLICE_ROWS, max(1, SLICE_BYTES // max(1, file.row_bytes)))
    step = max(chunk_rows, step - step % chunk_rows)
    return ((start, min(start + step, file.row_count)) for start in range(0, file.row_count, step))


def _part(path: Path, array: RowArray, rows: range) -> Any:
    with reading(path, rows.start):
        return array[slice(rows.start, rows.stop)]


def _taken(path: Path, keys: RowArray | None, rows: range) -> list[Key] | None:
    return None if keys is None else list(np.asarray(_part(path, keys, rows)).tolist())


def _described_q(described: list[Described] | None) -> npt.NDArray[np.float32] | None:
    """What a rows file says of trak_q, NaN for unknown; None if it says nothing."""
    if described is None or all(row.trak_q is None for row in described):
        return None
    return np.array([np.nan if row.trak_q is None else row.trak_q for row in described], dtype=np.float32)
