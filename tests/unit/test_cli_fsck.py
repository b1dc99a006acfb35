"""`covector fsck` as people and machines run it: what it prints, what it returns, what it refuses."""

import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest
from tests.faults.store_images import make

from covector.cli import main


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("fsck"))[1]


@pytest.fixture
def data(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "100")
    return shutil.copytree(image, tmp_path / "store")


def test_a_clean_store(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["fsck", "--data", str(data)]) == 0
    out, err = capfd.readouterr()
    assert out.startswith(f"{data}: no damage (3 collections, 58 rows")
    assert err == ""


def test_damage_is_a_table_and_status_1(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = "collections/1/1/0/gradients/c/0/0"
    with (data / path).open("r+b") as file:
        file.seek(3)
        file.write(b"\xaa\xaa")
    (data / "stray").write_text("x")
    assert main(["fsck", "--data", str(data)]) == 1
    out = capfd.readouterr().out.splitlines()
    assert out[0].split() == ["#", "severity", "collection", "checkpoint", "rows", "file"]
    assert out[1].split() == ["1", "damage", "many", "one", "4", path]
    assert any(line.startswith("#1") and "checksum" in line and "'key 1'" in line for line in out)
    assert out[-2].startswith(f"{data}: 2 damaged")
    assert out[-1].endswith(f"covector fsck --data {data} --repair")

    assert main(["fsck", "--data", str(data), "--repair", "--json"]) == 1
    told = json.loads(capfd.readouterr().out)
    assert [entry["path"] for entry in told["repaired"]] == ["stray"]
    (finding,) = told["findings"]
    assert (finding["kind"], finding["collection"], finding["checkpoint"]) == ("chunk", "many", "one")
    assert (finding["first_row"], finding["row_count"], finding["repairable"]) == (0, 4, False)
    assert finding["keys"] == ["0", "'key 1'", "2", "'key 3'"]
    assert told["summary"]["damage"] == 1
    assert told["failed_repairs"] == []


def test_a_leftover_is_told_and_status_0(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (data / "collections/1/1/0/scales/zarr.json.tmp").write_text("{")
    assert main(["fsck", "--data", str(data), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert [entry["severity"] for entry in told["findings"]] == ["leftover"]
    assert told["summary"]["leftovers"] == 1


@pytest.mark.parametrize("arguments", [[], ["--repair"]])
def test_a_store_that_is_open_is_refused(data: Path, capfd: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    descriptor = os.open(data / "lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert main(["fsck", "--data", str(data), *arguments]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "is open in a covector server; stop it first" in captured.err
    assert len(captured.err.splitlines()) == 1
    os.close(descriptor)


def test_wrong_use_is_status_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["fsck", "--data", str(tmp_path / "nothing")]) == 2
    assert "no store" in capfd.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["fsck"])
    assert ended.value.code == 2
