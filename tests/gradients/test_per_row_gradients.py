"""One batched pass equals the loop of one backward a row."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.gradients.conftest import EXAMPLES, make_gpt2, make_llama
from tests.gradients.loop_judge import loop_gradients, row_value, worst_relative_error
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from covector.errors import InvalidInput
from covector.gradients import GradientModel
from covector.gradients.selection import named_parameters

TOLERANCE = 1e-5

# peft asks transformers by a name that has a new one
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def lora(model: nn.Module, name: str = "default", **settings: Any) -> PeftModel:
    torch.manual_seed(2)
    settings = {"r": 3, "lora_alpha": 7, "lora_dropout": 0.3, "target_modules": "all-linear", **settings}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings), adapter_name=name)
    with torch.no_grad():  # B starts at zero, which would hide A's gradient
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return adapted


def qwen3() -> nn.Module:
    """Norms of single heads: their input has four axes."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=80, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, bos_token_id=None, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": make_llama,
    "llama, untied, biases": lambda: make_llama(tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
    "gpt2": make_gpt2,
    "qwen3": qwen3,
    "llama, lora": lambda: lora(make_llama()),
    "gpt2, lora": lambda: lora(make_gpt2(), target_modules=["c_attn", "c_fc", "c_proj"], fan_in_fan_out=True),
    "llama, lora on one layer, head saved": lambda: lora(
        make_llama(tie_word_embeddings=False),
        layers_to_transform=[1],
        target_modules=["q_proj", "up_proj"],
        modules_to_save=["lm_head"],
    ),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return MODELS[request.param]()


def whole_gradients(model: nn.Module, tokenizer: PreTrainedTokenizerFast, **options: Any) -> torch.Tensor:
    return torch.from_numpy(GradientModel(model, tokenizer, projection=None, **options).gradients(EXAMPLES).values)


def expected_gradients(model: nn.Module, tokenizer: PreTrainedTokenizerFast, **options: str) -> torch.Tensor:
    rows = [GradientModel(model, tokenizer).encode(example, index) for index, example in enumerate(EXAMPLES)]
    return loop_gradients(model, rows, [p for p in model.parameters() if p.requires_grad], **options)


def test_equals_the_loop_whatever_batch_and_padding(model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> None:
    expected = expected_gradients(model, tokenizer)
    for side in ("right", "left"):
        tokenizer.padding_side = side
        for limits in ({"batch_size": 1}, {"batch_size": 3}, {"batch_size": 64}, {"batch_tokens": 40}):
            found = whole_gradients(model, tokenizer, **limits)
            assert worst_relative_error(found, expected) < TOLERANCE, (side, limits)
    tokenizer.padding_side = "right"


@pytest.mark.parametrize("function", ["loss", "margin"])
@pytest.mark.parametrize("reduction", ["token_mean", "token_sum"])
def test_every_function_and_reduction(tokenizer: PreTrainedTokenizerFast, function: str, reduction: str) -> None:
    model = make_llama()
    found = whole_gradients(model, tokenizer, output=function, reduction=reduction)
    expected = expected_gradients(model, tokenizer, function=function, reduction=reduction)
    assert worst_relative_error(found, expected) < TOLERANCE


def test_trak_q_is_one_minus_the_mean_probability_of_a_token(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_gpt2().eval()
    gradient_model = GradientModel(model, tokenizer, output="margin")
    found = gradient_model.gradients(EXAMPLES)
    rows = [gradient_model.encode(example, index) for index, example in enumerate(EXAMPLES)]
    with torch.no_grad():
        expected = [1 - float(torch.exp(-row_value(model, row, "loss", "token_mean"))) for row in rows]
    assert found.trak_q is not None
    np.testing.assert_allclose(found.trak_q, expected, rtol=1e-5)
    assert found.kind.function == "margin"
    assert GradientModel(model, tokenizer).gradients(EXAMPLES).trak_q is None


def test_margin_is_sound_where_the_probability_rounds_to_one() -> None:
    from covector.gradients.functions import row_functions

    logits = torch.tensor([[[60.0, 0.0, -3.0]]], requires_grad=True)
    value = row_functions(logits, torch.tensor([[0]]), "margin", "token_mean").value
    expected = 60.0 - float(torch.logsumexp(torch.tensor([0.0, -3.0]), 0))
    assert float(value.detach()) == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert torch.isfinite(gradient).all()
    assert float(gradient[0, 0, 0]) == 1.0


def test_norms_that_add_one_to_their_weight(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=80, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, bos_token_id=None, eos_token_id=1, pad_token_id=None, sliding_window=64,
    )  # fmt: skip
    model = Gemma3ForCausalLM(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embed" not in name)
    assert worst_relative_error(whole_gradients(model, tokenizer), expected_gradients(model, tokenizer)) < TOLERANCE


class SharedLayer(nn.Module):
    """A model that calls the same linear and norm twice."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        first = inner.model.layers[0]
        inner.model.layers[1] = first

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Any:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)


def test_a_layer_that_is_called_twice(tokenizer: PreTrainedTokenizerFast) -> None:
    model = SharedLayer(make_llama())
    assert worst_relative_error(whole_gradients(model, tokenizer), expected_gradients(model, tokenizer)) < TOLERANCE


def test_the_same_bits_twice_and_nothing_left_behind(tokenizer: PreTrainedTokenizerFast) -> None:
    model = lora(make_llama())
    model.train()
    model.get_submodule("base_model.model.model.layers.0").eval()
    modes = {name: module.training for name, module in model.named_modules()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    state = torch.get_rng_state()
    gradient_model = GradientModel(model, tokenizer, output="margin")
    first, second = gradient_model.gradients(EXAMPLES), gradient_model.gradients(EXAMPLES)
    assert np.array_equal(first.values, second.values)
    assert first.checkpoint == second.checkpoint
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert flags == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert all(bool((p.grad == 1).all()) for p in model.parameters() if p.grad is not None)
    assert torch.equal(state, torch.get_rng_state())
    assert all(not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("make", [make_llama, make_gpt2, lambda: lora(make_llama())])
def test_nothing_of_a_pass_stays_in_memory(tokenizer: PreTrainedTokenizerFast, make: Callable[[], nn.Module]) -> None:
    """A hook that holds its own tensor would keep the graph alive, unseen by the garbage collector."""
    model = make()
    outputs: list[weakref.ref[torch.Tensor]] = []
    gradient_model = GradientModel(model, tokenizer)
    for module in model.modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_hook(lambda module, args, output: outputs.append(weakref.ref(output)))
    gradient_model.gradients(EXAMPLES)
    gc.collect()
    assert len(outputs) > 10
    assert [output for output in outputs if output() is not None] == []


def test_under_no_grad(tokenizer: PreTrainedTokenizerFast) -> None:
    gradient_model = GradientModel(make_llama(), tokenizer)
    expected = gradient_model.gradients(EXAMPLES)
    with torch.no_grad():
        assert np.array_equal(gradient_model.gradients(EXAMPLES).values, expected.values)


def test_frozen_layers_below_the_first_chosen_one_get_no_graph(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_llama()
    seen: list[bool] = []
    model.model.layers[0].register_forward_hook(lambda *call: seen.append(call[2].requires_grad))
    model.model.layers[1].register_forward_hook(lambda *call: seen.append(call[2].requires_grad))
    GradientModel(model, tokenizer, parameters=["model.layers.1.mlp.*"]).gradients(EXAMPLES[:2])
    assert seen == [False, True]


def test_half_precision_models_answer_in_float32(tokenizer: PreTrainedTokenizerFast) -> None:
    expected = expected_gradients(make_llama(), tokenizer)
    found = whole_gradients(make_llama().bfloat16(), tokenizer)
    cosine = torch.nn.functional.cosine_similarity(found, expected)
    assert float(cosine.min()) > 0.98


@pytest.mark.parametrize(
    ("parameters", "count"),
    [
        ("all", 20),
        (["model.norm.weight"], 1),
        (["*.q_proj.weight", "model.layers.0.mlp.*"], 5),
        (lambda name, parameter: parameter.dim() == 1, 5),
    ],
)
def test_choosing_parameters(tokenizer: PreTrainedTokenizerFast, parameters: Any, count: int) -> None:
    model = make_llama()
    model.requires_grad_(False)
    gradient_model = GradientModel(model, tokenizer, projection=None, parameters=parameters)
    assert len(gradient_model.space.parameters) == count
    chosen = {parameter.name for parameter in gradient_model.space.parameters}
    rows = [gradient_model.encode(example, 0) for example in EXAMPLES]
    model.requires_grad_(True)
    expected = loop_gradients(model, rows, [p for n, p in named_parameters(model).items() if n in chosen])
    found = torch.from_numpy(gradient_model.gradients(EXAMPLES).values)
    assert worst_relative_error(found, expected) < TOLERANCE


def test_parameters_that_match_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_llama()
    with pytest.raises(
        InvalidInput, match=r"no parameter matches 'model.norm.wight'; did you mean 'model.norm.weight'"
    ):
        GradientModel(model, tokenizer, parameters=["model.norm.wight"])
    model.requires_grad_(False)
    with pytest.raises(InvalidInput, match=r"chooses none of the model's 20 parameters"):
        GradientModel(model, tokenizer)
    with pytest.raises(InvalidInput, match='must be "trainable"'):
        GradientModel(model, tokenizer, parameters="al")


class Oddity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, 3, 4))


class Curved(nn.Module):
    """Looks like a norm, and is not linear in its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((24,), 0.7))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * torch.exp(self.weight)


def test_parameters_without_a_rule_are_refused_by_name(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_llama()
    model.oddity = Oddity()
    with pytest.raises(InvalidInput, match=r"no rule for the per-row gradients of oddity.scale in Oddity"):
        GradientModel(model, tokenizer)
    GradientModel(model, tokenizer, parameters=lambda name, _: "oddity" not in name).gradients(EXAMPLES[:1])
    model = make_llama()
    model.model.norm = Curved()
    with pytest.raises(InvalidInput, match=r"not an elementwise scaling .* model.norm.weight"):
        GradientModel(model, tokenizer).gradients(EXAMPLES[:1])


def test_disabled_adapters_are_noticed(tokenizer: PreTrainedTokenizerFast) -> None:
    model = lora(make_llama())
    gradient_model = GradientModel(model, tokenizer)
    with model.disable_adapter(), pytest.raises(InvalidInput, match="merged or disabled"):
        gradient_model.gradients(EXAMPLES[:1])
    assert len(gradient_model.gradients(EXAMPLES[:1])) == 1


def test_checkpointing(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_llama()
    expected = GradientModel(model, tokenizer).gradients(EXAMPLES)
    model._set_gradient_checkpointing(True, partial(checkpoint, use_reentrant=False))
    model.train()
    assert np.array_equal(GradientModel(model, tokenizer).gradients(EXAMPLES).values, expected.values)
    gradient_model = GradientModel(model, tokenizer)
    model._set_gradient_checkpointing(True, partial(checkpoint, use_reentrant=True))
    with pytest.raises(InvalidInput, match="reentrant gradient checkpointing"):
        gradient_model.gradients(EXAMPLES)
    with pytest.raises(InvalidInput, match="reentrant gradient checkpointing"):
        GradientModel(model, tokenizer)


def test_a_gradient_that_is_not_finite_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_llama()
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight")[tokenizer("Z")["input_ids"]] = float("nan")
    model.lm_head.weight = nn.Parameter(torch.randn(80, 24))
    with pytest.raises(InvalidInput, match="the gradient of row 2 holds NaN or infinity"):
        GradientModel(model, tokenizer).gradients([{"text": "fine"}, {"text": "good"}, {"text": "a Z"}])
