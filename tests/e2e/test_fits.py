"""Fits as their users meet them: through the client, the command line, and offline beside a running server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from tests.index_rig import decaying

import covector
from covector.attribution import fit as fit_arrays
from covector.cli import main
from covector.errors import InvalidInput, NotFound
from covector.testing import ServerProcess

DIM, COUNT = 96, 3_000
ROWS = {"epoch-1": decaying(COUNT, DIM), "epoch-2": decaying(COUNT, DIM, seed=3)}
Q = {name: np.random.default_rng(7).uniform(0.1, 1, COUNT).astype(np.float32) for name in ROWS}
QUERIES = {"epoch-1": decaying(3, DIM, seed=5), "epoch-2": decaying(3, DIM, seed=6)}
KEYS = [f"row {number}" for number in range(COUNT)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def server(data: Path) -> Iterator[ServerProcess]:
    with ServerProcess(data) as running, covector.connect(running.address) as client:
        collection = client.create_collection("c", covector.Space(dim=DIM))
        for name, rows in ROWS.items():
            with collection.writer(name, eta=0.5) as writer:
                writer.add(KEYS, rows, trak_q=Q[name])
        yield running


def covector_fit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "covector.cli", "fit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def assert_scores(collection: covector.Collection, scorer: str | covector.types.FitInfo, expected: np.ndarray) -> None:
    keys, found = collection.scores(QUERIES, scorer=scorer).to_numpy()
    order = {key: place for place, key in enumerate(keys)}
    ours = found[:, [order[key] for key in KEYS]]
    np.testing.assert_allclose(ours, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_the_client_fits_asks_lists_and_drops(server: ServerProcess) -> None:
    with covector.connect(server.address) as client:
        collection = client.collection("c")
        assert collection.fits() == []
        with pytest.raises(NotFound, match=r"collection.fit\('trak'\)"):
            collection.query(QUERIES, scorer="trak")
        operation = collection.fit("trak", checkpoints=None, damping=1.0, rank=None, task_gradients=None)
        assert operation.metadata["memory_bytes"] > 0
        fit = operation.wait(progress=False)
        assert (fit.method, fit.checkpoints, fit.finished) == ("trak", ("epoch-1", "epoch-2"), True)
        assert (fit.damping, fit.damping_unit) == (1.0, "mean nonzero eigenvalue")
        assert (fit.row_count, fit.fresh_row_count, fit.lost_row_count) == (2 * COUNT, 0, 0)
        expected = fit_arrays("trak", ROWS, trak_q=Q).scores(QUERIES, ROWS, trak_q=Q)
        assert_scores(collection, "trak", expected)
        assert_scores(collection, fit, expected)
        assert_scores(collection, fit.id, expected)
        result = collection.query(QUERIES, k=5, scorer=fit)
        assert (result.fit, result.scorer, result.damping) == (fit.id, "trak", 1.0)
        assert result.damping_unit == "mean nonzero eigenvalue"
        assert {hit.key for hit in result[0].proponents} == {KEYS[place] for place in expected[0].argsort()[-5:]}
        assert {hit.key for hit in result[0].opponents} == {KEYS[place] for place in expected[0].argsort()[:5]}
        assert collection.query(QUERIES).fit is None
        again = collection.fit("trak", damping=1.0).wait()
        assert again == fit
        assert [one.id for one in collection.fits()] == [fit.id]
        one = collection.query(QUERIES["epoch-2"], checkpoints="epoch-2", scorer="trak")
        assert one.fit == fit.id
        collection.drop_fit(fit.id)
        assert collection.fits() == []
        with pytest.raises(NotFound):
            collection.drop_fit(fit.id)


def test_trackstar_takes_the_task(server: ServerProcess) -> None:
    tasks = {name: decaying(40, DIM, seed=21) for name in ROWS}
    with covector.connect(server.address) as client:
        collection = client.collection("c")
        fit = collection.fit("trackstar", task_gradients=tasks, task_share=0.5).wait()
        expected = fit_arrays("trackstar", ROWS, task_gradients=tasks, task_share=0.5, etas=dict.fromkeys(ROWS, 0.5))
        assert_scores(collection, fit, expected.scores(QUERIES, ROWS))
        with pytest.raises(InvalidInput, match="mapping"):
            collection.fit("trackstar", checkpoints=list(ROWS), task_gradients=tasks["epoch-1"])
        with pytest.raises(InvalidInput, match=r"of task_gradients came"):
            collection.fit("trackstar", task_gradients=tasks["epoch-1"])
        with pytest.raises(InvalidInput, match="takes no task_gradients"):
            collection.fit("influence", task_gradients=tasks)


def test_a_damping_chosen_by_rows_held_out_is_in_the_fit_and_in_every_answer(server: ServerProcess, data: Path) -> None:
    expected = fit_arrays("trak", ROWS, trak_q=Q, damping="held_out")
    with covector.connect(server.address) as client:
        collection = client.collection("c")
        fit = collection.fit("trak", damping="held_out").wait()
        assert fit.damping == expected.damping
        assert [damping for damping, _ in fit.damping_scores] == [damping for damping, _ in expected.damping_scores]
        assert fit.damping == max(fit.damping_scores, key=lambda one: one[1])[0]
        result = collection.query(QUERIES, scorer="trak")
        assert (result.fit, result.damping) == (fit.id, fit.damping)
        collection.add_rows(["without"], metadata=[{"year": 1}])
        for scores in (
            collection.scores(QUERIES, scorer="trak"),
            collection.scores(QUERIES, scorer="trak", where={"year": 1}),  # no row has a gradient
            collection.self_influence(scorer="trak", checkpoints=list(ROWS)),
        ):
            before = scores.fit, scores.damping
            scores.to_numpy()
            assert before == (None, None)
            assert (scores.fit, scores.damping, scores.damping_unit) == (fit.id, fit.damping, fit.damping_unit)
        assert_scores(collection, fit, expected.scores(QUERIES, ROWS, trak_q=Q))
        assert collection.fit("trak", damping="held_out").wait() == fit
        offline = covector_fit("create", "c", "trak", "--data", str(data), "--damping", "held_out", "--json")
        told = json.loads(offline.stdout)
        assert (told["fit"], told["is_new"], told["damping"]) == (fit.id, False, fit.damping)
        assert [damping for damping, _ in told["damping_scores"]] == [damping for damping, _ in fit.damping_scores]
        few = collection.fit("trak", damping=[0.5, 2.0]).wait()
        assert [damping for damping, _ in few.damping_scores] == [0.5, 2.0]
        assert collection.fit("trak", damping=1.0).wait().damping_scores == ()
        with pytest.raises(InvalidInput, match="several, or 'held_out', not 'best'"):
            collection.fit("trak", damping="best")
        with pytest.raises(InvalidInput, match="no candidates"):
            collection.fit("trak", damping=[])


def test_datainf_without_blocks_is_refused_until_told(
    server: ServerProcess, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to, told = ["--to", server.address], ["fit", "create", "c", "datainf", "--checkpoint", "epoch-1"]
    assert main([*told, *to]) == 2
    assert "the space has no blocks" in capsys.readouterr().err
    refused = covector_fit(*told[1:], "--data", str(data))
    assert refused.returncode == 2
    assert "(--one-layer)" in refused.stderr
    assert main([*told, "--one-layer", *to]) == 0
    assert "all coordinates are one layer of 96 parameters" in capsys.readouterr().out
    assert covector_fit(*told[1:], "--one-layer", "--data", str(data)).returncode == 0
    with covector.connect(server.address) as client:
        assert len(client.collection("c").fits()) == 1  # the same fit, whoever asked
        assert client.collection("c").fit("datainf", checkpoints="epoch-1", by_layer=False).wait().notes


def test_what_the_client_refuses(server: ServerProcess) -> None:
    with covector.connect(server.address) as client:
        collection = client.collection("c")
        with pytest.raises(InvalidInput, match="no option 'dampng'"):
            collection.fit("trak", dampng=1)
        with pytest.raises(InvalidInput, match="rank"):
            collection.fit("trak", rank=0)
        with pytest.raises(NotFound, match="no method 'track'"):
            collection.fit("track")
        with pytest.raises(NotFound, match="no checkpoint"):
            collection.fit("trak", checkpoints="epoch-3")
        with pytest.raises(InvalidInput, match="without a fit"):
            collection.fit("dot")


def test_a_fit_offline_serves_a_running_server(server: ServerProcess, data: Path) -> None:
    expected = fit_arrays("trak", ROWS, trak_q=Q).scores(QUERIES, ROWS, trak_q=Q)
    with covector.connect(server.address) as client:
        collection = client.collection("c")
        done = covector_fit("create", "c", "trak", "--data", str(data), "--json")
        assert done.returncode == 0, done.stderr
        assert "MiB of memory" in done.stderr
        made = json.loads(done.stdout)
        assert made["rows"] == 2 * COUNT
        assert_scores(collection, "trak", expected)
        assert collection.query(QUERIES, scorer="trak").fit == made["fit"]
        with collection.writer("epoch-1", eta=0.5) as writer:  # the server goes on to commit
            writer.add(["new"], ROWS["epoch-1"][:1], trak_q=Q["epoch-1"][:1])
        again = json.loads(covector_fit("create", "c", "trak", "--data", str(data), "--json").stdout)
        assert (again["is_new"], again["rows"]) == (True, 2 * COUNT + 1)
        assert collection.query(QUERIES, scorer="trak").fit == again["fit"] != made["fit"]
        listed = json.loads(covector_fit("list", "c", "--data", str(data), "--json").stdout)
        assert [one["fit"] for one in listed] == [again["fit"]]
        collection.delete(keys=KEYS[:100])
        collection.compact().wait()
        assert collection.query(QUERIES, scorer="trak").fit == again["fit"]
        assert covector_fit("drop", "c", again["fit"], "--data", str(data)).returncode == 0
        with pytest.raises(NotFound, match="needs a fit"):
            collection.query(QUERIES, scorer="trak")
    server.stop()
    assert main(["fsck", "--data", str(data)]) in {0, 1}  # files that only the server could remove may be left
    refused = [
        covector_fit("create", "d", "trak", "--data", str(data)),
        covector_fit("create", "c", "trk", "--data", str(data)),
        covector_fit("create", "c", "trak", "--data", str(data), "--checkpoint", "epoch-3"),
        covector_fit("drop", "c", "trak-1", "--data", str(data)),
        covector_fit("list", "c", "--data", str(data / "collections")),
    ]
    assert [done.returncode for done in refused] == [2] * len(refused)
    assert covector_fit("create", "c", "influence", "--data", str(data), "--rank", "8", "--json").returncode == 0
    with ServerProcess(data) as restarted, covector.connect(restarted.address) as client:
        assert [fit.rank for fit in client.collection("c").fits()] == [8]
        assert client.collection("c").query(QUERIES, scorer="influence").fit


def test_the_command_line_through_a_server(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    to = ["--to", server.address]
    assert main(["fit", "list", "c", *to]) == 0
    assert "no fits yet" in capsys.readouterr().out
    assert main(["fit", "create", "c", "trak", "--checkpoint", "epoch-1", "--damping", "0.5", *to]) == 0
    told = capsys.readouterr()
    assert "damping 0.5 x mean nonzero eigenvalue" in told.out
    assert "of memory" in told.err
    assert main(["fit", "list", "c", "--json", *to]) == 0
    (fit,) = json.loads(capsys.readouterr().out)
    assert main(["fit", "list", "c", *to]) == 0
    assert fit["id"] in capsys.readouterr().out
    assert main(["query", "c", "--key", "row 7", "-k", "2", "--scorer", "trak", "--checkpoint", "epoch-1", *to]) == 0
    assert f"fit {fit['id']}, damping 0.5" in capsys.readouterr().out
    assert main(["fit", "create", "c", "influence", "--damping", "held_out", *to]) == 0
    assert "chosen by rows held out: 0.1 (" in capsys.readouterr().out
    assert main(["fit", "create", "c", "influence", "--damping", "much", *to]) == 2
    assert "--damping is a number or held_out, not 'much'" in capsys.readouterr().err
    assert main(["fit", "drop", "c", fit["id"], *to]) == 0
    assert main(["fit", "drop", "c", fit["id"], *to]) == 2


def test_a_fit_can_be_cancelled_and_goes_on(server: ServerProcess) -> None:
    with covector.connect(server.address) as client:
        collection = client.collection("c")
        operation = collection.fit("influence", rank=8, range_passes=8)
        operation.cancel()
        with suppress(covector.Unavailable):  # it may have been quicker
            operation.wait()
        assert operation.status in {"cancelled", "succeeded"}
        fit = collection.fit("influence", rank=8, range_passes=8).wait()
        assert collection.query(QUERIES, scorer="influence").fit == fit.id
