"""Where ``covector evaluate`` has its scores from: gradients in files, or a server's collection.

A *scope* is what checkpoints a score is of: each alone, and, where there are several, all together.
"""

from __future__ import annotations

import argparse
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.attribution import fit, score
from covector.attribution.scoring import scorer_named
from covector.cli.evaluate_settings import Setting
from covector.cli.gradient_files import GRADIENTS, load_npy, open_arrays, reading
from covector.cli.options import connected
from covector.cli.row_files import Columns, is_row_file, row_file
from covector.collection import Collection
from covector.errors import InvalidInput, NotFound
from covector.types import Block, FitInfo, Key, Space

Array = npt.NDArray[Any]
Scope = tuple[str, ...]


class Sources(ABC):
    """Scores of all rows for all queries, by setting and scope. ``queries``: float[m, dim] by checkpoint."""

    has_trak_q = False
    has_blocks = False

    def __init__(self, queries: dict[str, Array]) -> None:
        self.queries = queries
        counts = {name: len(array) for name, array in queries.items()}
        if len(set(counts.values())) > 1:
            raise InvalidInput(f"the checkpoints have different numbers of queries: {_listed(counts)}")
        self.query_count = next(iter(counts.values()))

    @property
    def scopes(self) -> list[Scope]:
        """Each checkpoint, and all of them."""
        names = tuple(self.queries)
        return [(name,) for name in names] + ([names] if len(names) > 1 else [])

    def label(self, label: str, scope: Scope) -> str:
        """What a line of the table is called."""
        return label if len(self.queries) == 1 else f"{label} @ {' + '.join(scope)}"

    def check_rows(self, column_count: int) -> None:
        """Raises InvalidInput unless masks of so many columns are of these rows."""
        if self.row_count() != column_count:
            raise InvalidInput(
                f"masks have {column_count} columns, and there are {self.row_count()} rows; each column is a row, in "
                "their order"
            )

    @abstractmethod
    def row_count(self) -> int:
        """Rows, which are the columns of masks."""

    @abstractmethod
    def scores(self, setting: Setting, scope: Scope) -> tuple[str, Array]:
        """The setting's label with what was chosen of it, and float[m, rows]."""


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    rows: Array
    trak_q: Array | None
    eta: float


class FileSources(Sources):
    """Gradients from files, scored here."""

    def __init__(self, checkpoints: dict[str, _Checkpoint], queries: dict[str, Array], space: Space) -> None:
        super().__init__(queries)
        self._checkpoints = checkpoints
        self._space = space
        self.has_trak_q = all(one.trak_q is not None for one in checkpoints.values())
        self.has_blocks = bool(space.blocks)
        counts = {name: len(one.rows) for name, one in checkpoints.items()}
        if len(set(counts.values())) > 1:
            raise InvalidInput(f"the checkpoints have different numbers of rows: {_listed(counts)}")
        for name, one in checkpoints.items():
            if one.rows.shape[1] != queries[name].shape[1]:
                raise InvalidInput(
                    f"rows have dim {one.rows.shape[1]}, queries {queries[name].shape[1]}; take both with the same "
                    "projection"
                )

    def row_count(self) -> int:
        return len(next(iter(self._checkpoints.values())).rows)

    def scores(self, setting: Setting, scope: Scope) -> tuple[str, Array]:
        if not setting.is_fit:
            return setting.label, self._plain(setting.scorer, scope)
        parts = {name: self._checkpoints[name] for name in scope}
        trak_q = {name: part.trak_q for name, part in parts.items() if part.trak_q is not None}
        rows = {name: part.rows for name, part in parts.items()}
        if setting.scorer == "trak" and len(trak_q) < len(parts):
            raise InvalidInput(
                "trak needs 1 - p of each row: an array trak_q in the .npz of rows, or --trak-q FILE for each --rows"
            )
        weights: Any = trak_q if setting.scorer == "trak" else None
        learnt = fit(
            setting.scorer,
            rows,
            trak_q=weights,
            etas={name: part.eta for name, part in parts.items()},
            space=self._space,
            **setting.options,
        )
        asked = {name: self.queries[name] for name in scope}
        return setting.chosen(learnt.damping), learnt.scores(asked, rows, trak_q=weights)

    def _plain(self, scorer: str, scope: Scope) -> Array:
        weights = scorer_named(scorer).checkpoint_weights([self._checkpoints[name].eta for name in scope])
        terms = (
            weight * score(self.queries[name], self._checkpoints[name].rows, scorer=scorer)
            for name, weight in zip(scope, weights, strict=True)
        )
        return np.asarray(sum(terms))


class ServerSources(Sources):
    """A collection's rows, scored by its server."""

    def __init__(self, collection: Collection, queries: dict[str, Array], keys: Sequence[Key] | None) -> None:
        super().__init__(queries)
        self._collection = collection
        self._keys: Sequence[Key] = range(collection.count()) if keys is None else keys
        self._places = {key: place for place, key in enumerate(self._keys)}
        if len(self._places) < len(self._keys):
            twice = next(key for place, key in enumerate(self._keys) if self._places[key] != place)
            raise InvalidInput(f"--keys: {twice!r} stands twice; each column of the masks is another row")

    def row_count(self) -> int:
        return len(self._keys)

    def scores(self, setting: Setting, scope: Scope) -> tuple[str, Array]:
        if not setting.is_fit:
            return setting.label, self._streamed(setting.scorer, scope)
        learnt = self._collection.fit(setting.scorer, checkpoints=list(scope), **setting.options).wait()
        return setting.chosen(learnt.damping), self._streamed(learnt, scope)

    def _streamed(self, scorer: str | FitInfo, scope: Scope) -> Array:
        asked = {name: self.queries[name] for name in scope}
        found = np.full((self.query_count, len(self._keys)), np.nan, dtype=np.float32)
        for keys, block in self._collection.scores(asked, scorer=scorer):
            columns = [(self._places[key], column) for column, key in enumerate(keys) if key in self._places]
            if columns:
                places, taken = zip(*columns, strict=True)
                found[:, list(places)] = block[:, list(taken)]
        absent = np.flatnonzero(np.isnan(found[0]))
        if len(absent):
            raise NotFound(
                f"{len(absent)} of {len(self._keys)} keys have no scores at {' + '.join(scope)}, the first is "
                f"{self._keys[absent[0]]!r}; name the key of each column of the masks with --keys FILE"
            )
        return found


