"""The bytes of an LMDB 0.9 file (data version 1, 64-bit, little-endian), as ``mdb.c`` writes them.

Two meta pages, of which the one with the greater transaction id counts; after them pages of B+ trees and runs of
overflow pages. A page opens with its number, its kind and the bounds of its free space; places of its nodes follow, and
the nodes fill the page from its end. Nothing here reads more than it is given, whatever the bytes say.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

MAGIC, DATA_VERSION = 0xBEEF_C0DE, 1
BRANCH, LEAF, OVERFLOW, META = 0x01, 0x02, 0x04, 0x08
BIG_DATA, SUB_DATA = 0x01, 0x02
NO_PAGE = 0xFFFF_FFFF_FFFF_FFFF
DEPTH_MAX = 32
PAGE_HEADER_BYTES, NODE_HEADER_BYTES = 16, 8

_PAGE = struct.Struct("<QHHHH")  # number, pad, flags, lower, upper
_OVERFLOW = struct.Struct("<QHHI")  # number, pad, flags, pages
_META = struct.Struct("<IIQQ")  # magic, version, address, map size
_TREE = struct.Struct("<IHHQQQQQ")
_LAST = struct.Struct("<QQ")  # last page, transaction id
META_BYTES = PAGE_HEADER_BYTES + _META.size + 2 * _TREE.size + _LAST.size
_NODE = struct.Struct("<HHHH")  # low, high, flags, key bytes


class BadPage(Exception):
    """A page is not what it should be; the message says how."""


@dataclass(frozen=True, slots=True)
class Tree:
    """The root record of one B+ tree. ``pad`` is the page size in the free tree's, else 0."""

    pad: int
    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int

    @staticmethod
    def decode(data: bytes, offset: int = 0) -> Tree:
        """The record at ``offset``, which 48 bytes must follow."""
        return Tree(*_TREE.unpack_from(data, offset))

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Branch pages, leaf pages, overflow pages, entries."""
        return self.branch_pages, self.leaf_pages, self.overflow_pages, self.entries


TREE_BYTES = _TREE.size


@dataclass(frozen=True, slots=True)
class Meta:
    """A meta page: the two trees that all else hangs from, as of one transaction."""

    number: int
    flags: int
    magic: int
    version: int
    address: int
    map_bytes: int
    free: Tree
    main: Tree
    last_page: int
    transaction: int

    @staticmethod
    def decode(data: bytes) -> Meta:
        """The meta page that ``data`` opens with. Raises BadPage if it is cut short."""
        if len(data) < META_BYTES:
            raise BadPage("the file ends within it")
        number, _, flags, _, _ = _PAGE.unpack_from(data)
        trees = PAGE_HEADER_BYTES + _META.size
        free, main = Tree.decode(data, trees), Tree.decode(data, trees + _TREE.size)
        magic, version, address, map_bytes = _META.unpack_from(data, PAGE_HEADER_BYTES)
        last_page, transaction = _LAST.unpack_from(data, trees + 2 * _TREE.size)
        return Meta(number, flags, magic, version, address, map_bytes, free, main, last_page, transaction)


@dataclass(frozen=True, slots=True)
class Node:
    """An entry of a page. Of a branch: ``page`` is the child. Of a leaf: ``data`` is the value, the number of the
    overflow page that has it, or a tree's record; ``data_bytes`` the value's size."""

    key: bytes
    flags: int
    data: bytes
    data_bytes: int
    page: int


def page_header(page: bytes, number: int) -> int:
    """The kind of the page: its flags. Raises BadPage if it is another page than ``number``."""
    found, _, flags, _, _ = _PAGE.unpack_from(page)
    if found != number:
        raise BadPage(f"it says that it is page {found}")
    return int(flags)


def overflow_page_count(page: bytes, number: int) -> int:
    """How many pages the run has that opens with ``page``. Raises BadPage if none does."""
    if page_header(page, number) != OVERFLOW:
        raise BadPage("it is not an overflow page")
    return int(_OVERFLOW.unpack_from(page)[3])


def nodes(page: bytes, *, is_branch: bool) -> Iterator[Node]:
    """The nodes of a page in the order of their places, then BadPage if they do not fill it exactly."""
    _, _, _, lower, upper = _PAGE.unpack_from(page)
    if not PAGE_HEADER_BYTES <= lower <= upper <= len(page) or lower % 2:
        raise BadPage(f"its free space is said to lie from {lower} to {upper}")
    offsets = struct.unpack_from(f"<{(lower - PAGE_HEADER_BYTES) // 2}H", page, PAGE_HEADER_BYTES)
    sizes = {}
    for offset in offsets:
        if offset < upper or offset + NODE_HEADER_BYTES > len(page):
            raise BadPage(f"a node is said to lie at {offset}")
        node, size = _node(page, offset, is_branch=is_branch)
        sizes[offset] = size + size % 2
        yield node
    _check_filled(offsets, sizes, upper, len(page))


def _check_filled(offsets: tuple[int, ...], sizes: dict[int, int], upper: int, page_bytes: int) -> None:
    """Nodes lie end to end from ``upper`` to the end of the page: LMDB keeps them so."""
    expected = upper
    for offset in sorted(offsets):
        if offset != expected:
            raise BadPage(f"its nodes leave a gap or overlap at {offset}")
        expected += sizes[offset]
    if expected != page_bytes:
        raise BadPage(f"its nodes end at {expected}")


def _node(page: bytes, offset: int, *, is_branch: bool) -> tuple[Node, int]:
    low, high, flags, key_bytes = _NODE.unpack_from(page, offset)
    start = offset + NODE_HEADER_BYTES
    key, number = page[start : start + key_bytes], low | high << 16
    if is_branch:
        size = NODE_HEADER_BYTES + key_bytes
        node = Node(key, 0, b"", 0, number | flags << 32)
    else:
        held = 8 if flags & BIG_DATA else number
        size = NODE_HEADER_BYTES + key_bytes + held
        node = Node(key, flags, page[start + key_bytes : start + key_bytes + held], number, 0)
    if offset + size > len(page):
        raise BadPage(f"the node at {offset} runs past its end")
    return node, size


def free_list(value: bytes) -> tuple[int, ...]:
    """The page numbers in a record of the free tree. Raises BadPage."""
    if len(value) < 8 or len(value) % 8:
        raise BadPage(f"a list of free pages has {len(value)} bytes")
    (count,) = struct.unpack_from("<Q", value)
    if count > len(value) // 8 - 1:  # it may be less: room that was kept and not needed
        raise BadPage(f"a list of free pages claims {count} of them")
    return struct.unpack_from(f"<{count}Q", value, 8)
