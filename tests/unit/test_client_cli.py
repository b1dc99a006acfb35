"""The command line against a real server: what it prints, what it returns, and that its errors are one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zarr
from pyarrow import parquet
from safetensors.numpy import save_file

from covector.cli import main
from covector.cli.sources import Slice, Sources
from covector.writer import Writer

Run = Callable[..., tuple[int, str, str]]
DIM = 16


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server started as people start it: by `covector serve`."""
    data = tmp_path_factory.mktemp("store")
    command = [sys.executable, "-m", "covector.cli", "serve", "--data", str(data), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith("listening on 127.0.0.1:")
        yield line.split()[-1]
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], address: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COVECTOR_ADDRESS", address)
    monkeypatch.setenv("COLUMNS", "80")

    def run_command(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_command


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Gradients of twelve rows in .npy and .npz, rows for them, and a question."""
    gradients = np.random.default_rng(0).normal(size=(12, DIM)).astype(np.float32)
    np.save(tmp_path / "g.npy", gradients)
    np.savez(tmp_path / "g.npz", gradients=gradients, keys=[f"z{row}" for row in range(12)], trak_q=np.full(12, 0.5))
    rows = [
        {"key": f"k{row}", "text": f"text\n{row}", "metadata": {"half": row // 6}, "source": "a"} for row in range(12)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    np.save(tmp_path / "q.npy", gradients[7])
    return tmp_path


def test_ingest_then_query(run: Run, files: Path) -> None:
    ingest = ["ingest", "tour", files / "g.npy", "--rows", files / "rows.jsonl", "--checkpoint", "e1"]
    assert run(*ingest)[0] == 2
    status, out, err = run(*ingest, "--create")
    assert (status, out) == (0, "12 rows stored in tour at e1\n")
    assert "12/12 rows" in err
    status, out, _ = run(*ingest, "--json")
    assert json.loads(out) == {
        "collection": "tour", "checkpoint": "e1", "stored": 0, "already_there": 12, "zero_rows": 0,
    }  # fmt: skip

    status, out, _ = run("query", "tour", "--vector", files / "q.npy", "--scorer", "cosine", "-k", 3)
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith("cosine: 12 matching rows in ")
    assert lines[4].split() == ["1", "+1", "k7", "text", "7", "[half=1,", "source=a]"]
    assert "opponents" in out

    status, out, _ = run("query", "tour", "--key", "k7", "--where", '{"half": 0}', "--json", "-k", 20)
    (result,) = json.loads(out)["hits"]
    assert {hit["key"] for hit in result["proponents"]} == {f"k{row}" for row in range(6)}
    assert result["proponents"][0]["metadata"] == {"half": 0, "source": "a"}


def test_another_file_with_the_same_keys_is_no_resumed_one(run: Run, files: Path) -> None:
    ingest = ["ingest", "twice", "--checkpoint", "e1"]
    assert run(*ingest, files / "g.npy", "--create")[0] == 0
    np.save(files / "other.npy", np.load(files / "g.npy") + 1)
    status, _, err = run(*ingest, files / "other.npy")
    assert status == 2
    assert "key 0 has another gradient" in err
    status, out, _ = run(*ingest, files / "other.npy", "--on-conflict", "ignore")
    assert (status, out) == (0, "0 rows stored in twice at e1, 12 were there already\n")
    assert run("query", "twice", "--key", "0", "--where", "{}")[0] == 0


def test_npz_keys_and_several_checkpoints(run: Run, files: Path) -> None:
    for name in ("e1", "e2"):
        status, _, _ = run("ingest", "several", files / "g.npz", "--checkpoint", name, "--create", "--eta", 0.5)
        assert status == 0
    arguments = ["query", "several", "--checkpoint", "e1", "--checkpoint", "e2", "--json", "-k", 1]
    _, by_key, _ = run(*arguments, "--key", "z7")
    _, by_vectors, _ = run(*arguments, "--vector", files / "q.npy", "--vector", files / "q.npy")
    found = [json.loads(out)["hits"][0]["proponents"][0] for out in (by_key, by_vectors)]
    assert [hit["key"] for hit in found] == ["z7", "z7"]
    assert found[0]["score"] == pytest.approx(found[1]["score"], rel=1e-3)
    status, _, err = run(*arguments, "--vector", files / "q.npy")
    assert (status, err.startswith("covector: error: 1 times --vector for 2 times --checkpoint")) == (2, True)


def stored(run: Run, name: str, *arguments: object) -> dict[str, Any]:
    """What an ingest of the files says, as numbers."""
    status, out, err = run("ingest", name, *arguments, "--checkpoint", "e1", "--create", "--json")
    assert status == 0, err
    return dict(json.loads(out))


def test_a_broken_run_goes_on_where_it_stopped(run: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("covector.cli.sources.SLICE_ROWS", 5)
    gradients = np.load(files / "g.npy")
    gradients[8, 3] = np.inf
    np.save(files / "bad.npy", gradients)
    status, _, err = run("ingest", "broken", files / "g.npy", files / "bad.npy", "--checkpoint", "e1", "--create")
    line = err.splitlines()[-1]
    assert status == 2
    assert "bad.npy, row 8: the gradient of key 20 holds NaN or infinity" in line
    gradients[8, 3] = 0
    np.save(files / "bad.npy", gradients)
    rest = stored(run, "broken", files / "g.npy", files / "bad.npy", "--resume")
    assert rest["stored"] >= 4  # the slice of the bad row was never sent
    assert rest["stored"] + rest["already_there"] == 24
    whole = stored(run, "broken", files / "g.npy", files / "bad.npy")
    assert (whole["stored"], whole["already_there"]) == (0, 24)


def test_resume_sends_only_the_rest_and_counts_it(run: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("covector.cli.sources.SLICE_ROWS", 5)
    np.save(files / "start.npy", np.load(files / "g.npy")[:7])
    stored(run, "resumed", files / "start.npy")
    np.save(files / "other.npy", np.load(files / "g.npy") + 1)
    sent: list[int] = []
    add = Writer.add

    def noted(writer: Writer, keys: list[Any], *rows: Any) -> None:
        sent.append(len(keys))
        add(writer, keys, *rows)

    monkeypatch.setattr(Writer, "add", noted)
    status, out, err = run("ingest", "resumed", files / "other.npy", "--checkpoint", "e1", "--resume")
    assert (status, out) == (0, "5 rows stored in resumed at e1, 7 were there already\n")
    assert sent == [3, 2]
    assert "12/12 rows, 7 of them there already" in err


def test_an_interrupted_run_says_how_to_go_on(run: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(sources: Sources) -> Iterator[Slice]:
        yield next(slices(sources))
        raise KeyboardInterrupt

    slices = Sources.slices
    monkeypatch.setattr(Sources, "slices", interrupted)
    status, _, err = run("ingest", "stopped", files / "g.npy", "--checkpoint", "e1", "--create")
    assert status == 130
    assert "of 12 rows are stored; run the same command again to go on, with --resume" in err.splitlines()[-1]


def test_ingest_from_every_kind_of_file(run: Run, files: Path) -> None:
    gradients = np.load(files / "g.npy")
    save_file({"gradients": gradients}, files / "g.safetensors")
    zarr.create_array(files / "g.zarr", data=gradients, chunks=(5, DIM))
    table = pa.table({"id": [f"p{row}" for row in range(24)], "body": ["text"] * 24, "half": list(range(24))})
    parquet.write_table(table, files / "rows.parquet")
    rows = ["--rows", files / "rows.parquet", "--key-column", "id", "--text-column", "body"]
    assert stored(run, "kinds", files / "g.safetensors", files / "g.zarr", *rows)["stored"] == 24
    assert stored(run, "kinds", files / "g.npy", "--key-prefix", "n", "--first-key", 3)["stored"] == 12
    _, out, _ = run("query", "kinds", "--vector", files / "q.npy", "-k", 3, "--json")
    hits = json.loads(out)["hits"][0]["proponents"]
    assert [(hit["key"], hit["text"], hit["metadata"]) for hit in hits] == [
        ("n10", None, None), ("p19", "text", {"half": 19}), ("p7", "text", {"half": 7}),
    ]  # fmt: skip


def test_a_wrong_rows_file_makes_no_collection(run: Run, files: Path) -> None:
    (files / "few.jsonl").write_text("{}\n")
    ingest = ["ingest", "never", files / "g.npy", "--rows", files / "few.jsonl", "--checkpoint", "e1", "--create"]
    assert run(*ingest)[0] == 2
    assert "never" not in run("collections")[1]


def test_integer_keys_by_position(run: Run, files: Path) -> None:
    run("ingest", "numbered", files / "g.npy", files / "g.npy", "--checkpoint", "e1", "--create")
    _, out, _ = run("query", "numbered", "--key", 19, "-k", 2, "--json")
    assert [hit["key"] for hit in json.loads(out)["hits"][0]["proponents"]] == [7, 19]


def test_collections(run: Run, files: Path) -> None:
    run("ingest", "listed", files / "g.npy", "--checkpoint", "epoch-1", "--create")
    status, out, _ = run("collections")
    assert status == 0
    assert out.splitlines()[0].split() == ["name", "dim", "rows", "checkpoints"]
    assert any(line.split() == ["listed", "16", "12", "epoch-1", "(12", "rows)"] for line in out.splitlines())
    _, out, _ = run("collections", "--json")
    assert {"name": "epoch-1", "eta": 1.0, "rows": 12, "zero_rows": 0, "dead_rows": 0} in [
        checkpoint for entry in json.loads(out) for checkpoint in entry["checkpoints"]
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["query", "errors", "--key", "nobody"], "nobody"),
        (["query", "errers", "--key", "0"], "did you mean 'errors'"),
        (["query", "errors", "--key", "0", "--checkpoint", "e9"], "e9"),
        (["query", "errors", "--key", "0", "--scorer", "cosin"], "cosine"),
        (["query", "errors", "--key", "0", "--where", "{"], "--where is not JSON"),
        (["query", "errors", "--key", "0", "--where", "[]"], "--where is a JSON object"),
        (["query", "errors", "--key", "0", "--where", '{"no": 1}'], "no"),
        (["query", "errors", "--key", "0", "-k", "0"], "k is an integer of at least 1"),
        (["query", "errors"], "one of the arguments --vector --key is required; see covector query --help"),
        (["query", "errors", "--vector", "nowhere.npy"], "nowhere.npy: No such file"),
        (["ingest", "errors", "{files}/g.npy", "--checkpoint", "e1", "--eta", "2"], "has eta 1.0"),
        (["ingest", "errors", "{files}/rows.jsonl", "--checkpoint", "e1"], "read from .npy, .npz and .safe"),
        (["ingest", "errors", "{files}/q.npy", "--checkpoint", "e1"], "not [n, dim]"),
        (["ingest", "errors", "{files}/short.npy", "--checkpoint", "e1"], "collection 'errors' needs [n, 16]"),
        (["ingest", "errors", "{files}/nan.npy", "--checkpoint", "e2"], "nan.npy, row 3: the gradient of key 3"),
        (["ingest", "errors", "{files}/bad.npy", "--checkpoint", "e2"], "is no .npy file"),
        (["ingest", "errors", "{files}/g.npy", "--rows", "{files}/few.jsonl", "--checkpoint", "e2"], "one row a grad"),
        (["ingest", "errors", "{files}/g.npy", "--rows", "{files}/bad.jsonl", "--checkpoint", "e2"], "line 2 is not"),
        (["ingest", "errors", "{files}/g.npy", "--key-column", "id", "--checkpoint", "e2"], "add --rows FILE"),
        (["collections", "--to", "127.0.0.1:1"], "no covector server answers at 127.0.0.1:1"),
        (["collections", "--to", "nonsense"], "is no address"),
        (["colections"], "invalid choice: 'colections'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_errors_are_one_line_that_says_what_is_wrong(run: Run, files: Path, arguments: list[str], message: str) -> None:
    run("ingest", "errors", files / "g.npy", "--checkpoint", "e1", "--create")
    gradients = np.load(files / "g.npy")
    np.save(files / "short.npy", gradients[:, :3])
    gradients[3, 5] = np.nan
    np.save(files / "nan.npy", gradients)
    (files / "bad.npy").write_bytes(b"not an array")
    (files / "few.jsonl").write_text("{}\n")
    (files / "bad.jsonl").write_text("{}\n{\n" + "{}\n" * 10)
    status, out, err = run(
        *[argument.format(files=files) if "{files}" in argument else argument for argument in arguments]
    )
    line = err.splitlines()[-1]
    assert (status, out) == (2, "")
    assert line.startswith("covector: error: ")
    assert message in line
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["ingest", "query", "collections", "delete", "status", "compact", "snapshot"])
def test_help_shows_an_example(run: Run, command: str) -> None:
    status, out, _ = run(command, "--help")
    assert status == 0
    assert f"example: covector {command}" in out


def test_help_lists_the_commands(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    assert all(f"\n  {command} " in out for command in ("serve", "ingest", "query", "collections", "demo"))


@pytest.mark.parametrize(("command", "extra"), [("serve", "server"), ("demo", "torch,server,demo")])
def test_a_missing_extra_names_the_install_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, extra: str
) -> None:
    found = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in {"zarr", "torch"} else found(name))
    status, _, err = run(command)
    assert status == 2
    assert f'pip install "covector[{extra}]"' in err


def test_a_reader_that_has_had_enough_is_no_error(address: str) -> None:
    command = [sys.executable, "-m", "covector.cli", "collections", "--to", address]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert "Traceback" not in done.stderr
