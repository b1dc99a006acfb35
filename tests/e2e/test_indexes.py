"""Indexes as their users meet them: through the client, the command line, and offline beside a running server."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.index_rig import decaying

import covector
from covector.cli import main
from covector.errors import Conflict, InvalidInput, NotFound
from covector.testing import ServerProcess

DIM = 512
ROWS = decaying(20_000, DIM)
QUERIES = decaying(5, DIM, seed=5)


@pytest.fixture(scope="module")
def full_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 20,000 rows that no server has open; tests copy it."""
    data = tmp_path_factory.mktemp("full") / "store"
    with ServerProcess(data, arguments=["--shard-mib", "4"]) as server, covector.connect(server.address) as client:
        collection = client.create_collection("c", covector.Space(dim=DIM))
        with collection.writer("epoch-1") as writer:
            writer.add(list(range(len(ROWS))), ROWS, metadata=[{"half": row % 2} for row in range(len(ROWS))])
    return data


@pytest.fixture
def data(full_store: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-a", str(full_store), str(tmp_path / "store")], check=True)
    return tmp_path / "store"


@pytest.fixture
def server(data: Path) -> Iterator[ServerProcess]:
    with ServerProcess(data) as running:
        yield running


def covector_index(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "covector.cli", "index", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def shares(collection: covector.Collection, **given: Any) -> float:
    found, exact = collection.query(QUERIES, **given), collection.query(QUERIES, exact=True, **given)
    assert exact.exact
    assert exact.index is None
    assert not found.exact
    hits = [
        len({hit.key for hit in one} & {hit.key for hit in other}) / len(other)
        for mine, true in zip(found, exact, strict=True)
        for one, other in ((mine.proponents, true.proponents), (mine.opponents, true.opponents))
    ]
    return float(np.mean(hits))


def test_the_client_builds_asks_lists_and_drops(server: ServerProcess) -> None:
    with covector.connect(server.address) as client:
        collection = client.collection("c")
        assert collection.indexes() == []
        assert collection.query(QUERIES).reason == "no index for checkpoint 'epoch-1' and scorer 'dot'"
        result = collection.build_index("subspace", scorer="dot", checkpoint="epoch-1", recall=0.99).wait()
        assert min(result["recall"].values()) >= 0.99
        assert result["warning"] == ""
        (index,) = collection.indexes()
        assert (index.id, index.kind, index.checkpoints, index.row_count) == (
            result["index"],
            "subspace",
            ("epoch-1",),
            len(ROWS),
        )
        assert (index.recall, index.recall_asked, index.fresh_row_count) == (result["recall"], 0.99, 0)
        assert collection.query(QUERIES).index == index.id
        assert [stage.name for stage in collection.query(QUERIES).stages] == ["filter", "candidates", "rescore"]
        assert shares(collection) >= 0.98
        assert shares(collection, scorer="cosine") >= 0.98
        assert shares(collection, where={"half": 1}) >= 0.98
        with collection.writer("epoch-1") as writer:
            writer.add(["new"], 40 * QUERIES[:1])
        found = collection.query(QUERIES[0], k=3, scorer="cosine")
        assert found.index == index.id
        assert found[0].proponents[0].key == "new"
        assert collection.indexes()[0].fresh_row_count == 1
        collection.delete(keys=["new"])
        assert collection.query(QUERIES[0], k=3)[0].proponents[0].key != "new"
        collection.drop_index(index.id)
        assert collection.indexes() == []
        assert collection.query(QUERIES).exact
        with pytest.raises(NotFound):
            collection.drop_index(index.id)
        with pytest.raises(InvalidInput, match="share"):
            collection.build_index(recall=2)
        with pytest.raises(NotFound, match="no kind of index"):
            collection.build_index("subspce")
        with pytest.raises(InvalidInput, match="no parameter"):
            collection.build_index(trees=3)


@pytest.mark.parametrize("kind", ["scann", "annoy"])
def test_kinds_on_libraries(server: ServerProcess, data: Path, kind: str) -> None:
    """Built by the server, and again beside it; used for the weights that it has and no others."""
    with covector.connect(server.address) as client:
        collection = client.collection("c")
        built = collection.build_index(kind, scorer="cosine", recall=0.9).wait()
        assert min(built["recall"].values()) >= 0.9
        assert collection.query(QUERIES, scorer="cosine").index == built["index"]
        assert shares(collection, scorer="cosine") >= 0.9
        assert shares(collection, scorer="cosine", where={"half": 1}) >= 0.9
        assert "no index for checkpoint 'epoch-1' and scorer 'dot'" in collection.query(QUERIES).reason
        trees = ["--trees", "12"] if kind == "annoy" else []
        done = covector_index("build", "c", "--data", str(data), "--kind", kind, "--scorer", "cosine", *trees, "--json")
        assert done.returncode == 0, done.stderr
        again = json.loads(done.stdout)
        assert again["parameters"]["trees"] == (12 if trees else 1)
        assert [index.id for index in collection.indexes()] == [again["index"]]
        assert shares(collection, scorer="cosine") >= 0.9
        collection.delete(keys=list(range(100)))
        assert collection.compact().wait()["indexes_dropped"] == []
        assert shares(collection, scorer="cosine") >= 0.9
        with pytest.raises(InvalidInput, match="no parameter"):
            collection.build_index(kind, branches=3)
    server.stop()
    assert main(["fsck", "--data", str(data)]) == 0


def test_a_build_can_be_cancelled_and_outlives_its_client(server: ServerProcess) -> None:
    with covector.connect(server.address) as client:
        operation = client.collection("c").build_index()
        operation.cancel()
        with pytest.raises(covector.CovectorError, match="cancelled"):
            operation.wait()
        started = client.collection("c").build_index()
    with covector.connect(server.address) as client:
        collection = client.collection("c")
        for _ in range(100):
            if collection.indexes():
                break
            threading.Event().wait(0.1)
        assert len(collection.indexes()) == 1
        assert started.kind == "index"


def test_an_index_built_offline_serves_a_running_server(server: ServerProcess, data: Path) -> None:
    with covector.connect(server.address) as client:
        collection = client.collection("c")
        assert collection.query(QUERIES).exact
        done = covector_index("build", "c", "--data", str(data), "--recall", "0.99", "--json")
        assert done.returncode == 0, done.stderr
        built = json.loads(done.stdout)
        assert min(built["recall"].values()) >= 0.99
        assert collection.query(QUERIES).index == built["index"]
        assert shares(collection) >= 0.98
        with collection.writer("epoch-1") as writer:  # the server goes on to commit
            writer.add(["new"], 40 * QUERIES[:1])
        again = json.loads(covector_index("build", "c", "--data", str(data), "--json").stdout)
        assert collection.query(QUERIES).index == again["index"] != built["index"]
        assert collection.indexes()[0].row_count == len(ROWS) + 1
        listed = json.loads(covector_index("list", "c", "--data", str(data), "--json").stdout)
        assert [one["index"] for one in listed] == [again["index"]]
        collection.compact().wait()
        assert collection.query(QUERIES).index == again["index"]
        dropped = covector_index("drop", "c", again["index"], "--data", str(data))
        assert dropped.returncode == 0
        assert collection.query(QUERIES).exact
    server.stop()
    with ServerProcess(data) as restarted, covector.connect(restarted.address) as client:
        assert client.collection("c").indexes() == []
        assert list((data / "collections/1/indexes").iterdir()) == []
        assert client.collection("c").count() == len(ROWS) + 1


def test_rows_and_compactions_beside_an_offline_build(server: ServerProcess, data: Path) -> None:
    """The server writes, deletes and compacts while other processes list indexes in its catalog."""
    with covector.connect(server.address) as client:
        collection = client.collection("c")
        results: list[subprocess.CompletedProcess[str]] = []

        def build() -> None:
            results.extend(covector_index("build", "c", "--data", str(data), "--json") for _ in range(3))

        building = threading.Thread(target=build)
        building.start()
        added = 0
        while building.is_alive():
            with collection.writer("epoch-1") as writer:
                writer.add([f"new {added}"], QUERIES[:1])
            added += 1
            collection.delete(keys=[added % 1_000])
            if added % 20 == 0:
                collection.compact().wait()
        building.join()
        for done in results:
            assert done.returncode == 0 or "was compacted" in done.stderr, done.stderr
        assert any(done.returncode == 0 for done in results)
        assert collection.count() == len(ROWS) + added - min(added, 1_000)
        if collection.query(QUERIES).index:
            assert shares(collection) >= 0.98
    server.stop()
    assert main(["fsck", "--data", str(data)]) == 0


def test_offline_without_a_server(data: Path) -> None:
    assert covector_index("list", "c", "--data", str(data), "--json").stdout.strip() == "[]"
    first = json.loads(covector_index("build", "c", "--data", str(data), "--rank", "16", "--json").stdout)
    second = json.loads(covector_index("build", "c", "--data", str(data), "--rank", "32", "--json").stdout)
    root = data / "collections/1/indexes"
    assert [path.name for path in root.iterdir()] == [second["index"]] != [first["index"]]
    refused = [
        covector_index("build", "d", "--data", str(data)),
        covector_index("build", "c", "--data", str(data), "--checkpoint", "epoch-2"),
        covector_index("build", "c", "--data", str(data), "--recall", "7"),
        covector_index("drop", "c", first["index"], "--data", str(data)),
        covector_index("list", "c", "--data", str(data / "collections")),
    ]
    assert [done.returncode for done in refused] == [2] * len(refused)
    with ServerProcess(data) as server, covector.connect(server.address) as client:
        assert client.collection("c").query(QUERIES).index == second["index"]
    assert covector_index("drop", "c", second["index"], "--data", str(data)).returncode == 0
    assert list(root.iterdir()) == []


def test_the_command_line_through_a_server(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    to = ["--to", server.address]
    assert main(["index", "list", "c", *to]) == 0
    assert "no indexes yet" in capsys.readouterr().out
    assert main(["index", "build", "c", "--recall", "0.95", *to]) == 0
    assert "recall@10" in capsys.readouterr().out
    assert main(["index", "list", "c", "--json", *to]) == 0
    (index,) = json.loads(capsys.readouterr().out)
    assert main(["index", "list", "c", *to]) == 0
    assert index["id"] in capsys.readouterr().out
    assert main(["query", "c", "--key", "7", "-k", "2", *to]) == 0
    assert f"by index {index['id']}" in capsys.readouterr().out
    assert main(["query", "c", "--key", "7", "-k", "2", "--exact", *to]) == 0
    assert "exact search was asked for" in capsys.readouterr().out
    assert main(["index", "drop", "c", index["id"], *to]) == 0
    assert main(["index", "drop", "c", index["id"], *to]) == 2


def test_an_index_for_a_fit(server: ServerProcess, data: Path) -> None:
    """Built by the server, and again beside it; kept by a snapshot, found sound by fsck, dropped with its fit."""
    with covector.connect(server.address) as client:
        collection = client.collection("c")
        with pytest.raises(NotFound, match="needs a fit"):
            collection.build_index(scorer="influence")
        refused = covector_index("build", "c", "--data", str(data), "--scorer", "influence")
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        fit = collection.fit("influence").wait()
        built = collection.build_index(scorer="influence").wait()
        (index,) = collection.indexes()
        assert (index.fit, index.scorers, index.recall_scorer) == (fit.id, ("influence",), "influence")
        for scorer in ("influence", fit):
            assert collection.query(QUERIES, scorer=scorer).index == built["index"]
        assert shares(collection, scorer="influence") >= 0.97
        assert collection.query(QUERIES).exact
        done = covector_index("build", "c", "--data", str(data), "--fit", fit.id, "--rank", "64", "--json")
        assert done.returncode == 0, done.stderr
        again = json.loads(done.stdout)
        assert again["fit"] == fit.id
        assert collection.query(QUERIES, scorer="influence").index == again["index"]
        listed = covector_index("list", "c", "--data", str(data)).stdout
        assert all(told in listed for told in (again["index"], fit.id, "epoch-1"))
        client.snapshot("kept").wait()
        collection.drop_fit(fit.id)
        assert collection.indexes() == []
        with pytest.raises(NotFound, match="needs a fit"):
            collection.query(QUERIES, scorer="influence")
    server.stop()
    assert main(["fsck", "--data", str(data)]) == 0
    assert main(["snapshot", "restore", "kept", "--data", str(data), "--to", str(data.parent / "back")]) == 0
    with ServerProcess(data.parent / "back") as restored, covector.connect(restored.address) as client:
        collection = client.collection("c")
        assert {one.fit for one in client.collection("c").indexes()} == {fit.id}
        assert client.collection("c").query(QUERIES, scorer="influence").index == again["index"]


def test_several_checkpoints(server: ServerProcess) -> None:
    with covector.connect(server.address) as client:
        collection = client.collection("c")
        with collection.writer("epoch-2", eta=0.5) as writer:
            writer.add(list(range(len(ROWS))), -ROWS)
        asked = {"epoch-1": QUERIES, "epoch-2": QUERIES[::-1].copy()}
        first = collection.build_index(checkpoint="epoch-1").wait()
        assert "one of several checkpoints" in collection.query(asked).reason
        second = collection.build_index(checkpoint="epoch-2").wait()
        found = collection.query(asked, scorer="tracin")
        assert found.index == f"{first['index']}+{second['index']}"
        exact = collection.query(asked, scorer="tracin", exact=True)
        for one, other in zip(found, exact, strict=True):
            scores = {hit.key: hit.score for hit in other.proponents}
            assert len(scores.keys() & {hit.key for hit in one.proponents}) >= 9


def test_offline_lists_and_errors_are_for_people(data: Path) -> None:
    assert "no indexes yet" in covector_index("list", "c", "--data", str(data)).stdout
    for wrong in (["--kind", "hnsw"], ["--rank", "many"], ["--scorer", "trak"], ["--fit", "trak-00000000"]):
        done = covector_index("build", "c", "--data", str(data), *wrong)
        assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, ""), done.stderr
        assert done.stderr.startswith("covector: error: ")
    command = f"{sys.executable} -m covector.cli index list c --data {data} --json"
    closed = subprocess.run(
        f"set -o pipefail; {command} | true", shell=True, capture_output=True, check=False, executable="/bin/bash"
    )
    assert closed.stderr == b""


def test_an_index_of_a_checkpoint_without_rows(server: ServerProcess) -> None:
    with covector.connect(server.address) as client:
        empty = client.create_collection("empty", covector.Space(dim=4))
        with pytest.raises(NotFound):
            empty.build_index()
        with empty.writer("one") as writer:
            writer.add([1], np.zeros((1, 4)))
        with pytest.raises(Conflict, match="nothing to index"):
            empty.build_index().wait()
