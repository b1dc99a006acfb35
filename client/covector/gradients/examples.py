"""From examples to rows of tokens, and from rows to a padded batch.

How an example becomes tokens (stable: it is part of what a gradient means):

- ``{"text"}``: the tokenizer's own encoding of the text, with its special tokens, then the end-of-sequence token unless
  it is there already. Every token but the first is predicted.
- ``{"prompt", "response"}``: the encoding of the prompt with special tokens (an end-of-sequence token at its end is
  dropped), then that of the response without, then end of sequence. Only the response and that last token are
  predicted. The two are encoded apart and joined as they are: end the prompt with the separator you want.
- ``{"instruction", "input", "output"}`` (``input`` may be absent or empty): the prompt is ``instruction``, then a line
  break and ``input`` if there is one, then a line break; the response is ``output``.
- ``{"input_ids"}``, with ``labels`` (-100: not predicted; default: all) and ``attention_mask``: tokens as they are.
  Masked ones are removed; nothing is added.

With ``template="chat"`` the prompt is put through the tokenizer's chat template first, as one user message with the
opening of the answer; the end-of-sequence token closes the answer. A row longer than ``max_length`` keeps its
first ``max_length`` tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from covector.errors import InvalidInput

IGNORED = -100

Example = Mapping[str, Any]
Template = Literal["plain", "chat"]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A row without padding. ``labels[i]`` is token i if it is to be predicted from those before it, else -100."""

    tokens: list[int]
    labels: list[int]
    text: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded rows. tokens, mask, positions, targets: int64[rows, places]; ``targets[:, t]`` is what place t is to
    predict, or -100."""

    tokens: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor


class Encoder:
    """Turns examples into rows of tokens with one tokenizer."""

    def __init__(self, tokenizer: Any, *, max_length: int, template: Template) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._template = template
        self._eos = tokenizer.eos_token_id

    def encode(self, example: Example, row: object) -> TokenRow:
        """Raises InvalidInput, naming ``row``, for an unknown form or a row in which nothing is predicted."""
        if not isinstance(example, Mapping):
            raise InvalidInput(f'row {row}: an example is a dict such as {{"text": ...}}, not {type(example).__name__}')
        found = self._from_tokens(example, row) if "input_ids" in example else self._from_text(example, row)
        cut = TokenRow(found.tokens[: self._max_length], found.labels[: self._max_length], found.text)
        if all(label == IGNORED for label in cut.labels[1:]):
            raise InvalidInput(
                f"row {row} has no token to predict in its first {self._max_length} tokens (of {len(found.tokens)}); "
                "raise max_length, shorten its prompt, or leave it out",
                row=row,
            )
        return cut

    def _from_text(self, example: Example, row: object) -> TokenRow:
        pair = _prompt_and_response(example, row)
        if pair is None:
            tokens = self._closed(self._encode(_string(example, "text", row), special=True))
            return TokenRow(tokens, list(tokens), example["text"])
        prompt, response = pair
        opening = self._opening(prompt)
        answer = self._closed(self._encode(response, special=False))
        return TokenRow(opening + answer, [IGNORED] * len(opening) + answer, prompt + response)

    def _from_tokens(self, example: Example, row: object) -> TokenRow:
        tokens = _integers(example["input_ids"])
        labels = _integers(example["labels"]) if example.get("labels") is not None else tokens
        mask = _integers(example["attention_mask"]) if example.get("attention_mask") is not None else [1] * len(tokens)
        if not len(tokens) == len(labels) == len(mask):
            raise InvalidInput(
                f"row {row}: {len(tokens)} input_ids, {len(labels)} labels, attention_mask of {len(mask)}", row=row
            )
        tokens = [token for token, seen in zip(tokens, mask, strict=True) if seen]
        labels = [label for label, seen in zip(labels, mask, strict=True) if seen]
        text = example.get("text")
        if not isinstance(text, str):
            text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return TokenRow(tokens, labels, text)

    def _opening(self, prompt: str) -> list[int]:
        if self._template == "chat":
            messages = [{"role": "user", "content": prompt}]
            rendered = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            return self._encode(rendered, special=False)
        tokens = self._encode(prompt, special=True)
        return tokens[:-1] if tokens and tokens[-1] == self._eos else tokens

    def _encode(self, text: str, *, special: bool) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    def _closed(self, tokens: list[int]) -> list[int]:
        if self._eos is None or (tokens and tokens[-1] == self._eos):
            return tokens
        return [*tokens, self._eos]


def pad(rows: Sequence[TokenRow], *, side: str, pad_token: int, device: torch.device) -> Batch:
    """Pads rows to the longest, on ``side`` ("left" or "right"). What a pad is called never matters: the mask says."""
    places = max(len(row.tokens) for row in rows)
    tokens = torch.full((len(rows), places), pad_token)
    mask = torch.zeros_like(tokens)
    targets = torch.full_like(tokens, IGNORED)
    for index, row in enumerate(rows):
        length = len(row.tokens)
        start = places - length if side == "left" else 0
        tokens[index, start : start + length] = torch.tensor(row.tokens)
        mask[index, start : start + length] = 1
        targets[index, start : start + length - 1] = torch.tensor(row.labels[1:])
    positions = (mask.cumsum(1) - 1).clamp_(min=0)
    return Batch(tokens.to(device), mask.to(device), positions.to(device), targets.to(device))


def _prompt_and_response(example: Example, row: object) -> tuple[str, str] | None:
    """The two parts of an example, or None for one with a text alone."""
    if "prompt" in example and "response" in example:
        return _string(example, "prompt", row), _string(example, "response", row)
    if "instruction" in example and "output" in example:
        extra = _string(example, "input", row) if example.get("input") else ""
        prompt = _string(example, "instruction", row) + "\n" + (extra + "\n" if extra else "")
        return prompt, _string(example, "output", row)
    if "text" in example:
        return None
    raise InvalidInput(
        f'row {row} has the fields {sorted(map(str, example))}; give "text", or "prompt" and "response", or '
        '"instruction" (with "input") and "output", or "input_ids"',
        row=row,
    )


def _string(example: Example, name: str, row: object) -> str:
    value = example[name]
    if not isinstance(value, str):
        raise InvalidInput(f"row {row}: {name} is {type(value).__name__}, not a string", row=row)
    return value


def _integers(values: Any) -> list[int]:
    return [int(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]
