"""How fast a filter is over rows that are indexed: against the same filter row by row, and against SQLite with indexes.

    python benchmarks/filters.py [--rows 300000] [--rounds 9]

Stores rows in a store of its own, indexes them as the server does, and asks some filters for the row ids they hold for,
checking that all ways find the same. Prints one JSON object and writes it to benchmarks/results/filters.json:
milliseconds, and how many times as long the other ways take; bytes a row of the postings of each field, for rows in
which nothing is in order and for rows that come by date. Times are the thread's own (nothing here waits), so that a
busy machine does not show in them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from covector.types import Space
from covector_server.ingest.batch import WriterSpec
from covector_server.ingest.committer import Committer
from covector_server.jobs.postings import PostingsIndexer
from covector_server.limits import Limits
from covector_server.metadata.postings_builder import PostingsBuilder
from covector_server.query.cancellation import never
from covector_server.query.filter import find_rows
from covector_server.storage.collection import StoredCollectionView
from covector_server.storage.store import Store
from covector_server.testing.batches import batch_of

RESULTS = Path(__file__).parent / "results" / "filters.json"
SOURCES, DAYS, BATCH_ROWS = 16, 3650, 5_000
FIRST_DAY = np.datetime64("2015-01-01")
Rows = list[dict[str, Any]]

SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "source = x and date range": (
        {"source": "source-03", "date": {"gte": "2020-01-01", "lt": "2021-01-01"}},
        "source = 'source-03' AND date >= '2020-01-01' AND date < '2021-01-01'",
    ),
    "source = x": ({"source": "source-03"}, "source = 'source-03'"),
    "half of all dates": ({"date": {"gte": "2020-01-01"}}, "date >= '2020-01-01'"),
    "one row by a unique string": ({"url": "https://example.org/00012345"}, "url = 'https://example.org/00012345'"),
    "in 20 dates, not a source": (
        {"date": {"in": [str(FIRST_DAY + day) for day in range(0, 2000, 100)]}, "source": {"ne": "source-03"}},
        "date IN (" + ", ".join(f"'{FIRST_DAY + day}'" for day in range(0, 2000, 100)) + ") AND source <> 'source-03'",
    ),
    "score range or source": (
        {"or": [{"score": {"lt": 0.01}}, {"source": "source-15"}]},
        "score < 0.01 OR source = 'source-15'",
    ),
}


def rows_of(count: int, *, by_date: bool) -> Rows:
    rng = np.random.default_rng(0)
    days, sources, scores = rng.integers(0, DAYS, count), rng.integers(0, SOURCES, count), rng.random(count)
    if by_date:
        days.sort()
    dates = [str(FIRST_DAY + day) for day in range(DAYS)]
    return [
        {
            "source": f"source-{source:02}",
            "date": dates[day],
            "url": f"https://example.org/{row:08}",
            "score": round(score, 6),
        }
        for row, (source, day, score) in enumerate(zip(sources.tolist(), days.tolist(), scores.tolist(), strict=True))
    ]


def stored(data: Path, rows: Rows) -> tuple[Store, Committer, float]:
    """The rows in a store, and the seconds that indexing them took."""
    store = Store(data)
    committer = Committer(store, Limits())
    committer.call(lambda: store.create_collection("c", Space(dim=1), False)).result()
    for sequence, start in enumerate(range(0, len(rows), BATCH_ROWS), 1):
        part = rows[start : start + BATCH_ROWS]
        batch = batch_of(sequence, list(range(start, start + len(part))), None, None, part)
        committer.submit(WriterSpec("c", "w", None), batch).result()
    indexer, started = PostingsIndexer(store, committer, Limits()), time.thread_time()
    while indexer.step() or indexer.step():  # the first look may find the collection too busy for an incomplete range
        pass
    return store, committer, time.thread_time() - started


def in_sqlite(rows: Rows, indexes: tuple[str, ...]) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE rows (row_id INTEGER PRIMARY KEY, source TEXT, date TEXT, url TEXT, score REAL)")
    connection.executemany(
        "INSERT INTO rows VALUES (?, ?, ?, ?, ?)",
        ((place, row["source"], row["date"], row["url"], row["score"]) for place, row in enumerate(rows)),
    )
    for columns in indexes:
        connection.execute(f"CREATE INDEX {columns.replace(', ', '_')} ON rows ({columns})")
    connection.execute("ANALYZE")
    return connection


def median_ms(work: Callable[[], Any], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        started = time.thread_time()
        work()
        seconds.append(time.thread_time() - started)
    return 1000 * statistics.median(seconds)


def compare(view: StoredCollectionView, rows: Rows, rounds: int) -> dict[str, Any]:
    unindexed, limits, results = dataclasses.replace(view, postings_files=()), Limits(), {}
    single, made_for = in_sqlite(rows, ("source", "date", "url", "score")), in_sqlite(rows, ("source, date",))
    for name, (where, condition) in SHAPES.items():
        statement = f"SELECT row_id FROM rows WHERE {condition}"
        ways: dict[str, Callable[[], Any]] = {
            "postings": lambda where=where: find_rows(view, where, limits, never).row_ids(),
            "mask": lambda where=where: find_rows(view, where, limits, never).mask(),
            "opened anew": lambda where=where: (forget(view), find_rows(view, where, limits, never)),
            "sqlite": lambda statement=statement: single.execute(statement).fetchall(),
            "sqlite, (source, date)": lambda statement=statement: made_for.execute(statement).fetchall(),
            "row by row": lambda where=where: find_rows(unindexed, where, limits, never).row_ids(),
        }
        found = ways["postings"]()
        assert np.array_equal(found, ways["row by row"]())
        assert np.array_equal(found, np.sort(np.array(ways["sqlite"](), dtype=np.int64).reshape(-1)))
        times = {way: median_ms(ways[way], 1 if way == "row by row" else rounds) for way in ways}
        results[name] = {
            "rows found": len(found),
            "ms, row ids": round(times["postings"], 3),
            "ms, mask": round(times["mask"], 3),
            "ms, first use after opening": round(times["opened anew"], 3),
            "sqlite, an index a column / postings": round(times["sqlite"] / times["postings"], 2),
            "sqlite, one index (source, date) / postings": round(
                times["sqlite, (source, date)"] / times["postings"], 2
            ),
            "row by row / postings": round(times["row by row"] / times["postings"]),
        }
    return results


def forget(view: StoredCollectionView) -> None:
    """As after a restart, but for the operating system's cache of files."""
    for file in view.postings_files:
        file.close()


