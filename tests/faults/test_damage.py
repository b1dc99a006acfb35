"""Queries that meet a flipped byte: they fail and name the rows, or answer exactly over the rest and say what is gone.

The twin is float64 over the rows as a client scaled them, without those that the damage touches.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from covector.blocks import decode_key, encode_key, scale_rows
from covector.errors import Corrupt, Unavailable
from covector.types import Space
from covector_server.ingest.batch import WriterSpec
from covector_server.ingest.committer import Committer
from covector_server.limits import Limits
from covector_server.query import scan
from covector_server.query.engine import count_rows, scores, top_k
from covector_server.query.question import CheckpointChoice, Missing, Question, TopKAnswer
from covector_server.storage.damage import Damage
from covector_server.storage.disk import Disk
from covector_server.storage.row_log import RowLog
from covector_server.storage.store import Sizes, Store
from covector_server.testing.batches import batch_of

DIM, ROWS, BATCH = 4, 100, 20
CHUNK, SHARD = 8, 32  # rows
ONE, TWO = list(range(ROWS)), list(range(95, 9, -1))  # the rows of each checkpoint, in order of arrival
LATE = range(30, 34)  # rows whose metadata came after them
RNG = np.random.default_rng(7)
GRADIENTS = {"one": RNG.standard_normal((ROWS, DIM)), "two": RNG.standard_normal((ROWS, DIM))}
QUERIES = RNG.standard_normal((2, 1, DIM)).astype(np.float32)

Scores = dict[int, float]


def key_of(row: int) -> str:
    return f"key-{row:03}"


def decoded(name: str) -> npt.NDArray[np.float64]:
    rows, scales = scale_rows(GRADIENTS[name])
    return np.asarray(rows.astype(np.float64) * scales.astype(np.float64)[:, None])


def twin(place: int, name: str) -> Scores:
    """The score of each row that the checkpoint has."""
    products = decoded(name) @ QUERIES[place, 0].astype(np.float64)
    return {row: float(products[row]) for row in (ONE if name == "one" else TWO)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("damage") / "store"
    store = Store(data, Sizes(chunk_bytes=2 * DIM * CHUNK, shard_bytes=2 * DIM * SHARD))
    committer = Committer(store, Limits())
    store.create_collection("c", Space(dim=DIM), False)
    for name, rows in (("one", ONE), ("two", TWO)):
        spec = WriterSpec("c", f"writer-{name}", name)
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH]
            texts = [f"text of {row} " * 5 for row in some]
            metadata = [None if row in LATE else {"third": row % 3} for row in some]
            batch = batch_of(start // BATCH + 1, [key_of(row) for row in some], GRADIENTS[name][some], texts, metadata)
            committer.submit(spec, batch).result()
    late = batch_of(1, [key_of(row) for row in LATE], None, None, [{"third": row % 3} for row in LATE])
    committer.submit(WriterSpec("c", "writer-late", None), late).result()
    committer.stop()
    store.close()
    return data


class Rig:
    """A copy of the store, opened after bytes were flipped in it."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.store: Store | None = None

    def open(self) -> Store:
        self.store = Store(self.data)
        return self.store

    def array_file(self, name: str, array: str, shard: int) -> Path:
        checkpoint = 1 if name == "one" else 2
        below = f"c/{shard}/0" if array == "gradients" else f"c/{shard}"
        return self.data / "collections" / "1" / str(checkpoint) / "0" / array / below

    def damage_chunk(self, name: str, position: int) -> str:
        """Flips a byte of the chunk with a position; returns the file's path below the data directory."""
        path = self.array_file(name, "gradients", position // SHARD)
        flip(path, position % SHARD // CHUNK * (2 * DIM * CHUNK + 4) + 5)
        return str(path.relative_to(self.data))

    def ask(self, question: Question, k: int = ROWS) -> TopKAnswer:
        assert self.store is not None
        with self.store.collection("c").reading() as view:
            return top_k(view, question, k)

    def close(self) -> None:
        if self.store is not None:
            self.store.close()


@pytest.fixture
def rig(made: Path, tmp_path: Path) -> Iterator[Rig]:
    shutil.copytree(made, tmp_path / "store")
    rig = Rig(tmp_path / "store")
    yield rig
    rig.close()


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def ask_one(**changes: object) -> Question:
    given = {"vectors": QUERIES[:1], "checkpoints": [CheckpointChoice("one")], "damaged": "omit", **changes}
    return Question(**given)  # type: ignore[arg-type]


def ask_both(missing: Missing) -> Question:
    choices = [CheckpointChoice("one"), CheckpointChoice("two")]
    return Question(vectors=QUERIES, checkpoints=choices, missing=missing, damaged="omit")


def check(answer: TopKAnswer, expected: Scores, k: int = ROWS) -> None:
    """Both ends are those of the twin."""
    (ends,) = answer.results
    for end, turn in ((ends.proponents, -1.0), (ends.opponents, 1.0)):
        wanted = sorted(expected, key=lambda row: (turn * expected[row], key_of(row)))[:k]
        assert [decode_key(key) for key in end.keys] == [key_of(row) for row in wanted]
        np.testing.assert_allclose(end.scores, [expected[row] for row in wanted], rtol=0, atol=1e-12)


def without(scores_: Scores, rows: object) -> Scores:
    gone = set(rows)  # type: ignore[call-overload]
    return {row: score for row, score in scores_.items() if row not in gone}


def test_a_sound_store_tells_of_no_damage(rig: Rig) -> None:
    store = rig.open()
    answer = rig.ask(ask_one())
    check(answer, twin(0, "one"))
    assert (answer.damages, store.damages.found()) == ((), [])


def test_a_query_fails_and_names_file_collection_checkpoint_and_rows(rig: Rig) -> None:
    path = rig.damage_chunk("two", 17)
    store = rig.open()
    with pytest.raises(Corrupt) as caught:
        rig.ask(Question(vectors=QUERIES[1:], checkpoints=[CheckpointChoice("two")]), 3)
    for part in (str(rig.data / path), "collection 'c'", "checkpoint 'two'", "positions 16 to 23", "ids 72 to 79"):
        assert part in caught.value.message
    assert caught.value.facts["path"] == str(rig.data / path)
    ((collection, damage),) = store.damages.found()
    assert (collection, damage.checkpoint, damage.path, damage.row_count) == ("c", "two", path, 8)
    check(rig.ask(ask_one()), twin(0, "one"))  # the other checkpoint is whole


@pytest.mark.parametrize("k", [1, 10, ROWS])
@pytest.mark.parametrize("position", [0, 9, 40, 95])
def test_the_rest_is_answered_exactly(rig: Rig, k: int, position: int) -> None:
    path = rig.damage_chunk("one", position)
    store = rig.open()
    first = position - position % CHUNK
    answer = rig.ask(ask_one(), k)
    check(answer, without(twin(0, "one"), range(first, first + CHUNK)), k)
    (damage,) = answer.damages
    assert (damage.checkpoint, damage.path, damage.row_count) == ("one", path, CHUNK)
    assert f"positions {first} to {first + CHUNK - 1}" in damage.message
    assert store.damages.found() == [("c", damage)]
    assert rig.ask(ask_one(), k).damages == answer.damages  # and again


@pytest.mark.parametrize("missing", ["omit", "zero"])
@pytest.mark.parametrize("narrow_ranges", [False, True])
def test_a_row_damaged_at_one_checkpoint_is_in_no_sum(
    rig: Rig, missing: Missing, narrow_ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if narrow_ranges:
        monkeypatch.setattr(scan, "RANGE_BYTES", 0)
        monkeypatch.setattr(scan, "RANGE_ROWS_MIN", 10)
    rig.damage_chunk("one", 8)
    rig.damage_chunk("two", 16)
    rig.open()
    one, two = twin(0, "one"), twin(1, "two")
    rows = set(one) & set(two) if missing == "omit" else set(one)
    summed = {row: one[row] + two.get(row, 0.0) for row in rows}
    answer = rig.ask(ask_both(missing))
    check(answer, without(summed, [*ONE[8:16], *TWO[16:24]]))
    assert sorted((damage.checkpoint, damage.row_count) for damage in answer.damages) == [("one", 8), ("two", 8)]


@pytest.mark.parametrize("array", ["scales", "trak_q", "row_ids"])
@pytest.mark.parametrize("narrow_ranges", [False, True])
def test_a_damaged_column_takes_its_shard_out(
    rig: Rig, array: str, narrow_ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if narrow_ranges:
        monkeypatch.setattr(scan, "RANGE_BYTES", 0)
        monkeypatch.setattr(scan, "RANGE_ROWS_MIN", 10)
    path = rig.array_file("one", array, 1)
    if array != "row_ids":
        flip(path, 9)
    store = rig.open()
    if array == "row_ids":  # verified when the store was opened
        flip(path, 9)
        store.shards.forget(path)
    left = without(twin(0, "one"), range(32, 64))
    answer = rig.ask(ask_one())
    check(answer, left)
    assert [(damage.checkpoint, damage.row_count) for damage in answer.damages] == [("one", 32)]
    two = twin(1, "two")
    answer = rig.ask(ask_both("omit"))
    check(answer, {row: score + two[row] for row, score in left.items() if row in two})
    assert [(damage.checkpoint, damage.row_count) for damage in answer.damages] == [("one", 32)]
    with pytest.raises(Corrupt, match=r"checkpoint 'one', rows at positions 32 to 63.*checksum"):
        rig.ask(ask_one(damaged="fail"))


@pytest.mark.parametrize("cut", [False, True])
def test_a_shard_that_is_missing_or_cut_short(rig: Rig, cut: bool) -> None:
    path = rig.array_file("one", "gradients", 2)
    if cut:
        with path.open("r+b") as file:
            file.truncate(50)
    else:
        path.unlink()
    rig.open()
    answer = rig.ask(ask_one())
    check(answer, without(twin(0, "one"), range(64, 96)))
    assert [(damage.checkpoint, damage.row_count) for damage in answer.damages] == [("one", 32)]
    with pytest.raises(Corrupt, match=r"positions 64 to 95.*missing or cut short"):
        rig.ask(ask_one(damaged="fail"))


def test_scores_tell_what_is_not_in(rig: Rig) -> None:
    rig.damage_chunk("one", 24)
    store = rig.open()
    with store.collection("c").reading() as view:
        stream = scores(view, ask_one())
        (block,) = stream.blocks
        assert stream.omissions is not None
        (damage,) = stream.omissions.take()
        keys = view.keys_of(block.row_ids)
        with pytest.raises(Corrupt, match="positions 24 to 31"):
            list(scores(view, ask_one(damaged="fail")).blocks)
    expected = without(twin(0, "one"), range(24, 32))
    assert [decode_key(key) for key in keys] == [key_of(row) for row in sorted(expected)]
    np.testing.assert_allclose(block.scores[0], [expected[row] for row in sorted(expected)], rtol=1e-5, atol=1e-5)
    assert damage.row_count == 8


def test_a_filter_and_damage_together(rig: Rig) -> None:
    rig.damage_chunk("one", 50)
    rig.open()
    expected = {row: score for row, score in twin(0, "one").items() if row % 3 == 1}
    answer = rig.ask(ask_one(where={"third": 1}))
    check(answer, without(expected, range(48, 56)))
    assert [(damage.checkpoint, damage.row_count) for damage in answer.damages] == [("one", 8)]


@pytest.mark.parametrize("block", [0, 3])
def test_a_hit_whose_text_is_damaged_leaves_with_its_key(rig: Rig, block: int) -> None:
    flip_section(rig, block, "texts")
    store = rig.open()  # a damaged text keeps no collection closed
    check(rig.ask(ask_one()), twin(0, "one"))
    found: list[Damage] = []
    with store.collection("c").reading() as view:
        row_ids = np.arange(10, 90)
        details = view.details_of(row_ids, found.append)
        assert [row.key for row in details] == [encode_key(key_of(row)) for row in row_ids.tolist()]
        gone = {row_id for row_id in row_ids.tolist() if row_id // BATCH == block}
        assert {row_id for row_id, row in zip(row_ids.tolist(), details, strict=True) if row.text is None} == gone
        with pytest.raises(Corrupt, match=rf"texts of rows with ids {block * BATCH} to {block * BATCH + BATCH - 1}"):
            view.details_of(row_ids)
    assert [(damage.checkpoint, damage.row_count) for damage in found] == [("", len(gone))]
    assert found[0].path == "collections/1/rows/00000000.blocks"
    assert [damage.row_count for _, damage in store.damages.found()] == [BATCH]


def test_a_filter_holds_for_no_row_whose_metadata_is_damaged(rig: Rig) -> None:
    flip_section(rig, 2, "metadata")
    store = rig.open()
    for where, holds in (({"third": 1}, lambda row: row % 3 == 1), ({"third": {"ne": 1}}, lambda row: row % 3 != 1)):
        answer = rig.ask(ask_one(where=where))
        expected = {row: score for row, score in twin(0, "one").items() if holds(row)}
        check(answer, without(expected, range(40, 60)))
        assert [(damage.checkpoint, damage.row_count) for damage in answer.damages] == [("", BATCH)]
    with pytest.raises(Corrupt, match="metadata of rows with ids 40 to 59"):
        rig.ask(ask_one(where={"third": 1}, damaged="fail"))
    with store.collection("c").reading() as view, pytest.raises(Corrupt, match="metadata"):
        count_rows(view, {"third": 1}, limits=Limits())


@pytest.mark.parametrize("section", ["row_ids", "metadata"])
def test_a_filter_holds_for_no_row_of_a_damaged_supplement(rig: Rig, section: str) -> None:
    flip_section(rig, 5, section)
    rig.open()
    answer = rig.ask(ask_one(where={"third": {"ne": 1}}))
    expected = {row: score for row, score in twin(0, "one").items() if row % 3 != 1}
    check(answer, without(expected, LATE))
    assert [(damage.checkpoint, damage.row_count) for damage in answer.damages] == [("", len(LATE))]


@pytest.mark.parametrize("k", [3, ROWS])
def test_rows_that_cannot_be_named_give_their_place_to_others(rig: Rig, k: int) -> None:
    store = rig.open()
    best = max(twin(0, "one"), key=lambda row: twin(0, "one")[row])
    flip_section(rig, best // BATCH, "keys")
    collection = store.collection("c")
    collection.log = RowLog(collection.directory / "rows", Disk(), 1 << 20)  # forgets what it read at opening
    first = best - best % BATCH
    answer = rig.ask(ask_one(), k)
    check(answer, without(twin(0, "one"), range(first, first + BATCH)), k)
    assert [(damage.checkpoint, damage.row_count) for damage in answer.damages] == [("", BATCH)]
    with pytest.raises(Corrupt, match="keys of rows with ids"):
        rig.ask(ask_one(damaged="fail"), k)


def test_a_block_that_cannot_be_read_at_all(rig: Rig) -> None:
    store = rig.open()
    flip_header(rig, 1)
    collection = store.collection("c")
    collection.log = RowLog(collection.directory / "rows", Disk(), 1 << 20)
    answer = rig.ask(ask_one(where={"third": {"ne": 1}}))
    expected = {row: score for row, score in twin(0, "one").items() if row % 3 != 1}
    check(answer, without(expected, range(20, 40)))
    assert [(damage.checkpoint, damage.row_count) for damage in answer.damages] == [("", BATCH)]


def test_a_read_only_collection_answers_and_a_closed_one_says_why(rig: Rig) -> None:
    store = rig.open()
    store.collection("c").read_only = Unavailable("read-only on purpose")
    check(rig.ask(ask_one()), twin(0, "one"))
    rig.close()
    path = rig.array_file("two", "row_ids", 2)  # its tail, whose checksum is checked when it is opened
    flip(path, 3)
    store = rig.open()
    for _ in range(2):
        with pytest.raises(Corrupt, match=rf"'c' cannot be opened: .*{path.parents[1]}.*checksum"):
            rig.ask(ask_one())
    ((collection, damage),) = store.damages.found()
    assert collection == "c"
    assert damage.path == str(path.parents[1].relative_to(rig.data))


def block_offset(rig: Rig, block: int) -> tuple[Path, int]:
    (path,) = (rig.data / "collections" / "1" / "rows").iterdir()
    data, at = path.read_bytes(), -1
    for _ in range(block + 1):
        at = data.index(b"CVRB", at + 1)
    return path, at


def flip_header(rig: Rig, block: int) -> None:
    path, at = block_offset(rig, block)
    flip(path, at + 9)


def flip_section(rig: Rig, block: int, section: str) -> None:
    """Flips a byte in the middle of a section of the nth block of the log, found by the sizes in its header."""
    path, at = block_offset(rig, block)
    sizes = np.frombuffer(path.read_bytes(), "<u4", count=16, offset=at + 28).reshape(4, 4)[:, 1]
    index = ("row_ids", "keys", "texts", "metadata").index(section)
    assert sizes[index]
    flip(path, at + 28 + 64 + 4 + int(sizes[:index].sum()) + int(sizes[index]) // 2)
