"""Hits grouped by a metadata field: against plain numpy, in process and over the wire."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import covector
from covector.attribution.scoring import score
from covector.blocks import scale_rows
from covector.errors import InvalidInput, LimitExceeded, NotFound
from covector.types import GroupHits, Space
from covector_server.limits import Limits
from covector_server.query.engine import grouped
from covector_server.query.question import CheckpointChoice, Question
from covector_server.testing.memory import MemoryCollection, memory_collection

DIM, ROWS = 16, 120
KEYS: list[Any] = [f"row {row}" for row in range(ROWS)]
SOURCES = ["web", "books", "", "漢字", None]


def gradients() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ROWS, DIM)) * np.exp(np.random.default_rng(1).normal(size=(ROWS, 1)))


def metadata_of(row: int) -> dict[str, Any]:
    source = SOURCES[row * row % len(SOURCES)]
    return {"even": row % 2 == 0, "third": row % 3 + 0.5} | ({} if source is None else {"source": source})


def stored() -> np.ndarray:
    rows, scales = scale_rows(gradients())
    return rows.astype(np.float64) * scales[:, None]


def judged(scores: np.ndarray, field: str, k: int) -> list[tuple[Any, int, float, list[Any], list[Any]]]:
    """(value, rows, sum, keys of the top, keys of the bottom) of each value, the largest sum first."""
    rows_of = defaultdict(list)
    for row in range(len(scores)):
        rows_of[metadata_of(row).get(field)].append(row)
    found = []
    for value, rows in rows_of.items():
        order = sorted(rows, key=lambda row: scores[row])
        top, bottom = [KEYS[row] for row in order[::-1][:k]], [KEYS[row] for row in order[:k]]
        found.append((value, len(rows), float(scores[rows].sum()), top, bottom))
    return sorted(found, key=lambda group: -group[2])


def check(groups: tuple[GroupHits, ...], expected: list[tuple[Any, int, float, list[Any], list[Any]]]) -> None:
    assert [(group.value, group.row_count) for group in groups] == [one[:2] for one in expected]
    np.testing.assert_allclose(
        [group.score_sum for group in groups], [one[2] for one in expected], rtol=1e-5, atol=1e-5
    )
    for group, (_, _, _, top, bottom) in zip(groups, expected, strict=True):
        assert [hit.key for hit in group.proponents] == top
        assert [hit.key for hit in group.opponents] == bottom


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[covector.Collection]:
    data = tmp_path_factory.mktemp("store")
    command = [sys.executable, "-m", "covector_server", "--data", str(data), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        with covector.connect(server.stdout.readline().split()[-1]) as client:
            made = client.create_collection("grouped", Space(dim=DIM))
            with made.writer("e1") as writer:
                writer.add(KEYS, gradients(), metadata=[metadata_of(row) for row in range(ROWS)])
            yield made
        server.terminate()
        assert server.wait(30) == 0


@pytest.mark.parametrize("scorer", ["dot", "cosine"])
@pytest.mark.parametrize("field", ["source", "even", "third"])
def test_groups_are_those_of_numpy(collection: covector.Collection, field: str, scorer: str) -> None:
    queries = np.random.default_rng(2).normal(size=(2, DIM)).astype(np.float32)
    result = collection.query(queries, k=3, scorer=scorer, group_by=field)
    assert (len(result), result.scorer, result.exact) == (2, scorer, True)
    for hits, scores in zip(result, score(queries, stored(), scorer=scorer), strict=True):
        assert hits.proponents == hits.opponents == ()
        check(hits.groups, judged(scores, field, 3))
    hit = result[0].groups[0].proponents[0]
    assert hit.metadata == metadata_of(KEYS.index(hit.key))


def test_a_filter_and_a_reduction_come_first(collection: covector.Collection) -> None:
    queries = np.random.default_rng(3).normal(size=(4, DIM)).astype(np.float32)
    result = collection.query(queries, k=2, group_by="source", reduce="max", where={"even": True})
    scores = (queries.astype(np.float64) @ stored().T).max(axis=0)
    expected = []
    for value, _, _, top, _ in judged(scores, "source", ROWS):
        even = [key for key in top if KEYS.index(key) % 2 == 0]
        total = sum(scores[KEYS.index(key)] for key in even)
        expected.append((value, len(even), total, even[:2], even[::-1][:2]))
    check(result[0].groups, sorted(expected, key=lambda group: -group[2]))


def test_what_cannot_be_grouped_is_named(collection: covector.Collection) -> None:
    asked = np.ones(DIM)
    with pytest.raises(NotFound, match=r"no metadata field 'sorce'.*source"):
        collection.query(asked, group_by="sorce")
    with pytest.raises(InvalidInput, match="groups come without an offset"):
        collection.query(asked, group_by="source", offset=5)
    with pytest.raises(InvalidInput, match="group_by is the name of a metadata field"):
        collection.query(asked, group_by="")


def view_of(field_values: list[Any]) -> MemoryCollection:
    rows = np.random.default_rng(4).normal(size=(len(field_values), DIM))
    keys: list[covector.types.Key] = list(range(len(field_values)))
    metadata = {key: {"f": value} for key, value in zip(keys, field_values, strict=True) if value is not None}
    return memory_collection("c", Space(dim=DIM), {"a": (keys, rows), "b": (keys[::-1], rows)}, metadata=metadata)


def question(view: MemoryCollection) -> Question:
    vectors = np.random.default_rng(5).normal(size=(2, 1, DIM)).astype(np.float32)
    return Question(vectors=vectors, checkpoints=[CheckpointChoice("a"), CheckpointChoice("b")])


def test_limits_hold_over_all_groups() -> None:
    view = view_of(["a", "b", "c", None])
    with pytest.raises(LimitExceeded, match="result_hits=39"):
        grouped(view, question(view), 5, "f", limits=Limits(result_hits=39))
    with pytest.raises(LimitExceeded, match="query_groups=2"):
        grouped(view, question(view), 5, "f", limits=Limits(query_groups=2))


def test_several_checkpoints_are_summed_before_they_are_grouped() -> None:
    view = view_of([value for value in "abcab" for _ in range(7)])
    answer = grouped(view, question(view), 40, "f")
    ungrouped = {
        row_id: total
        for group in answer.results[0]
        for row_id, total in zip(
            group.ends.proponents.row_ids.tolist(), group.ends.proponents.scores.tolist(), strict=True
        )
    }
    assert sorted(ungrouped) == list(range(35))
    for group in answer.results[0]:
        members = [row_id for row_id in range(35) if "abcab"[row_id // 7] == group.value]
        assert group.row_count == len(members)
        assert group.score_sum == pytest.approx(sum(ungrouped[row_id] for row_id in members), rel=1e-5)


def test_the_command_prints_groups(collection: covector.Collection, tmp_path: Any) -> None:
    np.save(tmp_path / "q.npy", np.random.default_rng(2).normal(size=DIM).astype(np.float32))
    command = [sys.executable, "-m", "covector.cli", "query", "grouped", "--to", collection._connection.address]
    command += ["--vector", str(tmp_path / "q.npy"), "-k", "1", "--group-by", "even"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split()[:2] for line in lines[-2:]] in (
        [["True", "60"], ["False", "60"]],
        [["False", "60"], ["True", "60"]],
    )
