"""The client over the wire gives what calls in process give: same rows, same scores, same order.

One side is a real server fed by a real writer; the other the query engine on an in-memory view of the same arrays.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import covector
from covector.blocks import decode_key, encode_key
from covector.testing import ServerProcess
from covector.types import Key
from covector_server.query import engine
from covector_server.query.filter import parse_where
from covector_server.query.question import CheckpointChoice, Missing, Question, Reduce
from covector_server.storage.view import CollectionView
from covector_server.testing.memory import memory_collection

DIM = 24
ROWS = 300
SPACE = covector.Space(dim=DIM)
ETA = {"one": 0.5, "two": 2.0}


def drawn(seed: int, rows: int = ROWS) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, DIM)) * 10.0 ** rng.integers(-8, 9, (rows, 1))).astype(np.float32)


KEYS: list[Key] = [row if row % 2 else f"row {row}" for row in range(ROWS)]
METADATA: dict[Key, dict[str, Any]] = {
    key: {"source": ["books", "web", "code"][row % 3], "year": 1990 + row % 40} for row, key in enumerate(KEYS)
}
TEXTS = {key: f"the text of {key!r}" for key in KEYS if key != 7}
ORDERS = {"one": list(range(ROWS)), "two": [int(row) for row in np.random.default_rng(5).permutation(ROWS)[:250]]}
GRADIENTS = {"one": drawn(1), "two": drawn(2)}


def arrays(checkpoint: str) -> tuple[list[Key], npt.NDArray[np.float32]]:
    order = ORDERS[checkpoint]
    return [KEYS[row] for row in order], GRADIENTS[checkpoint][order]


@pytest.fixture(scope="module")
def here() -> CollectionView:
    return memory_collection(
        "c", SPACE, {name: arrays(name) for name in ORDERS}, texts=TEXTS, metadata=METADATA, eta=ETA
    )


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[covector.Collection]:
    data = tmp_path_factory.mktemp("congruence") / "store"
    with ServerProcess(data) as server, covector.connect(server.address) as client:
        collection = client.create_collection("c", SPACE)
        for name in ORDERS:
            keys, gradients = arrays(name)
            with collection.writer(name, eta=ETA[name]) as writer:
                for start in range(0, len(keys), 70):
                    part = keys[start : start + 70]
                    texts = [TEXTS.get(key) for key in part]
                    writer.add(part, gradients[start : start + 70], texts, [METADATA[key] for key in part])
        yield collection


WHERES: list[dict[str, Any] | None] = [
    None,
    {"source": "web"},
    {"source": {"in": ["web", "code"]}, "year": {"gte": 2000, "lt": 2010}},
    {"or": [{"year": 1990}, {"not": {"source": {"ne": "books"}}}]},
    {"year": {"gt": 9999}},
]


@pytest.mark.parametrize("scorer", ["dot", "cosine", "tracin"])
@pytest.mark.parametrize("where", WHERES, ids=str)
@pytest.mark.parametrize("names", [["one"], ["two"], ["one", "two"]], ids="+".join)
def test_queries_agree(
    here: CollectionView, there: covector.Collection, scorer: str, where: dict[str, Any] | None, names: list[str]
) -> None:
    queries = {name: drawn(10 + number, 3) for number, name in enumerate(names)}
    question = Question(
        vectors=np.stack([queries[name] for name in names]),
        checkpoints=[CheckpointChoice(name) for name in names],
        scorer=scorer,
        where=None if where is None else parse_where(json.dumps(where)),
    )
    expected = engine.top_k(here, question, 12)
    found = there.query(queries, k=12, scorer=scorer, where=where)
    assert found.exact
    assert len(found) == len(expected.results) == 3
    for hits, ends in zip(found, expected.results, strict=True):
        for side, end in ((hits.proponents, ends.proponents), (hits.opponents, ends.opponents)):
            assert [hit.key for hit in side] == [decode_key(key) for key in end.keys]
            np.testing.assert_array_equal([hit.score for hit in side], end.scores.astype(np.float32))
            assert [hit.text for hit in side] == [TEXTS.get(hit.key) for hit in side]
            assert [hit.metadata for hit in side] == [METADATA[hit.key] for hit in side]


@pytest.mark.parametrize("missing", ["omit", "zero"])
@pytest.mark.parametrize(("groups", "reduce"), [([0, 1, 0], None), ([0, 1, 0], "max"), (None, "mean")])
def test_groups_agree(
    here: CollectionView,
    there: covector.Collection,
    missing: Missing,
    groups: list[int] | None,
    reduce: Reduce | None,
) -> None:
    queries = {"one": drawn(10, 3), "two": drawn(11, 3)}
    question = Question(
        vectors=np.stack(list(queries.values())),
        checkpoints=[CheckpointChoice(name) for name in queries],
        groups=groups,
        reduce=reduce,
        missing=missing,
    )
    expected = engine.top_k(here, question, 5)
    found = there.query(queries, k=5, groups=groups, reduce=reduce, missing=missing)
    assert [[hit.key for hit in hits.opponents] for hits in found] == [
        [decode_key(key) for key in ends.opponents.keys] for ends in expected.results
    ]


@pytest.mark.parametrize("names", [["one"], ["one", "two"]], ids="+".join)
def test_scores_of_all_rows_are_those_of_float64(there: covector.Collection, names: list[str]) -> None:
    queries = {name: drawn(20 + number, 4) for number, name in enumerate(names)}
    keys, scores = there.scores(queries).to_numpy()
    present = [row for row in range(ROWS) if all(row in ORDERS[name] for name in names)]
    assert sorted(keys, key=encode_key) == sorted((KEYS[row] for row in present), key=encode_key)
    rows = [KEYS.index(key) for key in keys]
    judge = np.zeros((4, len(rows)))
    bound = np.zeros((4, len(rows)))
    for name in names:
        weight = ETA[name] if len(names) > 1 else 1.0
        stored = {row.key: row.gradient for row in there.get(keys, gradients=True, checkpoint=name)}
        decoded = np.stack([np.asarray(stored[key], dtype=np.float64) for key in keys])
        np.testing.assert_allclose(decoded, GRADIENTS[name][rows], rtol=2e-3, atol=0.01 * np.abs(decoded).max())
        judge += weight * queries[name].astype(np.float64) @ decoded.T
        norms = np.linalg.norm(queries[name].astype(np.float64), axis=1)[:, None] * np.linalg.norm(decoded, axis=1)
        bound += weight * norms
    assert np.all(np.abs(scores - judge) <= 2e-6 * bound)


def test_rows_counts_and_missing_agree(there: covector.Collection) -> None:
    assert there.count() == ROWS
    assert there.count(where={"source": "web"}) == ROWS // 3
    expected = [KEYS[row] for row in range(ROWS) if row not in ORDERS["two"]]
    assert there.missing([*KEYS, "nobody"], checkpoint="two") == [*expected, "nobody"]
    assert there.missing(["nobody"], checkpoint="three") == ["nobody"]
    row = there.get([7])[0]
    assert (row.key, row.text, row.metadata, row.gradient) == (7, None, METADATA[7], None)
    assert [(c.name, c.eta, c.row_count) for c in there.checkpoints()] == [("one", 0.5, 300), ("two", 2.0, 250)]
