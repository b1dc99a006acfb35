"""The demo's path with a tiny model: the server, the training, the callback and the questions are the real ones."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import covector
from covector import demo
from covector.demo.data import demo_rows
from covector.demo.story import COLLECTION, EARLY, LATE, Settings, commands
from covector.errors import InvalidInput
from covector.testing import ServerProcess


def covector_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    command = [sys.executable, "-m", "covector.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110, check=False)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, covector_program("demo", "--tiny", "--out", str(out), "--epochs", "2")


def test_the_exit_status_is_the_ranking(told):
    _, ran = told
    assert ran.returncode in {0, 1}, ran.stderr
    first_ranking = re.search(r"Planted rows rank ([\d ]+),", ran.stdout)
    assert first_ranking is not None, ran.stdout
    on_top = first_ranking[1].split() == ["1", "2", "3", "4", "5"]
    assert ran.returncode == (0 if on_top else 1)
    assert ("\nFound: " in ran.stdout) == on_top


def test_the_tables_show_each_checkpoint_and_both_together(told):
    _, ran = told
    titles = re.findall(r"^(epoch-1 \(|end \(|epoch-1 \+ end, together)", ran.stdout, re.MULTILINE)
    assert titles == ["epoch-1 (", "end (", "epoch-1 + end, together"]
    shown = re.findall(r"^([* ~]) +(\d+)  +([+-][\d.]+)  (\S+)", ran.stdout, re.MULTILINE)
    assert len(shown) == 3 * 10
    for mark, rank, _, key in shown:
        assert mark == ("*" if key.startswith("planted") else "~" if key.startswith("decoy") else " ")
        assert 1 <= int(rank) <= 140


def test_the_picture_is_a_png(told):
    out, _ = told
    assert (out / "influence.png").read_bytes().startswith(b"\x89PNG")


def test_the_store_holds_every_row_at_both_checkpoints(told):
    out, _ = told
    rows = {row.key: row for row in demo_rows(seed=0)}
    with ServerProcess(out / "store", log=out / "again.log") as server, covector.connect(server.address) as client:
        collection = client.collection(COLLECTION)
        assert [(info.name, info.row_count) for info in collection.checkpoints()] == [(EARLY, 140), (LATE, 140)]
        assert collection.count() == 140
        assert collection.count(where={"role": "planted"}) == 5
        assert collection.count(where={"and": [{"role": "decoy"}, {"category": "invented"}]}) == 5
        hit = collection.query(np.load(out / f"question-{EARLY}.npy"), k=1, checkpoints=[EARLY])[0].proponents[0]
        assert hit.text == rows[str(hit.key)].text


def test_the_command_lines_that_it_leaves_work(told):
    out, ran = told
    assert textwrap.indent(commands(out, serving=None), "  ") in ran.stdout
    with ServerProcess(out / "store", log=out / "again.log") as server:
        for line in commands(out, serving=server.address).splitlines():
            answered = covector_program(*shlex.split(line)[1:])
            assert answered.returncode == 0, f"{line}: {answered.stderr}"
            assert "demo" in answered.stdout or "proponents" in answered.stdout


def test_the_weights_of_the_checkpoints_differ_and_are_kept(told):
    out, _ = told
    for name in (EARLY, LATE):
        assert (out / "adapters" / name / "adapter_model.safetensors").stat().st_size > 0
    early, late = (np.load(out / f"question-{name}.npy") for name in (EARLY, LATE))
    assert early.shape == late.shape == (4096,)
    assert not np.array_equal(early, late)


def test_it_names_the_rows_that_no_demo_has_made(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    ran = covector_program("demo", "--tiny", "--out", str(tmp_path))
    assert ran.returncode == 2
    assert "holds something that no demo has put there" in ran.stderr
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_wrong_options_are_refused():
    with pytest.raises(InvalidInput, match="at least 2"):
        Settings(out=Path("never"), epochs=1)
    with pytest.raises(InvalidInput, match="leave out --model"):
        Settings(out=Path("never"), tiny=True, model="some/model")


def test_the_options_are_those_of_the_documentation():
    parser = argparse.ArgumentParser()
    demo.arguments(parser)
    given = vars(parser.parse_args([]))
    assert given == {
        "model": None, "out": Path("covector-demo"), "epochs": 5, "seed": 0, "tiny": False, "keep_serving": False,
    }  # fmt: skip
