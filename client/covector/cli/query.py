"""``covector query``: the proponents and the opponents of a behaviour, as a table."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from covector.cli.gradient_files import load_npy
from covector.cli.options import add_connection, command_parser, connected, parsed_filter
from covector.cli.table import print_table, said_damage
from covector.collection import Collection
from covector.errors import InvalidInput, NotFound
from covector.queries import Damaged, Queries
from covector.types import Hit, QueryResult


def main(arguments: list[str]) -> int:
    """Asks, and prints the two ends of each result."""
    given = _parser().parse_args(arguments)
    where = parsed_filter(given.where)
    with connected(given) as client:
        collection = client.collection(given.collection)
        options = {name: getattr(given, name) for name in ("k", "offset", "group_by", "scorer", "exact", "damaged")}
        options |= {"checkpoints": given.checkpoint, "where": where}
        if given.key is not None:
            result = _asked_by_key(collection, given.key, options)
        else:
            result = collection.query(_queries(given), **options)
    if given.json:
        print(json.dumps(asdict(result), indent=2))
    else:
        _print_result(result, given)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "query",
        "Name the rows that pushed a behaviour up (proponents) or down (opponents) the most.",
        "covector query my-model --vector question.npy --checkpoint epoch-1 --scorer cosine -k 5",
    )
    parser.add_argument("collection", metavar="COLLECTION")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--vector",
        action="append",
        type=Path,
        metavar="FILE.npy",
        help="float[dim] or float[m, dim]; with several checkpoints once for each, in their order",
    )
    source.add_argument("--key", metavar="KEY", help="ask with the gradient of this stored row")
    parser.add_argument(
        "--checkpoint", action="append", metavar="NAME", help="may be repeated; needed if there are several"
    )
    parser.add_argument("-k", type=int, default=10, metavar="N", help="rows at each end (default 10)")
    parser.add_argument("--offset", type=int, default=0, metavar="N", help="leave out the N best of each end")
    parser.add_argument("--group-by", metavar="FIELD", help="k rows of each value of a metadata field, and their sums")
    parser.add_argument(
        "--scorer", default="dot", help="dot, cosine, tracin, less, a fitted method such as trak, or a fit's id"
    )
    parser.add_argument("--where", metavar="JSON", help='a filter on metadata, such as \'{"year": {"gte": 2020}}\'')
    parser.add_argument("--exact", action="store_true", help="use no index")
    parser.add_argument(
        "--damaged",
        choices=get_args(Damaged),
        default="error",
        help="what to do about stored rows whose bytes are damaged: fail (the default), or leave them out and say so",
    )
    add_connection(parser)
    return parser


def _queries(given: argparse.Namespace) -> Queries:
    vectors = [load_npy(path) for path in given.vector]
    names = given.checkpoint or []
    if len(vectors) != max(1, len(names)):
        raise InvalidInput(f"{len(vectors)} times --vector for {len(names)} times --checkpoint; give one for each")
    return vectors[0] if len(vectors) == 1 else dict(zip(names, vectors, strict=True))


def _asked_by_key(collection: Collection, key: str, options: dict[str, Any]) -> QueryResult:
    """The rows like the one of a key as it was typed: a string, or an integer if there is no such string."""
    try:
        return collection.query(keys=[key], **options)
    except NotFound as error:
        try:
            number = int(key)
        except ValueError:
            raise error from None
        return collection.query(keys=[number], **options)


def _print_result(result: QueryResult, given: argparse.Namespace) -> None:
    seconds = sum(stage.seconds for stage in result.stages)
    matching = result.stages[0].rows_out if result.stages else 0
    at = f" at {', '.join(given.checkpoint)}" if given.checkpoint else ""
    how = "exact" if result.exact else f"by index {result.index}"
    how += f" ({result.reason})" if result.reason else ""
    how += f", fit {result.fit}, damping {result.damping:g}" if result.fit else ""
    print(f"{result.scorer}{at}: {matching:,} matching rows in {1e3 * seconds:.1f} ms, {how}")
    for damage in result.damages:
        print(f"left out as damaged: {said_damage(damage)}")
    if given.group_by is not None:
        _print_groups(result)
        return
    if not any(hits.proponents for hits in result):
        print("no row that matches has a gradient there")
        return
    for number, hits in enumerate(result):
        title = f" of query {number}" if len(result) > 1 else ""
        for name, found in (("proponents", hits.proponents), ("opponents", hits.opponents)):
            print(f"\n{name}{title}")
            print_table(
                ["rank", "score", "key", "text"], [_line(i, hit) for i, hit in enumerate(found, given.offset + 1)], "  "
            )


def _print_groups(result: QueryResult) -> None:
    for number, hits in enumerate(result):
        print(f"\ngroups of query {number}" if len(result) > 1 else "\ngroups")
        lines = [
            [
                "(none)" if group.value is None else str(group.value),
                f"{group.row_count:,}",
                f"{group.score_sum:+.4g}",
                _keys(group.proponents),
                _keys(group.opponents),
            ]
            for group in hits.groups
        ]
        print_table(["value", "rows", "sum of scores", "proponents", "opponents"], lines, "  ")


def _keys(hits: tuple[Hit, ...]) -> str:
    return ", ".join(str(hit.key) for hit in hits)


def _line(rank: int, hit: Hit) -> list[str]:
    metadata = ", ".join(f"{name}={value}" for name, value in (hit.metadata or {}).items())
    text = hit.text or ""
    return [str(rank), f"{hit.score:+.4g}", str(hit.key), f"{text}  [{metadata}]" if metadata else text]
