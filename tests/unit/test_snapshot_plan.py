"""What a state of the catalog consists of, by hand; and files made from a plan, derived ones included."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

import pytest

from covector.errors import Corrupt
from covector.types import Space
from covector_server.metadata.catalog import number
from covector_server.metadata.memory_catalog import MemoryCatalog
from covector_server.metadata.records import (
    BlockRecord,
    CheckpointCounters,
    CheckpointRecord,
    CollectionCounters,
    CollectionRecord,
)
from covector_server.storage.disk import Disk
from covector_server.storage.snapshot_files import FilesCopier
from covector_server.storage.snapshot_plan import Finished, Growing, Plan, Shape, Tail, plan_of

NEW, SUPPLEMENT = 0, 1
DIM = 4  # 8 bytes a row, chunks of 4 rows and shards of 8: 36 bytes a chunk, 108 a shard


def plan_with(row_count: int, sealed: int, checksums: dict[str, int]) -> Plan:
    catalog = MemoryCatalog()
    with catalog.write() as writer:
        writer.put("collections", number(3), CollectionRecord(3, "c", Space(dim=DIM).json).encode())
        counters = CollectionCounters(next_row_id=100, log_file=2, log_offset_bytes=70)
        writer.put("collection_counters", number(3), counters.encode())
        for kind, place, block in (
            (NEW, 0, BlockRecord(0, 0, 50, 0, 9, 10)),
            (NEW, 10, BlockRecord(0, 50, 60, 10, 19, 10)),
            (SUPPLEMENT, 0, BlockRecord(2, 0, 70, 0, 1, 2)),
        ):
            writer.put("row_blocks", number(3, kind, place), block.encode())
        writer.put("deleted_rows", number(3, 0), b"\x01\x00\x05\x00\x07\x00")
        writer.put("key_runs", number(3, 12), json.dumps({"size_bytes": 30}).encode())
        writer.put("postings", number(3, 4), b"{}")
        record = CheckpointRecord(5, "one", 1.0, None, {}, chunk_rows=4, shard_rows=8, generation=6)
        writer.put("checkpoints", number(3, 5), record.encode())
        kept = CheckpointCounters(row_count=row_count, sealed_shard_count=sealed, checksums=checksums)
        writer.put("checkpoint_counters", number(3, 5), kept.encode())
    with catalog.read() as reader:
        return plan_of(reader)


def test_rows_are_those_not_deleted() -> None:
    (collection,) = plan_with(0, 0, {}).collections
    assert (collection.id, collection.name, collection.row_id_count, collection.row_count) == (3, "c", 100, 97)


def test_the_row_log_and_derived_files() -> None:
    plan = plan_with(0, 0, {})
    below = PurePosixPath("collections/3")
    assert plan.files[:4] == [
        Finished(below / "rows/00000000.blocks", 110),
        Growing(below / "rows/00000002.blocks", 70),
        Finished(below / "keys/00000012.run", 30),
        Finished(below / "postings/00000004.postings", 1),
    ]
    assert {below / name for name in ("rows", "keys", "postings")} <= set(plan.directories)


@pytest.mark.parametrize(("row_count", "sealed", "expected"), [
    (0, 0, []),
    (3, 0, [(Tail, 24, 3, 77)]),
    (4, 0, [(Tail, 36, 4, 77)]),
    (8, 0, [(Tail, 72, 8, 0)]),  # full and not marked
    (8, 1, [(Finished, 108, 0, 0)]),
    (21, 1, [(Finished, 108, 0, 0), (Tail, 72, 8, 0), (Tail, 36 + 8, 5, 77)]),
])  # fmt: skip
def test_shards(row_count: int, sealed: int, expected: list[tuple[type, int, int, int]]) -> None:
    root = "collections/3/5/6/gradients"
    files = plan_with(row_count, sealed, {"gradients": 77}).files
    found = [file for file in files if str(file.path).startswith(root)]
    assert found[0] == Shape(PurePosixPath(root, "zarr.json"), row_count)
    for shard, (file, (kind, size_bytes, rows, checksum)) in enumerate(zip(found[1:], expected, strict=True)):
        assert type(file) is kind
        assert file.path == PurePosixPath(root, f"c/{shard}/0")
        if isinstance(file, Tail):
            assert (file.size_bytes, file.row_count, file.checksum) == (size_bytes, rows, checksum)
        else:
            assert file.size_bytes == size_bytes + 2 * 16 + 4 - 36  # the index of two chunks


def test_derived_files_are_shared_and_needed(tmp_path: Path) -> None:
    plan = plan_with(0, 0, {})
    plan.files = [file for file in plan.files if isinstance(file, Finished | Growing)]
    source, target = tmp_path / "source", tmp_path / "target"
    for file in plan.files:
        (source / file.path).parent.mkdir(parents=True, exist_ok=True)
        (source / file.path).write_bytes(b"x" * (file.size_bytes + 5))
    target.mkdir()
    copied_bytes = FilesCopier(source, target, Disk(), lambda done, total: None).copy(plan)
    sizes = {file.path.name: (target / file.path).stat().st_size for file in plan.files}
    assert sizes == {"00000000.blocks": 115, "00000002.blocks": 70, "00000012.run": 35, "00000004.postings": 6}
    assert copied_bytes == sum(sizes.values())
    shared = {file.path.name for file in plan.files if (target / file.path).samefile(source / file.path)}
    assert shared == {"00000000.blocks", "00000012.run", "00000004.postings"}
    (source / "collections/3/keys/00000012.run").write_bytes(b"x" * 29)
    (tmp_path / "again").mkdir()
    with pytest.raises(Corrupt, match=r"00000012\.run is missing or has fewer than 30 bytes"):
        FilesCopier(source, tmp_path / "again", Disk(), lambda done, total: None).copy(plan)