def bytes_a_row(rows: Rows) -> dict[str, float]:
    """Of each field, and of source and date together, in ranges as the server cuts them."""
    found = {}
    for names in (["source"], ["date"], ["source", "date"], ["url"], ["score"]):
        size_bytes = 0
        for start in range(0, len(rows), 1 << 16):
            builder = PostingsBuilder(start)
            builder.add([{name: row[name] for name in names} for row in rows[start : start + (1 << 16)]])
            size_bytes += len(builder.encode(0))
        found[" and ".join(names)] = round(size_bytes / len(rows), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"rows": arguments.rows, "sqlite": sqlite3.sqlite_version}
    for order, by_date in (("in no order", False), ("by date", True)):
        rows = rows_of(arguments.rows, by_date=by_date)
        with tempfile.TemporaryDirectory() as directory:
            store, committer, index_s = stored(Path(directory) / "store", rows)
            with store.collection("c").reading() as view:
                compared = compare(view, rows, arguments.rounds)
                on_disk = sum(file.record.size_bytes for file in view.postings_files)
            committer.stop()
            store.close()
        result[order] = {
            "filters": compared,
            "bytes a row": {**bytes_a_row(rows), "all, on disk": round(on_disk / len(rows), 2)},
            "indexing, microseconds a row": round(1e6 * index_s / len(rows), 2),
        }
    text = json.dumps(result)
    RESULTS.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
