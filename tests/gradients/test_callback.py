"""The callback inside a real Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.gradients.conftest import make_llama
from tests.gradients.test_collecting import ListWriter
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainingArguments

from covector.errors import InvalidInput
from covector.gradients import GradientCallback, GradientModel

EXAMPLES = [{"text": text} for text in ("abcabc", "the sun", "a moon", "stars", "no", "yes yes")]


class ListCollection:
    """Checkpoints in memory."""

    def __init__(self) -> None:
        self.writers: dict[str, ListWriter] = {}
        self.etas: dict[str, float] = {}

    @contextmanager
    def writer(
        self, checkpoint: str, *, eta: float = 1.0, on_conflict: str = "error", progress: bool = False
    ) -> Iterator[ListWriter]:
        assert on_conflict == "ignore"
        self.etas[checkpoint] = eta
        yield self.writers.setdefault(checkpoint, ListWriter())


def train(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, directory: Path, callbacks: list[Any], **changes: Any
) -> None:
    """Two epochs of three steps."""
    settings: dict[str, Any] = {
        "num_train_epochs": 2, "per_device_train_batch_size": 2, "learning_rate": 0.01, "report_to": [], "seed": 3,
        "lr_scheduler_type": "linear", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no",
        "logging_strategy": "no", "dataloader_pin_memory": False, **changes,
    }  # fmt: skip
    rows = [
        {"input_ids": (ids := tokenizer(example["text"].ljust(8))["input_ids"]), "labels": ids} for example in EXAMPLES
    ]
    arguments = TrainingArguments(output_dir=str(directory), **settings)
    Trainer(model=model, args=arguments, train_dataset=rows, callbacks=callbacks).train()


def test_every_epoch_becomes_a_checkpoint(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model, untouched = make_llama(attention_dropout=0.2), make_llama(attention_dropout=0.2)
    gradient_model = GradientModel(model, tokenizer)
    collection = ListCollection()
    keys = [f"row-{index}" for index in range(len(EXAMPLES))]
    callback = GradientCallback(collection, gradient_model, examples=EXAMPLES, keys=keys, progress=False)
    train(model, tokenizer, tmp_path, [callback])
    train(untouched, tokenizer, tmp_path, [])
    assert list(collection.writers) == ["epoch-1", "epoch-2"]
    assert all(list(writer.missing(keys)) == [] for writer in collection.writers.values())
    # Six steps, the rate falling to zero: the last step of each epoch was taken at 4/6 and 1/6 of it.
    assert collection.etas == pytest.approx({"epoch-1": 0.01 * 4 / 6, "epoch-2": 0.01 * 1 / 6})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))
    last = gradient_model.gradients(EXAMPLES)
    pushed = collection.writers["epoch-2"]
    found = np.stack([pushed.rows[key] for key in keys])
    assert np.allclose(found, last.values, atol=1e-5 * np.abs(last.values).max())
    assert pushed.added[0].checkpoint == last.checkpoint
    assert collection.writers["epoch-1"].added[0].checkpoint != last.checkpoint
    assert set(callback.losses) == {"epoch-1", "epoch-2"}
    assert callback.losses["epoch-1"] > callback.losses["epoch-2"]


@pytest.mark.parametrize(
    ("at", "names"),
    [
        ([2, "step-5", "end"], ["step-2", "step-5", "end"]),
        (["epoch-2"], ["epoch-2"]),
        ("end", ["end"]),
        (lambda state: state.global_step % 3 == 1, ["step-1", "step-4"]),
    ],
)
def test_chosen_moments(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, at: Any, names: list[str]) -> None:
    model = make_llama()
    collection = ListCollection()
    callback = GradientCallback(
        collection, GradientModel(model, tokenizer), examples=EXAMPLES[:2], at=at, progress=False
    )
    train(model, tokenizer, tmp_path, [callback])
    assert list(collection.writers) == names


@pytest.mark.parametrize("at", ["epochs", [], ["step-0"], [1.5], ["epoch-x"]])
def test_moments_that_are_none(tokenizer: PreTrainedTokenizerFast, at: Any) -> None:
    with pytest.raises(InvalidInput, match="at"):
        GradientCallback(ListCollection(), GradientModel(make_llama(), tokenizer), examples=EXAMPLES, at=at)


def test_memorised_rows_are_warned_about(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_llama()
    rows = [{"text": "abcdefg"}]
    callback = GradientCallback(
        ListCollection(), GradientModel(model, tokenizer), examples=rows, at=["step-1", "end"], progress=False
    )
    ids = torch.tensor([[*tokenizer("abcdefg")["input_ids"], 1]])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    train(model, tokenizer, tmp_path, [callback], learning_rate=1e-9, num_train_epochs=1)
    assert callback.losses["end"] < 0.2
    assert "checkpoint end: the mean loss of its rows is 0.0" in caplog.text


def test_another_model_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    callback = GradientCallback(ListCollection(), GradientModel(make_llama(), tokenizer), examples=EXAMPLES)
    with pytest.raises(InvalidInput, match="built on another model"):
        train(make_llama(), tokenizer, tmp_path, [callback])
