"""``covector evaluate`` from end to end: a logistic regression whose subsets are really trained, gradients in files and
on a server, a kill in the middle, and what a user may get wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import covector
from covector.attribution import agreement, fit, lds, score
from covector.cli import main
from covector.gradients.flat import sketch_rows
from covector.gradients.sketch import CountSketch
from covector.testing import ServerProcess

TRAINING = '''
import os, signal
from pathlib import Path
import numpy as np

ROWS, QUERIES, DIM = 90, 12, 10
rng = np.random.default_rng(0)
truth = rng.standard_normal(DIM)
x, queries = rng.standard_normal((ROWS, DIM)), rng.standard_normal((QUERIES, DIM))
y = np.sign(x @ truth + rng.standard_normal(ROWS))
query_y = np.sign(queries @ truth)


def fitted(rows):
    """Logistic regression with a ridge, by Newton's method."""
    theta = np.zeros(DIM)
    for _ in range(20):
        p = 1 / (1 + np.exp(y[rows] * (x[rows] @ theta)))
        hessian = (x[rows].T * (p * (1 - p))) @ x[rows] + 3 * np.eye(DIM)
        theta += np.linalg.solve(hessian, x[rows].T @ (y[rows] * p) - 3 * theta)
    return theta


def margins(rows):
    with open("trained.txt", "a") as file:
        file.write(f"{rows.sum()}\\n")
    if os.environ.get("DIE_AT") == str(len(Path("trained.txt").read_text().split())):
        os.kill(os.getpid(), signal.SIGKILL)
    return query_y * (queries @ fitted(rows))


def broken(rows):
    return 1 / 0


def too_few(rows):
    return margins(rows)[:3]


def gradients():
    theta = fitted(np.arange(ROWS))
    q = 1 / (1 + np.exp(y * (x @ theta)))
    return y[:, None] * x, q, query_y[:, None] * queries
