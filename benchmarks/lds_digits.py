"""How well each scorer foretells what retrained models do: the LDS on sklearn's digits, in a table and a plot.

    python -m benchmarks.lds_digits              # from the kept models, about three minutes
    python -m benchmarks.lds_digits --retrain    # from scratch: under a minute more on two cores

An MLP of 2,410 parameters on 1,000 rows; 200 random halves of the rows, a model trained on each; 300 unseen queries. A
score is good where the sum of a half's scores foretells the margin of the model trained on it. All models have one
start (as where a user fine-tunes one base model); a second set has a start of its own for each, which no score can
foretell; smaller sets are trained for shorter and for longer. Written are benchmarks/results/lds_digits.{json,md,png},
and .npz with the models' outputs.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from benchmarks import digits
from benchmarks.lds_table import Row, chosen, judged, lines_of, plot

from covector.attribution import agreement, fit, lds, score
from covector.types import Block, Space

Float64 = npt.NDArray[np.float64]
RESULTS = Path(__file__).parent / "results" / "lds_digits"
RECIPE = digits.Recipe()
SUBSETS, START = 200, 100
STOPS = (2, 5, 10, 20)  # epochs of the checkpoints that TracIn sums, besides the last
MODELS = 4  # of an ensemble: the first, and three with other starts
DIM = 512
LAYER_DIMS = (256, 32, 214, 10)  # the same 512 coordinates, a sketch for each layer
EPSILON = 1e-8
LENGTHS, FEW = (10, 20, 40, 80), 60  # epochs, and subsets of these smaller sets
LENGTH_SCORES = ("dot", "cosine", "trak, damping 0", "0.1", "1", "10")


@dataclass(frozen=True, slots=True)
class Truth:
    """Subsets, bool[s, rows], and the margins of the models trained on them, float32[s, queries]."""

    masks: npt.NDArray[np.bool_]
    outputs: npt.NDArray[np.float32]
    own_start_outputs: npt.NDArray[np.float32]
    models: npt.NDArray[np.float32]  # [MODELS + len(STOPS), parameters], on all rows
    moments: npt.NDArray[np.float32]  # [2, parameters], Adam's, of the first model's training
    lengths: Float64  # [LENGTHS, 1 + LENGTH_SCORES]: see ``trained_for``


def main() -> None:
    parser = argparse.ArgumentParser(description="The LDS of every scorer on sklearn's digits.")
    parser.add_argument("--retrain", action="store_true", help="train all models again")
    data = digits.load()
    if parser.parse_args().retrain or not RESULTS.with_suffix(".npz").exists():
        began_s = time.monotonic()
        keep(retrain(data))
        print(f"trained {2 * SUBSETS + MODELS} models in {time.monotonic() - began_s:.0f} s")
    truth = kept()
    sketches = Sketches(data, truth)
    rows = []
    for name, group, scores in all_scores(sketches):
        rows.append(judged((name, group), scores, truth.masks, truth.outputs, truth.own_start_outputs))
        print(rows[-1], flush=True)
    report(rows, truth, sketches.agreements())
    ring = "retrained models with starts of their own"
    plot(rows, RESULTS.with_suffix(".png"), "Linear datamodelling score on digits", ring)


# -- models ----------------------------------------------------------------------------------------------------------


def retrain(data: digits.Digits) -> Truth:
    count = len(data.rows)
    rng = np.random.default_rng(7)
    members = np.stack([np.sort(rng.permutation(count)[: count // 2]) for _ in range(SUBSETS)])
    masks = np.zeros((SUBSETS, count), dtype=bool)
    np.put_along_axis(masks, members, True, axis=1)
    outputs = [
        digits.margins(digits.train(data, members, seeds, RECIPE)[-1], data.queries, data.query_labels)
        for seeds in ([START] * SUBSETS, range(1000, 1000 + SUBSETS))
    ]
    whole = np.arange(count)[None].repeat(MODELS, axis=0)
    *early, last = digits.train(data, whole, range(START, START + MODELS), RECIPE, STOPS)
    lengths = np.array([trained_for(epochs, data, members[:FEW], masks[:FEW]) for epochs in LENGTHS])
    models = np.concatenate([flat(last), *(flat(stop)[:1] for stop in early)])
    return Truth(masks, *outputs, models, np.stack([last.first[0], last.second[0]]), lengths)


def trained_for(
    epochs: int, data: digits.Digits, members: npt.NDArray[np.int64], masks: npt.NDArray[np.bool_]
) -> list[float]:
    """The mean of 1 - p and the LDS of LENGTH_SCORES, where all models are trained for so many epochs."""
    recipe = replace(RECIPE, epochs=epochs)
    outputs = digits.margins(digits.train(data, members, [START] * FEW, recipe)[-1], data.queries, data.query_labels)
    state = digits.train(data, np.arange(len(data.rows))[None], [START], recipe)[-1].one(0)
    sketch = rademacher(np.random.default_rng(5), 2410, DIM)

    def taken(function: str) -> tuple[Float64, Float64, Float64]:
        rows, q = digits.gradients(state, data.rows, data.row_labels, function)
        queries, _ = digits.gradients(state, data.queries, data.query_labels, function)
        return rows @ sketch, queries @ sketch, q

    rows, queries, _ = taken("loss")
    found = [score(queries, rows), score(queries, rows, scorer="cosine")]
    rows, queries, q = taken("margin")
    found += [trak(rows, queries, q, damping=damping) for damping in (0.0, 0.1, 1.0, 10.0)]
    return [float(q.mean()), *(lds(scores, masks, outputs, resamples=0).mean for scores in found)]


def flat(models: digits.Models) -> npt.NDArray[np.float32]:
    arrays = (models.w1, models.b1, models.w2, models.b2)
    return np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)


def unflat(parameters: npt.NDArray[np.float32], pixels: int) -> list[Float64]:
    shapes = ((pixels, RECIPE.hidden), (RECIPE.hidden,), (RECIPE.hidden, digits.CLASSES), (digits.CLASSES,))
    wide, found, start = parameters.astype(np.float64), [], 0
    for shape in shapes:
        found.append(wide[start : start + int(np.prod(shape))].reshape(shape))
        start += found[-1].size
    return found


def keep(truth: Truth) -> None:
    arrays = {name: getattr(truth, name) for name in Truth.__slots__} | {"masks": np.packbits(truth.masks, axis=1)}
    np.savez_compressed(RESULTS.with_suffix(".npz"), **arrays)


def kept() -> Truth:
    arrays = dict(np.load(RESULTS.with_suffix(".npz")))
    return Truth(**arrays | {"masks": np.unpackbits(arrays["masks"], axis=1, count=1000).astype(bool)})


# -- gradients -------------------------------------------------------------------------------------------------------


class Sketches:
    """Gradients of rows and queries at each model, whole or sketched."""

    def __init__(self, data: digits.Digits, truth: Truth) -> None:
        self.data, self.truth = data, truth
        self.layers = digits.blocks_of(data.rows.shape[1], RECIPE.hidden)
        rng = np.random.default_rng(5)
        self.projections = {seed: rademacher(rng, self.layers[-1].stop, DIM) for seed in range(MODELS)}
        ends = np.cumsum(LAYER_DIMS).tolist()
        self.blocks = tuple(
            Block(layer.name, end - dim, end, layer.size)
            for layer, dim, end in zip(self.layers, LAYER_DIMS, ends, strict=True)
        )
        self.by_layer = np.zeros((self.layers[-1].stop, DIM))
        for layer, block in zip(self.layers, self.blocks, strict=True):
            part = rademacher(rng, layer.size, block.stop - block.start)
            self.by_layer[layer.start : layer.stop, block.start : block.stop] = part

    def whole(self, function: str, model: int = 0) -> tuple[Float64, Float64, Float64]:
        """Rows, queries, and 1 - p of the rows."""
        data, state = self.data, unflat(self.truth.models[model], self.data.rows.shape[1])
        rows, q = digits.gradients(state, data.rows, data.row_labels, function)
        return rows, digits.gradients(state, data.queries, data.query_labels, function)[0], q

    def sketch(self, function: str, model: int = 0, seed: int = 0) -> tuple[Float64, Float64, Float64]:
        rows, queries, q = self.whole(function, model)
        return rows @ self.projections[seed], queries @ self.projections[seed], q

    def adam_rows(self) -> Float64:
        """Rows as Adam's updates (Xia et al. 2024), from the moments of the minibatches of the training."""
        first, second = self.truth.moments.astype(np.float64)
        rows = self.whole("loss")[0]
        update = digits.BETA1 * first + (1 - digits.BETA1) * rows
        return update / np.sqrt(digits.BETA2 * second + (1 - digits.BETA2) * rows**2 + EPSILON)

    def agreements(self) -> list[tuple[int, float, float]]:
        """The share of the top and of the bottom 10 by dot and by trak that a sketch keeps, by its dim."""
        rows, queries, q = self.whole("margin")
        exact = trak(rows, queries, q)
        found = []
        for dim in (128, 256, 512, 1024, 2048):
            sketch = rademacher(np.random.default_rng(11), rows.shape[1], dim)
            top, _ = agreement((queries @ sketch) @ (rows @ sketch).T, queries @ rows.T)
            found.append((dim, top, agreement(trak(rows @ sketch, queries @ sketch, q), exact)[0]))
        return found


