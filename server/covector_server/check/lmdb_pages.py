"""A walk over every page of an LMDB file, in plain Python: nothing in the file can crash it.

Each page that the newest meta page leads to must be sound, in order and reached once, and every other page must be free
exactly once. What can be read of a damaged file is returned all the same, so that the rest of a store can be judged.

A key of a branch page that changed without changing the order is not noticed, and changes nothing: such keys only
part the pages below them. Bytes of free pages and free space are never looked at.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from covector_server.check import lmdb_format as form
from covector_server.check.lmdb_format import BadPage, Meta, Node, Tree

FREE, MAIN = "free pages", "tables"  # what the two trees of a meta page are called here
_PAGE_BYTES = 4096
_MAP_PROBLEM = "the meta pages disagree on the size of the map"
_UNSEEN, _USED, _FREE = 0, 1, 2
_SLACK_PAGES = 1 << 20  # free pages that may lie past the end of the file


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a page; ``table`` is the tree that it belongs to, empty for the file as a whole."""

    table: str
    page: int
    message: str


@dataclass(slots=True)
class PageReport:
    """What a walk found. ``entries``: by table, (key, stored value) in order; a table with a problem may lack some."""

    problems: list[Problem] = field(default_factory=list)
    entries: dict[str, list[tuple[bytes, bytes]]] = field(default_factory=dict)
    page_count: int = 0

    def add(self, table: str, page: int, message: str) -> None:
        """Notes a problem."""
        self.problems.append(Problem(table, page, message))

    @property
    def entry_count(self) -> int:
        """Entries that could be read."""
        return sum(map(len, self.entries.values()))


