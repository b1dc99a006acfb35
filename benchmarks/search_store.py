"""What the search benchmarks search: a store of random rows, the same rows as a file for others, and the floors that a
scan is held against: reading memory, reading the disk, multiplying matrices.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from ingest_client import COLLECTION
from ingest_processes import HERE, covector_server
from ingest_rows import RowMaker, rows_per_batch

import covector
from covector_server.query.workers import Workers
from covector_server.storage.store import Store
from covector_server.storage.view import CollectionView

CORES = len(os.sched_getaffinity(0))
READ_BYTES = 8 << 20  # of a file at once, as the floor of the disk does


@dataclass(frozen=True, slots=True)
class Data:
    """``served``: a store for a server; ``local``: the same for this process, its full shards the same files;
    ``rows``: float16[n, dim] in a .npy file."""

    served: Path
    local: Path
    rows: Path
    row_count: int
    dim: int

    @property
    def size_bytes(self) -> int:
        return 2 * self.dim * self.row_count

    def vectors(self, seed: int, count: int) -> npt.NDArray[np.float32]:
        """Query vectors, float32[count, dim]."""
        return np.random.default_rng(seed).standard_normal((count, self.dim), dtype=np.float32)


def make_data(directory: Path, size_mib: int, dim: int) -> Data:
    """Writes random rows through a server, with an integer field ``thousandth`` to filter on."""
    row_count = (size_mib << 20) // (2 * dim)
    data = Data(directory / "served", directory / "local", directory / "rows.npy", row_count, dim)
    maker, step = RowMaker(1, dim, with_text=False), rows_per_batch(dim, 4 << 20)
    rows = np.lib.format.open_memmap(data.rows, "w+", np.float16, (row_count, dim))
    with (
        covector_server(data.served, dim=dim) as server,
        covector.connect(server.address, timeout_s=300) as client,
        client.collection(COLLECTION).writer(checkpoint="one") as writer,
    ):
        for start in range(0, row_count, step):
            keys = list(range(start, min(start + step, row_count)))
            rows[keys[0] : keys[-1] + 1] = maker.make(len(keys)).gradients
            metadata = [{"thousandth": key % 1000} for key in keys]
            writer.add(keys, rows[keys[0] : keys[-1] + 1].astype(np.float32), metadata=metadata)
    rows.flush()
    _copy(data.served, data.local)
    return data


def _copy(served: Path, local: Path) -> None:
    """A copy that shares the full shards, so that the rows are in memory once."""

    def link_or_copy(source: str, target: str) -> None:
        if "/gradients/c/" in source:
            os.link(source, target)
        else:
            shutil.copy2(source, target)

    shutil.copytree(served, local, copy_function=link_or_copy)


@contextmanager
def opened(data: Data) -> Iterator[tuple[CollectionView, Workers]]:
    """The store in this process."""
    store, workers = Store(data.local), Workers(CORES)
    try:
        with store.collection(COLLECTION).reading() as view:
            yield view, workers
    finally:
        workers.close()
        store.close()


class MemoryFloor:
    """Reads memory with as many threads as there are cores."""

    def __init__(self, directory: Path, size_bytes: int) -> None:
        library = directory / "read_floor.so"
        command = [*os.environ.get("CC", "cc").split(), "-O3", "-shared", "-fPIC", str(HERE / "read_floor.c")]
        subprocess.run([*command, "-o", str(library)], check=True)
        self._read = ctypes.CDLL(str(library)).read_all
        self._read.argtypes, self._read.restype = (ctypes.c_void_p, ctypes.c_size_t), ctypes.c_uint64
        self._memory = np.ones(size_bytes, dtype=np.uint8)
        self._threads = ThreadPoolExecutor(CORES)

    def bytes_per_s(self) -> float:
        """The better of two passes: a floor is what the machine can do."""
        return max(self._pass() for _ in range(2))

    def _pass(self) -> float:
        share = len(self._memory) // CORES
        started_s = time.perf_counter()
        list(self._threads.map(lambda at: self._read(self._memory.ctypes.data + at * share, share), range(CORES)))
        return share * CORES / (time.perf_counter() - started_s)


def sgemm_per_s(vectors: npt.NDArray[np.float32], rows: npt.NDArray[np.float32]) -> float:
    """Multiplications and additions of numpy's product of widened rows with vectors."""
    started_s = time.perf_counter()
    np.matmul(rows, vectors.T)
    return 2 * rows.size * len(vectors) / (time.perf_counter() - started_s)


def shard_files(directory: Path) -> list[Path]:
    """The files of gradients, in order."""
    return sorted(directory.rglob("gradients/c/*/0"), key=lambda path: int(path.parent.name))


def drop_from_memory(paths: list[Path]) -> None:
    """Lets the system forget the files; they must not be mapped."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_through(paths: list[Path]) -> float:
    """Reads files from end to end, and returns the seconds."""
    buffer = bytearray(READ_BYTES)
    started_s = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while file.readinto(buffer):
                pass
    return time.perf_counter() - started_s
