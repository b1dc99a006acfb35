"""A file mapped into memory without holding it open.

Python's own ``mmap`` keeps a descriptor for each map (until 3.13's ``trackfd=False``), and a store has more shards than
a process may have files open. So this calls the system's ``mmap`` itself. The bytes stay mapped for as long as anything
refers to them, numpy views included, and are unmapped after the last.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path
from typing import Final

import numpy as np

from covector_server.kernels.pages import is_resident, unwatch, watch

_library: Final = ctypes.CDLL(None, use_errno=True)
_mmap = _library.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_munmap = _library.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_madvise = _library.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_FAILED = ctypes.c_void_p(-1).value

READ_AHEAD_BYTES: Final = 1 << 20  # asked for at once: the system takes no more than it reads ahead by itself
RESIDENT_STEP_BYTES: Final = 1 << 20  # of which one page is looked at


def map_file(path: Path, size_bytes: int) -> memoryview:
    """The first bytes of a file, read-only, following what is written to it. ``size_bytes`` is above 0.

    Raises OSError if the file cannot be opened or mapped, EOFError if it is shorter. Bytes that cannot be read later,
    since the disk fails or somebody cut the file short, are zeros: see ``kernels.pages``.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size < size_bytes:
            raise EOFError(f"{path} is shorter than {size_bytes} bytes")
        address = _mmap(None, size_bytes, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address is None or address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)
    mapped = (ctypes.c_ubyte * size_bytes).from_address(address)
    unmapping = weakref.finalize(mapped, _unmap, address, size_bytes, watch(address, size_bytes))
    unmapping.atexit = False  # threads may still read when the interpreter ends
    return memoryview(mapped).toreadonly()


def _unmap(address: int, size_bytes: int, place: int) -> None:
    unwatch(place)
    _munmap(address, size_bytes)


def prefetch_mapped(mapped: memoryview, first_byte: int, size_bytes: int) -> bool:
    """Begins to read a stretch of a mapped file into memory, unless a look at some of its pages finds them there;
    returns whether it does."""
    address = np.frombuffer(mapped, dtype=np.uint8).ctypes.data + first_byte
    if is_resident(address, size_bytes, RESIDENT_STEP_BYTES):
        return False
    end = address + size_bytes
    for start in range(address - address % mmap.PAGESIZE, end, READ_AHEAD_BYTES):
        _madvise(start, min(READ_AHEAD_BYTES, end - start), mmap.MADV_WILLNEED)
    return True
