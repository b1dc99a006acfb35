"""What the catalog says, as far as it can be believed.

The file is read by the page walk, so a damaged page costs the entries on it and no more. Each value is held against its
checksum, all of them together against the content digest. LMDB itself has the last word, in a process of its own: a
damaged page can crash it.
"""

from __future__ import annotations

import bisect
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from covector.errors import Corrupt
from covector_server.check.context import Context
from covector_server.check.findings import Finding
from covector_server.check.lmdb_pages import PageReport, walk
from covector_server.metadata.catalog import TABLES, Table, numbers, open_value
from covector_server.metadata.content import CONTENT_KEY, decode_content, sum_of
from covector_server.metadata.lmdb_catalog import MAP_BYTES

CATALOG_FILE, STORE_KEY = "catalog.lmdb", b"store"
_ENGINE_TIMEOUT_S = 60.0
_ENGINE_BYTES_PER_S = 20 << 20  # slower than that, and it is taken to hang
_BY_COLLECTION = frozenset(TABLES) - {"store", "names", "operations", "requests"}


@dataclass(slots=True)
class CatalogState:
    """The entries that could be read, by table. ``is_whole``: nothing is missing or damaged, so what it does not name
    does not exist."""

    tables: dict[Table, dict[bytes, bytes]] = field(default_factory=lambda: {table: {} for table in TABLES})
    is_whole: bool = True
    _sorted: dict[Table, list[bytes]] = field(default_factory=dict)

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The value, or None."""
        return self.tables[table].get(key)

    def scan(self, table: Table, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """The entries whose keys start with ``prefix``, in order."""
        entries = self.tables[table]
        keys = self._sorted.setdefault(table, [])
        if len(keys) != len(entries):
            keys[:] = sorted(entries)
        for key in itertools.islice(keys, bisect.bisect_left(keys, prefix), None):
            if not key.startswith(prefix):
                return
            yield key, entries[key]

    def collection_name(self, table: Table, key: bytes) -> str:
        """The collection that an entry belongs to: its name, else ``#id``; empty if none."""
        if table == "names":
            return key.decode("utf-8", "backslashreplace")
        if table not in _BY_COLLECTION or len(key) < 8:
            return ""
        try:
            return str(json.loads(self.tables["collections"][key[:8]])["name"])
        except (KeyError, ValueError):
            return f"#{numbers(key[:8])[0]}"


def read_catalog(context: Context, *, ask_lmdb: bool = True) -> CatalogState:
    """Reads and checks the catalog. ask_lmdb: let LMDB read it too, in a child process."""
    state = CatalogState()
    try:
        pages = walk(context.data / CATALOG_FILE, MAP_BYTES, lambda: context.advance(4096))
    except OSError as error:
        _damage(context, state, "catalog", f"the catalog cannot be read: {error.strerror}; restore it from a snapshot")
        return state
    for problem in pages.problems:
        place = f"table {problem.table!r}, page {problem.page}" if problem.table else f"page {problem.page}"
        _damage(context, state, "catalog_page", f"{place}: {problem.message}")
    _open_values(context, state, pages)
    _check_content(context, state, pages)
    _check_owners(context, state)
    if ask_lmdb:
        _ask_lmdb(context, state, pages)
    return state


def _open_values(context: Context, state: CatalogState, pages: PageReport) -> None:
    for name, entries in pages.entries.items():
        if name not in state.tables:
            _damage(context, state, "catalog_page", f"there is a table {name!r}, which this program does not know")
            continue
        for key, stored in entries:
            try:
                state.tables[name][key] = open_value(name, key, stored)
            except Corrupt as error:
                collection = state.collection_name(name, key)
                _damage(context, state, "catalog_value", error.message, collection)


def _check_content(context: Context, state: CatalogState, pages: PageReport) -> None:
    """The digest over all entries. A store of format 1 that was not written to since has none."""
    expected = state.get("store", CONTENT_KEY)
    if expected is None:
        if state.is_whole and _format_version(state) > 1:
            _damage(context, state, "catalog_content", "the content digest is missing")
        return
    known = [(name, entries) for name, entries in pages.entries.items() if name in state.tables]
    found = sum_of((name, key, stored) for name, entries in known for key, stored in entries)
    if found != decode_content(expected) and state.is_whole:
        _damage(
            context, state, "catalog_content", "the entries are not those that were committed: some vanished or changed"
        )


def _format_version(state: CatalogState) -> int:
    return int(json.loads(state.get("store", STORE_KEY) or b"{}").get("format_version", 1))


def _check_owners(context: Context, state: CatalogState) -> None:
    """Names and collections match; what belongs to a collection belongs to one that is there."""
    if not state.is_whole:
        return
    collections = state.tables["collections"]
    for name, id_ in state.scan("names"):
        if state.collection_name("collections", id_) != name.decode("utf-8", "backslashreplace"):
            text = name.decode("utf-8", "backslashreplace")
            _damage(context, state, "catalog_entry", f"the name {text!r} leads to no collection of that name", text)
    for id_ in collections:
        name_ = state.collection_name("collections", id_)
        if state.get("names", name_.encode()) != id_:
            _damage(context, state, "catalog_entry", f"collection {name_!r} has no name that leads to it", name_)
    for table in _BY_COLLECTION:
        for key, _ in state.scan(table):
            if key[:8] not in collections:
                message = f"table {table!r} has an entry {key.hex()} of a collection that does not exist"
                _damage(context, state, "catalog_entry", message)


def _ask_lmdb(context: Context, state: CatalogState, pages: PageReport) -> None:
    """Lets LMDB read the file. It must find the same entries; if the walk found damage, how LMDB fares is told too."""
    path = context.data / CATALOG_FILE
    command = [sys.executable, "-m", "covector_server.check.lmdb_reader", str(path)]
    timeout_s = _ENGINE_TIMEOUT_S + path.stat().st_size / _ENGINE_BYTES_PER_S
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        found = json.loads(ended.stdout) if ended.returncode == 0 else None
        trouble = "" if found else f"it ends with status {ended.returncode}: {ended.stderr.strip()[-300:]}"
    except subprocess.TimeoutExpired:
        found, trouble = None, f"it does not come to an end in {timeout_s:.0f} s"
    if found is None:
        _damage(context, state, "catalog_page", f"LMDB cannot read the catalog: {trouble}")
    elif state.is_whole and found != _summary(pages):
        _damage(context, state, "catalog_page", "LMDB reads other entries than the pages hold")


def _summary(pages: PageReport) -> dict[str, int]:
    entries = ((name, key, value) for name, found in pages.entries.items() for key, value in found)
    return {"entries": pages.entry_count, "content": sum_of(entries)}  # type: ignore[arg-type]


def _damage(context: Context, state: CatalogState, kind: str, message: str, collection: str = "") -> None:
    state.is_whole = False
    context.add(Finding(kind=kind, message=message, path=CATALOG_FILE, collection=collection))
