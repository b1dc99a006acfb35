"""What a group commit of one batch must cost: 1 MiB of gradients and what belongs to it, written and synced.

The floor of a figure in ingest.py: pwrite to a file of gradients, three columns and a row log, fdatasync of the five
files, then one synchronous LMDB transaction. No database around it, nothing else at the same time.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import lmdb

_BYTES = {"gradients": 1 << 20, "scales": 512, "row_ids": 1024, "checksums": 512, "row_log": 6144}
_FILE_BYTES = 256 << 20


def group_times_s(directory: Path, count: int) -> list[float]:
    """How long each of ``count`` groups took, in seconds."""
    directory.mkdir()
    files = {name: os.open(directory / name, os.O_RDWR | os.O_CREAT) for name in _BYTES}
    payload = {name: os.urandom(size) for name, size in _BYTES.items()}
    for file in files.values():
        os.ftruncate(file, _FILE_BYTES)
    with lmdb.open(str(directory / "catalog"), map_size=64 << 20) as catalog:
        times_s = [_group_s(files, payload, catalog, number) for number in range(count)]
    for file in files.values():
        os.close(file)
    return times_s


def write_rate(directory: Path, size_mib: int, *, group_mib: int = 16) -> float:
    """MB/s of one file that is written and synced in groups, nothing overlapping: what the disk gives."""
    data = os.urandom(group_mib << 20)
    file = os.open(directory, os.O_RDWR | os.O_TMPFILE)
    group_count = max(1, size_mib // group_mib)
    started_s = time.perf_counter()
    for number in range(group_count):
        os.pwrite(file, data, number * len(data))
        os.fdatasync(file)
    elapsed_s = time.perf_counter() - started_s
    os.close(file)
    return group_count * len(data) / 1e6 / elapsed_s


def _group_s(files: dict[str, int], payload: dict[str, bytes], catalog: lmdb.Environment, number: int) -> float:
    started_s = time.perf_counter()
    for name, file in files.items():
        os.pwrite(file, payload[name], number * len(payload[name]) % (_FILE_BYTES - len(payload[name])))
    for file in files.values():
        os.fdatasync(file)
    with catalog.begin(write=True) as transaction:
        transaction.put(number.to_bytes(8, "big"), payload["scales"][:400])
    return time.perf_counter() - started_s
