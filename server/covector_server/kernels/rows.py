"""What is to be known of the gradients of a batch before they are stored, in one pass over them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from covector.blocks import first_non_finite, sum64
from covector_server.kernels.library import BRIEF, LIBRARY

Checksums = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class RowChecks:
    """``sum64`` as ``covector.blocks.sum64``; ``checksums``: CRC-32C of each row, uint32[n], None without the compiled
    library; ``first_non_finite``: the first row with NaN or infinity, if there is one."""

    sum64: int
    checksums: Checksums | None
    first_non_finite: int | None


def check_rows(rows: npt.NDArray[np.float16]) -> RowChecks:
    """rows: float16[n, dim], contiguous, little-endian."""
    if LIBRARY is None:
        return RowChecks(sum64(rows.reshape(-1)), None, first_non_finite(rows))
    checksums, total = np.empty(len(rows), dtype=np.uint32), ctypes.c_uint64()
    row_bytes = rows.shape[1] * rows.itemsize
    is_finite = LIBRARY.covector_check_rows(
        rows.ctypes.data, len(rows), row_bytes, checksums.ctypes.data, ctypes.addressof(total)
    )
    return RowChecks(total.value, checksums, None if is_finite else first_non_finite(rows))


def checksums_of(pieces: npt.NDArray[np.uint8]) -> Checksums:
    """CRC-32C of each piece. pieces: uint8[n, size], of which each row is contiguous. The interpreter's lock is
    released."""
    if LIBRARY is None:
        return np.array([crc32c(piece) for piece in pieces], dtype=np.uint32)
    found = np.empty(len(pieces), dtype=np.uint32)
    LIBRARY.covector_checksums(pieces.ctypes.data, len(pieces), pieces.shape[1], pieces.strides[0], found.ctypes.data)
    return found


def joined_checksum(checksum: int, rows: memoryview, row_bytes: int, checksums: Checksums | None) -> int:
    """CRC-32C of what ``checksum`` stands for with rows behind it. ``checksums`` of the rows spare reading them."""
    if BRIEF is None or checksums is None:
        return int(crc32c(rows, checksum))
    table = _shift_table(row_bytes)
    return int(BRIEF.covector_crc_join(checksum, checksums.ctypes.data, len(checksums), table.ctypes.data))


@lru_cache(maxsize=64)
def _shift_table(row_bytes: int) -> npt.NDArray[np.uint32]:
    table = np.empty(1024, dtype=np.uint32)
    assert BRIEF is not None
    BRIEF.covector_crc_shift(row_bytes, table.ctypes.data)
    return table
