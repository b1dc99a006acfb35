"""``covector evaluate``: which scorer is best here, judged by models retrained on subsets; and how large a sketch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy.typing as npt

from covector.attribution import Evaluation, evaluate
from covector.attribution.evaluation import RESAMPLES
from covector.cli.evaluate_models import models_of
from covector.cli.evaluate_report import check_plot, draw, print_report, write_json
from covector.cli.evaluate_settings import settings_of
from covector.cli.evaluate_sketches import agreements_of
from covector.cli.evaluate_sources import sources_of
from covector.cli.options import Parser, add_server, command_parser
from covector.errors import InvalidInput
from covector.progress import Bar

_EXAMPLES = """\
covector evaluate --rows rows.npz --queries queries.npy --masks masks.npy --outputs margins.npy --plot lds.png
  covector evaluate --rows rows.npz --queries queries.npy --train my_code:train --subsets 60 --scorer trak --scorer dot
  covector evaluate --collection answers --checkpoint epoch-1 --queries queries.npy --keys rows.jsonl \\
      --masks masks.npy --outputs margins.npy --scorer influence --damping 0.1 --damping 1
  covector evaluate --unsketched gradients.npy questions.npy --dim 512 --dim 4096"""


def main(arguments: list[str]) -> int:
    """Compares, and prints one table."""
    given = _parser().parse_args(arguments)
    _check_asked(given)
    if given.plot is not None:
        check_plot(given.plot)
    judged = _judged(given) if _asks_for_lds(given) else None
    agreed = agreements_of(given) if given.unsketched is not None else []
    print_report(judged, agreed)
    if given.json is not None:
        write_json(given.json, judged, agreed)
    if given.plot is not None:
        draw(given.plot, judged, agreed)
        print(f"plot: {given.plot}", file=sys.stderr)
    return 0


def _judged(given: argparse.Namespace) -> Evaluation:
    with sources_of(given) as sources:
        settings = settings_of(given, sources.has_trak_q, sources.has_blocks)
        masks, outputs = models_of(given, sources)
        bar, total = Bar("scorers"), len(settings) * len(sources.scopes)

        def scores() -> Iterator[tuple[str, npt.ArrayLike]]:
            done = 0
            for scope in sources.scopes:
                for setting in settings:
                    bar.show(done, total, sources.label(setting.label, scope))
                    label, found = sources.scores(setting, scope)
                    yield sources.label(label, scope), found
                    done += 1
            bar.show(done, total)

        try:
            return evaluate(
                scores(),
                masks,
                outputs,
                halve=not given.no_halves,
                confidence=given.confidence,
                resamples=given.resamples,
                seed=given.seed,
            )
        finally:
            bar.close()


def _asks_for_lds(given: argparse.Namespace) -> bool:
    return given.masks is not None or given.train is not None


def _check_asked(given: argparse.Namespace) -> None:
    """Raises InvalidInput for options that say too little or too much."""
    if not _asks_for_lds(given):
        if given.unsketched is None:
            raise InvalidInput(
                "what is to be judged by? give --masks and --outputs, or --train module:function; or --unsketched ROWS "
                "QUERIES to compare sketches"
            )
        if given.rows or given.collection:
            raise InvalidInput("scores are given, but nothing to judge them by; add --masks and --outputs, or --train")
    if given.masks is not None and given.train is not None:
        raise InvalidInput("--masks and --train are both given; give one of them")
    if (given.masks is None) != (given.outputs is None):
        raise InvalidInput("--masks and --outputs go together: the rows of each subset, and what its model did")
    if given.unsketched is None and (given.dim or given.sketch):
        raise InvalidInput("--dim and --sketch need the gradients to compare with; add --unsketched ROWS QUERIES")
    if not 0 < given.confidence < 1:
        raise InvalidInput(f"--confidence lies between 0 and 1, not {given.confidence}")
    if given.resamples < 1:
        raise InvalidInput(f"--resamples is at least 1, not {given.resamples}")


def _parser() -> Parser:
    parser = command_parser(
        "evaluate",
        "Which scorer and which damping is best here? Scores are judged by the linear datamodelling score (LDS):\n"
        "models are retrained on random subsets of the rows, and a score is good where the sum of a subset's scores\n"
        "foretells what its model does for the query (Spearman's correlation over subsets, its mean over queries).\n"
        "Chosen is on one half of the subsets, reported on the other. With --unsketched also: which share of the top\n"
        "and bottom k by unsketched gradients a sketch keeps, for choosing its dim.",
        _EXAMPLES,
    )
    _add_models(parser)
    _add_sources(parser)
    _add_settings(parser)
    _add_sketches(parser)
    group = parser.add_argument_group("results")
    group.add_argument("--json", type=Path, metavar="FILE", help="write all numbers as JSON")
    group.add_argument("--plot", type=Path, metavar="FILE", help="draw the table, as .png, .svg or .pdf")
    group.add_argument("--confidence", type=float, default=0.95, help="of the intervals (default 0.95)")
    group.add_argument(
        "--resamples", type=int, default=RESAMPLES, metavar="N", help=f"of the bootstrap (default {RESAMPLES})"
    )
    group.add_argument("--no-halves", action="store_true", help="report on all subsets only, and choose nothing")
    return parser


def _add_models(parser: Parser) -> None:
    group = parser.add_argument_group("retrained models")
    group.add_argument("--masks", type=Path, metavar="FILE", help="bool[subsets, rows], .npy, or `masks` of an .npz")
    group.add_argument(
        "--outputs",
        type=Path,
        metavar="FILE",
        help="float[subsets, queries], or [models, subsets, queries] to average, .npy, or `outputs` of an .npz; larger "
        "where the behaviour is stronger (a margin)",
    )
    group.add_argument("--losses", action="store_true", help="outputs are losses: smaller where it is stronger")
    group.add_argument(
        "--train",
        metavar="MODULE:FUNCTION",
        help="in the place of files: called with a subset's row numbers, int64[n], it trains a model and returns its "
        "output for each query, float[queries]. What is done is kept; the same command goes on after a break",
    )
    group.add_argument("--subsets", type=int, default=60, metavar="N", help="to train on (default 60)")
    group.add_argument("--share", type=float, default=0.5, help="of the rows in a subset (default 0.5)")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="draws subsets, halves, resamples (default 0)")
    group.add_argument(
        "--out",
        type=Path,
        default=Path("covector-evaluate"),
        metavar="DIR",
        help="where --train keeps its outputs (default: ./covector-evaluate)",
    )


def _add_sources(parser: Parser) -> None:
    group = parser.add_argument_group("gradients in files")
    group.add_argument(
        "--rows",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="float[rows, dim], as covector ingest reads: .npy, .npz (`gradients`, perhaps `trak_q`), .safetensors, "
        "Zarr; once for each checkpoint",
    )
    group.add_argument(
        "--queries", type=Path, action="append", default=[], metavar="FILE", help="float[queries, dim], likewise"
    )
    group.add_argument(
        "--trak-q", type=Path, action="append", default=[], metavar="FILE", help="1 - p of each row, float[rows], .npy"
    )
    group.add_argument(
        "--blocks",
        type=Path,
        metavar="FILE",
        help='layers, as JSON: [{"name": "w1", "start": 0, "stop": 256, "size": 2048}, ...]',
    )
    group = parser.add_argument_group("or gradients on a server (fits are made there, and stay)")
    group.add_argument("--collection", metavar="NAME", help="score its rows; --queries as above")
    group.add_argument(
        "--keys",
        type=Path,
        metavar="FILE",
        help="the key of each column of the masks: .jsonl or Parquet with a field `key`, or .npy (default: 0, 1 ...)",
    )
    add_server(group)
    group = parser.add_argument_group("checkpoints")
    group.add_argument(
        "--checkpoint", action="append", default=[], metavar="NAME", help="one for each --queries, in their order"
    )
    group.add_argument(
        "--eta", type=float, action="append", default=[], metavar="X", help="its weight in sums, for files (default 1)"
    )


def _add_settings(parser: Parser) -> None:
    group = parser.add_argument_group("what is compared")
    group.add_argument(
        "--scorer",
        action="append",
        default=[],
        metavar="NAME",
        help="may be given several times: dot, cosine, tracin, less, trak, influence, datainf, trackstar, or the id of "
        "a fit on the server (default: dot, cosine, influence; trak where trak_q is given, datainf where --blocks is)",
    )
    group.add_argument(
        "--damping",
        action="append",
        default=[],
        metavar="X",
        help="may be given several times: in the method's unit, or held_out (default: a tenth of the method's default, "
        "the default, ten times it)",
    )
    group.add_argument("--rank", type=int, metavar="N", help="of low-rank fits (default: dense)")
    group.add_argument("--unit-rows", action="store_true", help="trak and influence also with rows at unit norm")
    group.add_argument("--one-layer", action="store_true", help="datainf: treat all coordinates as one layer")


def _add_sketches(parser: Parser) -> None:
    group = parser.add_argument_group("how large a sketch")
    group.add_argument(
        "--unsketched",
        type=Path,
        nargs=2,
        metavar=("ROWS", "QUERIES"),
        help="whole gradients: what the top and bottom k of sketches are held against",
    )
    group.add_argument(
        "--dim", type=int, action="append", default=[], metavar="N", help="count-sketch them to this (extra: torch)"
    )
    group.add_argument(
        "--sketch",
        type=Path,
        nargs=2,
        action="append",
        default=[],
        metavar=("ROWS", "QUERIES"),
        help="or sketches of them that were taken with any projection",
    )
    group.add_argument("-k", type=int, default=10, metavar="N", help="of the agreement (default 10)")