'''
SUBSETS = 24


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the training code, gradients of margins, masks and outputs, which is the current one."""
    (tmp_path / "training_code.py").write_text(TRAINING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    made = "import numpy as np, training_code as t; r, q, k = t.gradients(); "
    made += "np.savez('rows.npz', gradients=r, trak_q=q); np.save('queries.npy', k)"
    subprocess.run([sys.executable, "-c", made], check=True)
    return tmp_path


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "covector.cli", "evaluate", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, env={**os.environ, **environment})


FILES = ("--rows", "rows.npz", "--queries", "queries.npy")
TRAIN = ("--train", "training_code:margins", "--subsets", str(SUBSETS), "--out", "models")


def numbers(path: str) -> dict[str, Any]:
    return dict(json.loads(Path(path).read_text()))


def by_name(found: dict[str, Any]) -> dict[str, float]:
    return {one["name"]: one["lds"] for one in found["scorers"]}


def test_a_killed_run_goes_on_and_the_table_is_right(work: Path) -> None:
    killed = command(*FILES, *TRAIN, DIE_AT="8")
    assert killed.returncode == -signal.SIGKILL
    assert len(list(work.glob("models/subset-*.npy"))) == 7
    done = command(*FILES, *TRAIN, "--json", "lds.json", "--plot", "lds.png")
    assert done.returncode == 0, done.stderr
    assert "7 of 24 subsets are in models already" in done.stderr
    assert len(Path("trained.txt").read_text().split()) == 8 + (SUBSETS - 7)
    assert "LDS over 24 subsets and 12 queries" in done.stdout
    assert "best by 12 of the subsets: trak, damping" in done.stdout
    assert Path("lds.png").read_bytes()[:4] == b"\x89PNG"
    found = numbers("lds.json")
    arrays = np.load("rows.npz")
    rows, q, queries = arrays["gradients"], arrays["trak_q"], np.load("queries.npy")
    masks, outputs = np.load("models/masks.npy"), np.load("models/outputs.npy")
    assert masks.sum(axis=1).tolist() == [45] * SUBSETS
    for name, scores in (
        ("dot", score(queries, rows)),
        ("trak, damping 1", fit("trak", rows, trak_q=q).scores(queries, rows, trak_q=q)),
        ("influence, damping 0.1", fit("influence", rows, damping=0.1).scores(queries, rows)),
    ):
        expected = lds(scores, masks, outputs)
        one = next(one for one in found["scorers"] if one["name"] == name)
        np.testing.assert_allclose(one["by_query"], expected.by_query)
        assert one["low"] < one["lds"] == pytest.approx(expected.mean)
    assert by_name(found)["trak, damping 1"] > 0.8 > by_name(found)["dot"]
    assert found["chosen"].startswith("trak")
    again = command(*FILES, *TRAIN, "--json", "again.json")
    assert again.returncode == 0
    assert by_name(numbers("again.json")) == by_name(found)
    assert len(Path("trained.txt").read_text().split()) == 8 + (SUBSETS - 7)  # nothing was trained


@pytest.fixture
def judged(work: Path, capsys: pytest.CaptureFixture[str]) -> Sequence[str]:
    """The options of masks and outputs that were trained."""
    assert command(*FILES, *TRAIN, "--scorer", "dot").returncode == 0
    return "--masks", "models/masks.npy", "--outputs", "models/outputs.npy"


def test_checkpoints_are_judged_alone_and_together(judged: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    rows, queries = np.load("rows.npz")["gradients"], np.load("queries.npy")
    noise = np.random.default_rng(2).standard_normal(rows.shape)
    np.save("later.npy", rows + noise)
    np.savez("q.npz", trak_q=np.load("rows.npz")["trak_q"])
    both = ["--rows", "rows.npz", "--queries", "queries.npy", "--rows", "later.npy", "--queries", "queries.npy"]
    named = ["--checkpoint", "first", "--checkpoint", "later", "--eta", "1", "--eta", "0.5"]
    settings = ["--scorer", "dot", "--scorer", "influence", "--damping", "held_out", "--unit-rows"]
    assert main(["evaluate", *both, *named, *settings, *judged, "--json", "both.json"]) == 0
    masks, outputs = np.load("models/masks.npy"), np.load("models/outputs.npy")
    together = score(queries, rows) + 0.5 * score(queries, rows + noise)
    found = by_name(numbers("both.json"))
    assert found["dot @ first + later"] == pytest.approx(lds(together, masks, outputs).mean)
    learnt = fit("influence", rows, damping="held_out")
    label = f"influence, damping {learnt.damping:g} (held_out) @ first"
    assert found[label] == pytest.approx(lds(learnt.scores(queries, rows), masks, outputs).mean)
    assert len(found) == 3 * 3
    assert sum("unit rows" in name for name in found) == 3
    assert "@ first + later" in capsys.readouterr().out


def test_a_server_gives_the_same(judged: Sequence[str], work: Path) -> None:
    arrays, keys = np.load("rows.npz"), [f"row {number}" for number in range(90)]
    order = np.random.default_rng(1).permutation(90)
    Path("rows.jsonl").write_text("".join(json.dumps({"key": key}) + "\n" for key in keys))
    settings = ["--scorer", "dot", "--scorer", "trak", "--scorer", "influence", "--damping", "1", "--damping", "0.1"]
    assert main(["evaluate", *FILES, *settings, *judged, "--json", "files.json"]) == 0
    with ServerProcess(work / "store") as server, covector.connect(server.address) as client:
        collection = client.create_collection("c", covector.Space(dim=10))
        with collection.writer("end") as writer:
            writer.add([keys[place] for place in order], arrays["gradients"][order], trak_q=arrays["trak_q"][order])
        served = ["--collection", "c", "--queries", "queries.npy", "--to", server.address, *settings, *judged]
        assert main(["evaluate", *served, "--keys", "rows.jsonl", "--json", "served.json"]) == 0
        assert len(collection.fits()) == 4
        fit_id = collection.fits()[0].id
        by_id = [*served[:6], *judged, "--keys", "rows.jsonl", "--scorer", fit_id, "--json", "fit.json"]
        assert main(["evaluate", *by_id]) == 0
        np.save("keys.npy", np.array([*keys[:89], "another"]))
        assert main(["evaluate", *served, "--keys", "keys.npy"]) == 2
        assert main(["evaluate", *served]) == 2  # no keys 0, 1, 2 ...
    ours, theirs = by_name(numbers("served.json")), by_name(numbers("files.json"))
    assert ours.keys() == theirs.keys()
    assert all(ours[name] == pytest.approx(theirs[name], abs=0.02) for name in ours)
    assert list(by_name(numbers("fit.json"))) == [fit_id]


def test_agreement_with_unsketched_gradients(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    rows, queries = rng.standard_normal((200, 1200)), rng.standard_normal((6, 1200))
    np.save("whole.npy", rows.astype(np.float32))
    np.save("asked.npy", queries.astype(np.float32))
    kept = rng.standard_normal((1200, 700)) / np.sqrt(700)
    np.save("own_rows.npy", rows @ kept)
    np.save("own_queries.npy", queries @ kept)
    told = ["--unsketched", "whole.npy", "asked.npy", "--dim", "64", "--dim", "2048", "-k", "5"]
    told += ["--sketch", "own_rows.npy", "own_queries.npy", "--json", "agreed.json", "--plot", "agreed.png"]
    assert main(["evaluate", *told]) == 0
    found = {(one["dim"], one["scorer"]): (one["top"], one["bottom"]) for one in numbers("agreed.json")["agreement"]}
    assert found.keys() == {(dim, name) for dim in (64, 2048, 700) for name in ("dot", "influence, damping 1")}
    exact = score(queries.astype(np.float32), rows.astype(np.float32))
    for dim in (64, 2048):
        pair = [sketch_rows(array.astype(np.float32), CountSketch(dim=dim)) for array in (queries, rows)]
        assert found[dim, "dot"] == pytest.approx(agreement(score(*pair), exact, 5))
    assert found[700, "dot"] == pytest.approx(agreement(score(queries @ kept, rows @ kept), exact, 5))
    assert sum(found[2048, "dot"]) > sum(found[64, "dot"])
    assert "bottom 5" in capsys.readouterr().out
    assert Path("agreed.png").read_bytes()[:4] == b"\x89PNG"


def test_wrong_use_is_one_line(judged: Sequence[str], work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks, outputs = np.load("models/masks.npy"), np.load("models/outputs.npy")
    bad_outputs = outputs.copy()
    bad_outputs[3, 2] = np.nan
    made = {"soft": masks * 0.5, "narrow": masks[:, :80], "nan": bad_outputs, "few": outputs[:, :4],
            "thin": np.load("queries.npy")[:, :4], "short": masks[:6], "text": np.array(["a"])}  # fmt: skip
    for name, array in made.items():
        np.save(f"{name}.npy", array)
    Path("torn.npy").write_bytes(b"\x93NUMPY")
    Path("blocks.json").write_text('[{"name": "a"}]')
    dot = ["--scorer", "dot"]
    for told, message in (
        ([], "what is to be judged by?"),
        ([*FILES], "what is to be judged by?"),
        ([*FILES, "--unsketched", "rows.npz", "queries.npy", "--dim", "8"], "nothing to judge them by"),
        ([*FILES, "--masks", "models/masks.npy"], "--masks and --outputs go together"),
        ([*FILES, *judged, "--train", "a:b"], "both given"),
        ([*judged], "give --rows FILE, or --collection NAME"),
        ([*judged, "--rows", "rows.npz"], "give --queries FILE"),
        ([*FILES, "--masks", "soft.npy", "--outputs", judged[3]], "masks are not boolean: subset 0 has 0.5"),
        ([*FILES, "--masks", "narrow.npy", "--outputs", judged[3]], "masks have 80 columns, and there are 90 rows"),
        ([*FILES, "--masks", "short.npy", "--outputs", judged[3]], "6 subsets are too few"),
        ([*FILES, *judged[:3], "nan.npy"], "outputs hold NaN or infinity, first at subset 3, query 2"),
        ([*FILES, *judged[:3], "few.npy"], "outputs are for 4 queries, and 12 queries are given"),
        ([*FILES, *judged[:3], "text.npy"], "they must be float[subsets, queries]"),
        ([*FILES, *judged[:3], "torn.npy"], "is no .npy or .npz file of numbers"),
        ([*FILES, *judged[:3], "nowhere.npy"], "nowhere.npy: No such file"),
        (["--rows", "rows.npz", "--queries", "thin.npy", *judged], "rows have dim 10, queries 4"),
        ([*FILES, *judged, "--scorer", "dott"], "no scorer 'dott'; did you mean 'dot'"),
        ([*FILES, *judged, "--scorer", "trak", "--damping", "x"], "--damping is a number or held_out, not 'x'"),
        ([*FILES, *judged, "--scorer", "datainf"], "the space has no blocks"),
        ([*FILES, *judged, "--blocks", "blocks.json"], "is no list of blocks"),
        ([*FILES, *judged, "--keys", "rows.jsonl"], "--keys is for --collection"),
        ([*FILES, *judged, *dot, "--plot", "lds.gif"], "pictures are .png"),
        ([*FILES, *judged, *dot, "--plot", "no/lds.png"], "there is no directory no"),
        ([*FILES, *judged, *dot, "--confidence", "95"], "--confidence lies between 0 and 1"),
        ([*FILES, *judged, "--dim", "8"], "add --unsketched ROWS QUERIES"),
        (["--unsketched", "rows.npz", "queries.npy"], "give --dim N, or --sketch"),
        (["--unsketched", "rows.npz", "queries.npy", "--dim", "0"], "dim must be an integer from 1"),
        (["--unsketched", "rows.npz", "queries.npy", "--dim", "8", "-k", "91"], "-k is 91; there are 90 rows"),
        ([*FILES, "--train", "training_code"], "--train is MODULE:FUNCTION"),
        ([*FILES, "--train", "no_such_module:train"], "No module named 'no_such_module'"),
        ([*FILES, "--train", "training_code:nothing"], "training_code has no function 'nothing'"),
        ([*FILES, "--train", "training_code:margins", "--subsets", "4"], "--subsets 4 are too few"),
        ([*FILES, "--train", "training_code:margins", "--share", "1.5"], "lies between 0 and 1, not 1.5"),
        ([*FILES, "--train", "training_code:margins", "--out", "models", "--seed", "9"], "seed is 0 there, 9 here"),
        ([*FILES, "--train", "training_code:too_few", "--out", "other"], "returned 3 outputs, and 12 queries"),
    ):  # fmt: skip
        assert main(["evaluate", *told]) == 2, told
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("covector: error: "), told
        assert message in error, told
    assert main(["evaluate", *FILES, "--train", "training_code:broken", "--out", "bad"]) == 2
    said = capsys.readouterr().err
    assert "1 / 0" in said
    assert said.strip().endswith("ZeroDivisionError: division by zero; models that were done are kept in bad")


def test_losses_are_turned(judged: Sequence[str]) -> None:
    np.save("losses.npy", -np.load("models/outputs.npy"))
    dot = ["--scorer", "dot", "--no-halves"]
    assert main(["evaluate", *FILES, *judged, *dot, "--json", "margins.json"]) == 0
    assert main(["evaluate", *FILES, *judged[:3], "losses.npy", "--losses", *dot, "--json", "losses.json"]) == 0
    assert by_name(numbers("losses.json")) == by_name(numbers("margins.json"))


def test_without_matplotlib_the_line_that_installs_it_is_said(
    judged: Sequence[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    assert main(["evaluate", *FILES, *judged, "--plot", "lds.png"]) == 2
    assert 'pip install "covector[plot]"' in capsys.readouterr().err
