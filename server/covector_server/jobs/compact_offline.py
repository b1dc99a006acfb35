"""``python -m covector_server.jobs.compact_offline``: compacts a collection of a store that no server has open."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from covector.errors import Conflict, InvalidInput, Unavailable
from covector_server.command_line import Parser, answer
from covector_server.ingest.committer import Committer
from covector_server.jobs.compaction import Compaction, Rules
from covector_server.jobs.erase_postings import postings_eraser
from covector_server.jobs.operations import Progress
from covector_server.limits import Limits
from covector_server.storage.store import Store


def compact_offline(data: Path, name: str, share: float, progress: Progress) -> dict[str, Any]:
    """Opens the store, compacts one collection as a server would, closes the store. Returns what was done. Raises
    Conflict if a server has the store open: it is the one to ask."""
    if not (data / "catalog.lmdb").exists():
        raise InvalidInput(f"{data} is no store: it has no catalog.lmdb", field="data")
    try:
        store = Store(data)
    except Unavailable as error:
        raise Conflict(
            f"{data} is open in another process; if that is a server, have it do the work: "
            f"covector compact {name} --to HOST:PORT"
        ) from error
    try:
        committer = Committer(store, Limits())
        try:
            exclusive: Any = lambda work: committer.call(work).result()  # noqa: E731
            erasers = [postings_eraser(store, exclusive)]
            return Compaction(store, store.collection(name), exclusive, Rules(share), erasers).run(progress)
        finally:
            committer.stop()
    finally:
        store.close()


def main(arguments: list[str] | None = None) -> int:
    """Prints the result as JSON; returns the exit status."""
    parser = Parser(
        prog="covector compact",
        description="Take deleted and replaced rows out of the files of a store that no server has open.",
        epilog="example: covector compact resumes --data ./store",
    )
    parser.add_argument("collection", metavar="COLLECTION", help="the collection's name")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="where the store is")
    parser.add_argument(
        "--compact-share",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="move the rows of a checkpoint together once this share of them is dead, 0 for never (default 0.2)",
    )
    parser.add_argument("--json", action="store_true", help="print no progress")
    given = parser.parse_args(arguments)
    quiet = given.json or not sys.stderr.isatty()
    progress = Progress(lambda done, total: None if quiet else _show(done, total))
    return answer(lambda: compact_offline(given.data, given.collection, given.compact_share, progress))


def _show(done: int, total: int) -> None:
    print(f"\rcompacting: step {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