def rademacher(rng: np.random.Generator, size: int, dim: int) -> Float64:
    """The identity where nothing is to be saved."""
    return np.eye(size) if size == dim else rng.choice([-1.0, 1.0], size=(size, dim)) / np.sqrt(dim)


# -- scorers ---------------------------------------------------------------------------------------------------------


def trak(rows: Float64, queries: Float64, q: Float64, **options: Any) -> Float64:
    return fit("trak", rows, trak_q=q, **options).scores(queries, rows, trak_q=q)


def all_scores(sketches: Sketches) -> Iterator[tuple[str, str, Float64]]:
    """(name, group, scores float64[queries, rows])."""
    yield from plain_scores(sketches)
    yield from learnt_scores(sketches)
    yield from trak_scores(sketches)
    yield from whole_scores(sketches)


def plain_scores(sketches: Sketches) -> Iterator[tuple[str, str, Float64]]:
    rows, queries, _ = sketches.sketch("loss")
    yield "dot", "nothing learnt", score(queries, rows)
    yield "cosine", "nothing learnt", score(queries, rows, scorer="cosine")
    total = np.zeros((len(queries), len(rows)))
    for model, epoch in enumerate((RECIPE.epochs, *STOPS)):
        at_rows, at_queries, _ = sketches.sketch("loss", model if model == 0 else MODELS + model - 1)
        rate = RECIPE.rate * max(1 - epoch / RECIPE.epochs, 1 / RECIPE.epochs)
        total += rate * score(at_queries, at_rows, scorer="tracin")
    yield "tracin, 5 checkpoints", "nothing learnt", total
    adam = sketches.adam_rows() @ sketches.projections[0]
    yield "less, Adam's moments", "nothing learnt", score(queries, adam, scorer="less")


