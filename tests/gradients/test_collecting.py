"""Collecting into a writer: keys, resuming, memory, progress; and what names a training state."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.gradients.conftest import EXAMPLES, make_gpt2, make_llama
from transformers import PreTrainedTokenizerFast

from covector.errors import InvalidInput, LimitExceeded
from covector.gradients import CountSketch, GradientModel
from covector.gradients.digest import WeightsDigest
from covector.gradients.selection import named_parameters
from covector.types import Gradients, Key, Metadata

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


class ListWriter:
    """Keeps everything, in memory."""

    def __init__(self) -> None:
        self.rows: dict[Key, npt.NDArray[np.float32]] = {}
        self.texts: dict[Key, str | None] = {}
        self.metadata: dict[Key, Metadata | None] = {}
        self.trak_q: dict[Key, float] = {}
        self.added: list[Gradients] = []

    def add(
        self,
        keys: Sequence[Key],
        gradients: Gradients,
        texts: Sequence[str | None] | None = None,
        metadata: Sequence[Metadata | None] | None = None,
        trak_q: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self.added.append(gradients)
        self.rows.update(zip(keys, gradients.values, strict=True))
        self.texts.update(zip(keys, texts or [], strict=True))
        self.metadata.update(zip(keys, metadata or [None] * len(keys), strict=True))
        self.trak_q.update(zip(keys, [] if trak_q is None else trak_q.tolist(), strict=False))

    def missing(self, keys: Sequence[Key]) -> list[Key]:
        return [key for key in keys if key not in self.rows]


def near(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> bool:
    error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return bool(error.max() < 1e-5)


def test_collects_every_row_with_its_text(tokenizer: PreTrainedTokenizerFast) -> None:
    model = GradientModel(make_llama(), tokenizer, output="margin", batch_size=3)
    examples = [{**example, "metadata": {"place": i}} if i % 2 else example for i, example in enumerate(EXAMPLES)]
    writer = ListWriter()
    assert model.collect(examples, writer, progress=False) == len(EXAMPLES)
    expected = model.gradients(EXAMPLES)
    assert sorted(writer.rows, key=int) == list(range(len(EXAMPLES)))
    assert near(np.stack([writer.rows[i] for i in range(len(EXAMPLES))]), expected.values)
    assert expected.trak_q is not None
    assert [writer.trak_q[i] for i in range(len(EXAMPLES))] == pytest.approx(expected.trak_q, rel=1e-5)
    assert writer.texts[1] == "Who are you? A row of letters, no more."
    assert writer.texts[2] == "Add\n1 and 2\n3"
    assert writer.metadata[3] == {"place": 3}
    assert writer.metadata[2] is None
    assert {(g.space, g.kind, g.checkpoint) for g in writer.added} == {(model.space, model.kind, expected.checkpoint)}


def test_resumes_where_a_crash_left_it(tokenizer: PreTrainedTokenizerFast) -> None:
    model = GradientModel(make_gpt2(), tokenizer, batch_size=2)
    keys = [f"row-{index}" for index in range(len(EXAMPLES))]

    class Full(ListWriter):
        def add(self, *args: Any, **kwargs: Any) -> None:
            if len(self.added) == 2:
                raise ConnectionError
            super().add(*args, **kwargs)

    crashed = Full()
    with pytest.raises(ConnectionError):
        model.collect(EXAMPLES, crashed, keys=keys, progress=False)
    writer = ListWriter()
    writer.rows = crashed.rows
    assert model.collect(EXAMPLES, writer, keys=keys, progress=False) == len(EXAMPLES) - 4
    assert near(np.stack([writer.rows[key] for key in keys]), model.gradients(EXAMPLES).values)
    assert model.collect(EXAMPLES, writer, keys=keys, progress=False) == 0


def test_keys_as_many_as_examples(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InvalidInput, match="2 keys for 8 examples"):
        GradientModel(make_llama(), tokenizer).collect(EXAMPLES, ListWriter(), keys=["a", "b"])


def test_an_unreadable_row_is_named_by_its_key(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InvalidInput, match="row 'second' has the fields"):
        GradientModel(make_llama(), tokenizer).collect([EXAMPLES[0], {"x": 1}], ListWriter(), keys=["first", "second"])


def test_backs_off_when_memory_runs_out(tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture) -> None:
    model = make_llama()
    expected = GradientModel(model, tokenizer).gradients(EXAMPLES).values
    row_counts: list[int] = []

    def small_machine(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        row_counts.append(len(kwargs["input_ids"]))
        if row_counts[-1] > 2:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )

    handle = model.register_forward_pre_hook(small_machine, with_kwargs=True)
    writer = ListWriter()
    assert GradientModel(model, tokenizer).collect(EXAMPLES, writer, progress=False) == len(EXAMPLES)
    assert near(np.stack([writer.rows[i] for i in range(len(EXAMPLES))]), expected)
    assert "memory ran out with 8 rows" in caplog.text
    handle.remove()

    def tiny_machine(*call: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(tiny_machine)
    with pytest.raises(LimitExceeded, match=r"memory does not suffice for one row of \d+ tokens .* lower max_length"):
        GradientModel(model, tokenizer).gradients(EXAMPLES)


def test_after_a_failure_the_model_is_as_before(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_llama().train()
    gradient_model = GradientModel(model, tokenizer)
    with pytest.raises(IndexError):
        gradient_model.gradients([{"input_ids": [5, 500]}])
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(not module._forward_hooks for module in model.modules())
    assert len(gradient_model.gradients(EXAMPLES)) == len(EXAMPLES)


def adapted(name: str) -> PeftModel:
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    return get_peft_model(make_llama(), config, adapter_name=name)


def test_an_adapters_name_does_not_matter(tokenizer: PreTrainedTokenizerFast) -> None:
    default, other = (GradientModel(adapted(name), tokenizer) for name in ("default", "other"))
    assert default.space == other.space
    assert default.space.architecture == "LlamaForCausalLM"
    first = default.space.parameters[0]
    assert first.name == "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert first.shape == (2, 24)
    one, two = default.gradients(EXAMPLES), other.gradients(EXAMPLES)
    assert one.checkpoint == two.checkpoint
    assert np.array_equal(one.values, two.values)


def test_space_of_a_whole_gradient(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_llama()
    space = GradientModel(model, tokenizer, projection=None).space
    named = dict(model.named_parameters())
    assert "lm_head.weight" not in named
    assert {parameter.name: parameter.shape for parameter in space.parameters} == {
        name: tuple(parameter.shape) for name, parameter in named.items()
    }
    assert space.dim == space.blocks[-1].stop == sum(parameter.numel() for parameter in named.values())
    assert space.projection is not None
    assert (space.projection.kind, space.projection.dim) == ("none", space.dim)


def test_digest_follows_the_weights(tokenizer: PreTrainedTokenizerFast) -> None:
    model = adapted("default")
    digest = WeightsDigest()
    seen = {digest.hex(named_parameters(model))}
    for name in ("lora_B", "embed_tokens"):  # a trainable one and a frozen one
        parameter = next(p for n, p in model.named_parameters() if name in n)
        with torch.no_grad():
            parameter[0, 0] += 1
        found = digest.hex(named_parameters(model))
        assert found == WeightsDigest().hex(named_parameters(model))
        seen.add(found)
    assert len(seen) == 3
    assert all(len(value) == 64 for value in seen)


def test_wrong_space_is_told_apart(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_llama()
    one = GradientModel(model, tokenizer, projection=CountSketch(64)).space
    two = GradientModel(model, tokenizer, projection=CountSketch(64), parameters=["model.norm.weight"]).space
    assert "parameters" in (one.difference(two) or "")


def test_progress_says_where_it_is(tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]) -> None:
    model, writer = GradientModel(make_llama(), tokenizer), ListWriter()
    model.collect(EXAMPLES[:3], writer, progress=False)
    assert capsys.readouterr().err == ""
    model.collect(EXAMPLES, writer, progress=True)
    said = capsys.readouterr().err
    assert "8/8" in said
    assert "0 s left, 3 there already" in said


def test_a_missing_extra_names_its_install_line() -> None:
    code = "import sys; sys.modules['torch'] = None; import covector.gradients"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'pip install "covector[torch]"' in done.stderr
