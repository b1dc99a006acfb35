"""Torn, missing and extra files of every kind, what a crash leaves, damaged catalogs, and repairs that lose no row."""

import fcntl
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from crc32c import crc32c
from tests.faults.lmdb_used import used_pages
from tests.faults.store_images import ARRAYS, contents, make

from covector.errors import InvalidInput, Unavailable
from covector_server.check.catalog_state import read_catalog
from covector_server.check.context import Context
from covector_server.check.findings import Finding, Report, Severity
from covector_server.check.row_keys import RowKeys
from covector_server.check.store import check_store, locked, repair_store
from covector_server.metadata.catalog import number
from covector_server.metadata.lmdb_catalog import LmdbCatalog
from covector_server.metadata.records import BlockRecord, CheckpointCounters
from covector_server.testing.faulty_disk import Fault, FaultyDisk

ONE = "collections/1/1/0"
TAIL = f"{ONE}/gradients/c/3/0"
GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = {"1": "many", "2": "few", "3": "none"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make(tmp_path_factory.mktemp("images"))


@pytest.fixture
def crashed(images: tuple[Path, Path], tmp_path: Path) -> Path:
    """A store as a kill leaves it."""
    return shutil.copytree(images[0], tmp_path / "crashed")


@pytest.fixture
def closed(images: tuple[Path, Path], tmp_path: Path) -> Path:
    """A store as a graceful stop leaves it, its tails published."""
    return shutil.copytree(images[1], tmp_path / "closed")


def check(data: Path) -> Report:
    return check_store(data, ask_lmdb=False)


def only(report: Report, severity: Severity = Severity.DAMAGE) -> Finding:
    (finding,) = report.findings
    assert finding.severity is severity
    return finding


def repair(data: Path) -> Report:
    """The report after a repair of everything that can be."""
    repaired = repair_store(data, check(data), ask_lmdb=False)
    assert repaired.done
    assert not repaired.failed
    return repaired.after


def same_rows(one: Path, other: Path, tmp_path: Path) -> None:
    copies = [shutil.copytree(data, tmp_path / f"copy {place}") for place, data in enumerate((one, other))]
    assert contents(copies[0]) == contents(copies[1])


def committed_files(data: Path) -> list[str]:
    paths = sorted(path for path in (data / "collections").rglob("*") if path.is_file())
    return [str(path.relative_to(data)) for path in paths]


def test_every_missing_file_is_named(closed: Path, tmp_path: Path) -> None:
    aside = tmp_path / "aside"
    for path in committed_files(closed):
        (closed / path).rename(aside)
        damage = [found for found in check(closed).damage if found.path == path]
        assert damage, path
        assert {found.collection for found in damage} == {NAMES[path.split("/")[1]]}
        if not path.endswith("zarr.json"):
            assert sum(found.row_count for found in damage) > 0
        aside.rename(closed / path)
    assert check(closed).findings == []


def test_every_torn_file_is_named(closed: Path) -> None:
    for path in committed_files(closed)[::2]:
        whole = (closed / path).read_bytes()
        for size in (0, len(whole) - 1):
            (closed / path).write_bytes(whole[:size])
            assert [found for found in check(closed).damage if found.path == path], (path, size)
        (closed / path).write_bytes(whole)


def test_a_file_that_is_too_long_is_named(closed: Path) -> None:
    for name in ARRAYS:
        path = closed / ONE / name / ("c/0/0" if name == "gradients" else "c/0")
        with path.open("ab") as file:
            file.write(b"x")
        assert only(check(closed)).kind == "size"
        os.truncate(path, path.stat().st_size - 1)


def test_extra_files_are_named_and_set_aside(closed: Path, images: tuple[Path, Path], tmp_path: Path) -> None:
    directories = [path for path in (closed, *closed.rglob("*")) if path.is_dir()]
    names = [str((directory / "stray").relative_to(closed)) for directory in directories]
    for place, name in enumerate(names):
        (closed / name).mkdir() if place % 4 == 0 else (closed / name).write_text(f"the contents of {name}")
    (closed / ONE / "gradients/c/99").mkdir()
    (closed / "collections/77").mkdir()
    names += [f"{ONE}/gradients/c/99", "collections/77"]
    report = check(closed)
    assert {finding.path for finding in report.damage} == set(names)
    assert {finding.kind for finding in report.findings} == {"extra"}
    assert repair(closed).findings == []
    (aside,) = (closed / "lost+found").iterdir()
    assert (aside / names[1]).read_text() == f"the contents of {names[1]}"
    same_rows(closed, images[1], tmp_path)


LEFTOVERS: dict[str, str] = {
    f"{ONE}/gradients/zarr.json.tmp": "orphan",
    f"{ONE}/gradients/c/4/0": "orphan",
    f"{ONE}/scales/c/4": "orphan",
    "collections/1/3/0/gradients/zarr.json": "orphan",
    "collections/1/1/1/gradients/zarr.json": "orphan",
    "collections/1/rows/00000001.blocks": "orphan",
    "collections/3/rows/00000000.blocks": "orphan",
    "collections/4/rows/00000000.blocks": "orphan",
}


@pytest.mark.parametrize("path", LEFTOVERS)
def test_what_a_crash_leaves_is_no_damage(crashed: Path, path: str) -> None:
    (crashed / path).parent.mkdir(parents=True, exist_ok=True)
    (crashed / path).write_bytes(b"begun")
    finding = only(check(crashed), Severity.LEFTOVER)
    assert finding.kind == LEFTOVERS[path]
    assert path.startswith(finding.path)
    assert repair(crashed).findings == []
    assert not (crashed / path).exists()
    assert (next((crashed / "lost+found").iterdir()) / path).read_bytes() == b"begun"


def test_a_deleted_collections_files_are_a_leftover(crashed: Path) -> None:
    catalog = LmdbCatalog(crashed / "catalog.lmdb")
    with catalog.write() as writer:
        writer.delete("names", b"none")
        writer.delete("collections", number(3))
        writer.delete("collection_counters", number(3))
    catalog.close()
    assert only(check(crashed), Severity.LEFTOVER).path == "collections/3"


@pytest.mark.parametrize(
    ("path", "offset"),
    [
        (TAIL, 68 * 2 + 3),
        (TAIL, 68 * 3 + 2),
        (f"{ONE}/scales/c/3", 4 * 15),
        ("collections/1/2/0/row_ids/c/3", 8 * 6),
    ],
)
def test_bytes_past_the_commit_are_zeroed(
    crashed: Path, images: tuple[Path, Path], tmp_path: Path, path: str, offset: int
) -> None:
    with (crashed / path).open("r+b") as file:
        file.seek(offset)
        file.write(b"\7")
    finding = only(check(crashed), Severity.LEFTOVER)
    assert (finding.kind, finding.path) == ("past_commit", path)
    assert repair(crashed).findings == []
    assert (crashed / path).read_bytes() == (images[0] / path).read_bytes()
    same_rows(crashed, images[0], tmp_path)


def test_bytes_past_the_end_of_the_row_log_are_zeroed(crashed: Path, images: tuple[Path, Path], tmp_path: Path) -> None:
    path = "collections/1/rows/00000000.blocks"
    with (crashed / path).open("ab") as file:
        file.write(b"\0\0\0half a block")
    assert only(check(crashed), Severity.LEFTOVER).kind == "past_commit"
    assert repair(crashed).findings == []
    assert (crashed / path).read_bytes().rstrip(b"\0") == (images[0] / path).read_bytes().rstrip(b"\0")
    same_rows(crashed, images[0], tmp_path)


def unseal(data: Path) -> None:
    """As if the process had died before the last shard was sealed."""
    catalog = LmdbCatalog(data / "catalog.lmdb")
    with catalog.write() as writer:
        key = number(1, 1)
        counters = CheckpointCounters.decode(writer.get("checkpoint_counters", key) or b"")
        assert counters.sealed_shard_count == 3
        fields = json.loads(counters.encode()) | {"sealed_shard_count": 2}
        writer.put("checkpoint_counters", key, json.dumps(fields).encode())
    catalog.close()
    for name in ARRAYS:
        path = data / ONE / name / "zarr.json"
        path.write_bytes(path.read_bytes().replace(b"48", b"32", 1))
        shard = data / ONE / name / ("c/2/0" if name == "gradients" else "c/2")
        index_bytes = 16 * (4 if name == "gradients" else 1) + 4
        shard.write_bytes(shard.read_bytes()[:-index_bytes] + b"\xff" * index_bytes)


def test_an_unfinished_seal_is_finished(crashed: Path, images: tuple[Path, Path], tmp_path: Path) -> None:
    unseal(crashed)
    assert only(check(crashed), Severity.LEFTOVER).kind == "unfinished_seal"
    assert repair(crashed).findings == []
    for path in committed_files(crashed):
        assert (crashed / path).read_bytes() == (images[0] / path).read_bytes(), path
    same_rows(crashed, images[0], tmp_path)


def test_a_publication_that_did_not_finish_is_taken_back(crashed: Path, closed: Path) -> None:
    for path in (f"{ONE}/row_ids/zarr.json", f"{ONE}/row_ids/c/3"):
        shutil.copy(closed / path, crashed / path)
    assert only(check(crashed), Severity.LEFTOVER).kind == "publication"
    assert repair(crashed).damage == []
    assert b"48" in (crashed / ONE / "row_ids/zarr.json").read_bytes()


@pytest.mark.parametrize("format_", sorted(path.name for path in GOLDEN.glob("format-*")))
def test_no_false_alarm_on_a_store_of_a_past_format(format_: str) -> None:
    assert check_store(GOLDEN / format_).findings == []


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_text("{}")])
def test_a_document_is_written_from_the_catalog(
    crashed: Path, images: tuple[Path, Path], tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    for name in ARRAYS:
        spoil(crashed / ONE / name / "zarr.json")
    assert {finding.kind for finding in check(crashed).damage} <= {"missing", "zarr_json"}
    assert repair(crashed).findings == []
    for name in ARRAYS:
        path = f"{ONE}/{name}/zarr.json"
        assert (crashed / path).read_bytes() == (images[0] / path).read_bytes()
    same_rows(crashed, images[0], tmp_path)


@pytest.mark.parametrize("name", ARRAYS)
def test_the_index_of_a_sealed_shard_is_written_again(closed: Path, images: tuple[Path, Path], name: str) -> None:
    path = f"{ONE}/{name}/" + ("c/1/0" if name == "gradients" else "c/1")
    whole = (closed / path).read_bytes()
    (closed / path).write_bytes(whole[:-9] + b"\0" * 9)
    assert only(check(closed)).kind == "index"
    assert repair(closed).findings == []
    assert (closed / path).read_bytes() == whole


def test_damaged_padding_takes_the_tail_out_of_the_document(
    closed: Path, images: tuple[Path, Path], tmp_path: Path
) -> None:
    whole = bytearray((closed / TAIL).read_bytes())
    rows = LmdbRows(closed)
    whole[rows.tail_end_bytes + (0 if rows.tail_end_bytes % 68 else -1)] ^= 1
    (closed / TAIL).write_bytes(whole)
    report = check(closed)
    if rows.tail_end_bytes % 68:
        assert only(report).kind == "padding"
        after = repair(closed)
        assert after.damage == []
        same_rows(closed, images[1], tmp_path)
    else:
        assert only(report).kind == "chunk"


class LmdbRows:
    """Where the committed rows of the first checkpoint's gradients end in its tail."""

    def __init__(self, data: Path) -> None:
        from tests.faults.store_images import row_counts

        rows = row_counts(data)["1", "1"] - 48
        self.tail_end_bytes = rows // 4 * 68 + rows % 4 * 16


def test_rows_that_are_damaged_are_never_repaired(closed: Path) -> None:
    for path in (f"{ONE}/gradients/c/0/0", f"{ONE}/row_ids/c/1", "collections/1/rows/00000000.blocks", "catalog.lmdb"):
        data = bytearray((closed / path).read_bytes())
        data[len(data) // 3] ^= 2
        (closed / path).write_bytes(data)
    before = {path: (closed / path).read_bytes() for path in [*committed_files(closed), "catalog.lmdb"]}
    report = check(closed)
    repair_store(closed, report, ask_lmdb=False)
    assert {path: (closed / path).read_bytes() for path in before} == before


def test_a_repair_that_fails_is_told_and_may_be_done_again(crashed: Path) -> None:
    unseal(crashed)
    (crashed / "stray").write_text("x")
    disk = FaultyDisk()
    disk.fault = Fault("write", 0)
    repaired = repair_store(crashed, check(crashed), disk=disk, ask_lmdb=False)
    assert len(repaired.failed) == 1
    assert len(repaired.done) == 1
    assert [finding.kind for finding in repaired.after.findings] == ["unfinished_seal"]
    assert repair(crashed).findings == []


def test_a_catalog_that_is_gone_leaves_the_files_to_be_checked(closed: Path) -> None:
    (closed / "catalog.lmdb").unlink()
    report = check(closed)
    assert {finding.kind for finding in report.damage} == {"catalog", "unclaimed"}
    assert all(finding.repair is None for finding in report.findings)
    for path in (f"{ONE}/gradients/c/1/0", f"{ONE}/trak_q/c/0", TAIL, "collections/2/rows/00000000.blocks"):
        data = bytearray((closed / path).read_bytes())
        data[20] ^= 2
        (closed / path).write_bytes(data)
        assert [finding for finding in check(closed).damage if finding.path == path], path


@pytest.mark.parametrize("place", [0, 1, 2, 3, 4])
def test_pages_of_the_catalog_that_are_gone_cost_what_was_on_them(closed: Path, place: int) -> None:
    """Whatever page is wiped, damage to files is found, and no file is taken for nobody's."""
    catalog = bytearray((closed / "catalog.lmdb").read_bytes())
    used = used_pages(closed / "catalog.lmdb")
    pages = [page for page in used if page > 1 and catalog[page * 4096 + 10] in (1, 2)]
    for page in pages[place::5]:
        catalog[page * 4096 : page * 4096 + 4096] = bytes(4096)
    (closed / "catalog.lmdb").write_bytes(catalog)
    shard = bytearray((closed / f"{ONE}/gradients/c/1/0").read_bytes())
    shard[7] ^= 1
    (closed / f"{ONE}/gradients/c/1/0").write_bytes(shard)
    report = check(closed)
    assert any(finding.path == "catalog.lmdb" for finding in report.damage)
    assert any(finding.path == f"{ONE}/gradients/c/1/0" and finding.kind == "chunk" for finding in report.damage)
    assert not any(finding.repair for finding in report.findings)
    assert not any(finding.kind in ("extra", "orphan") for finding in report.findings)


def test_lmdb_is_asked_in_a_process_of_its_own(closed: Path) -> None:
    catalog = bytearray((closed / "catalog.lmdb").read_bytes())
    for meta in (0, 4096):
        catalog[meta + 16 + 24 + 48 + 40 : meta + 16 + 24 + 48 + 48] = (1 << 40).to_bytes(8, "little")
    (closed / "catalog.lmdb").write_bytes(catalog)
    assert any("LMDB cannot read the catalog" in finding.message for finding in check_store(closed).damage)


def test_an_entry_that_vanished_is_noticed(closed: Path) -> None:
    """Taken out behind the catalog's back: every page and every value is sound."""
    catalog = LmdbCatalog(closed / "catalog.lmdb")
    with catalog._environment.begin(write=True, db=catalog._tables["writers"]) as transaction:
        transaction.delete(next(iter(transaction.cursor()))[0])
    catalog.close()
    damage = check(closed).damage
    assert damage[0].kind == "catalog_content"
    assert {finding.collection for finding in damage} <= {"", "none"}  # of which the catalog has no counters


def test_a_digest_that_vanished_is_noticed_where_there_must_be_one(closed: Path) -> None:
    catalog = LmdbCatalog(closed / "catalog.lmdb")
    for version in (1, 2):
        with catalog.write() as writer:
            record = json.loads(writer.get("store", b"store") or b"") | {"format_version": version}
            writer.put("store", b"store", json.dumps(record).encode())
        with catalog._environment.begin(write=True, db=catalog._tables["store"]) as transaction:
            transaction.delete(b"content")
        assert read_catalog(Context(closed), ask_lmdb=False).is_whole == (version == 1)
    catalog.close()


def put(data: Path, table: str, key: bytes, value: bytes | None) -> None:
    catalog = LmdbCatalog(data / "catalog.lmdb")
    with catalog.write() as writer:
        if value is None:
            writer.delete(table, key)  # type: ignore[arg-type]
        else:
            writer.put(table, key, value)  # type: ignore[arg-type]
    catalog.close()


@pytest.mark.parametrize(
    ("table", "key", "value", "kind"),
    [
        ("row_blocks", number(1, 0, 9), None, "row_ids"),
        ("names", b"many", None, "catalog_entry"),
        ("names", b"nobody", number(9), "catalog_entry"),
        ("collections", number(2), None, "catalog_entry"),
        ("tombstones", number(1, 1, 0), b"\1\0\0\0\1\0\0\0", "tombstones"),
        ("tombstones", number(1, 1, 3), b"\x0f\0\0\0", "tombstones"),
        ("deleted_rows", number(1, 0), b"\2\0\1\0", "deleted_rows"),
        ("deleted_rows", number(1, 1), b"\2\0", "deleted_rows"),
        ("fields", number(1) + b"odd", b"complex", "catalog_entry"),
        ("checkpoints", number(1, 1), b'{"id": 1}', "catalog_entry"),
    ],
)
def test_entries_that_contradict_each_other(closed: Path, table: str, key: bytes, value: bytes, kind: str) -> None:
    put(closed, table, key, value)
    assert kind in {finding.kind for finding in check(closed).damage}


def test_a_replaced_row_without_its_tombstone_is_there_twice(closed: Path) -> None:
    put(closed, "tombstones", number(1, 1, 0), None)
    damage = only(check(closed))
    assert damage.kind == "row_ids"
    assert damage.checkpoint == "one"
    assert "'key 3'" in damage.keys


def test_a_key_written_again_after_its_deletion_is_not_twice(closed: Path) -> None:
    keys = RowKeys(Context(closed), "collections/1")
    keys.add(BlockRecord(0, 0, 1, 0, 1, 2), [b"a", b"b"])
    keys.add(BlockRecord(0, 0, 1, 2, 3, 2), [b"c", b"a"])
    assert keys.twice(np.array([], dtype=np.int64)) == [(0, 3)]
    assert keys.twice(np.array([0], dtype=np.int64)) == []


def key_run(first: int, stop: int, bits: int = 1) -> bytes:
    """A run of the key table, by the words of its format."""
    rng = np.random.default_rng(0)
    count, words = stop - first, 2
    sections = [rng.bytes(8 * entries) for entries in (1 << bits, count, count, words)]
    checksums = b"".join(crc32c(section).to_bytes(4, "little") for section in sections)
    header = struct.pack("<4sHHQQQQI", b"CVKR", 1, bits, count, first, stop, words, crc32c(checksums))
    return (header + crc32c(header).to_bytes(4, "little")).ljust(64, b"\0") + b"".join(sections)


def test_every_byte_of_derived_files_counts(closed: Path) -> None:
    postings = np.random.default_rng(1).bytes(50)
    checksum = crc32c(postings)
    files = {
        "keys/00000007.run": key_run(0, 12),
        "postings/00000003.postings": postings + checksum.to_bytes(4, "little"),
    }
    for name, data in files.items():
        path = closed / "collections/1" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    sizes = [len(data) for data in files.values()]
    run = {"first": 0, "stop": 12, "count": 12, "size_bytes": sizes[0]}
    put(closed, "key_runs", number(1, 7), json.dumps(run).encode())
    put(closed, "postings", number(1, 3), json.dumps({"size_bytes": sizes[1], "checksum": checksum}).encode())
    assert check(closed).findings == []
    for name, data in files.items():
        path = closed / "collections/1" / name
        flips = [data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :] for at in range(0, len(data), 5)]
        for spoiled in (*flips, data[:-1], data + b"x", b""):
            path.write_bytes(spoiled)
            assert only(check(closed)).path == f"collections/1/{name}"
        path.write_bytes(data)
    (closed / "collections/1/keys/00000007.run").unlink()
    assert {finding.kind for finding in check(closed).damage} == {"derived"}
    assert repair(closed).findings == []
    (closed / "collections/1/keys/00000008.run.tmp").write_bytes(b"begun")
    assert only(check(closed), Severity.LEFTOVER).kind == "orphan"


def test_a_server_keeps_the_check_away(crashed: Path) -> None:
    descriptor = os.open(crashed / "lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(Unavailable, match="stop it first"), locked(crashed):
        pass
    os.close(descriptor)
    with locked(crashed):
        pass
    (crashed / "lock").unlink()
    with locked(crashed):  # a snapshot has none
        pass
    assert not (crashed / "lock").exists()


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no store"):
        check_store(tmp_path)
