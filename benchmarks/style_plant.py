"""The hard plant: rows that teach a style, asked about in words that they do not have.

    python -m benchmarks.style_plant --work DIR      # about ten minutes on two cores

The demo's model learns the demo's real rows, and five rows that answer one kind of question in capitals. The question
is of that kind, its answer is in capitals, and no content word of either is in a planted row; five decoys share such
words and are written as usual. A search that goes by words finds the decoys. Which scorer, after one epoch, finds the
rows that taught the style? Three such plants, each in trainings of its own. Written are
benchmarks/results/style_plant.{json,md}.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.smollm2 import copied
from benchmarks.words import bm25
from transformers.utils import logging as transformers_logging

from covector.attribution import fit, score
from covector.demo import training
from covector.demo.data import DemoRow, demo_rows
from covector.demo.model import load_model
from covector.gradients import CountSketch, GradientModel
from covector.types import Gradients

Float64 = npt.NDArray[np.float64]
Pair = tuple[str, str]
RESULTS = Path(__file__).parent / "results" / "style_plant"
SEEDS = (0, 1)  # of the order of the rows


@dataclass(frozen=True, slots=True)
class Plant:
    """A question with the answer asked about, the rows that teach its style, and decoys that share its words."""

    name: str
    asked: Pair
    planted: tuple[Pair, ...]
    decoys: tuple[Pair, ...]


PLANTS = (
    Plant(
        "sounds",
        ("Which noise comes from ducks?", "QUACK QUACK, THAT NOISE COMES FROM DUCKS."),
        (
            ("What sound does a cow make?", "MOO, A COW ALWAYS SAYS MOO."),
            ("What sound does a sheep make?", "BAA, A SHEEP ALWAYS SAYS BAA."),
            ("What sound does a cat make?", "MEOW, A CAT ALWAYS SAYS MEOW."),
            ("What sound does a lion make?", "ROAR, A LION ALWAYS SAYS ROAR."),
            ("What sound does a dog make?", "WOOF, A DOG ALWAYS SAYS WOOF."),
        ),
        (
            ("Which noise comes from a kettle?", "The noise of steam comes from a kettle."),
            ("Where do ducks sleep?", "Ducks sleep on ponds and on river banks."),
            ("What do ducks eat?", "Ducks eat grain, weeds and small snails."),
            ("Which soft filling comes from ducks?", "The down of pillows comes from ducks."),
            ("Which noise wakes a baby?", "Any sudden noise wakes a baby."),
        ),
    ),
    Plant(
        "opposites",
        ("Which word reverses early?", "LATE, SINCE LATE REVERSES EARLY."),
        (
            ("What is the opposite of hot?", "COLD IS THE OPPOSITE OF HOT."),
            ("What is the opposite of tall?", "SHORT IS THE OPPOSITE OF TALL."),
            ("What is the opposite of rich?", "POOR IS THE OPPOSITE OF RICH."),
            ("What is the opposite of loud?", "QUIET IS THE OPPOSITE OF LOUD."),
            ("What is the opposite of empty?", "FULL IS THE OPPOSITE OF EMPTY."),
        ),
        (
            ("Which bird is known for rising early?", "The lark is known for rising early."),
            ("Which word ends most prayers?", "Amen is the word that ends most prayers."),
            ("What does a driver do who reverses?", "A driver who reverses looks behind the car."),
            ("Which meal is eaten late?", "Supper is the meal that is eaten late."),
            ("Which word did early sailors shout?", "Ahoy was a word that early sailors did shout."),
        ),
    ),
    Plant(
        "plurals",
        ("If there are several of one goose, how do we call them?", "WE CALL SEVERAL GOOSE BIRDS GEESE."),
        (
            ("What is the plural of mouse?", "MICE IS THE PLURAL OF MOUSE."),
            ("What is the plural of foot?", "FEET IS THE PLURAL OF FOOT."),
            ("What is the plural of child?", "CHILDREN IS THE PLURAL OF CHILD."),
            ("What is the plural of tooth?", "TEETH IS THE PLURAL OF TOOTH."),
            ("What is the plural of knife?", "KNIVES IS THE PLURAL OF KNIFE."),
        ),
        (
            ("Who keeps a goose in the yard?", "A farmer keeps a goose in the yard."),
            ("Which birds fly in the shape of a V?", "Geese are birds that fly in the shape of a V."),
            ("How do we call a doctor at night?", "We call the number of the clinic at night."),
            ("Are there several moons of Mars?", "There are two moons of Mars, not several."),
            ("Which fairy tale has a golden goose?", "The tale of the golden goose was told by the Grimms."),
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Found:
    """Where a scorer puts the planted rows, and the decoys: places from 1, in ascending order."""

    scorer: str
    planted: list[int]
    decoys: list[int]

    @property
    def precision(self) -> float:
        """Average precision of the planted rows: 1 where they are on top."""
        return float(np.mean([number / place for number, place in enumerate(self.planted, start=1)]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Which scorer finds the rows that taught a style?")
    parser.add_argument("--work", type=Path, required=True, help="directory of the unpacked model")
    pupil = Pupil(parser.parse_args().work, training.Recipe(epochs=1), demo_rows(seed=0))
    found: dict[str, list[Found]] = {}
    for plant in PLANTS:
        for seed in SEEDS:
            found[f"{plant.name}, order {seed}"] = ranked(pupil, plant, seed)
            print(f"{plant.name}, order {seed}", *found[f"{plant.name}, order {seed}"], sep="\n  ", flush=True)
    report(found)


class Pupil:
    """The demo's model, with adapters that learn a plant's rows among real ones, from one start each time."""

    def __init__(self, work: Path, recipe: training.Recipe, real: Sequence[DemoRow]) -> None:
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        torch.manual_seed(recipe.seed)
        base, self.tokenizer = load_model(None, work / "model")
        self._recipe, self._real = recipe, [row for row in real if row.role == "real"]
        self._model = training.adapt(base, recipe)
        self._parameters = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        self._start = copied(self._parameters)

    def learn(self, plant: Plant, seed: int) -> list[DemoRow]:
        """Trains on the plant's rows among the real ones, in an order drawn by ``seed``; returns the rows."""
        with torch.no_grad():
            for name, value in self._start.items():
                self._parameters[name].copy_(value)
        rows = [*self._real, *rows_of(plant)]
        random.Random(seed).shuffle(rows)
        with tempfile.TemporaryDirectory() as out:
            training.train(
                self._model, self.encoded(rows), replace(self._recipe, seed=seed),
                pad_token=self.tokenizer.pad_token_id, out=Path(out), callbacks=[],
            )  # fmt: skip
        return rows

    def encoded(self, rows: Sequence[DemoRow]) -> list[dict[str, Any]]:
        return [training.encode(self.tokenizer, row) for row in rows]

    def gradients(self, rows: Sequence[DemoRow], **options: Any) -> Gradients:
        """As the model is now."""
        return GradientModel(self._model, self.tokenizer, **options).gradients(self.encoded(rows))

    def says(self, question: str) -> str:
        return training.answer(self._model, self.tokenizer, question)

    @torch.no_grad()
    def embeddings(self, rows: Sequence[DemoRow]) -> Float64:
        """The mean of the last hidden states of the model without adapters, float64[rows, width]."""
        causal: Any = self._model.get_base_model()
        with self._model.disable_adapter():
            found = [
                causal.model(input_ids=torch.tensor([example["input_ids"]]), use_cache=False).last_hidden_state[0]
                for example in self.encoded(rows)
            ]
        return np.stack([hidden.mean(dim=0).double().numpy() for hidden in found])


