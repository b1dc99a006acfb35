"""Models of random subsets, trained by a user's function: drawn so that a run can go on, kept as they come.

A directory holds ``recipe.json`` and a file for each subset that is done. Subset j depends on the recipe and on j
alone, so more subsets can be asked for later, and a run that was cut off costs the model that it was at.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from covector.attribution.scoring import Float64
from covector.errors import Conflict, Corrupt, InvalidInput

Train = Callable[[npt.NDArray[np.int64]], npt.ArrayLike]

RECIPE = "recipe.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetRecipe:
    """How subsets are drawn: each has round(share * row_count) rows, without repeats. ``train``: what trains them, by
    name."""

    row_count: int
    share: float = 0.5
    seed: int = 0
    train: str = ""

    def __post_init__(self) -> None:
        if self.row_count < 2:
            raise InvalidInput(f"{self.row_count} rows have no subsets; at least 2 are needed", field="row_count")
        if not 0 < self.share < 1:
            raise InvalidInput(f"the share of rows in a subset lies between 0 and 1, not {self.share}", field="share")
        if not 0 < self.size < self.row_count:
            raise InvalidInput(
                f"a share of {self.share} of {self.row_count} rows is {self.size} rows; subsets must hold some and "
                "leave some out",
                field="share",
            )

    @property
    def size(self) -> int:
        """Rows of each subset."""
        return round(self.share * self.row_count)

    def members(self, number: int) -> npt.NDArray[np.int64]:
        """The rows of a subset, int64[size], rising."""
        drawn = np.random.default_rng([self.seed, number]).permutation(self.row_count)[: self.size]
        return np.sort(drawn).astype(np.int64)

    def masks(self, count: int) -> npt.NDArray[np.bool_]:
        """bool[count, row_count] of the first subsets."""
        found = np.zeros((count, self.row_count), dtype=np.bool_)
        for number in range(count):
            found[number, self.members(number)] = True
        return found


def trained_outputs(recipe: SubsetRecipe, count: int, train: Train, directory: Path) -> Iterator[Float64]:
    """The outputs of the first ``count`` subsets' models, float64[queries] each, in order.

    ``train``: takes the rows of a subset, int64[size], and returns the trained model's output for each query, larger
    where the behaviour is stronger. What ``directory`` has is not trained again; each result is there, whole and
    synced, before it is given. Raises Conflict for a directory of another recipe, Corrupt for a file that is none,
    InvalidInput for outputs that are no float[queries] or not finite; what ``train`` raises passes through.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _check_recipe(recipe, directory)
    query_count = None
    for number in range(count):
        path = directory / f"subset-{number:05}.npy"
        outputs = _kept(path) if path.exists() else _checked(train(recipe.members(number)), number)
        if query_count not in (None, len(outputs)):
            raise InvalidInput(f"subset {number} has {len(outputs)} outputs, those before {query_count}")
        query_count = len(outputs)
        if not path.exists():
            _replace(path, _npy(outputs))
        yield outputs


def done_count(directory: Path, count: int) -> int:
    """How many of the first ``count`` subsets a directory has."""
    return sum((directory / f"subset-{number:05}.npy").exists() for number in range(count))


def _check_recipe(recipe: SubsetRecipe, directory: Path) -> None:
    path = directory / RECIPE
    if not path.exists():
        _replace(path, json.dumps(asdict(recipe), indent=2).encode() + b"\n")
        return
    try:
        kept = json.loads(path.read_bytes())
        asked = asdict(recipe)
        differing = [name for name in asked if kept[name] != asked[name]]
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{path} is no recipe of subsets; take another directory, or remove this one") from error
    if differing:
        name = differing[0]
        raise Conflict(
            f"{directory} holds models of another recipe: {name} is {kept[name]!r} there, {asked[name]!r} here; take "
            f"another directory, or the same {name}",
            field=name,
        )


def _kept(path: Path) -> Float64:
    try:
        return _checked(np.load(path, allow_pickle=False), int(path.stem.removeprefix("subset-")))
    except (ValueError, EOFError) as error:
        raise Corrupt(f"{path} holds no outputs ({error}); remove it, and the subset is trained again") from error


def _checked(given: npt.ArrayLike, number: int) -> Float64:
    if given is None:
        raise InvalidInput(f"subset {number}: the train function returned nothing; it must return float[queries]")
    try:
        outputs = np.asarray(given, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"subset {number}: the train function returned no numbers ({error})") from error
    if outputs.ndim != 1 or not len(outputs):
        raise InvalidInput(
            f"subset {number}: the train function must return float[queries], not an array of shape "
            f"{list(outputs.shape)}"
        )
    bad = np.flatnonzero(~np.isfinite(outputs))
    if len(bad):
        raise InvalidInput(f"subset {number}: the train function returned {outputs[bad[0]]} for query {bad[0]}")
    return outputs


def _npy(array: Float64) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _replace(path: Path, content: bytes) -> None:
    """Writes a file aside, synced, and then under its name."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
