"""The walk over LMDB's pages: no false alarm on what LMDB writes, whatever happened; every kind of damage named."""

import random
import struct
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest
from tests.faults.lmdb_used import used_pages

from covector_server.check.lmdb_pages import FREE, PageReport, walk

MAP_BYTES = 1 << 30
Tables = dict[bytes, dict[bytes, bytes]]


def open_environment(path: Path, **options: bool) -> lmdb.Environment:
    return lmdb.open(
        str(path), subdir=False, max_dbs=8, map_size=MAP_BYTES, meminit=False, sync=False, metasync=False, **options
    )


def check(path: Path, tables: Tables) -> PageReport:
    """The report of a walk that must find the tables' entries and nothing wrong."""
    report = walk(path, MAP_BYTES)
    assert report.problems == []
    assert report.entries == {name.decode(): sorted(entries.items()) for name, entries in tables.items()}
    return report


def test_an_empty_file_as_lmdb_makes_it(tmp_path: Path) -> None:
    open_environment(tmp_path / "c").close()
    check(tmp_path / "c", {})


class Churn:
    """Random changes to an environment and to a dict beside it."""

    def __init__(self, path: Path, seed: int, value_bytes: Callable[[random.Random], int]) -> None:
        self.path = path
        self.rng = random.Random(seed)
        self.value_bytes = value_bytes
        self.environment = open_environment(path)
        self.tables: Tables = {b"t%d" % number: {} for number in range(4)}
        self.handles = {name: self.environment.open_db(name) for name in self.tables}

    def transaction(self, changes: int, delete_share: float, abort: bool = False) -> None:
        draft = {name: dict(entries) for name, entries in self.tables.items()}
        with self.environment.begin(write=True) as transaction:
            for _ in range(changes):
                name = self.rng.choice(list(draft))
                if draft[name] and self.rng.random() < delete_share:
                    key = self.rng.choice(list(draft[name]))
                    del draft[name][key]
                    transaction.delete(key, db=self.handles[name])
                else:
                    key = self.rng.randbytes(self.rng.choice((1, 7, 8, 24, 300)))
                    draft[name][key] = self.rng.randbytes(self.value_bytes(self.rng))
                    transaction.put(key, draft[name][key], db=self.handles[name])
            if abort:
                transaction.abort()
        if not abort:
            self.tables = draft


SMALL = lambda rng: rng.randrange(120)  # noqa: E731
MIXED = lambda rng: rng.choice((0, 1, 50, 1500, 3000, 9000))  # noqa: E731
LARGE = lambda rng: rng.randrange(2000, 60_000)  # noqa: E731


@pytest.mark.parametrize(("seed", "sizes"), [(0, SMALL), (1, MIXED), (2, LARGE), (3, MIXED)])
def test_no_false_alarm_while_a_file_grows_and_shrinks(tmp_path: Path, seed: int, sizes: Callable[..., int]) -> None:
    churn = Churn(tmp_path / "c", seed, sizes)
    for step in range(60):
        share = 0.1 if step % 20 < 12 else 0.9
        churn.transaction(changes=churn.rng.choice((1, 3, 60)), delete_share=share, abort=churn.rng.random() < 0.1)
        if step % 3 == 0:
            check(churn.path, churn.tables)
    held = churn.environment.begin()  # a reader that keeps pages from being used again
    for _ in range(10):
        churn.transaction(changes=20, delete_share=0.5)
    check(churn.path, churn.tables)
    held.abort()
    for _ in range(30):
        churn.transaction(changes=40, delete_share=0.97)
    check(churn.path, churn.tables)
    churn.environment.close()
    churn.environment = open_environment(churn.path)
    check(churn.path, churn.tables)
    for compact in (False, True):
        copy = tmp_path / f"copy-{compact}"
        churn.environment.copy(str(copy), compact=compact)
        check(copy, churn.tables)
    churn.environment.close()


