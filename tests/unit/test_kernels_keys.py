"""The compiled checks of keys and texts against a loop over them, and a table of hashes against a dict."""

import random

import numpy as np
import pytest

from covector.blocks import column_of, decode_key, encode_key
from covector.errors import InvalidInput
from covector_server.kernels import keys as kernels
from covector_server.storage.key_filter import add_to, filter_bits, word_of
from covector_server.storage.key_hash import hash_keys_in_numpy

# Edges of UTF-8: the shortest and longest form of every length, surrogates, past the last character, cut short.
EDGES = [
    *(chr(code).encode() for code in (0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF)),
    b"\x80",
    b"\xbf",
    b"\xc0\x80",
    b"\xc1\xbf",
    b"\xc2",
    b"\xe0\x80\x80",
    b"\xe0\x9f\xbf",
    b"\xe2\x82",
    b"\xed\xa0\x80",
    b"\xed\xbf\xbf",
    b"\xf0\x80\x80\x80",
    b"\xf0\x8f\xbf\xbf",
    b"\xf0\x9f\x98",
    b"\xf4\x90\x80\x80",
    b"\xf5\x80\x80\x80",
    b"\xff",
]


def is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_key(value: bytes) -> bool:
    try:
        return encode_key(decode_key(value)) == value
    except InvalidInput:
        return False


def some_values(rng: random.Random) -> list[bytes]:
    plain = [rng.choice(["abc", "naïve", "漢字 and more", "x" * 40, ""]).encode() for _ in range(rng.randrange(1, 12))]
    if rng.random() < 0.7:
        at = rng.randrange(len(plain))
        cut = rng.randrange(len(plain[at]) + 1)
        plain[at] = plain[at][:cut] + rng.choice(EDGES) + plain[at][cut:]
    return plain


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("before", [0, 1, 7, 8, 9])
def test_every_edge_of_utf8_is_decided_as_python_does(edge, before):
    for behind in (b"", b"z" * 9):
        column = column_of([b"fine", b"a" * before + edge + behind, b"fine"])
        assert kernels.are_texts(column.data, column.ends, 100) == is_text(edge)


@pytest.mark.parametrize("seed", range(200))
def test_texts_are_judged_one_by_one(seed):
    values = some_values(random.Random(seed))
    column = column_of(values)
    assert kernels.are_texts(column.data, column.ends, 1000) == all(map(is_text, values))
    longest = max(map(len, values))
    assert kernels.are_texts(column.data, column.ends, longest) == all(map(is_text, values))
    assert longest == 0 or not kernels.are_texts(column.data, column.ends, longest - 1)


@pytest.mark.parametrize("seed", range(200))
def test_keys_are_judged_as_their_codec_does(seed):
    rng = random.Random(seed)
    keys: list[str | int] = ["a", "ключ", 5, -1, 2**63 - 1]
    values = [encode_key(rng.choice(keys)) for _ in range(rng.randrange(1, 9))]
    if rng.random() < 0.7:
        at = rng.randrange(len(values))
        values[at] = rng.choice(
            [b"", b"\x01", b"\x01" + bytes(7), b"\x01" + bytes(9), b"\x02", b"\x03a", b"\x02" + rng.choice(EDGES)]
        )
    column = column_of(values)
    assert kernels.are_keys(column.data, column.ends, 1024) == all(map(is_key, values))
    longest = max(map(len, values)) - 1
    assert longest < 1 or not kernels.are_keys(column.data, column.ends, longest - 1)


@pytest.mark.parametrize("seed", range(20))
def test_hashes_are_those_of_numpy(seed):
    rng = random.Random(seed)
    column = column_of([rng.randbytes(rng.choice([0, 1, 7, 8, 9, 16, 17, 300])) for _ in range(rng.randrange(1, 200))])
    assert kernels.hash_keys(column.data, column.ends).tolist() == hash_keys_in_numpy(column).tolist()


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 1000])
def test_two_equal_hashes_are_seen_wherever_they_are(count):
    hashes = np.random.default_rng(count).integers(0, 1 << 63, count, dtype=np.uint64)
    assert kernels.are_distinct(hashes)
    for place in range(1, min(count, 20)):
        again = hashes.copy()
        again[place] = again[0]
        assert not kernels.are_distinct(again)
    same_slot = (np.arange(count, dtype=np.uint64) + np.uint64(1)) << np.uint64(40)
    assert kernels.are_distinct(same_slot)


@pytest.mark.parametrize("seed", range(20))
def test_a_table_of_hashes_finds_what_a_dict_has(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 60))
    hashes = rng.integers(0, 40, count).astype(np.uint64) << np.uint64(rng.choice([0, 20, 40]))
    slots = (np.zeros(128, np.uint64), np.full(128, -1, np.int64), np.zeros(4, np.uint64))
    kernels.slots_put(slots, hashes[: count // 2], np.arange(count // 2))
    kernels.slots_put(slots, hashes[count // 2 :], np.arange(count // 2, count))
    asked = np.unique(np.concatenate([hashes, hashes + np.uint64(1)]))
    places, rows = kernels.slots_find(slots[0], slots[1], asked)
    expected = {(one, row) for row, one in enumerate(hashes.tolist())}
    assert {(int(asked[place]), row) for place, row in zip(places.tolist(), rows.tolist(), strict=True)} == expected
    filter_ = np.zeros(4, np.uint64)
    add_to(filter_, hashes)
    assert slots[2].tolist() == filter_.tolist()
    passed = kernels.filter_passed(filter_, asked)
    bits = filter_bits(asked)
    assert passed.tolist() == np.flatnonzero(filter_[word_of(asked, 4)] & bits == bits).tolist()
