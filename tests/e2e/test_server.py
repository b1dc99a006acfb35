"""The server as its users meet it: keys, certificates, sockets, restarts, and errors that say what to do."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

import covector
from covector.errors import Unauthenticated
from covector.testing import ServerProcess
from covector.types import Projection

DIM = 16


def test_an_api_key_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    with ServerProcess(tmp_path / "store", arguments=["--api-key-file", str(tmp_path / "key")]) as server:
        for wrong in (None, "other"):
            with pytest.raises(Unauthenticated, match="wants an API key"):
                covector.connect(server.address, api_key=wrong)
        with covector.connect(server.address, api_key="secret") as client:
            collection = client.create_collection("c", covector.Space(dim=DIM))
            with collection.writer("one") as writer:
                writer.add(["a"], np.ones((1, DIM)))
            assert collection.query(np.ones(DIM), k=1)[0].proponents[0].key == "a"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--api-key-file", "{dir}/empty"], "holds no key"), (["--listen", "7441"], "write host:port")],
)
def test_a_server_told_nonsense_says_so(tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "empty").write_text("\n")
    given = [argument.format(dir=tmp_path) for argument in arguments]
    with pytest.raises(covector.Unavailable, match=said):
        ServerProcess(tmp_path / "store", arguments=given, log=tmp_path / "log").start()


def test_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost "
        f"-addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    with ServerProcess(tmp_path / "store", arguments=["--tls-cert", str(certificate), "--tls-key", str(key)]) as server:
        with covector.connect(server.address, tls=str(certificate)) as client:
            assert client.collections() == []
        with pytest.raises(covector.Unavailable):
            covector.connect(server.address, timeout_s=3)


def test_a_unix_socket(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "store", listen=f"unix:{tmp_path}/socket") as server:
        assert server.address == f"unix:{tmp_path}/socket"
        with covector.connect(server.address) as client:
            assert client.collections() == []


def test_a_restart_keeps_everything_and_stays_readable_by_zarr(server: ServerProcess) -> None:
    gradients = np.random.default_rng(0).standard_normal((50, DIM)).astype(np.float32)
    before = None
    for start in (0, 20, 40, 50):
        with covector.connect(server.address) as client:
            collection = client.create_collection("c", covector.Space(dim=DIM), exist_ok=True)
            if before is not None:
                assert collection.query(gradients[3], k=5).hits == before
            with collection.writer("one") as writer:
                writer.add(range(start, min(start + 20, 50)), gradients[start : start + 20])
            before = collection.query(gradients[3], k=5).hits
            stored = server.data / collection.checkpoints()[0].path
        assert server.stop() == 0
        rows = np.asarray(zarr.open_array(stored / "gradients", mode="r")[...], dtype=np.float64)
        scales = np.asarray(zarr.open_array(stored / "scales", mode="r")[...])
        np.testing.assert_allclose(rows * scales[:, None], gradients[: start + 20], rtol=1e-3, atol=2e-3)
        server.start()


def test_publish_makes_the_tail_readable_while_the_server_runs(server: ServerProcess) -> None:
    with covector.connect(server.address) as client:
        collection = client.create_collection("c", covector.Space(dim=DIM))
        for part in (1, 2):
            with collection.writer("one") as writer:
                writer.add([f"{part} {row}" for row in range(10)], np.full((10, DIM), part))
            assert collection.publish().wait() == {"one": 10 * part}
            stored = server.data / collection.checkpoints()[0].path
            scales = zarr.open_array(stored / "scales", mode="r")[...]
            assert np.asarray(scales).tolist() == [1.0] * 10 + [2.0] * 10 * (part - 1)


def test_deleting_a_collection_frees_its_name_and_its_files(server: ServerProcess) -> None:
    with covector.connect(server.address) as client:
        for _ in range(2):
            collection = client.create_collection("c", covector.Space(dim=DIM))
            with collection.writer("one") as writer:
                writer.add(["a", "b"], np.ones((2, DIM)))
            assert client.delete_collection("c") == 2
            assert list((server.data / "collections").iterdir()) == []
            with pytest.raises(covector.NotFound, match="there are none yet"):
                collection.count()


@pytest.fixture
def client(server: ServerProcess) -> Iterator[covector.Client]:
    with covector.connect(server.address) as connected:
        yield connected


@pytest.fixture
def collection(client: covector.Client) -> covector.Collection:
    space = covector.Space(dim=DIM, projection=Projection("count_sketch", DIM, seed=0))
    made = client.create_collection("answers", space)
    with made.writer("epoch-1", eta=0.1) as writer:
        rows = covector.Gradients(np.eye(3, DIM, dtype=np.float32), space, checkpoint="aa" * 32)
        writer.add(["a", "b", "c"], rows, ["text"] * 3, [{"source": "web"}] * 3)
    return made


def test_another_space_is_refused_by_the_field_that_differs(collection: covector.Collection) -> None:
    other = covector.Space(dim=DIM, projection=Projection("count_sketch", DIM, seed=1))
    gradients = covector.Gradients(np.ones((1, DIM), np.float32), other)
    with pytest.raises(covector.InvalidInput, match=r"projection: .*seed=0.* here, .*seed=1.* there"):
        collection.query(gradients, k=1)
    with pytest.raises(covector.InvalidInput, match="projection"), collection.writer("epoch-1", eta=0.1) as writer:
        writer.add(["d"], gradients)


def test_gradients_of_other_weights_are_refused(collection: covector.Collection) -> None:
    gradients = covector.Gradients(np.ones((1, DIM), np.float32), collection.space, checkpoint="bb" * 32)
    with pytest.raises(covector.InvalidInput, match="other weights"):
        collection.query(gradients, k=1)
    with pytest.raises(covector.Conflict, match="a checkpoint of their own"):  # noqa: SIM117
        with collection.writer("epoch-1", eta=0.1) as writer:
            writer.add(["d"], gradients)


def test_what_is_wrong_is_named(client: covector.Client, collection: covector.Collection) -> None:
    ones = np.ones(DIM)
    with pytest.raises(covector.NotFound, match="did you mean 'answers'"):
        client.collection("answer")
    with pytest.raises(covector.NotFound, match="did you mean 'epoch-1'"):
        collection.query(ones, checkpoints=["epoch-2"])
    with pytest.raises(covector.NotFound, match="did you mean 'cosine'"):
        collection.query(ones, scorer="cosin")
    with pytest.raises(covector.NotFound, match="did you mean 'source'"):
        collection.query(ones, where={"sourse": "web"})
    with pytest.raises(covector.InvalidInput, match=r"shape \[17\]; this collection needs \[16\]"):
        collection.query(np.ones(DIM + 1))
    with pytest.raises(covector.InvalidInput, match="NaN"):
        collection.query(np.full(DIM, np.nan))
    with pytest.raises(covector.NotFound, match="'nobody'"):
        collection.get(["nobody"])
    with pytest.raises(covector.AlreadyExists, match="exist_ok"):
        client.create_collection("answers", collection.space)
    with pytest.raises(covector.Conflict, match="another space"):
        client.create_collection("answers", covector.Space(dim=17), exist_ok=True)
    with pytest.raises(covector.InvalidInput, match="no collection name"):
        client.create_collection("a/b", covector.Space(dim=1))


def test_duplicates_are_told_from_conflicts(collection: covector.Collection) -> None:
    rows = np.eye(3, DIM, dtype=np.float32)
    with collection.writer("epoch-1", eta=0.1) as writer:
        writer.add(["a", "b"], rows[:2])
    assert writer.acknowledged == 2
    assert collection.checkpoints()[0].row_count == 3
    with pytest.raises(covector.Conflict, match="key 'c' has another gradient"):  # noqa: SIM117
        with collection.writer("epoch-1", eta=0.1) as writer:
            writer.add(["c"], rows[:1])
    with collection.writer("epoch-1", eta=0.1, on_conflict="ignore") as writer:
        writer.add(["c"], rows[:1])
    assert collection.get(["c"], gradients=True)[0].gradient[2] == 1  # type: ignore[index]
    with collection.writer("epoch-1", eta=0.1, on_conflict="replace") as writer:
        writer.add(["c"], rows[:1])
    assert collection.get(["c"], gradients=True)[0].gradient[2] == 0  # type: ignore[index]
    with pytest.raises(covector.Conflict, match=r"has eta 0\.1"):  # noqa: SIM117
        with collection.writer("epoch-1", eta=0.2) as writer:
            writer.add(["d"], rows[:1])


def test_rows_may_come_before_their_gradients(collection: covector.Collection) -> None:
    collection.add_rows(["new", "a"], texts=["a text", "text"], metadata=[{"source": "books"}, None])
    assert collection.count() == 4
    assert collection.missing(["new", "a"], checkpoint="epoch-1") == ["new"]
    with pytest.raises(covector.Conflict, match="key 'a' has another text"):
        collection.add_rows(["a"], texts=["another"])
    with pytest.raises(covector.InvalidInput, match="field 'source'"):
        collection.add_rows(["b2"], metadata=[{"source": 5}])


def test_ignore_keeps_what_is_known_and_takes_what_is_new(collection: covector.Collection) -> None:
    collection.add_rows(["m"], metadata=[{"source": "books"}])
    with collection.writer("epoch-1", eta=0.1, on_conflict="ignore") as writer:
        writer.add(["m"], np.ones((1, DIM)), ["a text"], [{"source": "web", "pages": 3}])
    row = collection.get(["m"])[0]
    assert (row.text, row.metadata) == ("a text", {"source": "books"})
    collection.add_rows(["n"], metadata=[{"pages": "none"}])
    assert collection.count(where={"pages": "none"}) == 1


def test_an_exception_in_the_block_flushes_nothing_further(collection: covector.Collection) -> None:
    with contextlib.suppress(KeyError), collection.writer("epoch-1", eta=0.1) as writer:
        writer.add(["x"], np.ones((1, DIM)))
        raise KeyError
    assert collection.missing(["x"], checkpoint="epoch-1") == ["x"]
