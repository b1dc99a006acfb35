"""Questions over the wire against plain numpy: the client and a real server together."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import covector
from covector.blocks import scale_rows
from covector.errors import AlreadyExists, Conflict, InvalidInput, NotFound
from covector.inputs import Origin
from covector.queries import Asking, Rules, spec
from covector.types import GradientKind, Gradients, Space

DIM, ROWS = 40, 90
SPACE = Space(dim=DIM, architecture="tiny")
ETA = {"e1": 1.0, "e2": 0.25}
KEYS: list[Any] = [row if row % 2 else f"row {row}" for row in range(ROWS)]
KIND = GradientKind("loss", "token_mean", "none")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[covector.Client]:
    data = tmp_path_factory.mktemp("store")
    command = [sys.executable, "-m", "covector_server", "--data", str(data), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        with covector.connect(server.stdout.readline().split()[-1]) as connected:
            yield connected
        server.terminate()
        assert server.wait(30) == 0


def gradients_at(checkpoint: str, count: int = ROWS) -> Gradients:
    rng = np.random.default_rng(int(checkpoint[1:]))
    values = rng.normal(size=(count, DIM)) * np.exp(rng.normal(size=(count, 1)))
    return Gradients(values.astype(np.float32), SPACE, KIND, f"digest-{checkpoint}")


@pytest.fixture(scope="module")
def collection(client: covector.Client) -> covector.Collection:
    """Rows at two checkpoints, in another order in each; the last ten are at e1 only, five more have no gradient."""
    made = client.create_collection("asked", SPACE)
    for name, count in (("e1", ROWS), ("e2", ROWS - 10)):
        order = np.random.default_rng(7).permutation(count)
        with made.writer(name, eta=ETA[name]) as writer:
            metadata = [{"half": int(row) * 2 // ROWS} for row in order]
            writer.add([KEYS[row] for row in order], gradients_at(name)[order], metadata=metadata)
    made.add_rows([f"bare {row}" for row in range(5)], [f"bare text {row}" for row in range(5)])
    return made


def stored_at(checkpoint: str, count: int = ROWS) -> np.ndarray:
    """float64[count, dim]: the first rows as the server has them, after scaling and rounding."""
    rows, scales = scale_rows(gradients_at(checkpoint).values[:count])
    return rows.astype(np.float64) * scales[:, None]


def judged(scores: np.ndarray, k: int) -> tuple[list[Any], list[Any]]:
    """The keys of the top and of the bottom k."""
    order = np.argsort(scores)
    return [KEYS[row] for row in order[::-1][:k]], [KEYS[row] for row in order[:k]]


def question(checkpoint: str, count: int = 3) -> Gradients:
    values = np.random.default_rng(99).normal(size=(count, DIM)).astype(np.float32)
    return Gradients(values, SPACE, KIND, f"digest-{checkpoint}")


def test_one_checkpoint(collection: covector.Collection) -> None:
    rows, asked = stored_at("e1"), question("e1")
    result = collection.query(asked, k=4, scorer="cosine", checkpoints="e1")
    cosine = asked.values @ rows.T / np.linalg.norm(rows, axis=1) / np.linalg.norm(asked.values, axis=1)[:, None]
    for scores, hits in zip(cosine, result, strict=True):
        assert ([hit.key for hit in hits.proponents], [hit.key for hit in hits.opponents]) == judged(scores, 4)
        np.testing.assert_allclose([hit.score for hit in hits.proponents], np.sort(scores)[::-1][:4], atol=1e-6)
    assert (result.exact, result.scorer, result.index, result.fit) == (True, "cosine", None, None)
    assert [stage.name for stage in result.stages] == ["filter", "scan", "rescore"]


def test_several_checkpoints_sum_by_eta(collection: covector.Collection) -> None:
    asked = {name: question(name, 1) for name in ETA}
    rows = {name: stored_at(name, ROWS - 10) for name in ETA}
    scores = np.sum([ETA[name] * (rows[name] @ asked[name].values[0]) for name in ETA], axis=0)
    size = np.sum([ETA[name] * np.linalg.norm(rows[name], axis=1).max() * 10 for name in ETA])
    (hits,) = collection.query(asked, 5)
    assert ([hit.key for hit in hits.proponents], [hit.key for hit in hits.opponents]) == judged(scores, 5)
    keys, found = collection.scores(asked).to_numpy()
    by_key = dict(zip(keys, found[0].tolist(), strict=True))
    assert set(by_key) == set(KEYS[: ROWS - 10])
    np.testing.assert_allclose([by_key[key] for key in KEYS[: ROWS - 10]], scores, atol=1e-6 * size)
    assert set(KEYS) <= set(collection.scores(asked, missing="zero").to_numpy()[0])


def test_groups_and_reduce(collection: covector.Collection) -> None:
    asked = question("e1").values
    plain = collection.scores(asked, checkpoints="e1").to_numpy()[1]
    for arguments, expected in (
        ({"groups": ["b", "a", "b"]}, np.stack([(plain[0] + plain[2]) / 2, plain[1]])),
        ({"reduce": "mean"}, plain.mean(axis=0)[None]),
        ({"reduce": "max"}, plain.max(axis=0)[None]),
        ({"groups": [1, 2, 1], "reduce": "max"}, np.maximum((plain[0] + plain[2]) / 2, plain[1])[None]),
    ):
        found: Any = collection.scores(asked, checkpoints="e1", **arguments)
        np.testing.assert_allclose(found.to_numpy()[1], expected, atol=1e-4)


def test_scores_stream_in_blocks_and_may_be_read_again(collection: covector.Collection) -> None:
    scores = collection.scores(question("e1"), where={"half": 1}, checkpoints="e1")
    blocks = list(scores)
    assert sum(len(keys) for keys, _ in blocks) == ROWS // 2
    assert all(block.shape == (3, len(keys)) and block.dtype == np.float32 for keys, block in blocks)
    assert [keys for keys, _ in scores] == [keys for keys, _ in blocks]
    keys, none = collection.scores(question("e1"), where={"half": 9}, checkpoints="e1").to_numpy()
    assert (keys, none.shape) == ([], (3, 0))


def test_get_count_missing_checkpoints(collection: covector.Collection) -> None:
    rows = collection.get([KEYS[85], "bare 1", KEYS[2]], gradients=True, checkpoint="e2")
    assert [row.key for row in rows] == [KEYS[85], "bare 1", KEYS[2]]
    assert [row.text for row in rows] == [None, "bare text 1", None]
    assert [row.metadata for row in rows] == [{"half": 1}, None, {"half": 0}]
    assert rows[0].gradient is None
    assert rows[2].gradient is not None
    expected = gradients_at("e2").values[2]
    np.testing.assert_allclose(rows[2].gradient, expected, atol=1e-3 * np.abs(expected).max())
    assert collection.get([KEYS[2]])[0].gradient is None
    assert collection.count() == ROWS + 5
    assert collection.count({"half": 0}) == ROWS // 2
    assert collection.missing([*KEYS, "new"], checkpoint="e2") == [*KEYS[ROWS - 10 :], "new"]
    assert collection.missing(["x", 1], checkpoint="not made yet") == ["x", 1]
    assert [(info.name, info.eta, info.kind, info.row_count) for info in collection.checkpoints()] == [
        ("e1", 1.0, KIND, ROWS),
        ("e2", 0.25, KIND, ROWS - 10),
    ]
    assert collection.add_rows(["bare 1"], ["bare text 1"]) == 1


def test_publish(collection: covector.Collection) -> None:
    operation = collection.publish()
    assert operation.wait() == {"e1": ROWS, "e2": ROWS - 10}
    assert operation.status == "succeeded"
    assert [info.published_row_count for info in collection.checkpoints()] == [ROWS, ROWS - 10]


@pytest.mark.parametrize(
    ("queries", "arguments", "error", "message"),
    [
        (question("e1"), {}, InvalidInput, "e1"),
        (question("e1"), {"checkpoints": ["e1", "e2"]}, InvalidInput, r"give each its own queries: \{'e1': ...,"),
        (question("e1"), {"checkpoints": "e2"}, covector.CovectorError, "weights"),
        (question("e1"), {"checkpoints": "e3"}, NotFound, "e3"),
        (question("e1"), {"checkpoints": "e1", "scorer": "cosinus"}, NotFound, "did you mean 'cosine'"),
        (question("e1"), {"checkpoints": "e1", "where": {"haf": 1}}, NotFound, "did you mean 'half'"),
        (question("e1"), {"checkpoints": "e1", "where": {"half": float("nan")}}, InvalidInput, "where holds"),
        (question("e1"), {"checkpoints": "e1", "groups": [1]}, InvalidInput, "groups has 1 labels for 3 queries"),
        (question("e1"), {"checkpoints": "e1", "reduce": "sum"}, InvalidInput, "one of 'mean', 'max', not 'sum'"),
        (question("e1"), {"checkpoints": "e1", "missing": "no"}, InvalidInput, "one of 'omit', 'zero', not 'no'"),
        (question("e1"), {"checkpoints": []}, InvalidInput, "no checkpoint is named"),
        (question("e1"), {"checkpoints": ["e1", "e1"]}, InvalidInput, "named twice"),
        ({"e1": question("e1"), "e2": question("e2", 1)}, {}, InvalidInput, "as many queries"),
        ({"e1": question("e1")}, {"checkpoints": ["e2"]}, InvalidInput, "leave checkpoints out"),
        (np.full(DIM, np.nan), {"checkpoints": "e1"}, InvalidInput, "vector 0 holds NaN"),
        (np.ones(3), {"checkpoints": "e1"}, InvalidInput, r"shape \[3\]"),
        (Gradients(np.ones((1, DIM), np.float32), Space(dim=DIM)), {"checkpoints": "e1"}, InvalidInput, "architecture"),
        (
            Gradients(np.ones((1, DIM), np.float32), SPACE, GradientKind(correction="adam")),
            {"checkpoints": "e1"},
            InvalidInput,
            "correction",
        ),
    ],
)
def test_wrong_questions(
    collection: covector.Collection, queries: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        collection.query(queries, **arguments)
    with pytest.raises(error, match=message):
        collection.scores(queries, **arguments).to_numpy()


def test_wrong_rows(collection: covector.Collection, client: covector.Client) -> None:
    with pytest.raises(Conflict, match="eta"), collection.writer("e1", eta=3.0) as writer:
        writer.add(["new"], gradients_at("e1", 1))
    with pytest.raises(Conflict, match="weights"), collection.writer("e1") as writer:
        writer.add(["new"], gradients_at("e2", 1))
    with pytest.raises(NotFound, match="nobody"):
        collection.get(["nobody"])
    with pytest.raises(AlreadyExists, match="exist_ok"):
        client.create_collection("asked", SPACE)
    assert client.create_collection("asked", SPACE, exist_ok=True).space == SPACE
    with pytest.raises(InvalidInput, match=r"a covector.Space, such as Space\(dim=4096\), not 4096"):
        client.create_collection("other", 4096)  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="did you mean 'asked'"):
        client.collection("askd")


def test_a_conflicting_key_is_refused_ignored_or_replaced(client: covector.Client) -> None:
    made = client.create_collection("conflicts", Space(dim=2))
    for policy, value, expected in (("error", 1.0, 1.0), ("ignore", 2.0, 1.0), ("replace", 3.0, 3.0)):
        with made.writer("e", on_conflict=policy) as writer:  # type: ignore[arg-type]
            writer.add(["a"], [[value, value]])
        assert writer.acknowledged == 1
        (row,) = made.get(["a"], gradients=True)
        assert row.gradient is not None
        assert row.gradient.tolist() == [expected, expected]
    with pytest.raises(Conflict, match="'a'"), made.writer("e") as writer:
        writer.add(["a"], [[4.0, 4.0]])
    assert client.delete_collection("conflicts") == 1
    with pytest.raises(NotFound):
        made.count()


def test_a_large_query_goes_in_parts() -> None:
    vectors = np.random.default_rng(0).normal(size=(700, 1000)).astype(np.float32)
    asked = Asking(("e1",), (vectors,), (Origin(),))
    parts = [part.data for part in asked.parts()]
    assert max(map(len, parts)) <= 1 << 20
    assert b"".join(parts) == vectors.tobytes()
    assert spec("c", asked, Rules(groups=list("ab") * 350)).groups[:4] == [0, 1, 0, 1]