def learnt_scores(sketches: Sketches) -> Iterator[tuple[str, str, Float64]]:
    rows, queries, _ = sketches.sketch("loss")
    whole_rows, whole_queries, _ = sketches.whole("loss")
    parts, asked = whole_rows @ sketches.by_layer, whole_queries @ sketches.by_layer
    space = Space(dim=DIM, blocks=sketches.blocks)

    def learn(method: str, **options: Any) -> Float64:
        return fit(method, rows, **options).scores(queries, rows)

    def by_layer(method: str, **options: Any) -> Float64:
        return fit(method, parts, space=space, **options).scores(asked, parts)

    yield "datainf, a sketch a layer", "learnt", by_layer("datainf")
    yield "datainf, damping 10", "learnt", by_layer("datainf", damping=10.0)
    yield "influence", "learnt", learn("influence")
    yield "influence, damping 0.1", "learnt", learn("influence", damping=0.1)
    yield "influence, damping 10", "learnt", learn("influence", damping=10.0)
    yield "influence, damping by rows held out", "learnt", learn("influence", damping="held_out")
    yield "influence, a layer at a time", "learnt", by_layer("influence", by_layer=True)
    yield "influence, unit rows", "learnt", learn("influence", unit_rows=True)
    yield "influence, rank 64", "learnt", learn("influence", rank=64)
    yield "influence, rank 256", "learnt", learn("influence", rank=256)
    yield "trackstar", "learnt", learn("trackstar")
    task = sketches.sketch("loss")[1]
    yield "trackstar, task mixed in", "learnt", learn("trackstar", task_gradients=task)
    second = np.sqrt(sketches.truth.moments[1].astype(np.float64) + EPSILON)
    corrected, of_queries = ((whole / second) @ sketches.projections[0] for whole in (whole_rows, whole_queries))
    yield "trackstar, Adam-corrected", "learnt", fit("trackstar", corrected).scores(of_queries, corrected)


