"""The row log: blocks come back as they went in, and a damaged one is named."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from covector.blocks import Column, column_of
from covector.errors import Corrupt
from covector_server.metadata.records import BlockRecord
from covector_server.storage.disk import Disk
from covector_server.storage.row_block import Block, Section, new_block, supplement_block
from covector_server.storage.row_log import NEW, SUPPLEMENT, RowLog
from covector_server.storage.syncs import Syncs


@dataclass(frozen=True)
class Expected:
    kind: int
    row_ids: npt.NDArray[np.int64]
    keys: Column | None
    texts: Column | None
    metadata: Column | None = None

    @property
    def encoded(self) -> bytes:
        texts, none = Section.of_column(self.texts), Section.of_column(None)
        if self.kind == SUPPLEMENT:
            return supplement_block(self.row_ids, texts, none)
        return new_block(int(self.row_ids[0]), len(self.row_ids), Section.of_column(self.keys), texts, none)


def block_of(first: int, count: int, kind: int = NEW, text: str = "text ") -> Expected:
    row_ids = np.arange(first, first + count)
    return Expected(
        kind,
        row_ids,
        column_of(f"key {row_id}".encode() for row_id in row_ids) if kind == NEW else None,
        column_of(None if row_id % 3 == 0 else (text * row_id).encode() for row_id in row_ids),
    )


def append(log: RowLog, block: Expected, file: int, offset: int) -> BlockRecord:
    data = block.encoded
    file, offset = log.place(len(data), file, offset)
    log.append(data, file, offset)
    log.write_held(Syncs())
    return BlockRecord(file, offset, len(data), int(block.row_ids[0]), int(block.row_ids[-1]), len(block.row_ids))


def assert_same(found: Block, expected: Expected) -> None:
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
    assert_same(Block(block.encoded), block)


def test_the_log_reads_what_it_appended(tmp_path: Path) -> None:
    log = RowLog(tmp_path / "rows", Disk(), 2000)
    log.create()
    file, offset, places = 0, 0, []
    for index in range(20):
        block = block_of(index * 10, 10, text="")
        record = append(log, block, file, offset)
        file, offset = record.file, record.offset_bytes + record.size_bytes
        places.append((record, block))
    assert file > 1
    for reader in (log, RowLog(tmp_path / "rows", Disk(), 2000)):
        for record, block in places:
            assert_same(reader.read(record), block)
            assert (record.first, record.last) == (block.row_ids[0], block.row_ids[-1])
    log.close()


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    log = RowLog(tmp_path / "rows", Disk(), 2000)
    log.create()
    record = append(log, block_of(0, 12), 0, 0)
    log.close()
    path = next((tmp_path / "rows").iterdir())
    good = path.read_bytes()
    for offset in range(len(good)):
        path.write_bytes(good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :])
        with pytest.raises(Corrupt):
            RowLog(tmp_path / "rows", Disk(), 2000).read(record).check()
    path.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(Corrupt, match="header"):
        RowLog(tmp_path / "rows", Disk(), 2000).read(record).check()
    path.write_bytes(good[:-1])
    with pytest.raises(Corrupt):
        RowLog(tmp_path / "rows", Disk(), 2000).read(record).check()
