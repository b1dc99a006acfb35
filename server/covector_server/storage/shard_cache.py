"""The mapped shards of a store: a bounded number of them, the ones not used for longest let go first.

A map that is let go stays valid for those who hold views of it. Which chunks were found good is remembered by path, so
a shard that is mapped again is not verified again; ``forget`` drops that with the map, for a file that another took
the place of.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from covector_server.kernels.pages import Losses
from covector_server.storage.layout import ArrayLayout
from covector_server.storage.segment import MappedShard


class ShardCache:
    """Mapped shards by path; any thread may ask. Once a page of a map could not be read, all chunks are verified
    again."""

    def __init__(self, shards_max: int) -> None:
        self._shards_max = shards_max
        self._mapped: OrderedDict[Path, MappedShard] = OrderedDict()
        self._verified: dict[Path, npt.NDArray[np.bool_]] = {}
        self._losses = Losses()
        self._changing = threading.Lock()

    def shard(self, path: Path, layout: ArrayLayout, number: int) -> MappedShard:
        """The shard ``number`` of an array, mapped. Raises BadRows if the file is missing or short."""
        with self._changing:  # also while it is mapped: a map made before ``forget`` must not come in after it
            self._doubt()
            mapped = self._mapped.get(path)
            if mapped is None:
                verified = self._verified.get(path)
                if verified is None:
                    verified = np.zeros(layout.chunks_per_shard, dtype=bool)
                mapped = self._mapped[path] = MappedShard(path, layout, number, verified)
                self._verified[path] = verified
                while len(self._mapped) > self._shards_max:
                    self._mapped.popitem(last=False)
            self._mapped.move_to_end(path)
            return mapped

    def forget(self, path: Path) -> None:
        """Call after another file has taken the place of a shard, or it was removed: who asks from now on sees the new
        file and verifies it; views of the old one stay valid."""
        with self._changing:
            self._mapped.pop(path, None)
            self._verified.pop(path, None)

    def _doubt(self) -> None:
        """If pages of mapped files were lost, any chunk may be among them: none counts as found good any more."""
        if self._losses.grew():
            for verified in self._verified.values():
                verified[:] = False

    @property
    def mapped_count(self) -> int:
        """Shards that the cache holds mapped."""
        return len(self._mapped)
