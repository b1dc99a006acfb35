"""``covector ingest``: gradients from files into a checkpoint. Run again after a break, it goes on where it stopped."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self, get_args

from covector.cli.gradient_files import GRADIENTS
from covector.cli.options import add_connection, command_parser, connected
from covector.cli.row_files import Columns
from covector.cli.sources import Numbering, Slice, Sources, sources_of
from covector.client import Client
from covector.collection import Collection
from covector.errors import Conflict, CovectorError, InvalidInput, NotFound, Unavailable, of_kind
from covector.progress import Bar
from covector.row_stream import OnConflict
from covector.types import Space
from covector.writer import Writer


def main(arguments: list[str]) -> int:
    """Stores the rows that the checkpoint does not have yet."""
    given = _parser().parse_args(arguments)
    sources = _sources(given)
    with connected(given) as client:
        collection = _standing(client, given.collection, create=given.create)
        _check_dim(sources, collection)
        eta = _eta(collection, given.checkpoint, given.eta)
        _check_keys(sources)
        if collection is None:
            space = Space(dim=sources.files[0].dim)
            collection = client.create_collection(given.collection, space, exist_ok=True)
        with _Ingest(sources, collection, given) as ingest:
            ingest.run(eta)
    summary = {
        "collection": given.collection,
        "checkpoint": given.checkpoint,
        "stored": sources.row_count - ingest.standing,
        "already_there": ingest.standing,
        "zero_rows": ingest.zero_row_count,
    }
    print(json.dumps(summary) if given.json else _sentence(summary))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "ingest",
        "Store gradients from files: float[n, dim] in .npy files, or the array `gradients` of .npz and .safetensors\n"
        "files and Zarr directories, with `keys` and `trak_q` beside it if they are there. Files are read a piece at\n"
        "a time. A row without a key gets its position, counted over all files of the command.\n"
        "A row that stands with the same content is left as it is, so a broken run can be run again.",
        "covector ingest my-model gradients-*.npy --rows rows.jsonl --checkpoint epoch-1 --create",
    )
    parser.add_argument("collection", metavar="COLLECTION")
    parser.add_argument(
        "files", metavar="FILE", nargs="+", type=Path, help=".npy, .npz, .safetensors, or a Zarr directory"
    )
    parser.add_argument("--checkpoint", required=True, metavar="NAME", help="made on first use")
    parser.add_argument(
        "--eta", type=float, help="the checkpoint's weight in sums (default: as it stands, or 1 for a new one)"
    )
    parser.add_argument("--create", action="store_true", help="make the collection if there is none of that name")
    parser.add_argument(
        "--on-conflict",
        choices=get_args(OnConflict),
        default="error",
        help="what to do with a key that stands with other content: refuse it (the default), or keep what stands "
        "without sending the row, or replace it",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="send only the rows whose key does not stand yet; what stands is not compared",
    )
    _add_rows(parser)
    add_connection(parser)
    return parser


def _add_rows(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("keys, texts and metadata")
    group.add_argument(
        "--rows",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="JSON lines or Parquet, a row for each gradient: `key`, `text`, `metadata` (an object) and `trak_q`, all "
        "optional; other fields become metadata. Once for all files, or once for each in their order",
    )
    group.add_argument("--key-column", metavar="NAME", help="the field of --rows that is the key (default: key)")
    group.add_argument("--text-column", metavar="NAME", help="the field of --rows that is the text (default: text)")
    group.add_argument(
        "--metadata-columns",
        metavar="NAME,NAME",
        help="the fields of --rows that become metadata (default: all others)",
    )
    group.add_argument(
        "--array", default=GRADIENTS, metavar="NAME", help=f"the array that is stored (default: {GRADIENTS})"
    )
    group.add_argument(
        "--first-key", type=int, default=0, metavar="N", help="where positions begin as keys (default: 0)"
    )
    group.add_argument("--key-prefix", metavar="TEXT", help="make positions strings: TEXT0, TEXT1 ...")


def _sources(given: argparse.Namespace) -> Sources:
    columns = Columns(
        key=given.key_column,
        text=given.text_column,
        metadata=None
        if given.metadata_columns is None
        else tuple(name for name in given.metadata_columns.split(",") if name),
    )
    if columns != Columns() and not given.rows:
        raise InvalidInput("columns are named, but no file that has them: add --rows FILE")
    return sources_of(
        given.files,
        given.rows,
        array=given.array,
        columns=columns,
        numbering=Numbering(given.first_key, given.key_prefix),
    )


def _standing(client: Client, name: str, *, create: bool) -> Collection | None:
    """The collection, or None if it is to be made."""
    try:
        return client.collection(name)
    except NotFound as error:
        if not create:
            raise NotFound(f"{error.message}; --create makes it") from error
        return None


def _check_dim(sources: Sources, collection: Collection | None) -> None:
    first = sources.files[0]
    if collection is not None and first.dim != collection.space.dim:
        shape = [first.row_count, first.dim]
        needed = f"collection {collection.name!r} needs [n, {collection.space.dim}]"
        raise InvalidInput(f"{first.path}: gradients have shape {shape}; {needed}", field="dim")


def _check_keys(sources: Sources) -> None:
    bar = Bar("checking keys")
    try:
        sources.check(lambda done: bar.show(done, sources.row_count, "rows"))
    finally:
        bar.close()


def _eta(collection: Collection | None, checkpoint: str, given: float | None) -> float:
    """The checkpoint's weight. Raises Conflict if it stands with another than was given, also if no row is missing."""
    standing = [] if collection is None else collection.checkpoints()
    stored = next((info.eta for info in standing if info.name == checkpoint), None)
    if given is not None and stored is not None and given != stored:
        raise Conflict(f"checkpoint {checkpoint!r} has eta {stored}, --eta says {given}; leave --eta out", field="eta")
    return next(eta for eta in (given, stored, 1.0) if eta is not None)