def trak_scores(sketches: Sketches) -> Iterator[tuple[str, str, Float64]]:
    rows, queries, q = sketches.sketch("margin")
    for damping in (0.0, 0.01, 0.1):
        yield f"trak, damping {damping:g}", "trak", trak(rows, queries, q, damping=damping)
    yield "trak (default)", "trak", trak(rows, queries, q)
    for damping in (3.0, 10.0):
        yield f"trak, damping {damping:g}", "trak", trak(rows, queries, q, damping=damping)
    yield "trak, damping by rows held out", "trak", trak(rows, queries, q, damping="held_out")
    yield "trak without Q", "trak", trak(rows, queries, np.ones(len(q)))
    yield "trak, unit rows", "trak", trak(rows, queries, q, unit_rows=True)
    yield "trak, rank 256", "trak", trak(rows, queries, q, rank=256)
    yield "trak, 4 projections of one model", "trak", together(sketches, [(0, seed) for seed in range(MODELS)])
    yield "trak, 4 models", "trak", together(sketches, [(model, model) for model in range(MODELS)])
    yield "trak, 4 models, damping 0", "trak", together(sketches, [(m, m) for m in range(MODELS)], damping=0.0)


def together(sketches: Sketches, members: list[tuple[int, int]], **options: Any) -> Float64:
    """An ensemble: TRAK's mean of scores times mean of Q."""
    found = {f"{model}/{seed}": sketches.sketch("margin", model, seed) for model, seed in members}
    rows, queries, q = ({name: part[place] for name, part in found.items()} for place in range(3))
    return fit("trak", rows, trak_q=q, **options).scores(queries, rows, trak_q=q)


def whole_scores(sketches: Sketches) -> Iterator[tuple[str, str, Float64]]:
    group = "unsketched, dim 2410"
    rows, queries, q = sketches.whole("margin")
    yield "trak, unsketched", group, trak(rows, queries, q)
    yield "trak, unsketched, damping 3", group, trak(rows, queries, q, damping=3.0)
    rows, queries, _ = sketches.whole("loss")
    yield "dot, unsketched", group, score(queries, rows)
    yield "influence, unsketched", group, fit("influence", rows).scores(queries, rows)
    space = Space(dim=2410, blocks=sketches.layers)
    yield "datainf, unsketched", group, fit("datainf", rows, space=space).scores(queries, rows)


# -- results ---------------------------------------------------------------------------------------------------------


def choices(rows: list[Row]) -> list[str]:
    """The best by the first half of the subsets, of all, and of those that need one sketch of one model."""
    sketched = [row for row in rows if "unsketched" not in row.group]
    single = [row for row in sketched if "4 " not in row.name and "checkpoints" not in row.name]
    return [
        *chosen(sketched, "all sketched settings", SUBSETS),
        *chosen(single, "those with one sketch of one model", SUBSETS),
    ]


def report(rows: list[Row], truth: Truth, agreements: list[tuple[int, float, float]]) -> None:
    machine = {"python": platform.python_version(), "numpy": np.__version__}
    numbers = {"recipe": asdict(RECIPE), "subsets": SUBSETS, "dim": DIM, "rows": [asdict(row) for row in rows]}
    numbers |= {"agreement": agreements, "lengths": truth.lengths.tolist(), "machine": machine}
    RESULTS.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    parts = [
        HEAD,
        *lines_of(rows, "own start"),
        "",
        *choices(rows),
        *table_of_lengths(truth),
        "",
        *table_of_agreements(agreements),
    ]
    text = "\n".join([*parts, "", "![The table as a plot](lds_digits.png)", ""])
    RESULTS.with_suffix(".md").write_text(text, encoding="utf-8")
    print("\n".join(["", *choices(rows)]))


HEAD = f"""# LDS on digits: how well scores foretell retrained models

Made by `make bench-lds`. An MLP of 2,410 parameters, 1,000 rows, {SUBSETS} halves of them retrained, 300 unseen
queries; sketches of {DIM} (but for the last rows). Interval: 95%, bootstrap over subsets. *Own start*: the same
scores where every retrained model has a start of its own, which no score can foretell.
"""


def table_of_lengths(truth: Truth) -> Iterator[str]:
    yield f"How far the models are trained ({FEW} subsets; the last columns are trak's dampings):"
    yield ""
    yield f"| epochs | 1 - p of the rows | {' | '.join(LENGTH_SCORES)} |"
    yield "|---" * (2 + len(LENGTH_SCORES)) + "|"
    for epochs, line in zip(LENGTHS, truth.lengths, strict=True):
        yield f"| {epochs} | {line[0]:.4f} | " + " | ".join(f"{value:.3f}" for value in line[1:]) + " |"


def table_of_agreements(agreements: list[tuple[int, float, float]]) -> Iterator[str]:
    yield "What a sketch keeps of the top 10 by unsketched gradients:"
    yield ""
    yield "| dim | dot | trak |"
    yield "|---|---|---|"
    for dim, by_dot, by_trak in agreements:
        yield f"| {dim} | {by_dot:.2f} | {by_trak:.2f} |"


if __name__ == "__main__":
    main()