def test_a_transaction_of_many_pages_and_long_lists_of_free_ones(tmp_path: Path) -> None:
    churn = Churn(tmp_path / "c", 5, lambda rng: 3000)
    churn.transaction(changes=3000, delete_share=0)
    check(churn.path, churn.tables)
    churn.transaction(changes=5000, delete_share=1)
    check(churn.path, churn.tables)
    for _ in range(8):
        churn.transaction(changes=300, delete_share=0.4)
        check(churn.path, churn.tables)
    with churn.environment.begin(write=True) as transaction:
        transaction.drop(churn.handles[b"t0"], delete=True)
    del churn.tables[b"t0"]
    check(churn.path, churn.tables)
    churn.environment.close()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with branches, leaves, overflow pages and free ones."""
    churn = Churn(tmp_path_factory.mktemp("lmdb") / "c", 7, lambda rng: rng.choice((0, 1, 50, 50, 50, 600, 3000)))
    for _ in range(25):
        churn.transaction(changes=20, delete_share=0.3)
    churn.environment.close()
    check(churn.path, churn.tables)
    return churn.path.read_bytes()


def entries_by_lmdb(path: Path) -> dict[str, list[tuple[bytes, bytes]]]:
    with open_environment(path, readonly=True, lock=False) as environment:
        names = [b"t%d" % number for number in range(4)]
        handles = {name: environment.open_db(name, create=False) for name in names}
        with environment.begin() as transaction:
            return {name.decode(): list(transaction.cursor(db=handles[name])) for name in names}


def test_what_is_not_reported_changes_nothing(tmp_path: Path, sound: bytes) -> None:
    """Flips all over the file: without a problem reported, the entries may differ in a value (which has its own
    checksum in a catalog), or in a key that keeps the order (which the content digest covers), nothing else."""
    path = tmp_path / "c"
    path.write_bytes(sound)
    before = walk(path, MAP_BYTES)
    rng = random.Random(0)
    reported = 0
    for _ in range(300):
        offset = rng.randrange(len(sound))
        flipped = bytearray(sound)
        flipped[offset] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        after = walk(path, MAP_BYTES)
        if after.problems:
            reported += 1
            continue
        assert after.entries == entries_by_lmdb(path)
        differing = [
            (old, new)
            for table, entries in before.entries.items()
            for old, new in zip(entries, after.entries[table], strict=True)
            if old != new
        ]
        assert len(differing) <= 1
    assert reported


def test_every_byte_of_a_header_counts(tmp_path: Path, sound: bytes) -> None:
    """Flips in the fields of meta pages, page headers, places of nodes and node headers are all reported."""
    path = tmp_path / "c"
    rng = random.Random(1)
    newest = 0 if struct.unpack_from("<Q", sound, 144)[0] > struct.unpack_from("<Q", sound, 4096 + 144)[0] else 1
    offsets = [newest * 4096 + offset for offset in (*range(8), *range(16, 152))]
    offsets += [
        (1 - newest) * 4096 + offset for offset in (*range(8), *range(16, 24), *range(40, 46), *range(144, 152))
    ]
    path.write_bytes(sound)
    free = set(range(2, len(sound) // 4096)) - set(used_pages(path))
    for page in range(2, len(sound) // 4096):
        kind, lower = struct.unpack_from("<HH", sound, page * 4096 + 10)
        if page not in free and kind in (1, 2):
            offsets += [page * 4096 + offset for offset in (*range(8), *range(10, 16), *range(16, lower, 9))]
    for offset in rng.sample(offsets, 250):
        flipped = bytearray(sound)
        flipped[offset] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        assert walk(path, MAP_BYTES).problems, f"byte {offset % 4096} of page {offset // 4096}"


def test_a_file_cut_short(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "c"
    for length in (0, 100, 4096, 8192, len(sound) // 2):
        path.write_bytes(sound[:length])
        assert walk(path, MAP_BYTES).problems


def test_what_is_left_can_still_be_read(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "c"
    path.write_bytes(sound)
    before = walk(path, MAP_BYTES)
    leaf = next(
        page for page in used_pages(path) if page > 1 and struct.unpack_from("<H", sound, page * 4096 + 10)[0] == 2
    )
    damaged = bytearray(sound)
    damaged[leaf * 4096 : leaf * 4096 + 4096] = bytes(4096)
    path.write_bytes(damaged)
    after = walk(path, MAP_BYTES)
    assert {problem.page for problem in after.problems} == {leaf}
    assert 0 < after.entry_count < before.entry_count


def test_a_bad_newest_meta_page_leaves_the_older_one(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "c"
    transactions = [struct.unpack_from("<Q", sound, page * 4096 + 144)[0] for page in (0, 1)]
    newest = transactions.index(max(transactions))
    damaged = bytearray(sound)
    struct.pack_into("<Q", damaged, newest * 4096 + 16 + 24 + 48 + 40, 1 << 40)  # the main tree's root
    path.write_bytes(damaged)
    report = walk(path, MAP_BYTES)
    assert report.problems
    assert report.entry_count > 0
    assert FREE not in {problem.table for problem in report.problems}
