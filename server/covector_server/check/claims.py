"""Whose is each file below the data directory: claimed by the store, left by a process that died, or nobody's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

WHOLE_TREES = ("snapshots", "lost+found")
OWN_FILES = ("catalog.lmdb", "catalog.lmdb-lock", "lock", "snapshot.json")


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """A file or directory that nothing claims. ``why``: how a process that died may have left it; empty if that is not
    known."""

    path: str
    why: str


class Claims:
    """Paths below the data directory, as text with slashes."""

    def __init__(self) -> None:
        self._files = set(OWN_FILES)
        self._trees = set(WHOLE_TREES)
        self._directories = {"", "collections"}
        self._explained: dict[str, str] = {}

    def file(self, path: str) -> None:
        """Claims a file, and the directories it lies in."""
        self._files.add(path)
        self._directories.update(_parents(path))

    def directory(self, path: str) -> None:
        """Claims a directory, not what lies in it."""
        self._directories.add(path)
        self._directories.update(_parents(path))

    def tree(self, path: str) -> None:
        """Claims a directory and everything in it."""
        self._trees.add(path)
        self._directories.update(_parents(path))

    def explain(self, path: str, why: str) -> None:
        """Says how a file or directory that nothing claims may have come about."""
        self._explained[path] = why

    def unclaimed(self, data: Path) -> Iterator[Unclaimed]:
        """What is there and claimed by nothing. Of an unclaimed directory, itself and nothing in it."""
        yield from self._below(data, "")

    def _below(self, data: Path, path: str) -> Iterator[Unclaimed]:
        with os.scandir(data / path) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            inner = f"{path}/{entry.name}" if path else entry.name
            is_directory = entry.is_dir(follow_symlinks=False)
            if is_directory and inner in self._directories:
                yield from self._below(data, inner)
            elif not (inner in self._trees if is_directory else inner in self._files):
                yield Unclaimed(inner, self._explained.get(inner, ""))


def _parents(path: str) -> Iterator[str]:
    for parent in PurePosixPath(path).parents:
        if str(parent) != ".":
            yield str(parent)
