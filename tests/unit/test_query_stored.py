"""Stored rows as queries, every row as its own query, and pages: against plain numpy, in process and over the wire."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import covector
from covector.blocks import scale_rows
from covector.errors import InvalidInput, LimitExceeded, NotFound
from covector.types import Space
from covector_server.query.engine import self_influence, top_k
from covector_server.query.question import CheckpointChoice, Question
from covector_server.query.stored_queries import with_stored_vectors
from covector_server.testing.memory import memory_collection

DIM, ROWS = 24, 60
ETA = {"e1": 1.0, "e2": 0.25}
KEYS: list[Any] = [row if row % 2 else f"row {row}" for row in range(ROWS)]
NO_VECTORS = np.empty((0, 0, 0), dtype=np.float32)


def gradients_at(checkpoint: str) -> np.ndarray:
    rng = np.random.default_rng(int(checkpoint[1:]))
    return rng.normal(size=(ROWS, DIM)) * np.exp(3 * rng.normal(size=(ROWS, 1)))


def stored_at(checkpoint: str) -> np.ndarray:
    rows, scales = scale_rows(gradients_at(checkpoint))
    return rows.astype(np.float64) * scales[:, None]


def own_scores(names: list[str], scorer: str, present: int = ROWS) -> np.ndarray:
    """float64[present]: each row for itself, summed by eta where there are several checkpoints or for tracin."""
    total = np.zeros(present)
    for name in names:
        squares = (stored_at(name)[:present] ** 2).sum(axis=1)
        weight = ETA[name] if len(names) > 1 or scorer == "tracin" else 1.0
        total += weight * (np.ones(present) if scorer == "cosine" else squares)
    return total


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[covector.Collection]:
    """At e2 the last ten rows are missing."""
    data = tmp_path_factory.mktemp("store")
    command = [sys.executable, "-m", "covector_server", "--data", str(data), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        with covector.connect(address) as client:
            made = client.create_collection("asked", Space(dim=DIM))
            for name, count in (("e1", ROWS), ("e2", ROWS - 10)):
                with made.writer(name, eta=ETA[name]) as writer:
                    metadata = [{"half": row * 2 // ROWS} for row in range(count)]
                    writer.add(KEYS[:count], gradients_at(name)[:count], metadata=metadata)
            yield made
        server.terminate()
        assert server.wait(30) == 0


@pytest.mark.parametrize("names", [["e1"], ["e2"], ["e1", "e2"]])
def test_stored_rows_ask_as_their_gradients_do(collection: covector.Collection, names: list[str]) -> None:
    asked = [KEYS[4], KEYS[7], KEYS[4]]
    found = collection.query(keys=asked, k=5, scorer="cosine", checkpoints=names)
    gradients = {name: stored_at(name)[[4, 7, 4]].astype(np.float32) for name in names}
    expected = collection.query(gradients, k=5, scorer="cosine")
    assert found.hits == expected.hits
    assert [hits.proponents[0].key for hits in found] == asked


def test_stored_rows_may_be_grouped_and_ask_for_all_scores(collection: covector.Collection) -> None:
    keys, scores = collection.scores(keys=KEYS[:4], checkpoints="e1", groups=["a", "a", "b", "b"]).to_numpy()
    rows = stored_at("e1")
    queries = rows[:4].astype(np.float32).reshape(2, 2, DIM).mean(axis=1)
    assert keys == KEYS
    reach = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(rows, axis=1)
    assert (np.abs(scores - queries @ rows.T) <= 1e-5 * reach).all()
    (mean,) = collection.query(keys=KEYS[:4], k=3, checkpoints="e1", reduce="mean")
    order = np.argsort(-(rows[:4].mean(axis=0) @ rows.T))
    assert [hit.key for hit in mean.proponents] == [KEYS[row] for row in order[:3]]


def test_what_cannot_be_a_query_is_named(collection: covector.Collection) -> None:
    with pytest.raises(NotFound, match="no row 'nobody' in 'asked'"):
        collection.query(keys=["nobody"], checkpoints="e1")
    with pytest.raises(InvalidInput, match=f"row {KEYS[59]!r} has no gradient at checkpoint 'e2'"):
        collection.query(keys=[KEYS[1], KEYS[59]], checkpoints="e2")
    with pytest.raises(InvalidInput, match="several checkpoints; say which"):
        collection.query(keys=[KEYS[1]])
    with pytest.raises(InvalidInput, match="no keys are given"):
        collection.query(keys=[])
    with pytest.raises(InvalidInput, match="give vectors, or keys"):
        collection.query(np.ones(DIM), keys=[KEYS[1]], checkpoints="e1")
    with pytest.raises(InvalidInput, match="nothing is asked"):
        collection.query(checkpoints="e1")
    with pytest.raises(InvalidInput, match="write keys="):
        collection.query(keys="row 4", checkpoints="e1")
    with pytest.raises(LimitExceeded, match="query_vectors=4096"):
        collection.query(keys=[KEYS[0]] * 4097, checkpoints="e1")


@pytest.mark.parametrize("scorer", ["dot", "cosine", "tracin"])
@pytest.mark.parametrize("names", [["e1"], ["e1", "e2"]])
def test_self_influence_is_what_a_row_scores_for_itself(
    collection: covector.Collection, names: list[str], scorer: str
) -> None:
    keys, scores = collection.self_influence(scorer=scorer, checkpoints=names).to_numpy()
    present = ROWS - 10 if "e2" in names else ROWS
    assert keys == KEYS[:present]
    np.testing.assert_allclose(scores[0], own_scores(names, scorer, present), rtol=1e-6)


def test_self_influence_keeps_filters_and_missing(collection: covector.Collection) -> None:
    keys, scores = collection.self_influence(checkpoints=["e1", "e2"], missing="zero", where={"half": 1}).to_numpy()
    assert keys == KEYS[ROWS // 2 :]
    expected = own_scores(["e1"], "tracin")
    expected[: ROWS - 10] = own_scores(["e1", "e2"], "dot", ROWS - 10)
    np.testing.assert_allclose(scores[0], expected[ROWS // 2 :], rtol=1e-6)
    with pytest.raises(NotFound, match="no checkpoint 'e9'"):
        collection.self_influence(checkpoints="e9").to_numpy()


def test_self_influence_of_norms_past_float32_stays_finite() -> None:
    rows = np.array([[1e30, 0.0], [0.0, 0.0], [1e-30, 1e-30]])
    view = memory_collection("c", Space(dim=2), {"a": (["big", "zero", "small"], rows)})
    (block,) = self_influence(view, Question(vectors=NO_VECTORS)).blocks
    assert block.scores.tolist() == [[float(np.finfo(np.float32).max), 0.0, 0.0]]
    (block,) = self_influence(view, Question(vectors=NO_VECTORS, scorer="cosine")).blocks
    np.testing.assert_allclose(block.scores, [[1.0, 0.0, 1.0]], rtol=1e-6)


@pytest.mark.parametrize("page", [1, 7, 25])
def test_pages_laid_end_to_end_are_the_whole(collection: covector.Collection, page: int) -> None:
    asked = np.random.default_rng(5).normal(size=DIM)
    (whole,) = collection.query(asked, k=ROWS, checkpoints="e1")
    for end in ("proponents", "opponents"):
        pages = [
            collection.query(asked, k=page, offset=start, checkpoints="e1") for start in range(0, ROWS + page, page)
        ]
        assert [hit for result in pages for hit in getattr(result[0], end)] == list(getattr(whole, end))


def test_pages_end_where_the_limit_is(collection: covector.Collection) -> None:
    with pytest.raises(LimitExceeded, match="hits=10000"):
        collection.query(np.ones(DIM), k=10, offset=9_991, checkpoints="e1")
    with pytest.raises(InvalidInput, match="offset is an integer of at least 0"):
        collection.query(np.ones(DIM), offset=-1, checkpoints="e1")


def test_a_stored_query_states_the_kind_of_its_rows() -> None:
    kind = covector.types.GradientKind("loss", "token_mean", "adam")
    view = memory_collection("c", Space(dim=2), {"a": (["k"], np.ones((1, 2)))}, kinds={"a": kind})
    question = with_stored_vectors(view, Question(vectors=NO_VECTORS, checkpoints=[CheckpointChoice("a")]), [b"\x02k"])
    assert question.kind == kind
    assert top_k(view, question, 1).results[0].proponents.keys == [b"\x02k"]


def test_the_command_asks_by_key(collection: covector.Collection, tmp_path: Path) -> None:
    address = collection._connection.address
    command = [sys.executable, "-m", "covector.cli", "query", "asked", "--to", address, "--scorer", "cosine"]
    command += ["--checkpoint", "e1"]
    first = subprocess.run([*command, "--key", "7", "-k", "2"], capture_output=True, text=True, check=True).stdout
    assert first.splitlines()[4].split()[2] == "7"  # an integer key, as there is no string "7"
    second = subprocess.run(
        [*command, "--key", "7", "-k", "1", "--offset", "1"], capture_output=True, text=True, check=True
    ).stdout
    assert second.splitlines()[4].split() == first.splitlines()[5].split()
