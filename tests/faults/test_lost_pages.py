"""Mapped files that cannot be read any more while a server serves them: the query fails and names the rows, or answers
without them, and the server goes on.

The fault is a file that is cut short, which the system tells a reader in the same way as a disk that does not give a
page (SIGBUS). The twin is numpy over the rows that are left.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from tests.index_rig import IndexRig, decaying, share_of

import covector
from covector.errors import Corrupt, Unavailable
from covector.testing import ServerProcess
from covector_server.kernels.library import LIBRARY
from covector_server.kernels.pages import Losses
from covector_server.query import choosing
from covector_server.storage.array import ZarrArray
from covector_server.storage.contract import ArrayState, BadRows, Piece
from covector_server.storage.disk import Disk
from covector_server.storage.layout import ArrayLayout
from covector_server.storage.mapping import map_file
from covector_server.storage.shard_cache import ShardCache
from covector_server.storage.syncs import Syncs

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="without the compiled library the process ends")

DIM, ROWS = 64, 10_000  # in shards of a MiB, 8,192 rows
RNG = np.random.default_rng(3)
GRADIENTS = RNG.standard_normal((ROWS, DIM)).astype(np.float32)
QUERY = RNG.standard_normal(DIM).astype(np.float32)
TOP = np.argsort(-(GRADIENTS @ QUERY))
PAGE_BYTES = 4096


def filled(client: covector.Client) -> covector.Collection:
    collection = client.create_collection("c", covector.Space(dim=DIM))
    with collection.writer("one") as writer:
        writer.add(list(range(ROWS)), GRADIENTS)
    return collection


def gradient_file(data: Path, shard: int) -> Path:
    (path,) = (data / "collections").glob(f"*/1/*/gradients/c/{shard}/0")
    return path


def test_pages_behind_the_end_become_zeros_and_are_told_once(tmp_path: Path) -> None:
    path, losses = tmp_path / "file", Losses()
    path.write_bytes(b"\1" * (4 * PAGE_BYTES))
    mapped = np.frombuffer(map_file(path, 4 * PAGE_BYTES), np.uint8)
    assert mapped.sum() == 4 * PAGE_BYTES
    os.truncate(path, PAGE_BYTES)
    assert not losses.grew()
    assert mapped.sum() == PAGE_BYTES
    assert losses.grew()
    assert mapped.sum() == PAGE_BYTES
    assert not losses.grew()
    os.truncate(path, 0)
    assert mapped[0] == 0
    with pytest.raises(Unavailable, match="ask again"):
        losses.check()
    losses.check()


def test_a_map_that_is_gone_is_not_watched(tmp_path: Path) -> None:
    """Maps come and go at the same addresses, more of them than there are places."""
    path = tmp_path / "file"
    path.write_bytes(b"\1" * PAGE_BYTES)
    for _ in range(20_000):
        assert bytes(map_file(path, PAGE_BYTES)[:1]) == b"\1"
    mapped = map_file(path, PAGE_BYTES)
    os.truncate(path, 0)
    assert bytes(mapped[:1]) == b"\0"


def test_chunks_are_verified_again_once_a_page_was_lost(tmp_path: Path) -> None:
    layout = ArrayLayout("gradients", "<f2", (DIM,), chunk_rows=128, shard_rows=1024)
    array = ZarrArray(tmp_path / "gradients", layout, Disk(), ShardCache(8))
    array.create()
    array.write(ArrayState(), [Piece(GRADIENTS[:1024].astype("<f2"))], Syncs())
    array.seal(0)
    held = array.read(512, 640, 1024)
    os.truncate(array.shard_path(0), layout.stride_bytes * 4)
    np.testing.assert_array_equal(array.read(0, 128, 1024), GRADIENTS[:128].astype("<f2"))
    assert not held.any()
    np.testing.assert_array_equal(array.read(0, 128, 1024), GRADIENTS[:128].astype("<f2"))
    with pytest.raises(BadRows) as caught:
        array.read(512, 640, 1024)
    assert (caught.value.start, caught.value.stop) == (512, 640)
    array.close()


@pytest.mark.parametrize("is_verified", [True, False])
def test_a_query_names_the_rows_of_a_shard_that_was_cut(server: ServerProcess, is_verified: bool) -> None:
    with covector.connect(server.address) as client:
        collection = filled(client)
        if is_verified:
            assert collection.query(QUERY, k=5)[0].proponents[0].key == TOP[0]
        path = gradient_file(server.data, 0)
        kept_bytes = path.stat().st_size // 2 // PAGE_BYTES * PAGE_BYTES
        os.truncate(path, kept_bytes)
        if not is_verified:
            with pytest.raises(Corrupt):
                collection.query(QUERY, k=5)  # it is short when it is mapped
        with pytest.raises(Corrupt, match=f"{path.parent.name}/{path.name}"):
            collection.query(QUERY, k=5)
        answer = collection.query(QUERY, k=ROWS, damaged="omit")
        left = {hit.key for hit in answer[0].proponents}
        assert sum(damage.row_count for damage in answer.damages) == ROWS - len(left)
        assert 0 < len(left) < ROWS
        assert [hit.key for hit in answer[0].proponents][:20] == [row for row in TOP.tolist() if row in left][:20]
        with pytest.raises(Corrupt):
            list(collection.scores(QUERY))
        assert client.status().version  # it is the same process, and serves


@pytest.mark.parametrize("rows_kept", [0, 640])
def test_rows_without_a_checksum_yet_are_not_taken_for_zeros(server: ServerProcess, rows_kept: int) -> None:
    """The last chunk of a checkpoint has its checksum in the catalog, and queries do not compare it."""
    with covector.connect(server.address) as client:
        collection = filled(client)
        assert collection.query(QUERY, k=5)[0].proponents[0].key == TOP[0]
        os.truncate(gradient_file(server.data, 1), rows_kept * 2 * DIM // PAGE_BYTES * PAGE_BYTES)
        for _ in range(2):
            with pytest.raises(Corrupt, match=r"c/1/0.* cannot be read"):
                collection.query(QUERY, k=5)
        answer = collection.query(QUERY, k=ROWS, damaged="omit")
        left = {hit.key for hit in answer[0].proponents}
        assert left <= set(range(8_192 + rows_kept))
        assert len(left) >= 8_192
        assert [hit.key for hit in answer[0].proponents][:20] == [row for row in TOP.tolist() if row in left][:20]
        assert sum(damage.row_count for damage in answer.damages) == ROWS - len(left)


def test_an_index_that_was_cut_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "index_cost", lambda *given: 0.0)
    rig = IndexRig(tmp_path / "store", DIM)
    rig.add(0, decaying(3_000, DIM))
    rig.build()
    queries, losses = decaying(3, DIM, seed=5), Losses()
    assert rig.ask(queries).index
    (codes,) = (rig.data / "collections").glob("*/indexes/*/codes*")
    os.truncate(codes, 0)
    rig.ask(queries)
    assert losses.grew()
    answer, exact = rig.ask(queries), rig.ask(queries, exact=True)
    assert not answer.index
    assert "is damaged" in answer.reason
    assert share_of(answer, exact) == 1.0
    rig.close()


def test_a_batch_that_stands_is_compared_with_what_can_be_read(server: ServerProcess) -> None:
    """Rows sent again must not be taken for changed ones because their pages are gone."""
    with covector.connect(server.address) as client:
        collection = filled(client)
        with collection.writer("one") as writer:
            writer.add(list(range(500)), GRADIENTS[:500])
        os.truncate(gradient_file(server.data, 0), 0)
        with pytest.raises(Corrupt), collection.writer("one") as writer:
            writer.add(list(range(500)), GRADIENTS[:500])
        with collection.writer("one") as writer:
            writer.add(["new"], GRADIENTS[:1])
        assert client.status().version