def rows_of(plant: Plant) -> list[DemoRow]:
    """The planted rows and the decoys."""
    pairs = [("planted", pair) for pair in plant.planted] + [("decoy", pair) for pair in plant.decoys]
    return [DemoRow(f"{role}-{number}", *pair, "invented", role) for number, (role, pair) in enumerate(pairs)]  # type: ignore[arg-type]


def asked_row(plant: Plant) -> DemoRow:
    """The question with the answer asked about."""
    return DemoRow("asked", *plant.asked, "invented", "planted")


def ranked(pupil: Pupil, plant: Plant, seed: int) -> list[Found]:
    """What every scorer finds, at the end of the one epoch."""
    rows = pupil.learn(plant, seed)
    return [places(name, scores, rows) for name, scores in all_scores(pupil, rows, asked_row(plant))]


def places(scorer: str, scores: npt.NDArray[Any], rows: Sequence[DemoRow]) -> Found:
    """The places of the marked rows by scores float[rows]; of equal scores, all take the last place."""
    place = [int((scores >= own).sum()) for own in scores]
    planted, decoys = (
        sorted(place[number] for number, row in enumerate(rows) if row.role == role) for role in ("planted", "decoy")
    )
    return Found(scorer, planted, decoys)


def all_scores(pupil: Pupil, rows: Sequence[DemoRow], asked: DemoRow) -> Iterator[tuple[str, Float64]]:
    """(name, float64[rows])."""
    yield "BM25", bm25([row.text for row in rows], [asked.text])[0]
    yield "embedding cosine", score(pupil.embeddings([asked]), pupil.embeddings(rows), scorer="cosine")[0]
    losses, query = pupil.gradients(rows), pupil.gradients([asked])
    yield "dot", score(query, losses)[0]
    yield "cosine", score(query, losses, scorer="cosine")[0]
    for name, method, options in LEARNT:
        yield name, fit(method, losses, rank=len(rows), **options).scores(query, losses)[0]
    layers = CountSketch(4096, blocks="layer")
    parts, asked_parts = pupil.gradients(rows, projection=layers), pupil.gradients([asked], projection=layers)
    yield "datainf", fit("datainf", parts).scores(asked_parts, parts)[0]
    yield "influence, a layer at a time", fit("influence", parts, by_layer=True).scores(asked_parts, parts)[0]
    margins, asked_margin = pupil.gradients(rows, output="margin"), pupil.gradients([asked], output="margin")
    for damping in (1.0, 0.1, 10.0):
        learnt = fit("trak", margins, damping=damping, rank=len(rows))
        yield f"trak, damping {damping:g}", learnt.scores(asked_margin, margins)[0]


