"""Files of gradients and of rows, read a slice at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.errors import InvalidInput
from covector.types import Key

SLICE_BYTES = 32 << 20
_ROW_FIELDS = ("key", "text", "metadata")


@dataclass(frozen=True, slots=True)
class Source:
    """The arrays of one file; ``gradients`` may be mapped from it."""

    path: Path
    gradients: npt.NDArray[Any]
    keys: npt.NDArray[Any] | None = None
    trak_q: npt.NDArray[Any] | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive rows, ready for a writer."""

    keys: list[Key]
    gradients: npt.NDArray[Any]
    texts: list[str | None] | None
    metadata: list[dict[str, Any] | None] | None
    trak_q: npt.NDArray[Any] | None

    def only(self, keys: list[Key]) -> Slice:
        """The rows with these keys."""
        wanted = set(keys)
        rows = [row for row, key in enumerate(self.keys) if key in wanted]
        return Slice(
            keys=[self.keys[row] for row in rows],
            gradients=self.gradients[rows],
            texts=None if self.texts is None else [self.texts[row] for row in rows],
            metadata=None if self.metadata is None else [self.metadata[row] for row in rows],
            trak_q=None if self.trak_q is None else self.trak_q[rows],
        )


def load_npy(path: Path) -> npt.NDArray[Any]:
    """The array in a .npy file, mapped. Raises InvalidInput if it is none."""
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise InvalidInput(f"{path} is no .npy file of numbers; write one with numpy.save") from error


def load_source(path: Path) -> Source:
    """The gradients in a .npy file, or in a .npz file with ``gradients`` and perhaps ``keys`` and ``trak_q``."""
    if path.suffix == ".npy":
        source = Source(path, load_npy(path))
    elif path.suffix == ".npz":
        source = _load_npz(path)
    else:
        raise InvalidInput(f"{path}: gradients are read from .npy and .npz files")
    if source.gradients.ndim != 2:
        raise InvalidInput(f"{path}: gradients have shape {list(source.gradients.shape)}, not [n, dim]")
    for name in ("keys", "trak_q"):
        column = getattr(source, name)
        if column is not None and column.shape != (len(source.gradients),):
            raise InvalidInput(f"{path}: {name} has shape {list(column.shape)} for {len(source.gradients)} gradients")
    return source


def slices(sources: Iterable[Source], rows_file: Path | None) -> Iterator[Slice]:
    """All rows of all files in order, about 32 MiB at a time. Keys are those of the rows file, else of the .npz file,
    else positions, counted through all files."""
    lines = None if rows_file is None else read_rows(rows_file)
    position = 0
    for source in sources:
        step = max(1, SLICE_BYTES // max(1, source.gradients[:1].nbytes))
        for start in range(0, len(source.gradients), step):
            part = slice(start, min(start + step, len(source.gradients)))
            described = None if lines is None else list(islice(lines, part.stop - part.start))
            yield _slice(source, part, position + part.start, described)
        position += len(source.gradients)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a JSON-lines file: ``key``, ``text``, ``metadata``; any other field counts as metadata."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _parsed_row(line, f"{path}, line {number}")


def count_rows(path: Path) -> int:
    """The number of lines that are not blank."""
    with closing(path.open("rb")) as file:
        return sum(1 for line in file if line.strip())


def _load_npz(path: Path) -> Source:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "gradients" not in arrays:
                raise InvalidInput(f"{path} has no array `gradients`; it has {', '.join(arrays.files) or 'none'}")
            optional = {name: arrays[name] for name in ("keys", "trak_q") if name in arrays}
            return Source(path, arrays["gradients"], **optional)
    except InvalidInput:
        raise
    except (ValueError, EOFError, AttributeError) as error:
        raise InvalidInput(f"{path} is no .npz file of numbers and strings: {error}") from error


def _slice(source: Source, part: slice, position: int, described: list[dict[str, Any]] | None) -> Slice:
    positions = range(position, position + part.stop - part.start)
    keys: list[Key] = list(positions) if source.keys is None else list(source.keys[part].tolist())
    texts = metadata = None
    if described is not None:
        keys = [row.get("key", key) for row, key in zip(described, keys, strict=True)]
        texts = [row.get("text") for row in described]
        metadata = [row.get("metadata") for row in described]
    trak_q = None if source.trak_q is None else source.trak_q[part]
    return Slice(keys, source.gradients[part], texts, metadata, trak_q)


def _parsed_row(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InvalidInput(f"{place} is not JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("metadata") or {}, dict):
        raise InvalidInput(f'{place}: a row is an object such as {{"key": "a", "text": "...", "metadata": {{}}}}')
    extra = {name: value for name, value in row.items() if name not in _ROW_FIELDS}
    metadata = {**extra, **(row.get("metadata") or {})}
    return {**{name: row[name] for name in ("key", "text") if name in row}, "metadata": metadata or None}
