"""Fine-tuning for the demo: LoRA adapters on a model's top layers, with transformers' Trainer.

Rows are given as tokens, the same ones to the trainer and to ``GradientModel``; the loss is taken on the answer only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils import load_peft_weights
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from covector.demo.data import DemoRow
from covector.demo.kept import keep_lower_layers
from covector.errors import InvalidInput

IGNORED = -100
_CHAT_MARKS = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the adapters are trained. The learning rate is constant, so that both checkpoints weigh the same."""

    epochs: int = 5
    batch_rows: int = 8
    learning_rate: float = 1.5e-3
    rank: int = 8
    top_layers: int = 8
    seed: int = 0


def prompt_of(tokenizer: Any, question: str) -> str:
    """What the model is given: a user's message in ChatML if the tokenizer knows its marks, else plain text."""
    if all(mark in tokenizer.get_vocab() for mark in _CHAT_MARKS):
        return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return f"Question: {question}\nAnswer:"


def encode(tokenizer: Any, row: DemoRow) -> dict[str, Any]:
    """A row as an example for ``GradientModel`` and the trainer: tokens, labels on the answer and its end, text,
    metadata."""
    prompt = prompt_of(tokenizer, row.question)
    opening = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer = row.answer if prompt.endswith("\n") else f" {row.answer}"
    closing = tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return {
        "input_ids": opening + closing,
        "labels": [IGNORED] * len(opening) + closing,
        "text": row.text,
        "metadata": {"category": row.category, "role": row.role},
    }


def adapt(model: nn.Module, recipe: Recipe) -> PeftModel:
    """``model`` with LoRA adapters on every linear layer of its top decoder layers; the outputs of the layers below
    are kept. ``model`` itself is changed."""
    layers_name, layers = _decoder_layers(model)
    lowest = max(len(layers) - recipe.top_layers, 0)
    targets = [
        f"{layers_name}.{index}.{name}"
        for index in range(lowest, len(layers))
        for name, module in layers[index].named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    ]
    keep_lower_layers(model, lowest)
    config = LoraConfig(r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=targets, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    return adapted


def _decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The model's longest list of layers, with its name. Raises InvalidInput if it has none."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise InvalidInput(f"{type(model).__name__} has no list of decoder layers; name another model")
    return max(lists, key=lambda found: len(found[1]))


def train(
    model: PeftModel, examples: Sequence[dict[str, Any]], recipe: Recipe, *,
    pad_token: int, out: Path, callbacks: Sequence[TrainerCallback],
) -> None:  # fmt: skip
    """Trains the adapters; what happens at the end of an epoch is up to ``callbacks``, in their order."""
    arguments = TrainingArguments(
        output_dir=str(out),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_rows,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant",
        train_sampling_strategy="group_by_length",
        seed=recipe.seed,
        logging_strategy="steps",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=list(examples), data_collator=collator(pad_token),
                      callbacks=list(callbacks))  # fmt: skip
    trainer.pop_callback(_printer())
    trainer.train()


def _printer() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def collator(pad_token: int) -> Callable[[Sequence[dict[str, Any]]], dict[str, torch.Tensor]]:
    """Pads rows on the right to the longest: input_ids, labels, attention_mask int64[rows, places]."""

    def pad(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        places = max(len(row["input_ids"]) for row in rows)
        columns = {"input_ids": pad_token, "labels": IGNORED}
        batch = {
            name: torch.tensor([row[name] + [fill] * (places - len(row[name])) for row in rows])
            for name, fill in columns.items()
        }
        lengths = torch.tensor([[len(row["input_ids"])] for row in rows])
        return {**batch, "attention_mask": (torch.arange(places) < lengths).long()}

    return pad


class Keeper(TrainerCallback):
    """Saves the adapters at the end of the epochs given by name, under ``folder``, in PEFT's own format."""

    def __init__(self, folder: Path, epochs: dict[int, str]) -> None:
        self._folder = folder
        self._epochs = epochs

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Saves if this epoch is one of those."""
        name = self._epochs.get(round(state.epoch))
        if name is not None:
            kwargs["model"].save_pretrained(str(self._folder / name), save_embedding_layers=False)


class EpochReporter(TrainerCallback):
    """Tells, through ``say``, the mean loss a token that the steps of each epoch met; ``losses`` keeps them.

    Give it before callbacks that take time at the end of an epoch.
    """

    def __init__(self, say: Callable[[str], None], epochs: int) -> None:
        self._say = say
        self._epochs = epochs
        self._began_s = time.monotonic()
        self._steps: list[float] = []
        self.losses: list[float] = []

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self._began_s = time.monotonic()
        self._steps = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Notes a step's loss; the trainer logs every step."""
        if logs and "loss" in logs:
            self._steps.append(float(logs["loss"]))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tells the epoch's loss."""
        self.losses.append(sum(self._steps) / max(len(self._steps), 1))
        took_s = time.monotonic() - self._began_s
        self._say(f"  epoch {len(self.losses)}/{self._epochs}: loss {self.losses[-1]:.2f}, {took_s:.1f} s")


def restore(model: PeftModel, folder: Path) -> None:
    """Puts the adapters saved in ``folder`` back into ``model``, to the bit."""
    set_peft_model_state_dict(model, load_peft_weights(str(folder), device=str(model.device)))


@torch.no_grad()
def answer(model: PeftModel, tokenizer: Any, question: str, *, tokens_max: int = 24) -> str:
    """What the model answers, by its likeliest token each time."""
    was_training = model.training
    model.eval()
    prompt = tokenizer(prompt_of(tokenizer, question), add_special_tokens=False, return_tensors="pt").to(model.device)
    generate: Any = model.generate
    output = generate(
        input_ids=prompt["input_ids"],
        attention_mask=prompt["attention_mask"],
        max_new_tokens=tokens_max,
        do_sample=False,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.train(was_training)
    said = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return " ".join(said.split())
