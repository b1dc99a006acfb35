"""The short way from strips to candidates: one compiled call scores a strip and offers its rows to the pools.

It serves a few vectors at one checkpoint, with a row factor that the compiled loop knows. Pools remember where each
candidate lies, so that all are re-scored in one call, from the bytes that were scanned. Where pools fill with rows that
cannot be told apart, the rest of the scan goes the long way.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from covector.attribution.scoring import Float64, RowFacts, own_scale, scale_over_norm
from covector_server.kernels.scan import ScatteredRows, exact_products
from covector_server.kernels.strip import VECTORS_MAX, OpenStrip, StripQuestion
from covector_server.kernels.topk import NO_ORIGIN, Pools, Scored, is_compiled
from covector_server.query.scan import Scan
from covector_server.storage.view import RowIds, Strip

STRIPS_HELD = 256  # whose rows can be re-scored where they lie; each keeps a shard mapped
STRIPS_OPEN: Final = 64  # the newest, which threads that have nothing else to do look at
PLACE_BITS: Final = 32  # of an origin: the number of a strip, then the place in it
RESCORED_MAX: Final = 1024  # rows at once, whose places are found one by one

Offer = Callable[[Scored], None]  # takes scores to the pools the long way


def direct_offer(scan: Scan, pools: Pools) -> DirectOffer | None:
    """The short way of a scan; None if it has to take the long one."""
    plan = scan.plan
    fits = len(plan.terms) == 1 and not plan.reduce_max and plan.group_count <= VECTORS_MAX
    if not fits or not is_compiled() or plan.terms[0].scorer.row_factor not in (own_scale, scale_over_norm):
        return None
    return DirectOffer(scan, pools)


class DirectOffer:
    """Offers strips to pools from any thread, and several at a time."""

    def __init__(self, scan: Scan, pools: Pools) -> None:
        self.scanned_count = 0
        self._scan = scan
        (self._term,) = scan.plan.terms
        self._pools = pools
        over_norm = self._term.scorer.row_factor is scale_over_norm
        term = self._term
        self._question = StripQuestion(term.packed, term.coefficients, term.reaches, over_norm=over_norm)
        self._held: list[Strip] = []
        self._open: deque[tuple[Strip, OpenStrip]] = deque(maxlen=STRIPS_OPEN)
        self._opening = threading.Lock()

    def score(self, strip: Strip, offer: Offer) -> None:
        """Offers the rows of a strip; by ``offer`` those that cannot go the short way."""
        with self._opening:
            self.scanned_count += len(strip.row_ids)
            opened = OpenStrip(strip.rows, strip.scales, strip.row_ids, self._hold(strip))
            self._open.append((strip, opened))
        self._finish(strip, opened, offer)

    def help(self, offer: Offer) -> None:
        """Takes rows of strips that other threads are at."""
        with self._opening:
            others = [one for one in self._open if not one[1].is_taken()]
        for strip, opened in others:
            self._finish(strip, opened, offer)

    def exact(self, groups: Sequence[slice], origins: Sequence[RowIds]) -> list[Float64] | None:
        """For each, scores float64[groups, n] of rows of these origins, by ``Term.exact``; None if some are not to be
        found in this way."""
        every = np.concatenate(origins)
        is_short = 0 < len(every) <= RESCORED_MAX and every.min() > NO_ORIGIN
        if not is_short or self._scan.on_damage is not None:
            return None
        scores = self._exact(every)
        stops = np.cumsum([len(some) for some in origins]).tolist()
        parts = [slice(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]
        return [scores[some, part] for some, part in zip(groups, parts, strict=True)]

    def _exact(self, origins: RowIds) -> Float64:
        """float64[all groups, n]."""
        term, mask = self._term, (1 << PLACE_BITS) - 1
        rows = [(self._held[origin >> PLACE_BITS], origin & mask) for origin in origins.tolist()]
        addresses = np.array([strip.rows.address(place) for strip, place in rows], dtype=np.int64)
        scales = np.array([strip.scales[place] for strip, place in rows], dtype=np.float32)
        products, norms = exact_products(ScatteredRows(addresses, self._scan.plan.dim), term.vectors)
        factors = term.scorer.row_factor(RowFacts(norms, scales, np.full_like(scales, np.nan), origins))
        return products * term.coefficients[:, None] * factors

    def _hold(self, strip: Strip) -> int:
        """The origin of a strip's first row."""
        if len(self._held) >= STRIPS_HELD:
            return NO_ORIGIN
        self._held.append(strip)
        return (len(self._held) - 1) << PLACE_BITS

    def _finish(self, strip: Strip, opened: OpenStrip, offer: Offer) -> None:
        while True:
            first, stop = opened.score(self._question, self._pools)
            if first == stop:
                return
            offer(self._term.approximate(strip.pick(np.arange(first, stop))))
