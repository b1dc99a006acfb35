"""``covector ingest``: gradients from files into a checkpoint. Run again after a break, it goes on where it stopped."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from covector.cli.options import add_connection, command_parser, connected
from covector.cli.sources import Source, count_rows, load_source, slices
from covector.client import Client
from covector.collection import Collection
from covector.errors import Conflict, InvalidInput, NotFound, Unavailable
from covector.progress import Bar
from covector.row_stream import OnConflict
from covector.types import Space


def main(arguments: list[str]) -> int:
    """Stores the rows that the checkpoint does not have yet."""
    given = _parser().parse_args(arguments)
    sources = [load_source(path) for path in given.files]
    total = sum(len(source.gradients) for source in sources)
    if given.rows is not None and (line_count := count_rows(given.rows)) != total:
        raise InvalidInput(f"{given.rows} has {line_count} rows for {total} gradients; one line a gradient is needed")
    with connected(given) as client:
        collection = _collection(client, given.collection, sources[0].gradients.shape[1], create=given.create)
        stored, zero_row_count = _ingest(collection, sources, total, given)
    summary = {
        "collection": given.collection,
        "checkpoint": given.checkpoint,
        "stored": stored,
        "already_there": total - stored,
        "zero_rows": zero_row_count,
    }
    print(json.dumps(summary) if given.json else _sentence(summary))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "ingest",
        "Store gradients from files. A .npy file holds float[n, dim]; a .npz file holds `gradients` and perhaps\n"
        "`keys` and `trak_q`. A row without a key gets its position, counted over all files of the command.\n"
        "A row that stands with the same content is left as it is, so a broken run can be run again.",
        "covector ingest my-model gradients.npy --rows rows.jsonl --checkpoint epoch-1 --create",
    )
    parser.add_argument("collection", metavar="COLLECTION")
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help=".npy or .npz")
    parser.add_argument("--checkpoint", required=True, metavar="NAME", help="made on first use")
    parser.add_argument(
        "--eta", type=float, help="the checkpoint's weight in sums (default: as it stands, or 1 for a new one)"
    )
    parser.add_argument(
        "--rows",
        type=Path,
        metavar="FILE.jsonl",
        help="a line for each gradient: an object with `key`, `text` and `metadata`, all optional; other fields "
        "become metadata",
    )
    parser.add_argument("--create", action="store_true", help="make the collection if there is none of that name")
    parser.add_argument(
        "--on-conflict",
        choices=get_args(OnConflict),
        default="error",
        help="what to do with a key that stands with other content: refuse it (the default), or keep what stands "
        "without sending the row, or replace it",
    )
    add_connection(parser)
    return parser


def _collection(client: Client, name: str, dim: int, *, create: bool) -> Collection:
    try:
        return client.collection(name)
    except NotFound as error:
        if not create:
            raise NotFound(f"{error.message}; --create makes it") from error
        return client.create_collection(name, Space(dim=dim), exist_ok=True)


def _ingest(
    collection: Collection, sources: Sequence[Source], total: int, given: argparse.Namespace
) -> tuple[int, int]:
    """Sends the rows; returns how many are new to the checkpoint, and how many of those sent are all zero."""
    eta = _eta(collection, given.checkpoint, given.eta)
    bar, skipped, standing = Bar(f"{given.collection}/{given.checkpoint}"), 0, 0
    try:
        with collection.writer(given.checkpoint, eta=eta, on_conflict=given.on_conflict) as writer:
            for part in slices(sources, given.rows):
                missing = writer.missing(part.keys)
                standing += len(part.keys) - len(missing)
                sent = part.only(missing) if given.on_conflict == "ignore" else part
                skipped += len(part.keys) - len(sent.keys)
                writer.add(sent.keys, sent.gradients, sent.texts, sent.metadata, sent.trak_q)
                bar.show(writer.acknowledged + skipped, total, "rows")
        bar.show(writer.acknowledged + skipped, total, "rows")
        return total - standing, writer.zero_rows
    except Unavailable as error:
        raise Unavailable(f"{error.message}; run the same command again: it goes on where this one stopped") from error
    finally:
        bar.close()


def _eta(collection: Collection, checkpoint: str, given: float | None) -> float:
    """The checkpoint's weight. Raises Conflict if it stands with another than was given, also if no row is missing."""
    stored = next((info.eta for info in collection.checkpoints() if info.name == checkpoint), None)
    if given is not None and stored is not None and given != stored:
        raise Conflict(f"checkpoint {checkpoint!r} has eta {stored}, --eta says {given}; leave --eta out", field="eta")
    return next(eta for eta in (given, stored, 1.0) if eta is not None)


def _sentence(summary: dict[str, object]) -> str:
    already = f", {summary['already_there']:,} were there already" if summary["already_there"] else ""
    zero = f", {summary['zero_rows']:,} of them all zero" if summary["zero_rows"] else ""
    return f"{summary['stored']:,} rows stored in {summary['collection']} at {summary['checkpoint']}{zero}{already}"
