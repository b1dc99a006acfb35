"""The row log: blocks come back as they went in, and a damaged one is named."""

from pathlib import Path

import numpy as np
import pytest

from covector.blocks import column_of
from covector.errors import Corrupt
from covector_server.storage import row_log
from covector_server.storage.disk import Disk
from covector_server.storage.row_log import NEW, SUPPLEMENT, Block, RowLog


def block_of(first: int, count: int, kind: int = NEW, text: str = "text ") -> Block:
    row_ids = np.arange(first, first + count)
    return Block(
        kind,
        row_ids,
        column_of(f"key {row_id}".encode() for row_id in row_ids) if kind == NEW else None,
        column_of(None if row_id % 3 == 0 else (text * row_id).encode() for row_id in row_ids),
        None,
    )


def assert_same(found: Block, expected: Block) -> None:
    assert found.kind == expected.kind
    np.testing.assert_array_equal(found.row_ids, expected.row_ids)
    for name in ("keys", "texts", "metadata"):
        left, right = getattr(found, name), getattr(expected, name)
        assert (left is None) == (right is None)
        assert left is None or left.values() == right.values()


@pytest.mark.parametrize("kind", [NEW, SUPPLEMENT])
@pytest.mark.parametrize("count", [1, 2, 9, 200])
def test_blocks_come_back(kind: int, count: int) -> None:
    block = block_of(7, count, kind)
    assert_same(Block.decode(block.encode()), block)


def test_the_log_reads_what_it_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_log, "FILE_BYTES", 2000)
    log = RowLog(tmp_path / "rows", Disk())
    log.create()
    file, offset, places = 0, 0, []
    for index in range(20):
        block = block_of(index * 10, 10, text="")
        record = log.append(block, file, offset)
        file, offset = record.file, record.offset_bytes + record.size_bytes
        places.append((record, block))
    log.sync()
    assert file > 1
    for reader in (log, RowLog(tmp_path / "rows", Disk())):
        for record, block in places:
            assert_same(reader.read(record), block)
            assert (record.first, record.last) == (block.row_ids[0], block.row_ids[-1])
    log.close()


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    log = RowLog(tmp_path / "rows", Disk())
    log.create()
    record = log.append(block_of(0, 12), 0, 0)
    log.sync()
    log.close()
    path = next((tmp_path / "rows").iterdir())
    good = path.read_bytes()
    for offset in range(len(good)):
        path.write_bytes(good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :])
        with pytest.raises(Corrupt, match="ids 0 to 11"):
            RowLog(tmp_path / "rows", Disk()).read(record)
    path.write_bytes(good[:-1])
    with pytest.raises(Corrupt):
        RowLog(tmp_path / "rows", Disk()).read(record)
