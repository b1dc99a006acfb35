"""The disk's copies and names, with a kernel that helps and one that does not."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from covector_server.storage.disk import Disk


@pytest.fixture(params=["kernel copies", "kernel refuses"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(errno.EXDEV, "two file systems")

    if request.param == "kernel refuses":
        monkeypatch.setattr(os, "copy_file_range", refuse)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(("offset", "size"), [(0, 0), (0, 3_000_000), (17, 2_500_000), (2_999_999, 1)])
def test_a_range_is_copied_to_its_place(tmp_path: Path, offset: int, size: int) -> None:
    data = np.random.default_rng(0).bytes(3_000_000)
    (tmp_path / "source").write_bytes(data)
    disk = Disk()
    source, target = os.open(tmp_path / "source", os.O_RDONLY), disk.open(tmp_path / "target", 3_000_001)
    disk.copy_range(source, target, offset, size)
    expected = bytearray(3_000_001)
    expected[offset : offset + size] = data[offset : offset + size]
    assert (tmp_path / "target").read_bytes() == expected
    with pytest.raises(EOFError, match="1 bytes too early"):
        disk.copy_range(source, target, 2_999_990, 11)
    disk.close(target)
    os.close(source)


def test_a_directory_is_renamed_and_removed(tmp_path: Path) -> None:
    disk = Disk()
    disk.make_directory(tmp_path / "a")
    disk.make_directory(tmp_path / "a")
    (tmp_path / "a/file").write_text("x")
    disk.make_directory(tmp_path / "b")
    disk.rename(tmp_path / "a", tmp_path / "b/c")
    assert not (tmp_path / "a").exists()
    disk.link(tmp_path / "b/c/file", tmp_path / "b/other")
    assert (tmp_path / "b/other").read_text() == "x"
    disk.remove_tree(tmp_path / "b/c")
    disk.remove_tree(tmp_path / "b/c")
    disk.remove_file(tmp_path / "b/other")
    disk.remove_file(tmp_path / "b/other")
    assert list((tmp_path / "b").iterdir()) == []
