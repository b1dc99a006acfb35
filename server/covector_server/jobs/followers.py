"""Several followers of a checkpoint's switch as one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol, Self

from covector_server.metadata.catalog import Writer
from covector_server.storage.generation import Check, Follower, GenerationCopy


class Carrier(Follower, AbstractContextManager[Any], Protocol):
    """A follower that holds what it made until the switch is done, or has failed."""


class Followers:
    """``generation.Follower`` of all of them, in order; enter it around a switch."""

    def __init__(self, carriers: Sequence[Carrier]) -> None:
        self._carriers = carriers
        self._held = ExitStack()

    def __enter__(self) -> Self:
        self._held = ExitStack()
        for carrier in self._carriers:
            self._held.enter_context(carrier)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._held.__exit__(kind, error, None)

    def prepare(self, copy: GenerationCopy, check: Check) -> None:
        """Beside the store's other work."""
        for carrier in self._carriers:
            carrier.prepare(copy, check)

    def commit(self, writer: Writer, copy: GenerationCopy) -> None:
        """In the transaction of the switch."""
        for carrier in self._carriers:
            carrier.commit(writer, copy)
