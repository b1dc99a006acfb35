"""How well each scorer foretells what retrained language models do: the LDS of LoRA on SmolLM2-135M.

    python -m benchmarks.lds_smollm2 --work DIR              # from the kept outputs: models of all rows and gradients
    python -m benchmarks.lds_smollm2 --work DIR --retrain    # from scratch: 128 more trainings, about 20 CPU-s each

300 real questions with answers; 64 random halves of them, a model trained on each twice, in two orders; 60 unseen
questions, whose loss (the mean over an answer's tokens) a score is to foretell. The model, the rows and the trainings
are in ``smollm2`` and ``smollm2_truth``, the gradients in ``smollm2_gradients``. DIR keeps what was trained and taken,
so a run that is stopped goes on; about 2 GB. Written are benchmarks/results/lds_smollm2.{json,md,png}, and .npz with
the models' outputs.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import platform
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from benchmarks import smollm2_truth
from benchmarks.lds_table import Row, chosen, judged, lines_of, plot
from benchmarks.real_gradients import check_same_recipe
from benchmarks.smollm2 import Learner, Recipe, State
from benchmarks.smollm2_gradients import DEFAULT_DIM, Gradients, Taken
from benchmarks.smollm2_truth import LOSS, MARGIN, MODELS, SUBSETS, TRAININGS, Truth
from benchmarks.words import bm25

from covector.attribution import fit, lds, score

Float64 = npt.NDArray[np.float64]
Named = tuple[str, str, npt.ArrayLike]
RESULTS = Path(__file__).parent / "results" / "lds_smollm2"
RECIPE = Recipe()
LAST = RECIPE.epochs
RATES = {epoch: (LAST - epoch + 0.5) / LAST for epoch in range(1, LAST + 1)}  # the mean learning rate of each epoch
LEVELS = ("parameter", "module", "layer")  # each tensor by itself, an adapter's A with its B, a decoder layer
WORDS_SHARE = 0.3
FULL = RECIPE.rows  # the rank of that many rows: exact, and the 4,096 dims of a sketch need no dense inverse


def main() -> None:
    parser = argparse.ArgumentParser(description="The LDS of every scorer on a language model.")
    parser.add_argument("--work", type=Path, required=True, help="directory of the model, the trainings, the gradients")
    parser.add_argument("--retrain", action="store_true", help="train the models of the halves that DIR has not")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    check_same_recipe(RECIPE, given.work)
    learner = Learner.of_smollm2(RECIPE, given.work)
    truth = known_truth(learner, given.work, given.retrain)
    rows = []
    for name, group, scores in Scores(learner, given.work).all():
        rows.append(judged((name, group), scores, truth.masks, truth.mean(LOSS), truth.mean(MARGIN)))
        print(rows[-1], flush=True)
    report(rows, truth)
    plot(rows, RESULTS.with_suffix(".png"), "Linear datamodelling score, LoRA on SmolLM2-135M", "by the margin")


def known_truth(learner: Learner, work: Path, retrain: bool) -> Truth:
    """The committed outputs, or those of trainings that are done now."""
    path = RESULTS.with_suffix(".npz")
    if retrain or not path.exists():
        for name in smollm2_truth.retrained(learner, work):
            print(name, flush=True)
        smollm2_truth.keep(smollm2_truth.gathered(work, learner.recipe), learner.recipe, path)
    return smollm2_truth.kept(path, learner.recipe)


# -- scores ----------------------------------------------------------------------------------------------------------


def standardised(scores: npt.ArrayLike) -> Float64:
    """Each query's scores in units of their spread."""
    wide = np.asarray(scores, dtype=np.float64)
    spread = wide.std(axis=1, keepdims=True)
    return np.divide(wide - wide.mean(axis=1, keepdims=True), spread, out=np.zeros_like(wide), where=spread > 0)


