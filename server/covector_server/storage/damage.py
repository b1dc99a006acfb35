"""Damage: stored bytes that do not match their checksum, or are not there.

Whoever meets damage passes it to a ``DamageReporter``. The store's ``DamageLog`` remembers it; a reader that gave a
sink goes on without the rows and can say so, one that did not gets a Corrupt. A file that cannot be opened for want of
memory or descriptors is not damaged: it is Unavailable, and leaving rows out for that would be a wrong answer.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from covector.errors import Corrupt, Unavailable

_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Damage:
    """Rows that cannot be read. ``checkpoint`` is empty for keys, texts and metadata; ``path`` lies below the data
    directory; ``row_count`` is how many live rows the damage touches, 0 where that is not known."""

    checkpoint: str
    path: str
    message: str
    row_count: int


OnDamage = Callable[[Damage], None]


class DamageLog:
    """What damage was met since the store was opened, each place once; any thread may report.

    The first ``damages_max`` places are kept, the others counted.
    """

    def __init__(self, damages_max: int) -> None:
        self._damages_max = damages_max
        self._found: dict[tuple[str, str, str], Damage] = {}
        self._dropped_count = 0
        self._changing = threading.Lock()

    def report(self, collection: str, damage: Damage) -> None:
        """Remembers damage to a collection. The same place again changes nothing, but for a larger row count."""
        place = (collection, damage.path, damage.message)
        with self._changing:
            known = self._found.get(place)
            if known is None and len(self._found) >= self._damages_max:
                self._dropped_count += 1
                return
            if known is None or known.row_count < damage.row_count:
                self._found[place] = damage
        if known is None:
            _log.error("damage in %s: %s", damage.path, damage.message)

    def found(self) -> list[tuple[str, Damage]]:
        """Each damage with the name of its collection, in the order in which they were met."""
        with self._changing:
            return [(collection, damage) for (collection, _, _), damage in self._found.items()]

    @property
    def dropped_count(self) -> int:
        """Reports that found the log full."""
        return self._dropped_count


@dataclass(frozen=True, slots=True)
class DamageReporter:
    """Where the readers of one collection take the damage that they meet. ``data``: the directory of the store."""

    collection: str
    data: Path
    log: DamageLog

    def meet(self, damage: Damage, on_damage: OnDamage | None, left_out: int | None = None) -> None:
        """Reports damage, its path made relative; tells the sink, or raises Corrupt without one.

        left_out: the rows that this reader goes without, if those are not all that the damage touches.
        """
        path = Path(damage.path)
        below = path.relative_to(self.data) if path.is_relative_to(self.data) else path
        damage = replace(damage, path=str(below))
        self.log.report(self.collection, damage)
        if on_damage is None:
            raise Corrupt(
                f"{path}: {damage.message}; restore the file from a snapshot, or ask to leave the rows out",
                path=path,
                collection=self.collection,
                checkpoint=damage.checkpoint,
            )
        on_damage(damage if left_out is None else replace(damage, row_count=left_out))


def check_shortage(error: OSError, path: Path) -> None:
    """Raises Unavailable if a file could not be opened for a reason that is not the file's."""
    if error.errno in _SHORTAGES:
        raise Unavailable(f"{path} cannot be opened now ({error.strerror}); try again later") from error
