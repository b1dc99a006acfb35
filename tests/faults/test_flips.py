"""Flips of single bits over every kind of file: each one in a live byte is reported, with whose it is."""

import random
import shutil
from pathlib import Path
from typing import Any

import lmdb
import pytest
from tests.faults.store_images import ARRAYS, contents, is_live, make, row_counts

from covector_server.check.findings import Severity
from covector_server.check.store import check_store
from covector_server.metadata.catalog import TABLES

KINDS = (*ARRAYS, "zarr.json", "rows", "lock")
NAMES = {"1": "many", "2": "few", "3": "none"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    crashed, closed = make(tmp_path_factory.mktemp("images"))
    return {"crashed": crashed, "closed": closed}


def kind_of(path: str) -> str:
    parts = path.split("/")
    if parts[-1] == "zarr.json":
        return "zarr.json"
    if parts[0] != "collections":
        return "catalog" if path == "catalog.lmdb" else "lock"
    return "rows" if parts[2] == "rows" else parts[4]


def paths_of(data: Path) -> list[str]:
    return sorted(str(path.relative_to(data)) for path in data.rglob("*") if path.is_file())


def flip(data: Path, path: str, offset: int, bit: int) -> None:
    with (data / path).open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


@pytest.mark.parametrize("image", ["crashed", "closed"])
def test_a_sound_store_is_clean(images: dict[str, Path], image: str) -> None:
    before = {path: (images[image] / path).read_bytes() for path in paths_of(images[image])}
    report = check_store(images[image])
    assert report.findings == []
    assert (report.collections, report.rows) == (3, 58)
    assert {path: (images[image] / path).read_bytes() for path in paths_of(images[image])} == before


@pytest.mark.parametrize("image", ["crashed", "closed"])
def test_every_flip_of_a_live_byte_is_reported(images: dict[str, Path], image: str, tmp_path: Path) -> None:
    data = images[image]
    counts = row_counts(data)
    by_kind = {kind: [path for path in paths_of(data) if kind_of(path) == kind] for kind in KINDS}
    expected = contents(shutil.copytree(data, tmp_path / "expected"))
    rng = random.Random(image)
    reported = dead = 0
    for number in range(100):
        kind = KINDS[number % (len(KINDS) - 1)] if number < 98 else "lock"
        path = rng.choice([path for path in by_kind[kind] if (data / path).stat().st_size])
        offset, bit = rng.randrange((data / path).stat().st_size), rng.randrange(8)
        flip(data, path, offset, bit)
        try:
            findings = check_store(data, ask_lmdb=False).findings
            if is_live(path, offset, counts, published=image == "closed"):
                reported += 1
                check_named(path, findings)
            else:
                dead += 1
                assert [found for found in findings if found.severity is Severity.DAMAGE] == []
                if dead <= 8:
                    flipped = shutil.copytree(data, tmp_path / f"flipped {number}")
                    assert contents(flipped) == expected
        finally:
            flip(data, path, offset, bit)
    assert reported >= 50
    assert dead >= 2


def check_named(path: str, findings: list[Any]) -> None:
    """There is a finding of damage in the file that names the collection and, for an array, checkpoint and rows."""
    damage = [found for found in findings if found.severity is Severity.DAMAGE and found.path == path]
    assert damage, f"{path}: {findings}"
    parts = path.split("/")
    assert {found.collection for found in damage} == {NAMES[parts[1]]}
    if kind_of(path) in ARRAYS:
        assert {found.checkpoint for found in damage} <= {"one", "two"}
        for found in damage:
            assert found.kind in ("index", "padding") or (found.row_count > 0 and found.first_row is not None)
            if found.kind == "chunk" and kind_of(path) != "row_ids":
                assert found.keys
    if kind_of(path) == "rows":
        assert all(found.row_count > 0 for found in damage)


@pytest.mark.parametrize(("compact", "reported_min"), [(False, 3), (True, 30)])
def test_flips_in_the_catalog(images: dict[str, Path], tmp_path: Path, compact: bool, reported_min: int) -> None:
    """Unreported only where no entry changes: free pages, free space, the older meta page, keys that part pages."""
    data = shutil.copytree(images["closed"], tmp_path / "store")
    if compact:  # fewer pages that are free
        with lmdb.open(str(images["closed"] / "catalog.lmdb"), subdir=False, readonly=True, lock=False) as environment:
            (data / "catalog.lmdb").unlink()
            environment.copy(str(data / "catalog.lmdb"), compact=True)
    size = (data / "catalog.lmdb").stat().st_size
    before = entries(data / "catalog.lmdb")
    rng = random.Random(5)
    sound = bytearray((data / "catalog.lmdb").read_bytes())
    used = [offset for offset in range(0, size, 8) if sound[offset : offset + 8].strip(b"\0")]
    reported = 0
    for number in range(120):
        offset = rng.randrange(size) if number % 3 == 0 else rng.choice(used) + rng.randrange(8)
        bit = rng.randrange(8)
        flip(data, "catalog.lmdb", offset, bit)
        try:
            report = check_store(data, ask_lmdb=False)
            if report.damage:
                reported += 1
                assert any(found.path == "catalog.lmdb" for found in report.damage)
            else:
                assert report.findings == []
                assert entries(data / "catalog.lmdb") == before
        finally:
            flip(data, "catalog.lmdb", offset, bit)
    assert reported >= reported_min
    assert check_store(data).findings == []


def entries(path: Path) -> dict[str, list[tuple[bytes, bytes]]]:
    with lmdb.open(str(path), subdir=False, readonly=True, lock=False, max_dbs=32, map_size=1 << 40) as environment:
        tables = {name: environment.open_db(name.encode(), create=False) for name in TABLES}
        with environment.begin() as transaction:
            return {name: list(transaction.cursor(db=table)) for name, table in tables.items()}