class Scores:
    """All scorers on all gradients."""

    def __init__(self, learner: Learner, work: Path) -> None:
        self.learner, self.work = learner, work
        self.gradients = Gradients(learner, work)

    def taken(self, epoch: int, function: str = "loss", correction: str = "none", model: int = 0) -> Taken:
        """Gradients at a model of all rows after an epoch."""
        state = self.states(model)[epoch - 1]
        return self.gradients.taken(f"{MODELS[model]}-{epoch}", state, function, correction)

    def all(self) -> Iterator[Named]:
        """(name, group, scores float[queries, rows])."""
        yield from self.of_words()
        yield from self.plain()
        yield from self.learnt()
        yield from self.trak()
        yield from self.exact()
        yield from self.several()

    def bm25(self) -> Float64:
        """Of questions with their answers."""
        return bm25([row.text for row in self.learner.rows], [query.text for query in self.learner.queries])

    def of_words(self) -> Iterator[Named]:
        group = "no gradients"
        yield "BM25", group, self.bm25()
        rows, queries = self.learner.embeddings()
        yield "embedding cosine", group, score(queries, rows, scorer="cosine")
        centre, spread = rows.mean(axis=0), rows.std(axis=0)
        alike = score((queries - centre) / spread, (rows - centre) / spread, scorer="cosine")
        yield "embedding cosine, standardised", group, alike

    def plain(self) -> Iterator[Named]:
        group = "nothing learnt"
        for epoch in range(1, LAST + 1):
            rows, queries = self.taken(epoch).sketch(str(DEFAULT_DIM))
            yield f"dot, epoch {epoch}", group, score(queries, rows)
            yield f"cosine, epoch {epoch}", group, score(queries, rows, scorer="cosine")
        yield (
            f"tracin, {LAST} epochs",
            group,
            sum(
                rate * score(queries, rows, scorer="tracin")
                for epoch, rate in RATES.items()
                for rows, queries in [self.taken(epoch).sketch(str(DEFAULT_DIM))]
            ),
        )
        rows, queries = self.taken(LAST, correction="adam").sketch(str(DEFAULT_DIM))
        yield "less, Adam's moments", group, score(queries, rows, scorer="less")

    def learnt(self) -> Iterator[Named]:
        group = "learnt"
        for epoch in range(1, LAST + 1):
            yield f"influence, epoch {epoch}", group, self.influence(epoch)
        for damping in (0.1, 10.0):
            yield f"influence, damping {damping:g}", group, self.influence(LAST, damping=damping)
        yield "influence, damping by rows held out", group, self.influence(LAST, damping="held_out")
        yield "influence, unit rows", group, self.influence(LAST, unit_rows=True)
        rows, queries = self.taken(LAST, correction="root").sketch(str(DEFAULT_DIM))
        yield "influence, Adam-corrected", group, fit("influence", rows, rank=FULL).scores(queries, rows)
        yield "trackstar, Adam-corrected", group, fit("trackstar", rows, rank=FULL).scores(queries, rows)
        yield "trackstar", group, self.influence(LAST, method="trackstar")
        rows, queries = self.taken(LAST).sketch("layers")
        space = self.gradients.layered_space(DEFAULT_DIM, "parameter")
        for name, method, options in (
            ("datainf, a sketch a layer", "datainf", {}),
            ("datainf, damping 10", "datainf", {"damping": 10.0}),
            ("influence, a layer at a time", "influence", {"by_layer": True}),
        ):
            yield name, group, fit(method, rows, space=space, **options).scores(queries, rows)
        yield from self.layered()

    def layered(self) -> Iterator[Named]:
        """Sketches wide enough to have a part of some size for each parameter."""
        count = len(self.learner.rows)
        for dim, sketch in self.gradients.by_layer(f"{MODELS[0]}-1", self.states()[0]).items():
            for level in ("parameter", "module"):
                space = self.gradients.layered_space(dim, level)
                rank = min(FULL, max(block.stop - block.start for block in space.blocks))
                learnt = fit("influence", sketch[:count], space=space, by_layer=True, rank=rank)
                name = f"influence, epoch 1, dim {dim:,} by {level}"
                yield name, "learnt", learnt.scores(sketch[count:], sketch[:count])

    def states(self, model: int = 0) -> list[State]:
        """Of a model of all rows, after each epoch."""
        return smollm2_truth.whole_model(self.learner, MODELS[model], self.work)

    def influence(self, epoch: int, method: str = "influence", sketch: str = str(DEFAULT_DIM), **options: Any) -> Any:
        rows, queries = self.taken(epoch).sketch(sketch)
        return fit(method, rows, rank=FULL, **options).scores(queries, rows)

    def trak(self) -> Iterator[Named]:
        group = "trak"
        for epoch in range(1, LAST + 1):
            yield f"trak, epoch {epoch}", group, self.trak_of([(epoch, 0)])
        for damping in (0.01, 0.1, 3.0, 10.0):
            yield f"trak, damping {damping:g}", group, self.trak_of([(LAST, 0)], damping=damping)
        yield "trak, unit rows", group, self.trak_of([(LAST, 0)], unit_rows=True)
        for dim in ("1024", "16384"):
            yield f"trak, dim {dim}", group, self.trak_of([(LAST, 0)], sketch=dim)

    def trak_of(self, members: list[tuple[int, int]], sketch: str = str(DEFAULT_DIM), **options: Any) -> Float64:
        """TRAK over (epoch, model) members."""
        found = {f"{epoch}/{model}": self.taken(epoch, "margin", model=model) for epoch, model in members}
        rows = {name: taken.sketch(sketch)[0] for name, taken in found.items()}
        queries = {name: taken.sketch(sketch)[1] for name, taken in found.items()}
        q = {name: taken.trak_q for name, taken in found.items()}
        return fit("trak", rows, trak_q=q, rank=FULL, **options).scores(queries, rows, trak_q=q)

    def exact(self) -> Iterator[Named]:
        group = "unsketched"
        taken = self.taken(LAST)
        rows, queries = taken.exact()
        yield "dot, unsketched", group, score(queries, rows)
        yield "influence, unsketched", group, fit("influence", rows).scores(queries, rows)
        for level in LEVELS:
            yield f"influence, unsketched, by {level}", group, self.by_level([(LAST, 0)], level)
        yield "influence, unsketched, by module, epoch 1", group, self.by_level([(1, 0)], "module")
        for damping in (0.1, 10.0):
            name = f"influence, unsketched, by module, damping {damping:g}"
            yield name, group, self.by_level([(LAST, 0)], "module", damping=damping)
        yield "datainf, unsketched", group, self.by_level([(LAST, 0)], "parameter", method="datainf")
        for damping, scores in self.kronecker().items():
            yield f"Kronecker factors, damping {damping}", group, scores
        margin = self.taken(LAST, "margin")
        rows, queries = margin.exact()
        learnt = fit("trak", rows, trak_q=margin.trak_q)
        yield "trak, unsketched", group, learnt.scores(queries, rows, trak_q=margin.trak_q)

    def by_level(
        self, members: list[tuple[int, int]], level: str, method: str = "influence", **options: Any
    ) -> Float64:
        """Unsketched, with A for each group of parameters apart, over (epoch, model) members."""
        rows, queries, space = {}, {}, None
        for epoch, model in members:
            name = f"{epoch}/{model}"
            found = self.taken(epoch, model=model).exact_by(self.gradients.groups(level), self.gradients.blocks)
            rows[name], queries[name], space = found
        etas = {f"{epoch}/{model}": RATES[epoch] for epoch, model in members}
        return fit(method, rows, space=space, by_layer=True, etas=etas, **options).scores(queries, rows)

    def kronecker(self) -> dict[str, Float64]:
        return self.gradients.kronecker(f"{MODELS[0]}-{LAST}", self.states()[-1])

    def several(self) -> Iterator[Named]:
        group = "several together"
        epochs = [(epoch, 0) for epoch in RATES]
        models = [(LAST, model) for model in range(len(MODELS))]
        both = [(epoch, model) for epoch, _ in epochs for model, _ in enumerate(MODELS) if epoch != 2]
        learnt, by_module = self.influence_of(epochs), self.by_level(epochs, "module")
        yield f"influence, {LAST} epochs", group, learnt
        yield f"influence, {LAST} epochs, unsketched", group, self.influence_of(epochs, sketch=None)
        yield f"influence, {LAST} epochs, unsketched, by module", group, by_module
        yield f"influence, {len(MODELS)} models", group, self.influence_of(models)
        yield f"influence, {len(MODELS)} models, 2 epochs, unsketched, by module", group, self.by_level(both, "module")
        yield f"trak, {LAST} epochs", group, self.trak_of(epochs)
        yield f"trak, {len(MODELS)} models", group, self.trak_of(models)
        lexical = WORDS_SHARE * standardised(self.bm25())
        yield "influence + 0.3 BM25", group, standardised(self.influence(LAST)) + lexical
        yield f"influence, {LAST} epochs, + 0.3 BM25", group, standardised(learnt) + lexical
        yield f"influence, {LAST} epochs, by module, + 0.3 BM25", group, standardised(by_module) + lexical

    def influence_of(self, members: list[tuple[int, int]], sketch: str | None = str(DEFAULT_DIM)) -> Float64:
        """Influence over (epoch, model) members, weighed by the learning rates."""
        found = {f"{epoch}/{model}": self.taken(epoch, model=model) for epoch, model in members}
        parts = {name: taken.sketch(sketch) if sketch else taken.exact() for name, taken in found.items()}
        rows, queries = ({name: part[side] for name, part in parts.items()} for side in (0, 1))
        etas = {f"{epoch}/{model}": RATES[epoch] for epoch, model in members}
        return fit("influence", rows, etas=etas, rank=FULL if sketch else None).scores(queries, rows)


