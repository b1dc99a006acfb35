"""The parts of an index in its files: built one after the other, opened, and built again where their rows changed.

``parts.json`` lists them. The files of part n are ``part-<n>.<name>``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from covector.errors import Corrupt
from covector_server.index.changing import inside
from covector_server.index.coded import Coded, members
from covector_server.index.contract import Changes, Check, MissingLibrary
from covector_server.index.part_job import PartJob, built
from covector_server.index.parts import Library, Part, PartFiles, Setting
from covector_server.storage.index_files import Draft, IndexFiles
from covector_server.storage.mapping import map_file

LIST = "parts.json"
MEMBERS_MIN = 1000  # of a part; fewer are looked at one by one
COPY_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class PartEntry:
    """What the list says of a part of positions [start, stop). ``files``: sizes by name; without any, it has no
    structure. ``facts``: the library's."""

    start: int
    stop: int
    member_count: int
    facts: dict[str, Any] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PartWriter:
    """Writes the parts of what is coded in a draft. ``advance`` hears of rows that are
    done; both callables may raise to stop."""

    library: Library
    draft: Draft
    coded: Coded
    setting: Setting
    advance: Callable[[int], None]
    check: Check

    def write_all(self, rows_max: int) -> list[PartEntry]:
        """All parts, of about the same size, at most ``rows_max`` rows each."""
        row_count = self.coded.row_count
        edges = np.linspace(0, row_count, -(-row_count // rows_max) + 1).astype(int).tolist()
        entries = [self.write(number, *span) for number, span in enumerate(pairwise(edges))]
        self.write_list(entries)
        return entries

    def write(self, number: int, start: int, stop: int) -> PartEntry:
        """The structure of some positions, if they have enough members."""
        self.check()
        member_count = len(members(self.coded.factors[start:stop]))
        entry = PartEntry(start, stop, member_count)
        if member_count >= MEMBERS_MIN:
            rank = self.coded.rank
            job = PartJob(
                kind=self.library.kind,
                directory=str(self.draft.directory),
                rank=rank,
                width=min(rank, self.setting.width),
                start=start,
                stop=stop,
                trees=self.setting.trees,
            )
            with built(job, self.check) as (files, facts):
                for name, path in files.items():
                    self._copy(part_file(number, name), map_file(path, path.stat().st_size))
                sizes = {name: self.draft.size_bytes(part_file(number, name)) for name in files}
            entry = replace(entry, facts=facts, files=sizes)
        self.advance(stop - start)
        return entry

    def keep(self, number: int, entry: PartEntry, old_number: int, maps: dict[str, memoryview]) -> None:
        """The structure of positions that changed in nothing but where they lie."""
        for name in entry.files:
            self._copy(part_file(number, name), maps[part_file(old_number, name)])

    def write_list(self, entries: Sequence[PartEntry]) -> None:
        data = json.dumps([asdict(entry) for entry in entries], sort_keys=True).encode()
        with self.draft.file(LIST) as file:
            file.append(memoryview(data))

    def discard(self, entries: Sequence[PartEntry]) -> None:
        """Removes what was written."""
        for number, entry in enumerate(entries):
            for name in entry.files:
                self.draft.discard(part_file(number, name))
        self.draft.discard(LIST)

    def _copy(self, name: str, data: memoryview) -> None:
        with self.draft.file(name) as file:
            for start in range(0, len(data), COPY_BYTES):
                self.check()
                file.append(data[start : start + COPY_BYTES])


def part_file(number: int, name: str) -> str:
    """The name of a part's file."""
    return f"part-{number}.{name}"


def read_list(maps: dict[str, memoryview]) -> list[PartEntry]:
    """Raises Corrupt."""
    try:
        return [PartEntry(**entry) for entry in json.loads(bytes(maps[LIST]))]
    except (KeyError, ValueError, TypeError) as error:
        raise Corrupt(f"the list of an index's parts cannot be read: {error}; build it again") from error


def open_parts(library: Library, coded: Coded, width: int, files: IndexFiles, check: Check) -> Iterator[Part]:
    """The parts in some files, of what is coded there. Raises Corrupt if they do not fit."""
    expected_start = 0
    for number, entry in enumerate(read_list(files.maps)):
        check()
        placed = members(coded.factors[entry.start : entry.stop])
        if (entry.start, len(placed)) != (expected_start, entry.member_count):
            raise Corrupt(f"part {number} of an index has other rows than its codes; build it again")
        expected_start = entry.stop
        structure = None
        if entry.files:
            maps = {name: files.maps.get(part_file(number, name), memoryview(b"")) for name in entry.files}
            if {name: len(data) for name, data in maps.items()} != entry.files:
                raise Corrupt(f"files of part {number} of an index do not have their sizes; build it again")
            mine = PartFiles(files.directory, part_file(number, ""), maps, entry.facts)
            structure = _opened(library, mine, (entry.member_count, width))
        yield Part(entry.start, entry.stop, entry.start + placed, structure)
    if expected_start != coded.row_count:
        raise Corrupt(f"the parts of an index end at {expected_start} of {coded.row_count} rows; build it again")


def _opened(library: Library, files: PartFiles, shape: tuple[int, int]) -> Any:
    try:
        return library.open(files, shape)
    except (Corrupt, MissingLibrary):
        raise
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise Corrupt(
            f"{library.kind} cannot open {files.directory / files.prefix}*: {error}; build it again"
        ) from error


def changed_parts(writer: PartWriter, files: IndexFiles, changes: Changes) -> list[PartEntry]:
    """Writes the parts of an index after some changes, of which the codes are in the writer's draft already. A part in
    which nothing changed is copied, every other is built again."""
    entries: list[PartEntry] = []
    for old_number, old in enumerate(read_list(files.maps)):
        dropped_before, dropped = np.searchsorted(changes.dropped, (old.start, old.stop))
        start, stop = old.start - int(dropped_before), min(old.stop - int(dropped), changes.row_count)
        if start >= stop:
            continue
        number, touched = len(entries), inside(changes.blank, old.start, old.stop)
        if stop - start == old.stop - old.start and not len(touched):
            moved = replace(old, start=start, stop=stop)
            writer.keep(number, moved, old_number, files.maps)
            writer.advance(stop - start)
            entries.append(moved)
        else:
            entries.append(writer.write(number, start, stop))
    writer.write_list(entries)
    return entries
