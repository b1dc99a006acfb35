"""The compiled library, if it is there. ``native/covector.h`` says what its functions do; their types stand here too.

Calls through ``LIBRARY`` release the interpreter's lock, calls through ``BRIEF`` keep it: giving it away costs more
than a few microseconds of work. A library of another version than this file is passed over, with a warning: a source
tree was updated and not built again.
"""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path
from typing import Any, Final

PATH: Final = Path(__file__).with_name("libcovector.so")
VERSION: Final = 9

_pointer, _size = ctypes.c_void_p, ctypes.c_size_t
_float = ctypes.c_float
_u32, _i32, _i64 = ctypes.c_uint32, ctypes.c_int32, ctypes.c_int64
_TYPES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "covector_check_rows": (_i32, (_pointer, _size, _size, _pointer, _pointer)),
    "covector_checksums": (None, (_pointer, _size, _size, _size, _pointer)),
    "covector_hash_keys": (None, (_pointer, _pointer, _size, _pointer)),
    "covector_are_keys": (_i32, (_pointer, _pointer, _size, _size)),
    "covector_are_texts": (_i32, (_pointer, _pointer, _size, _size)),
    "covector_are_distinct": (_i32, (_pointer, _size)),
    "covector_filter_passed": (_size, (_pointer, _size, _pointer, _size, _pointer)),
    "covector_slots_put": (None, (_pointer, _pointer, _size, _pointer, _size, _pointer, _pointer, _size)),
    "covector_slots_find": (_size, (_pointer, _pointer, _size, _pointer, _size, _pointer, _pointer, _size)),
    "covector_crc_shift": (None, (_size, _pointer)),
    "covector_crc_join": (_u32, (_u32, _pointer, _size, _pointer)),
    "covector_code_products": (None, (_pointer, _size, _size, _size, _pointer, _float, _pointer)),
    "covector_round_vector": (_float, (_pointer, _size, _pointer)),
    "covector_nibble_products": (None, (_pointer, _size, _size, _size, _pointer, _pointer, _pointer)),
    "covector_scan_paths": (_i32, ()),
    "covector_products": (_i32, (_i32, _pointer, _pointer, _size, _size, _pointer, _pointer)),
    "covector_exact_products": (_i32, (_i32, _pointer, _pointer, _size, _size, _pointer, _pointer)),
    "covector_symmetric_product": (None, (_pointer, _size, _pointer, _pointer)),
    "covector_widen": (None, (_pointer, _size, _pointer)),
    "covector_offer": (_i64, (_pointer, _pointer)),
    "covector_scan_strip": (None, (_pointer, _pointer, _pointer, _pointer)),
    "covector_settle": (None, (_pointer, _size)),
    "covector_accumulate": (None, (_pointer, _pointer, _size, _pointer, _pointer)),
    "covector_offer_ends": (None, (_pointer, _pointer)),
    "covector_sort_ends": (None, (_pointer, _size)),
    "covector_resident": (_i32, (_pointer, _size, _size)),
    "covector_watch": (_i64, (_pointer, _size)),
    "covector_unwatch": (None, (_i64,)),
    "covector_lost_part": (_i32, (_pointer, _pointer, _pointer)),
    "covector_lost_pages": (ctypes.c_uint64, ()),
}
_log = logging.getLogger(__name__)


def load(path: Path = PATH, kind: type[ctypes.CDLL] = ctypes.CDLL) -> ctypes.CDLL | None:
    """The library, None where it was not built or is of another version."""
    try:
        library = kind(str(path))
    except OSError:
        return None
    version = int(library.covector_version())
    if version != VERSION:
        _log.warning("%s has version %d, %d is needed: build the package again", path, version, VERSION)
        return None
    for name, (result, arguments) in _TYPES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


LIBRARY: Final = load()
BRIEF: Final = None if LIBRARY is None else load(kind=ctypes.PyDLL)