# -- results ---------------------------------------------------------------------------------------------------------


def report(rows: list[Row], truth: Truth) -> None:
    packages = ("torch", "transformers", "peft", "numpy", "chatterbot-corpus", "bm25s")
    machine = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    second = second_training(truth)
    numbers = {"recipe": asdict(RECIPE), "subsets": SUBSETS, "trainings": TRAININGS, "dim": DEFAULT_DIM}
    numbers |= {"second_training": second, "rows": [asdict(row) for row in rows], "machine": machine}
    RESULTS.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    parts = [HEAD, *lines_of(rows, "by the margin"), "", *choices(rows), *ceiling(*second), *errors(rows), WHAT_HELPED]
    text = "\n".join([*parts, "![The table as a plot](lds_smollm2.png)", ""])
    RESULTS.with_suffix(".md").write_text(text, encoding="utf-8")
    print("\n".join(["", *choices(rows), *ceiling(*second)]))


def second_training(truth: Truth) -> tuple[float, float]:
    """What the outputs of one training foretell of another of the same subsets, as a score would; and what a score that
    knew the mean over all orders would reach, by Spearman and Brown, on the means over the trainings here."""
    there = ~np.isnan(truth.outputs[:, :, LOSS, 0])
    first, second = truth.outputs[:, there.all(axis=0), LOSS]
    one = lds(first.T, np.eye(len(first)), second, resamples=0).mean
    trainings = there.sum(axis=0)
    return one, float(np.sqrt(np.maximum(trainings * one / (1 + (trainings - 1) * one), 0.0)).mean())


