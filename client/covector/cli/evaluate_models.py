"""What ``covector evaluate`` judges by: masks and outputs from files, or from a user's train function."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.attribution.comparing import SUBSETS_MIN, checked_masks
from covector.attribution.scoring import Float64
from covector.attribution.subsets import SubsetRecipe, Train, done_count, trained_outputs
from covector.cli.evaluate_sources import Sources
from covector.errors import CovectorError, InvalidInput
from covector.progress import Bar

Models = tuple[npt.NDArray[np.bool_], Float64]


def models_of(given: argparse.Namespace, sources: Sources) -> Models:
    """(bool[subsets, rows], float64[subsets, queries] or [models, subsets, queries]), larger being stronger. Raises
    InvalidInput for what does not fit the scores."""
    if given.train is not None:
        masks, outputs = _trained(given, sources)
    else:
        masks, outputs = checked_masks(loaded(given.masks, "masks")), loaded(given.outputs, "outputs")
    sources.check_rows(masks.shape[1])
    if outputs.ndim not in (2, 3) or outputs.dtype.kind not in "fiub":
        raise InvalidInput(
            f"{given.outputs}: outputs are {outputs.dtype}{list(outputs.shape)}; they must be float[subsets, queries] "
            "or float[models, subsets, queries]"
        )
    if outputs.shape[-1] != sources.query_count:
        raise InvalidInput(
            f"outputs are for {outputs.shape[-1]} queries, and {sources.query_count} queries are given; they must be "
            "the same, in the same order"
        )
    return masks, -outputs if given.losses else outputs


def loaded(path: Path, name: str) -> npt.NDArray[Any]:
    """The array in a .npy file, or the one called ``name`` (or the only one) in an .npz. Raises InvalidInput."""
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            names = list(found)
            if name not in names and len(names) != 1:
                raise InvalidInput(f"{path} has no array `{name}`; it has {', '.join(names) or 'none'}")
            return np.asarray(found[name if name in names else names[0]])
    except InvalidInput:
        raise
    except (ValueError, EOFError) as error:
        raise InvalidInput(f"{path} is no .npy or .npz file of numbers; write one with numpy.save") from error


def _trained(given: argparse.Namespace, sources: Sources) -> Models:
    if given.subsets < SUBSETS_MIN:
        raise InvalidInput(f"--subsets {given.subsets} are too few for an interval; at least {SUBSETS_MIN}, better 50")
    recipe = SubsetRecipe(row_count=sources.row_count(), share=given.share, seed=given.seed, train=given.train)
    train = _guarded(_function(given.train), given.train, given.out)
    kept = done_count(given.out, given.subsets)
    if kept:
        print(f"{kept} of {given.subsets} subsets are in {given.out} already", file=sys.stderr)
    bar, rows = Bar("models"), []
    bar.show(0, given.subsets)
    try:
        for outputs in trained_outputs(recipe, given.subsets, train, given.out):
            rows.append(outputs)
            _check_count(outputs, given.train, sources)
            bar.show(len(rows), given.subsets)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {len(rows)} models are in {given.out}, the same again goes on") from None
    finally:
        bar.close()
    masks, told = recipe.masks(given.subsets), np.stack(rows)
    np.save(given.out / "masks.npy", masks)
    np.save(given.out / "outputs.npy", told)
    return masks, told


def _check_count(outputs: Float64, name: str, sources: Sources) -> None:
    if len(outputs) != sources.query_count:
        raise InvalidInput(
            f"{name} returned {len(outputs)} outputs, and {sources.query_count} queries are given; it must return one "
            "for each, in their order"
        )


def _function(name: str) -> Train:
    """The function that ``module:function`` names; modules are found from the current directory too."""
    module_name, _, function_name = name.partition(":")
    if not (module_name and function_name):
        raise InvalidInput(f"--train is MODULE:FUNCTION, such as my_code:train, not {name!r}")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise InvalidInput(f"--train: {error}; run it where {module_name}.py is, or set PYTHONPATH") from error
    function: Any = getattr(module, function_name, None)
    if not callable(function):
        raise InvalidInput(f"--train: {module_name} has no function {function_name!r}")
    return function  # type: ignore[no-any-return]


def _guarded(train: Train, name: str, directory: Path) -> Callable[[npt.NDArray[np.int64]], npt.ArrayLike]:
    """The function, whose errors are shown where they happened, and then said in one line."""

    def guarded(rows: npt.NDArray[np.int64]) -> npt.ArrayLike:
        try:
            return train(rows)
        except CovectorError:
            raise
        except Exception as error:  # a user's code may raise anything
            traceback.print_exc()
            raise InvalidInput(
                f"{name} failed: {type(error).__name__}: {error}; models that were done are kept in {directory}"
            ) from error

    return guarded
