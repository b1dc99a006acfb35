"""``covector snapshot restore``: a process of the server's package does the work, the client shows how far it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from covector.cli.restore import main
from covector.errors import AlreadyExists, NotFound
from covector.types import Space
from covector_server.ingest.batch import WriterSpec
from covector_server.ingest.committer import Committer
from covector_server.limits import Limits
from covector_server.storage.snapshot import Snapshots
from covector_server.storage.store import Store
from covector_server.testing.batches import batch_of

ROWS = 100


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A store that is open, as a server's is, with one snapshot."""
    store = Store(tmp_path / "store")
    committer = Committer(store, Limits())
    committer.call(lambda: store.create_collection("c", Space(dim=3), False)).result()
    gradients = np.random.default_rng(0).standard_normal((ROWS, 3))
    committer.submit(WriterSpec("c", "w", "one"), batch_of(1, list(range(ROWS)), gradients)).result()
    Snapshots(store).create("backup-1")
    yield tmp_path / "store"
    committer.stop()
    store.close()


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def test_a_snapshot_is_restored_beside_a_running_server(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("backup-1", "--data", data, "--to", tmp_path / "new") == 0
    output = capsys.readouterr()
    assert output.out == f"100 rows are in {tmp_path / 'new'}; serve them: covector serve --data {tmp_path / 'new'}\n"
    assert "restore backup-1 (bytes) [##############################]" in output.err
    store = Store(tmp_path / "new")
    with store.collection("c").reading() as view:
        assert view.row_count == view.checkpoints["one"].row_count == ROWS
    store.close()


def test_json(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(data / "snapshots/backup-1", "--to", tmp_path / "new", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["name"], said["row_count"], said["path"]) == ("backup-1", ROWS, str(tmp_path / "new"))


def test_errors_are_those_of_the_process(data: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is no snapshot"):
        run("backup-2", "--data", data, "--to", tmp_path / "new")
    with pytest.raises(AlreadyExists, match="restore to a new directory"):
        run("backup-1", "--data", data, "--to", data)
    assert {path.name for path in tmp_path.iterdir()} == {"store"}


def test_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("backup-1")
    assert ended.value.code == 2
    assert "--to" in capsys.readouterr().err