def choices(rows: list[Row]) -> list[str]:
    """The best by the first half of the subsets, of all, and of those that take one sketch at one state."""
    single = [row for row in rows if row.group in ("nothing learnt", "learnt", "trak") and "epochs" not in row.name]
    return [
        *chosen(rows, "all settings", SUBSETS),
        *chosen(single, "those with one sketch of one model at one state", SUBSETS),
    ]


def ceiling(one: float, most: float) -> list[str]:
    return [
        f"Noise: the outputs of one training, as scores of another of the same subsets, have an LDS of {one:.3f}.",
        f"So against the mean of both, a score that knew the mean over all orders would reach about **{most:.2f}**.",
        "",
    ]


def errors(rows: list[Row]) -> list[str]:
    found = [row.query_error for row in rows]
    return [f"The standard error of a mean over the queries is {min(found):.3f} to {max(found):.3f}.", ""]


HEAD = f"""# LDS on a language model: how well scores foretell retrained models

Made by `make bench-lds-lm`. LoRA on the last {RECIPE.top_layers} layers of SmolLM2-135M-Instruct (325,632 parameters);
{RECIPE.rows} real questions with answers, {SUBSETS} halves of them, each trained on twice for {LAST} epochs;
{RECIPE.queries} unseen questions. Foretold is minus the loss; *by the margin*: the mean of log p - log(1 - p) instead.
Unless said: sketches of {DEFAULT_DIM:,}, the model of all rows after the last epoch, damping 1. Interval: 95%, by
bootstrap over subsets.
"""

WHAT_HELPED = """What helped, most first:

- curvature in place of a plain product; damping 1 (a tenth or ten times of it costs a seventh);
- the first epoch in place of the last, or several weighed by the learning rates;
- A for each adapter by itself (A with its B), where the sketch has room for it: 16,384 dims have, 4,096 have not;
- more dims; a second model of all rows, a little;
- the loss's gradients for the loss: margins foretell it worse, and the margin hardly better.

What did not: DataInf (its A is nearly a multiple of I); the optimiser's correction on top of a learnt A (without one,
`less` is ahead of cosine); unit rows; a damping chosen by rows held out, which asks for a tenth; Kronecker factors (as
good as one A for all, at a damping of their own); BM25 added, which knows little here.
"""


if __name__ == "__main__":
    main()
