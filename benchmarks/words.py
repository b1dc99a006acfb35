"""Texts by their words: BM25, and which words carry content."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FUNCTION_WORDS = frozenset(
    """
    a an the of in on at to from for by with and or not no is are was were be been do does did has have had it its this
    that these those there they them we you i he she one what which who whom whose when where why how if than then since
    as so any all some most many much make makes
    """.split()  # noqa: SIM905
)


def words(text: str) -> list[str]:
    """Its words in lower case."""
    return re.findall(r"\w+", text.lower())


def content_words(text: str) -> frozenset[str]:
    """Those that are no function words."""
    return frozenset(words(text)) - FUNCTION_WORDS


def bm25(rows: Sequence[str], queries: Sequence[str]) -> npt.NDArray[np.float64]:
    """Okapi BM25 of each row for each query, float64[queries, rows]."""
    import bm25s

    index = bm25s.BM25()
    index.index([words(row) for row in rows], show_progress=False)
    return np.stack([np.asarray(index.get_scores(words(query)), dtype=np.float64) for query in queries])
