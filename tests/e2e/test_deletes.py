"""Deletes as a user makes them: by key and by filter, seen by every read at once, kept over a restart."""

import subprocess
import sys

import numpy as np
import pytest

import covector
from covector.errors import InvalidInput, NotFound
from covector.testing import ServerProcess

DIM = 16
KEYS = [f"row-{n}" for n in range(40)]
GRADIENTS = np.random.default_rng(0).standard_normal((40, DIM)).astype(np.float32)


@pytest.fixture
def filled(server: ServerProcess) -> ServerProcess:
    with covector.connect(server.address) as client:
        collection = client.create_collection("c", covector.Space(dim=DIM))
        for checkpoint in ("one", "two"):
            with collection.writer(checkpoint) as writer:
                writer.add(KEYS, GRADIENTS, texts=[f"text of {key}" for key in KEYS], metadata=[
                    {"n": n, "even": n % 2 == 0} for n in range(40)
                ])  # fmt: skip
    return server


def all_keys(collection: covector.Collection, checkpoint: str) -> set[object]:
    keys, _ = collection.scores({checkpoint: GRADIENTS[0]}).to_numpy()
    return set(keys)


def test_no_read_sees_a_deleted_row(filled: ServerProcess) -> None:
    with covector.connect(filled.address) as client:
        collection = client.collection("c")
        assert collection.delete(["row-0", "row-1", "unknown"]) == 2
        assert collection.delete(["row-0"]) == 0
        assert collection.delete(where={"n": {"gte": 30}}) == 10
    for _ in range(2):
        with covector.connect(filled.address) as client:
            collection = client.collection("c")
            left = set(KEYS[2:30])
            assert collection.count() == collection.count(where={}) == 28
            assert collection.count(where={"even": True}) == 14
            for checkpoint in ("one", "two"):
                assert all_keys(collection, checkpoint) == left
                hits = collection.query({checkpoint: GRADIENTS[0]}, k=40, scorer="cosine")[0].proponents
                assert {hit.key for hit in hits} == left
            assert collection.missing(KEYS, checkpoint="one") == [*KEYS[:2], *KEYS[30:]]
            with pytest.raises(NotFound, match="row-0"):
                collection.get(["row-2", "row-0"])
            assert [info.row_count for info in collection.checkpoints()] == [28, 28]
            assert [info.dead_row_count for info in collection.checkpoints()] == [12, 12]
        filled.stop()
        filled.start()


def test_a_deleted_key_may_come_again_as_another_row(filled: ServerProcess) -> None:
    with covector.connect(filled.address) as client:
        collection = client.collection("c")
        assert collection.delete(where={}) == 40
        assert collection.count() == 0
        assert collection.query({"one": GRADIENTS[0]})[0].proponents == ()
        with collection.writer("one") as writer:
            writer.add(["row-7"], -GRADIENTS[:1], texts=["another text"], metadata=[{"n": 5}])
        assert collection.count() == 1
        (row,) = collection.get(["row-7"], gradients=True, checkpoint="one")
        assert (row.text, row.metadata) == ("another text", {"n": 5})
        assert row.gradient is not None
        np.testing.assert_allclose(row.gradient, -GRADIENTS[0], rtol=2e-3, atol=1e-3)
        assert collection.missing(["row-7"], checkpoint="two") == ["row-7"]


def test_what_is_asked_wrongly_deletes_nothing(filled: ServerProcess) -> None:
    with covector.connect(filled.address) as client:
        collection = client.collection("c")
        with pytest.raises(InvalidInput):
            collection.delete()
        with pytest.raises(InvalidInput):
            collection.delete(["row-1"], where={"n": 1})
        with pytest.raises(NotFound, match="no metadata field"):
            collection.delete(where={"m": 1})
        assert collection.count() == 40


def test_the_command_line_deletes(filled: ServerProcess) -> None:
    command = [sys.executable, "-m", "covector.cli", "delete", "c", "--to", filled.address, "--yes"]
    done = subprocess.run([*command, "--where", '{"even": false}'], capture_output=True, text=True, check=True)
    assert "20" in done.stdout
    with covector.connect(filled.address) as client:
        assert client.collection("c").count() == 20
