"""How examples become tokens, labels and padded batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.gradients.conftest import make_gpt2, make_llama
from transformers import PreTrainedTokenizerFast

from covector.errors import InvalidInput
from covector.gradients import GradientModel
from covector.gradients.examples import Encoder, TokenRow, pad

EOS = 1


def encode(
    tokenizer: PreTrainedTokenizerFast, example: Any, max_length: int = 512, template: Any = "plain"
) -> TokenRow:
    return Encoder(tokenizer, max_length=max_length, template=template).encode(example, "r")


def letters(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return [tokenizer.get_vocab()[letter] for letter in text]


def test_a_text_is_closed_and_predicted_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    row = encode(tokenizer, {"text": "abc"})
    assert row.tokens == row.labels == [*letters(tokenizer, "abc"), EOS]
    assert row.text == "abc"
    assert encode(tokenizer, {"text": "abc<eos>"}).tokens == row.tokens


def test_only_the_response_is_predicted(tokenizer: PreTrainedTokenizerFast) -> None:
    row = encode(tokenizer, {"prompt": "Hi ", "response": "you", "text": "not this"})
    assert row.tokens == [*letters(tokenizer, "Hi you"), EOS]
    assert row.labels == [-100] * 3 + [*letters(tokenizer, "you"), EOS]
    assert row.text == "Hi you"


@pytest.mark.parametrize(("extra", "prompt"), [({}, "Add\n"), ({"input": ""}, "Add\n"), ({"input": "1"}, "Add\n1\n")])
def test_instructions(tokenizer: PreTrainedTokenizerFast, extra: dict[str, str], prompt: str) -> None:
    row = encode(tokenizer, {"instruction": "Add", **extra, "output": "2"})
    assert row == encode(tokenizer, {"prompt": prompt, "response": "2"})


def test_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}? {{ m.content }}\n{% endfor %}A. "
    row = encode(tokenizer, {"prompt": "Hi", "response": "yes"}, template="chat")
    tokenizer.chat_template = None
    assert row.tokens == [*letters(tokenizer, "user? Hi\nA. yes"), EOS]
    assert row.labels[:-4] == [-100] * (len(row.tokens) - 4)


def test_tokens_are_taken_as_they_are(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = encode(tokenizer, {"input_ids": [4, 5, 6]})
    assert plain == TokenRow([4, 5, 6], [4, 5, 6], "c d e")
    for form in (torch.tensor, tuple):
        masked = {
            "input_ids": form([1, 4, 5, 6]),
            "attention_mask": form([0, 1, 1, 1]),
            "labels": form([9, -100, 5, 6]),
        }
        assert encode(tokenizer, masked) == TokenRow([4, 5, 6], [-100, 5, 6], "c d e")


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ("abc", "row r: an example is a dict"),
        ({"question": "a", "answer": "b"}, r"row r has the fields \['answer', 'question'\]; give \"text\""),
        ({"prompt": "a"}, 'give "text", or "prompt" and "response"'),
        ({"text": 3}, "row r: text is int, not a string"),
        ({"prompt": "abcdefghij", "response": "k"}, r"row r has no token to predict in its first 8 tokens \(of 12\)"),
        ({"input_ids": [3]}, "row r has no token to predict"),
        ({"input_ids": [3, 4], "labels": [3]}, "row r: 2 input_ids, 1 labels"),
    ],
)
def test_examples_that_cannot_be_read(tokenizer: PreTrainedTokenizerFast, example: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        encode(tokenizer, example, max_length=8)


def test_truncation_keeps_the_start(tokenizer: PreTrainedTokenizerFast) -> None:
    assert encode(tokenizer, {"text": "abcdef"}, max_length=3).tokens == letters(tokenizer, "abc")


def test_padding_on_either_side() -> None:
    rows = [TokenRow([5, 6, 7], [-100, 6, 7], ""), TokenRow([8, 9], [8, 9], "")]
    cpu = torch.device("cpu")
    right, left = (pad(rows, side=side, pad_token=1, device=cpu) for side in ("right", "left"))
    assert right.tokens.tolist() == [[5, 6, 7], [8, 9, 1]]
    assert right.mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert right.targets.tolist() == [[6, 7, -100], [9, -100, -100]]
    assert left.tokens.tolist() == [[5, 6, 7], [1, 8, 9]]
    assert left.mask.tolist() == [[1, 1, 1], [0, 1, 1]]
    assert left.positions.tolist() == [[0, 1, 2], [0, 0, 1]]
    assert left.targets.tolist() == [[6, 7, -100], [-100, 9, -100]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "logit"}, "output must be one of loss, margin, not 'logit'"),
        ({"reduction": "mean"}, "reduction must be one of token_mean, token_sum"),
        ({"template": "alpaca"}, "template must be one of plain, chat"),
        ({"max_length": 0}, "max_length must be an integer of at least 1"),
        ({"batch_size": 2.0}, "batch_size must be an integer of at least 1"),
    ],
)
def test_wrong_options(tokenizer: PreTrainedTokenizerFast, options: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        GradientModel(make_llama(), tokenizer, **options)


def test_one_example_without_a_list_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    alone: Any = {"text": "abc"}
    with pytest.raises(InvalidInput, match="examples is a list of dicts, not dict"):
        GradientModel(make_llama(), tokenizer).gradients(alone)


def test_no_examples(tokenizer: PreTrainedTokenizerFast) -> None:
    assert GradientModel(make_gpt2(), tokenizer).gradients([]).shape == (0, 4096)
