"""From a data set to a writer: only rows that have no gradient yet, in windows, rows of like length together."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count, islice
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from covector.errors import InvalidInput
from covector.gradients.examples import Example
from covector.progress import Bar
from covector.types import Gradients, Key, Metadata

if TYPE_CHECKING:
    from covector.gradients.model import GradientModel

WINDOW_ROWS = 4096
"""Rows that are looked up, tokenised and sorted by length at once."""


class GradientWriter(Protocol):
    """What ``collect`` needs of a writer; ``collection.writer(checkpoint)`` is one."""

    def add(
        self,
        keys: Sequence[Key],
        gradients: Gradients,
        texts: Sequence[str | None] | None = None,
        metadata: Sequence[Metadata | None] | None = None,
        trak_q: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """Takes rows of gradients, to be stored."""

    def missing(self, keys: Sequence[Key]) -> Sequence[Key]:
        """Those of ``keys`` that have no gradient at the writer's checkpoint yet."""


@dataclass(slots=True)
class CollectReport:
    """What a collection run did. ``loss``: the mean loss a token of the rows it added, nan if there were none."""

    row_count: int = 0
    nll: list[npt.NDArray[np.float32]] = field(default_factory=list)

    @property
    def loss(self) -> float:
        return float(np.concatenate(self.nll).mean()) if self.nll else float("nan")


class RowCounter:
    """Counts rows on a bar, with their rate and the time left. ``shown=False`` says nothing."""

    def __init__(self, total: int | None, *, shown: bool) -> None:
        self._bar = Bar("gradients") if shown else None
        self._total = total
        self._done = self._skipped = 0
        self._began_s = time.monotonic()

    def skip(self, rows: int) -> None:
        """Counts rows that were there already; they do not count for the rate."""
        self._skipped += rows
        if rows:
            self._show()

    def advance(self, rows: int) -> None:
        """Counts finished rows."""
        self._done += rows
        self._show()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _show(self) -> None:
        if self._bar is None:
            return
        reached = self._done + self._skipped
        rate = self._done / max(time.monotonic() - self._began_s, 1e-9)
        left = f", {(self._total - reached) / rate:.0f} s left" if self._total and rate else ""
        there = f", {self._skipped} there already" if self._skipped else ""
        self._bar.show(reached, self._total, f"{rate:.1f} rows/s{left}{there}")


def collect_rows(
    model: GradientModel,
    examples: Iterable[Example],
    writer: GradientWriter,
    *,
    keys: Sequence[Key] | None,
    progress: bool,
) -> CollectReport:
    """Adds to ``writer`` the gradients that it does not have. See ``GradientModel.collect``."""
    digest = model.weights_digest()
    report = CollectReport()
    with closing(RowCounter(_length(examples, keys), shown=progress)) as counter:
        for window in _windows(examples, keys):
            missing = set(writer.missing([key for key, _ in window]))
            todo = [(key, example) for key, example in window if key in missing]
            counter.skip(len(window) - len(todo))
            _collect_window(model, todo, writer, digest, report, counter)
    return report


def _collect_window(
    model: GradientModel,
    window: Sequence[tuple[Key, Example]],
    writer: GradientWriter,
    digest: str,
    report: CollectReport,
    counter: RowCounter,
) -> None:
    rows = [model.encode(example, repr(key)) for key, example in window]
    for batch in model.batches(rows):
        keys = [window[index][0] for index in batch]
        answers = model.answer([rows[index] for index in batch], [repr(key) for key in keys])
        gradients = model.wrap(answers.values, answers.trak_q, digest)
        texts = [rows[index].text for index in batch]
        metadata: list[Metadata | None] = [window[index][1].get("metadata") for index in batch]
        writer.add(keys, gradients, texts=texts, metadata=metadata if any(metadata) else None, trak_q=gradients.trak_q)
        report.row_count += len(batch)
        report.nll.append(answers.nll)
        counter.advance(len(batch))


def _windows(examples: Iterable[Example], keys: Sequence[Key] | None) -> Iterator[list[tuple[Key, Example]]]:
    pairs = zip(count() if keys is None else keys, examples, strict=False)
    while window := list(islice(pairs, WINDOW_ROWS)):
        yield window


def _length(examples: Iterable[Example], keys: Sequence[Key] | None) -> int | None:
    """The number of examples if it is known. Raises InvalidInput if keys are not as many."""
    if isinstance(examples, str | Mapping):
        raise InvalidInput(f"examples is a list of dicts, not {type(examples).__name__}; put it in a list")
    known = len(examples) if isinstance(examples, Sized) else None
    if keys is not None and known is not None and len(keys) != known:
        raise InvalidInput(f"{len(keys)} keys for {known} examples; give one key an example")
    return known if known is not None or keys is None else len(keys)
