"""A tiny model and tokenizer made in code: the demo's path in seconds, without its point. It learns next to nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_UNKNOWN, _END = "<unknown>", "<end>"


def tiny_model(texts: Iterable[str]) -> tuple[Any, Any]:
    """A Llama of four layers with random weights, and a tokenizer that knows every word of ``texts``. The weights are
    drawn from torch's global generator: seed it first."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer(texts)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config), tokenizer


def _tokenizer(texts: Iterable[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(unk_token=_UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=[_UNKNOWN, _END], show_progress=False))
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=words, unk_token=_UNKNOWN, eos_token=_END, pad_token=_END)
