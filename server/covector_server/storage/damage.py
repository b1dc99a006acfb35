"""What was found damaged since the server started: by queries on their way, by the scrubber on its rounds.

The log says where, not what to do about it: the files are as they are until someone restores them. It holds each
damage once, and no more than ``DAMAGES_MAX`` of them, so that a broken disk cannot fill the memory.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

DAMAGES_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Damage:
    """A damaged piece of a file. ``path`` lies below the data directory; ``checkpoint`` is empty for keys, texts and
    metadata, ``collection`` for what is no collection's; ``row_count``: rows that the piece holds."""

    collection: str
    checkpoint: str
    path: str
    message: str
    row_count: int = 0


class DamageLog:
    """Damages, each once, in the order they were found. Any thread may write and read."""

    def __init__(self, damages_max: int = DAMAGES_MAX) -> None:
        self._damages_max = damages_max
        self._damages: dict[tuple[str, str], Damage] = {}
        self._dropped_count = 0
        self._lock = threading.Lock()

    def add(self, damage: Damage) -> bool:
        """Remembers a damage; False if it was known (same path and message), or if the log is full."""
        key = (damage.path, damage.message)
        with self._lock:
            if key in self._damages:
                return False
            if len(self._damages) >= self._damages_max:
                self._dropped_count += 1
                return False
            self._damages[key] = damage
            return True

    def damages(self) -> list[Damage]:
        """What is known to be damaged."""
        with self._lock:
            return list(self._damages.values())

    @property
    def dropped_count(self) -> int:
        """Reports that found the log full."""
        with self._lock:
            return self._dropped_count

    def forget(self, collection: str) -> None:
        """Drops what is known of a collection: it was deleted, or written anew."""
        with self._lock:
            self._damages = {key: damage for key, damage in self._damages.items() if damage.collection != collection}
