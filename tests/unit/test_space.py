"""Room on the disk: refused below the mark, taken again by itself, and cheap to ask."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from covector.errors import InvalidInput, Unavailable
from covector_server.config import parse
from covector_server.storage.space import FRESH_BYTES, FRESH_S, FreeSpace, free_bytes_of

MIB = 1 << 20


class Machine:
    """A file system and a clock that are what they are said to be."""

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes
        self.now_s = 0.0
        self.look_count = 0

    def free_bytes_of(self, path: Path) -> int:
        self.look_count += 1
        return self.free_bytes

    def space(self, low_water_bytes: int) -> FreeSpace:
        return FreeSpace(Path("/data"), low_water_bytes, self.free_bytes_of, lambda: self.now_s)


def test_below_the_mark_it_refuses_and_names_the_limit() -> None:
    machine = Machine(110 * MIB)
    space = machine.space(100 * MIB)
    space.check()
    space.check(10 * MIB)
    with pytest.raises(Unavailable, match=r"disk_low_water_bytes=104857600.*goes on by itself") as caught:
        space.check(10 * MIB + 1)
    assert caught.value.facts["limit"] == "disk_low_water_bytes"
    machine.free_bytes = 100 * MIB - 1
    machine.now_s += FRESH_S
    with pytest.raises(Unavailable):
        space.check()


def test_it_goes_on_as_soon_as_there_is_room() -> None:
    machine = Machine(0)
    space = machine.space(100 * MIB)
    with pytest.raises(Unavailable):
        space.check()
    machine.free_bytes = 200 * MIB
    space.check()


def test_what_was_asked_for_since_the_last_look_counts() -> None:
    machine = Machine(150 * MIB)
    space = machine.space(100 * MIB)
    for _ in range(5):
        space.check(10 * MIB)
        machine.free_bytes -= 10 * MIB
    with pytest.raises(Unavailable):
        space.check(10 * MIB)


def test_it_looks_rarely() -> None:
    machine = Machine(1 << 40)
    space = machine.space(100 * MIB)
    for _ in range(1000):
        space.check(1000)
    assert machine.look_count == 1
    machine.now_s += FRESH_S
    space.check(1000)
    assert machine.look_count == 2
    space.check(FRESH_BYTES)
    assert machine.look_count == 3


def test_no_mark_still_refuses_what_cannot_fit() -> None:
    space = Machine(10).space(0)
    space.check(10)
    with pytest.raises(Unavailable):
        space.check(11)


def test_the_real_file_system(tmp_path: Path) -> None:
    found = os.statvfs(tmp_path)
    assert 0 < free_bytes_of(tmp_path) <= found.f_blocks * found.f_frsize
    space = FreeSpace(tmp_path, 0)
    space.check(1)
    with pytest.raises(Unavailable):
        space.check(1 << 60)


@pytest.mark.parametrize(("given", "expected_mib"), [([], 256), (["--disk-low-water-mib", "0"], 0)])
def test_the_mark_is_configured(given: list[str], expected_mib: int) -> None:
    assert parse(["--data", "store", *given]).disk_low_water_bytes == expected_mib * MIB


def test_a_negative_mark_is_refused() -> None:
    with pytest.raises(InvalidInput, match="--disk-low-water-mib -1: give 0 or more"):
        parse(["--data", "store", "--disk-low-water-mib=-1"])
