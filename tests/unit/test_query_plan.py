"""What a question is refused for, and what the message says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from covector.errors import InvalidInput, LimitExceeded, NotFound
from covector.types import GradientKind, Space
from covector_server.limits import Limits
from covector_server.query.engine import count_rows, top_k
from covector_server.query.question import CheckpointChoice, Question
from covector_server.testing.memory import MemoryCollection, memory_collection

BAD_SECOND = np.array([[[0, 0, 0], [0, np.inf, 0]]], dtype=np.float32)


@pytest.fixture(scope="module")
def view() -> MemoryCollection:
    rows = np.eye(3)
    return memory_collection(
        "resumes",
        Space(dim=3, architecture="gpt"),
        {"epoch-1": (["a", "b", "c"], rows), "epoch-2": (["c", "b", "a"], rows)},
        metadata={"a": {"year": 2020}, "b": {"year": 2021}, "d": {"year": 2021}},
        kinds={"epoch-1": GradientKind("loss", "token_mean", "none")},
        digests={"epoch-1": "1" * 64},
    )


def ask(view: MemoryCollection, *names: str, k: int = 2, digest: str | None = None, **changes: Any) -> None:
    vectors = changes.pop("vectors", np.ones((max(len(names), 1), 2, 3), dtype=np.float32))
    choices = [CheckpointChoice(name, digest) for name in names]
    top_k(view, Question(vectors=vectors, checkpoints=choices, **changes), k)


def test_a_sound_question_passes(view: MemoryCollection) -> None:
    ask(view, "epoch-1", space=view.space, kind=GradientKind("loss", "token_mean", "none"), digest="1" * 64)
    ask(view, "epoch-1", "epoch-2", groups=[0, 0])


@pytest.mark.parametrize(("names", "changes", "message"), [
    ((), {}, "several checkpoints; say which: 'epoch-1', 'epoch-2'"),
    (("epoch-1", "epoch-1"), {}, "a checkpoint is named twice"),
    (("epoch-1",), {"space": Space(dim=3, architecture="llama")}, "architecture: gpt here, llama there"),
    (("epoch-1",), {"kind": GradientKind(reduction="token_sum")}, "reduction is token_mean of the rows, token_sum"),
    (("epoch-1",), {"kind": GradientKind(correction="adam")}, "correction is none of the rows, adam of the query"),
    (("epoch-1",), {"digest": "2" * 64}, r"weights \(2{12}\.\.\.\) than checkpoint 'epoch-1' \(1{12}\.\.\."),
    (("epoch-1",), {"vectors": np.ones((1, 2, 4), dtype=np.float32)}, "the query has dim 4, collection"),
    (("epoch-1",), {"vectors": np.ones((2, 2, 3), dtype=np.float32)}, "vectors for 2 checkpoints, but"),
    (("epoch-1",), {"vectors": np.ones((1, 0, 3), dtype=np.float32)}, "no vectors"),
    (("epoch-1",), {"vectors": BAD_SECOND}, "query 1 at checkpoint 'epoch-1' holds NaN"),
    (("epoch-1",), {"groups": [0]}, "1 groups for 2 query vectors"),
    (("epoch-1",), {"groups": [0, 2]}, "no vector is in group 1"),
    (("epoch-1",), {"groups": [1, 1]}, "no vector is in group 0"),
    (("epoch-1",), {"k": 0}, "k must be at least 1"),
])  # fmt: skip
def test_what_is_refused(view: MemoryCollection, names: tuple[str, ...], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        ask(view, *names, **changes)


def test_unknown_names_come_with_the_near_ones(view: MemoryCollection) -> None:
    with pytest.raises(NotFound, match=r"no checkpoint 'epoch1' in 'resumes'; did you mean 'epoch-1'"):
        ask(view, "epoch1")
    with pytest.raises(NotFound, match="no scorer 'dott'; did you mean 'dot'"):
        ask(view, "epoch-1", scorer="dott")
    with pytest.raises(NotFound, match="no metadata field 'years'; did you mean 'year'"):
        ask(view, "epoch-1", where={"years": 1})
    with pytest.raises(NotFound, match="no checkpoints yet"):
        ask(memory_collection("c", Space(dim=3), {}))


def test_limits(view: MemoryCollection) -> None:
    with pytest.raises(LimitExceeded, match="hits=10000"):
        ask(view, "epoch-1", k=10_001)
    with pytest.raises(LimitExceeded, match="query_vectors=4096"):
        ask(view, "epoch-1", vectors=np.ones((1, 4097, 3), dtype=np.float32))


def test_counts(view: MemoryCollection) -> None:
    assert count_rows(view, None, limits=Limits()) == 4
    assert count_rows(view, {"year": 2021}, limits=Limits()) == 2
