"""How large a sketch: which share of the top and of the bottom k by unsketched gradients each keeps."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.attribution import agreement, fit, score
from covector.attribution.scoring import Float64, scorer_names
from covector.cli.evaluate_report import Agreed
from covector.cli.evaluate_settings import Setting, settings_of
from covector.cli.evaluate_sources import rows_of
from covector.cli.options import require
from covector.errors import InvalidInput
from covector.progress import Bar

Array = npt.NDArray[Any]
Pair = tuple[Array, Array]  # rows and queries


def agreements_of(given: argparse.Namespace) -> list[Agreed]:
    """A line for each sketch and scorer. Raises InvalidInput for files that do not fit the unsketched ones."""
    if not (given.dim or given.sketch):
        raise InvalidInput("what is to be compared with --unsketched? give --dim N, or --sketch ROWS QUERIES")
    whole, trak_q = _pair(given.unsketched)
    if not 1 <= given.k <= len(whole[0]):
        raise InvalidInput(f"-k is {given.k}; there are {len(whole[0])} rows")
    if given.trak_q and not given.rows:
        raise InvalidInput("with --unsketched, Q comes from the array trak_q in the .npz of its rows")
    settings = _settings(given, trak_q is not None)
    bar, total = Bar("sketches"), len(settings) * (1 + len(given.dim) + len(given.sketch))
    exact: dict[Setting, Float64] = {}
    found: list[Agreed] = []
    for setting in settings:
        bar.show(len(exact), total, f"{setting.label}, unsketched")
        exact[setting] = _scores(setting, whole, trak_q)
    for dim, pair in _sketches(given, whole):
        for setting in settings:
            bar.show(len(exact) + len(found), total, f"{setting.label}, dim {dim}")
            top, bottom = agreement(_scores(setting, pair, trak_q), exact[setting], given.k)
            found.append(Agreed(dim, setting.label, given.k, top, bottom))
    bar.show(total, total)
    bar.close()
    return found


def _settings(given: argparse.Namespace, has_trak_q: bool) -> list[Setting]:
    """What was asked for; else dot, and what is damped as by default."""
    if given.scorer:
        return settings_of(given, has_trak_q, has_blocks=False)
    usual = argparse.Namespace(**vars(given) | {"scorer": ["dot", "influence"], "damping": given.damping or ["1"]})
    return settings_of(usual, has_trak_q, has_blocks=False)


def _sketches(given: argparse.Namespace, whole: Pair) -> Iterator[tuple[int, Pair]]:
    if given.dim:
        require(["torch"], "torch", "sketching with --dim")
        from covector.gradients.flat import sketch_rows
        from covector.gradients.sketch import CountSketch

        for dim in given.dim:
            projection = CountSketch(dim=dim, seed=given.seed)
            yield dim, (sketch_rows(whole[0], projection), sketch_rows(whole[1], projection))
    for paths in given.sketch:
        pair, _ = _pair(paths)
        for what, ours, theirs in (("rows", pair[0], whole[0]), ("queries", pair[1], whole[1])):
            if len(ours) != len(theirs):
                raise InvalidInput(f"{paths[0]}, {paths[1]}: {len(ours)} {what}, and --unsketched has {len(theirs)}")
        yield pair[0].shape[1], pair


def _pair(paths: list[Path]) -> tuple[Pair, Array | None]:
    (rows, trak_q), (queries, _) = rows_of(paths[0]), rows_of(paths[1])
    if rows.shape[1] != queries.shape[1]:
        raise InvalidInput(
            f"{paths[0]} has dim {rows.shape[1]}, {paths[1]} {queries.shape[1]}; both must have the same"
        )
    return (rows, queries), trak_q


def _scores(setting: Setting, pair: Pair, trak_q: Array | None) -> Float64:
    rows, queries = pair
    if setting.scorer in scorer_names():
        return score(queries, rows, scorer=setting.scorer)
    weights = trak_q if setting.scorer == "trak" else None
    return np.asarray(
        fit(setting.scorer, rows, trak_q=weights, **setting.options).scores(queries, rows, trak_q=weights)
    )
