"""Tiny models made from configurations, with a tokenizer of single letters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,?\n0123456789"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """More threads only get in each other's way with models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter; padding is end of sequence, as in SmolLM2."""
    vocabulary = {"<unk>": 0, "<eos>": 1, **{letter: index for index, letter in enumerate(LETTERS, start=2)}}
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=letters, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>", padding_side="right"
    )


def make_llama(**changes: Any) -> PreTrainedModel:
    """RMSNorm, grouped-query attention, tied embeddings."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": 80, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True,
        "bos_token_id": None, "eos_token_id": 1, "pad_token_id": None,
    }  # fmt: skip
    return _shaken(LlamaForCausalLM(LlamaConfig(**{**settings, **changes})))


def make_gpt2(**changes: Any) -> PreTrainedModel:
    """LayerNorm, Conv1D, biases, learnt positions, dropout in the configuration."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": 80, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 1,
        "eos_token_id": 1,
    }  # fmt: skip
    return _shaken(GPT2LMHeadModel(GPT2Config(**{**settings, **changes})))


def _shaken(model: PreTrainedModel) -> PreTrainedModel:
    """Weights large enough that attention, norms and biases all matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


EXAMPLES: list[dict[str, Any]] = [
    {"text": "The sun is a star."},
    {"prompt": "Who are you? ", "response": "A row of letters, no more."},
    {"instruction": "Add", "input": "1 and 2", "output": "3"},
    {"text": "ab"},
    {"instruction": "Sing a very long song about the sea and the wind", "output": "La la la"},
    {"input_ids": [5, 9, 1, 7, 1, 1], "labels": [5, -100, 1, 7, 1, -100]},
    {"input_ids": [1, 1, 1, 30, 31, 32, 33], "attention_mask": [0, 0, 0, 1, 1, 1, 1]},
    {"prompt": "", "response": "nothing before"},
]
"""Every form, mixed lengths; token 1 is both padding and end of sequence."""
