"""Keys and texts of a batch at once: are they well-formed, their hashes, and a table of hashes.

Every function wants the compiled library: callers ask ``IS_COMPILED`` first, and have a way of their own in numpy. The
calls take microseconds, so they keep the interpreter's lock: giving it away costs more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from covector_server.kernels.library import BRIEF

IS_COMPILED = BRIEF is not None

Hashes = npt.NDArray[np.uint64]
Words = npt.NDArray[np.uint64]
Ids = npt.NDArray[np.int64]
Ends = npt.NDArray[np.uint32]
_call: Any = BRIEF


def hash_keys(data: bytes, ends: Ends) -> Hashes:
    """uint64[n]: the hashes of a column's values; ``storage.key_hash`` defines them."""
    hashes = np.empty(len(ends), dtype=np.uint64)
    ends = np.ascontiguousarray(ends, dtype=np.uint32)
    _call.covector_hash_keys(data, ends.ctypes.data, len(ends), hashes.ctypes.data)
    return hashes


def are_keys(data: bytes, ends: Ends, key_bytes_max: int) -> bool:
    """Whether all values are encoded keys of at most so many bytes behind their tag."""
    ends = np.ascontiguousarray(ends, dtype=np.uint32)
    return bool(_call.covector_are_keys(data, ends.ctypes.data, len(ends), key_bytes_max))


def are_texts(data: bytes, ends: Ends, text_bytes_max: int) -> bool:
    """Whether all values are UTF-8 of at most so many bytes."""
    ends = np.ascontiguousarray(ends, dtype=np.uint32)
    return bool(_call.covector_are_texts(data, ends.ctypes.data, len(ends), text_bytes_max))


def are_distinct(hashes: Hashes) -> bool:
    """Whether no two hashes are equal. False may also mean that memory was short."""
    return bool(_call.covector_are_distinct(hashes.ctypes.data, len(hashes)))


def filter_passed(filter_: Words, hashes: Hashes) -> Ids:
    """int64[passed]: the places of the hashes that a filter (``storage.key_filter``) lets pass, ascending."""
    hashes, places = np.ascontiguousarray(hashes), np.empty(len(hashes) + 1, dtype=np.int64)
    passed = _call.covector_filter_passed(
        filter_.ctypes.data, len(filter_), hashes.ctypes.data, len(hashes), places.ctypes.data
    )
    return places[:passed]


def slots_put(slots: tuple[Hashes, Ids, Words], hashes: Hashes, row_ids: Ids) -> None:
    """Adds rows to a table of open addressing, which has room: ``slots`` are its hashes, row ids (a power of two of
    them, -1 where free) and filter."""
    hashes, row_ids = np.ascontiguousarray(hashes), np.ascontiguousarray(row_ids)
    slot_hashes, slot_rows, filter_ = slots
    _call.covector_slots_put(
        slot_hashes.ctypes.data,
        slot_rows.ctypes.data,
        len(slot_rows),
        filter_.ctypes.data,
        len(filter_),
        hashes.ctypes.data,
        row_ids.ctypes.data,
        len(row_ids),
    )


def slots_find(slot_hashes: Hashes, slot_rows: Ids, hashes: Hashes) -> tuple[Ids, Ids]:
    """The rows with some hashes: (places in ``hashes``, row ids). A hash may have several."""
    hashes = np.ascontiguousarray(hashes)
    found_max = len(hashes)
    while True:
        places, row_ids = np.empty(found_max, dtype=np.int64), np.empty(found_max, dtype=np.int64)
        found = _call.covector_slots_find(
            slot_hashes.ctypes.data,
            slot_rows.ctypes.data,
            len(slot_rows),
            hashes.ctypes.data,
            len(hashes),
            places.ctypes.data,
            row_ids.ctypes.data,
            found_max,
        )
        if found <= found_max:
            return places[:found], row_ids[:found]
        found_max = found