@dataclass(slots=True)
class _Ingest:
    """Rows on their way, and how many of them stand, are sent, are passed over. A context manager that leaves the bar's
    last state, and says of a failure what is stored and how to go on."""

    sources: Sources
    collection: Collection
    given: argparse.Namespace
    standing: int = 0  # rows that the checkpoint had before
    skipped: int = 0  # those of them that were not sent
    writer: Writer | None = None
    bar: Bar | None = None

    @property
    def zero_row_count(self) -> int:
        """Of the rows that were sent, those that are all zero."""
        return 0 if self.writer is None else self.writer.zero_rows

    def run(self, eta: float) -> None:
        """Sends what is missing; returns when it is stored."""
        self.bar = Bar(f"{self.given.collection}/{self.given.checkpoint}")
        with self.collection.writer(self.given.checkpoint, eta=eta, on_conflict=self.given.on_conflict) as self.writer:
            for part in self.sources.slices():
                self._send(self._missing(part), self.writer)
                self._show()
        self._show()

    def _missing(self, part: Slice) -> Slice:
        """The rows of a slice to send: all of them, or only those that are missing."""
        assert self.writer is not None
        missing = self.writer.missing(part.keys)
        self.standing += len(part.keys) - len(missing)
        if not self.given.resume and self.given.on_conflict != "ignore":
            return part
        self.skipped += len(part.keys) - len(missing)
        return part.only(missing)

    def _send(self, part: Slice, writer: Writer) -> None:
        if not part.keys:
            return
        gradients = part.gradients()
        try:
            writer.add(part.keys, gradients, part.texts, part.metadata, part.trak_q)
        except InvalidInput as error:
            raise _placed(error, part) from error

    @property
    def _done(self) -> int:
        return self.skipped + (0 if self.writer is None else self.writer.acknowledged)

    def _show(self) -> None:
        if self.bar is not None:
            note = f"rows, {self.standing:,} of them there already" if self.standing else "rows"
            self.bar.show(self._done, self.sources.row_count, note)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self.bar is not None:
            self._show()
            self.bar.close()
        how = f"at least {self._done:,} of {self.sources.row_count:,} rows are stored"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(
                f"interrupted: {how}; run the same command again to go on, with --resume to send only the rest"
            ) from error
        if isinstance(error, CovectorError) and (self._done or isinstance(error, Unavailable)):
            message = f"{error.message}; {how}: run the command again, with --resume to send only the rest"
            raise of_kind(error.kind, message, **error.facts) from error


def _placed(error: InvalidInput, part: Slice) -> CovectorError:
    """The error of a row, with its file and its number there in the place of that in the slice."""
    row = error.facts.get("row")
    if row is None:
        return of_kind(error.kind, f"{part.path}, from row {part.rows[0]} on: {error.message}", **error.facts)
    number = part.rows[int(row)]
    message = error.message.replace(f" (row {row})", "")
    return of_kind(error.kind, f"{part.path}, row {number}: {message}", **{**error.facts, "row": number})


def _sentence(summary: dict[str, object]) -> str:
    already = f", {summary['already_there']:,} were there already" if summary["already_there"] else ""
    zero = f", {summary['zero_rows']:,} of them all zero" if summary["zero_rows"] else ""
    return f"{summary['stored']:,} rows stored in {summary['collection']} at {summary['checkpoint']}{zero}{already}"
