"""float16 to float32, faster than numpy does it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from covector_server.kernels.library import BRIEF, LIBRARY

BRIEF_ELEMENTS = 1 << 14  # that do not take long enough to give the interpreter's lock away

Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]


def widen(narrow: Float16 | Float32, wide: Float32) -> None:
    """Copies float16[n, m], or float32, to float32[n, m]. The interpreter's lock is released for many."""
    library = BRIEF if narrow.size <= BRIEF_ELEMENTS else LIBRARY
    if library is None or narrow.dtype != np.float16 or not (narrow.flags.c_contiguous and wide.flags.c_contiguous):
        wide[:] = narrow
        return
    assert narrow.shape == wide.shape
    library.covector_widen(narrow.ctypes.data, narrow.size, wide.ctypes.data)