@contextmanager
def sources_of(given: argparse.Namespace) -> Iterator[Sources]:
    """The sources that the options name. Raises InvalidInput for options that do not go together, and for files."""
    if (given.collection is None) == (not given.rows):
        raise InvalidInput("scores come from files or from a server: give --rows FILE, or --collection NAME")
    if not given.queries:
        raise InvalidInput("whose behaviour is asked about? give --queries FILE, one for each checkpoint")
    if given.collection is None:
        yield _file_sources(given)
        return
    if given.blocks or given.trak_q or given.eta:
        raise InvalidInput("--blocks, --trak-q and --eta are for --rows; the server has its own")
    names = _names(given, len(given.queries))
    queries = {name: _matrix(path) for name, path in zip(names, given.queries, strict=True)}
    keys = None if given.keys is None else _keys(given.keys)
    with connected(given) as client:
        collection = client.collection(given.collection)
        if not given.checkpoint:
            queries = {_only(collection): queries[names[0]]}
        yield ServerSources(collection, queries, keys)


def _only(collection: Collection) -> str:
    names = [checkpoint.name for checkpoint in collection.checkpoints()]
    if len(names) != 1:
        raise InvalidInput(f"the collection has checkpoints {', '.join(names) or 'none'}; say which by --checkpoint")
    return names[0]


def _file_sources(given: argparse.Namespace) -> FileSources:
    if len(given.queries) != len(given.rows):
        raise InvalidInput(f"{len(given.rows)} files of rows and {len(given.queries)} of queries; give one for each")
    if given.keys is not None:
        raise InvalidInput("--keys is for --collection; the rows of files are the columns of the masks in their order")
    for name, values in (("--trak-q", given.trak_q), ("--eta", given.eta)):
        if values and len(values) != len(given.rows):
            raise InvalidInput(f"{name} is given {len(values)} times for {len(given.rows)} files of rows")
    names = _names(given, len(given.rows))
    checkpoints = {}
    for number, name in enumerate(names):
        rows, own_q = rows_of(given.rows[number])
        q = _column(given.trak_q[number], len(rows)) if given.trak_q else own_q
        checkpoints[name] = _Checkpoint(rows, q, given.eta[number] if given.eta else 1.0)
    queries = {name: _matrix(path) for name, path in zip(names, given.queries, strict=True)}
    dim = next(iter(checkpoints.values())).rows.shape[1]
    return FileSources(checkpoints, queries, Space(dim=dim, blocks=blocks_of(given.blocks)))


def _names(given: argparse.Namespace, count: int) -> list[str]:
    """The names of the checkpoints: as given, else of one alone, else numbers."""
    names = given.checkpoint or (["only"] if count == 1 else [f"checkpoint {number}" for number in range(1, count + 1)])
    if len(names) != count:
        raise InvalidInput(
            f"{len(names)} checkpoints are named for {count} files of queries; name each, in their order"
        )
    if len(set(names)) < count:
        raise InvalidInput("a checkpoint is named twice; name each once")
    return list(names)


def rows_of(path: Path) -> tuple[Array, Array | None]:
    """(gradients float[n, dim], trak_q float[n] or None) of a file. Raises InvalidInput."""
    arrays = open_arrays(path, GRADIENTS)
    count = arrays.gradients.shape[0]
    if not count:
        raise InvalidInput(f"{path} has no rows")
    with reading(path, 0):
        trak_q = None if arrays.trak_q is None else np.asarray(arrays.trak_q[slice(0, count)], dtype=np.float64)
        return np.asarray(arrays.gradients[slice(0, count)]), trak_q


def _matrix(path: Path) -> Array:
    return rows_of(path)[0]


def _column(path: Path, count: int) -> Array:
    found = load_npy(path)
    if found.shape != (count,) or found.dtype.kind not in "fiu":
        raise InvalidInput(f"{path}: trak_q must be float[{count}], one a row, not {found.dtype}{list(found.shape)}")
    return np.asarray(found, dtype=np.float64)


def _keys(path: Path) -> list[Key]:
    if is_row_file(path):
        return [place if key is None else key for place, key in enumerate(row_file(path, Columns()).keys())]
    if path.suffix != ".npy":
        raise InvalidInput(f"{path}: keys are read from .jsonl and Parquet files with a field `key`, and from .npy")
    found = load_npy(path)
    if found.ndim != 1 or found.dtype.kind not in "iuU":
        raise InvalidInput(
            f"{path}: keys must be strings or integers in one line, not {found.dtype}{list(found.shape)}"
        )
    return list(found.tolist())


def blocks_of(path: Path | None) -> tuple[Block, ...]:
    """The layers that a JSON file lists, none without one. Raises InvalidInput."""
    if path is None:
        return ()
    try:
        return tuple(Block(**one) for one in json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"{path} is no list of blocks with name, start, stop and size: {error}") from error


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