class PageFile:
    """Pages of a file, read one at a time."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size_bytes = os.fstat(self._descriptor).st_size
        self.page_bytes = _PAGE_BYTES

    def read(self, page: int, count: int = 1) -> bytes:
        """``count`` pages from ``page`` on. Raises BadPage if the file ends before."""
        wanted = count * self.page_bytes
        offset = page * self.page_bytes
        if offset + wanted > self.size_bytes:
            raise BadPage("the file ends before it")
        data = b""
        while len(data) < wanted:
            piece = os.pread(self._descriptor, wanted - len(data), offset + len(data))
            if not piece:
                raise BadPage("the file ends before it")
            data += piece
        return data

    def close(self) -> None:
        os.close(self._descriptor)


def walk(path: Path, map_bytes: int | None = None, on_page: Callable[[], None] | None = None) -> PageReport:
    """Walks the file at ``path``. map_bytes: the map size that the newest meta page should name, unless both name the
    same. on_page: called for each page.

    If the newest meta page leads nowhere, the entries are those that the older one leads to. Raises OSError.
    """
    file = PageFile(path)
    try:
        report = PageReport()
        metas = _metas(file, report, map_bytes)
        walks = [_Walk(file, meta, on_page or (lambda: None)) for meta in metas]
        for one in walks:
            one.run()
            if one.main_is_sound:
                break
        if walks:
            report.problems += walks[0].report.problems
            best = max((one.report for one in walks), key=lambda report: report.entry_count)
            report.entries, report.page_count = best.entries, best.page_count
        return report
    finally:
        file.close()


def _metas(file: PageFile, report: PageReport, map_bytes: int | None) -> list[Meta]:
    """The usable meta pages, the newest first; what is wrong with them goes into the report."""
    metas = []
    for number in (0, 1):
        try:
            meta = Meta.decode(file.read(number))
        except BadPage as error:
            report.add("", number, f"a meta page cannot be read: {error}")
            continue
        wrong = _meta_problem(meta, number)
        if wrong:
            report.add("", number, wrong)
        else:
            file.page_bytes = meta.free.pad
            metas.append(meta)
    metas.sort(key=lambda meta: meta.transaction, reverse=True)
    if len(metas) == 2 and (problem := _pair_problem(metas[0], metas[1])):
        report.add("", metas[0].number, problem)
    if metas:
        usual = {map_bytes or metas[0].map_bytes, metas[-1].map_bytes if len(metas) == 2 else map_bytes}
        wrong = _size_problem(metas[0], file) or ("" if metas[0].map_bytes in usual else _MAP_PROBLEM)
        if wrong:
            report.add("", metas[0].number, wrong)
    return metas


def _meta_problem(meta: Meta, number: int) -> str:
    if meta.magic != form.MAGIC or meta.version != form.DATA_VERSION:
        return f"a meta page opens with {meta.magic:#x}, version {meta.version}"
    if meta.number != number or not meta.flags & form.META:
        return f"a meta page says that it is page {meta.number} of kind {meta.flags:#x}"
    size = meta.free.pad
    if not 512 <= size <= 65536 or size & (size - 1):
        return f"a meta page gives {size} as the page size"
    return ""


def _pair_problem(newest: Meta, older: Meta) -> str:
    """What is wrong between the two: transactions take them in turns, and the constants are the same in both."""
    for name, found in (("newest", newest), ("older", older)):
        if found.flags != form.META or found.address:
            return f"the {name} meta page has kind {found.flags:#x}, address {found.address:#x}"
    if (newest.free.pad, newest.free.flags) != (older.free.pad, older.free.flags):
        return "the meta pages disagree on page size or flags"
    fresh = newest.transaction == older.transaction == 0
    if not fresh and (newest.transaction - older.transaction != 1 or newest.transaction % 2 != newest.number):
        return f"the meta pages are of transactions {newest.transaction} and {older.transaction}"
    return ""


def _size_problem(meta: Meta, file: PageFile) -> str:
    if meta.map_bytes < (meta.last_page + 1) * file.page_bytes:
        return f"the newest meta page gives a map of {meta.map_bytes} bytes"
    if meta.last_page < 1 or meta.last_page > file.size_bytes // file.page_bytes + _SLACK_PAGES:
        return f"the newest meta page gives {meta.last_page} as the last page"
    if meta.free.flags & ~0x4000 != 0x08:  # integer keys; 0x4000 says that the environment is one file
        return f"the free tree has flags {meta.free.flags:#x}"
    if meta.main.flags or meta.main.pad:
        return f"the main tree has flags {meta.main.flags:#x}, pad {meta.main.pad:#x}"
    return ""


class _Walk:
    """One walk from one meta page."""

    def __init__(self, file: PageFile, meta: Meta, on_page: Callable[[], None]) -> None:
        self.report = PageReport()
        self._file = file
        self._meta = meta
        self._on_page = on_page
        last_page = min(max(meta.last_page, 1), file.size_bytes // file.page_bytes + _SLACK_PAGES)
        self._state = bytearray(last_page + 1)
        self._state[0] = self._state[1] = _USED

    @property
    def main_is_sound(self) -> bool:
        """Whether everything but the free pages could be read."""
        return all(problem.table in ("", FREE) for problem in self.report.problems)

    def run(self) -> None:
        """Walks both trees, the tables below the main one, and accounts for every page."""
        self.report.page_count = len(self._state)
        roots: list[tuple[str, Tree]] = []
        for node, _ in _TreeWalk(self, MAIN, self._meta.main).leaves():
            if node.flags != form.SUB_DATA or len(node.data) != form.TREE_BYTES:
                self.report.add(MAIN, 0, f"the record of table {_text(node.key)!r} is not one")
            else:
                roots.append((_text(node.key), Tree.decode(node.data)))
        for table, tree in roots:
            if tree.pad or tree.flags:
                self.report.add(table, tree.root, f"the table has flags {tree.flags:#x}, pad {tree.pad:#x}")
            self.report.entries[table] = [(node.key, value) for node, value in _TreeWalk(self, table, tree).leaves()]
        self._account()

    def read(self, table: str, page: int, count: int = 1) -> bytes:
        """Reads pages and marks them as used. Raises BadPage."""
        self._on_page()
        end = page + count
        if page < 2 or end > len(self._state):
            raise BadPage("there is no such page")
        if any(self._state[page:end]):
            raise BadPage("it belongs to something else as well")
        self._state[page:end] = bytes([_USED]) * count
        return self._file.read(page, count)

    def peek(self, page: int) -> bytes:
        """Reads a page without marking it. Raises BadPage."""
        if not 2 <= page < len(self._state):
            raise BadPage("there is no such page")
        return self._file.read(page)

    @property
    def page_bytes(self) -> int:
        """Bytes of a page."""
        return self._file.page_bytes

    def _account(self) -> None:
        """Every page is used or free. A damaged tree hides pages, so then there is nothing to account for."""
        is_sound = not self.report.problems
        for node, value in _TreeWalk(self, FREE, self._meta.free).leaves():
            transaction = int.from_bytes(node.key, "little")
            if len(node.key) != 8 or not 1 <= transaction <= self._meta.transaction:
                self.report.add(FREE, 0, f"a record of free pages is of transaction {transaction}")
            self._mark_free(value)
        lost = self._state.count(_UNSEEN)
        if lost and is_sound:
            first = self._state.index(_UNSEEN)
            self.report.add(FREE, first, f"{lost} pages are neither used nor free, the first is this one")

    def _mark_free(self, value: bytes) -> None:
        try:
            pages = form.free_list(value)
        except BadPage as error:
            self.report.add(FREE, 0, str(error))
            return
        if any(later >= earlier for earlier, later in itertools.pairwise(pages)):
            self.report.add(FREE, 0, "a list of free pages is not in order")
        for page in pages:
            if not 2 <= page < len(self._state):
                self.report.add(FREE, page, "a free page does not exist")
            elif self._state[page] != _UNSEEN:
                self.report.add(FREE, page, "a free page is in use, or free twice")
            else:
                self._state[page] = _FREE


class _TreeWalk:
    """One tree: its leaves in order, its pages counted and judged on the way."""

    def __init__(self, walk: _Walk, table: str, tree: Tree) -> None:
        self._walk = walk
        self._table = table
        self._tree = tree
        self._branches = self._leaves = self._overflows = self._entries = 0
        self._is_sound = True
        self._order: Callable[[bytes], bytes] = _reversed if table == FREE else _same

    def leaves(self) -> Iterator[tuple[Node, bytes]]:
        """Each entry with its value, as far as it can be read."""
        tree = self._tree
        if tree.root != form.NO_PAGE:
            if 1 <= tree.depth <= form.DEPTH_MAX:
                yield from self._below(tree.root, tree.depth, None, None)
            else:
                self._bad(tree.root, f"the tree is said to be {tree.depth} deep")
        elif tree.depth:
            self._bad(0, f"the tree has no root and is said to be {tree.depth} deep")
        counts = (self._branches, self._leaves, self._overflows, self._entries)
        if self._is_sound and counts != tree.counts:
            found, said = (", ".join(map(str, numbers)) for numbers in (counts, tree.counts))
            self._bad(tree.root, f"branches, leaves, overflow pages, entries are {found}; its root record says {said}")

    def _below(self, page: int, depth: int, low: bytes | None, high: bytes | None) -> Iterator[tuple[Node, bytes]]:
        """The leaves below a page whose keys lie in [low, high). Damage to it is noted, and what it hides skipped."""
        kind = form.LEAF if depth == 1 else form.BRANCH
        found: list[Node] = []
        try:
            data = self._walk.read(self._table, page)
            if (flags := form.page_header(data, page)) != kind:
                raise BadPage(f"it is of kind {flags:#x} where {kind:#x} belongs")
            found.extend(form.nodes(data, is_branch=depth > 1))  # keeps those before a bad one
            self._check_order(found, depth, low, high)
        except BadPage as error:
            self._bad(page, str(error))
        if depth > 1:
            self._branches += 1
            keys = [low, *(node.key for node in found[1:]), high]
            for place, node in enumerate(found):
                yield from self._below(node.page, depth - 1, keys[place], keys[place + 1])
        else:
            self._leaves += 1
            self._entries += len(found)
            yield from self._values(page, found)

    def _values(self, page: int, found: list[Node]) -> Iterator[tuple[Node, bytes]]:
        allowed = (form.SUB_DATA,) if self._table == MAIN else (0, form.BIG_DATA)
        for node in found:
            try:
                if node.flags not in allowed:
                    raise BadPage(f"a node of kind {node.flags:#x} does not belong there")
                yield node, self._overflow(node) if node.flags == form.BIG_DATA else node.data
            except BadPage as error:
                self._bad(page, f"key {node.key.hex()}: {error}")

    def _overflow(self, node: Node) -> bytes:
        """The value on overflow pages."""
        page = int.from_bytes(node.data, "little")
        count = form.overflow_page_count(self._walk.peek(page), page)
        if count < 1 or count * self._walk.page_bytes - form.PAGE_HEADER_BYTES < node.data_bytes:
            raise BadPage(f"{node.data_bytes} bytes are said to lie on {count} overflow pages from {page} on")
        self._overflows += count
        data = self._walk.read(self._table, page, count)
        return data[form.PAGE_HEADER_BYTES : form.PAGE_HEADER_BYTES + node.data_bytes]

    def _check_order(self, found: list[Node], depth: int, low: bytes | None, high: bytes | None) -> None:
        keys = [self._order(node.key) for node in (found[1:] if depth > 1 else found)]
        below = None if low is None else self._order(low)
        if not found or (depth > 1 and len(found) < 2):
            raise BadPage(f"it has {len(found)} nodes")
        if any(later <= earlier for earlier, later in itertools.pairwise(keys)):
            raise BadPage("its keys are not in order")
        if (below is not None and keys and keys[0] < below) or (high is not None and keys[-1] >= self._order(high)):
            raise BadPage("its keys lie outside the range of the page above")

    def _bad(self, page: int, message: str) -> None:
        self._is_sound = False
        self._walk.report.add(self._table, page, message)


def _same(key: bytes) -> bytes:
    return key


def _reversed(key: bytes) -> bytes:
    """Keys of the free tree are little-endian numbers: turned round, bytes sort as they do."""
    return key[::-1]


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