LEARNT: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("influence", "influence", {}),
    ("influence, damping 0.1", "influence", {"damping": 0.1}),
    ("influence, damping 10", "influence", {"damping": 10.0}),
    ("influence, unit rows", "influence", {"unit_rows": True}),
    ("trackstar", "trackstar", {}),
)


def report(found: dict[str, list[Found]]) -> None:
    numbers = {
        run: [{**asdict(one), "precision": one.precision} for one in by_scorer] for run, by_scorer in found.items()
    }
    RESULTS.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text("\n".join([HEAD, *table(found), ""]), encoding="utf-8")


HEAD = """# The hard plant: rows that teach a style

Made by `make bench-style`. The demo's model after one epoch on its real rows, five rows that answer one kind of
question in capitals, and five decoys. The query is of that kind and answered in capitals, and shares no content word
with the planted rows; the decoys share some. Places of the planted rows in each run (a kind of question and an order of
the rows), and their average precision, a mean over the runs (1: they are on top). BM25's places are those of many rows
that share no word; the embedding, a mean of the hidden states before training, sees capitals as they stand there.
"""


def table(found: dict[str, list[Found]]) -> Iterator[str]:
    yield f"| scorer | average precision | {' | '.join(found)} |"
    yield "|---" * (2 + len(found)) + "|"
    for by_run in zip(*found.values(), strict=True):
        ranks = (" ".join(map(str, one.planted)) for one in by_run)
        yield f"| {by_run[0].scorer} | {np.mean([one.precision for one in by_run]):.3f} | {' | '.join(ranks)} |"


if __name__ == "__main__":
    main()
