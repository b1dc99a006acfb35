"""The question put to the server: at each checkpoint, with the adapters as they were there, and at both together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from covector.collection import Collection
from covector.demo.ranking import Ranking
from covector.types import Gradients, Hit, QueryHits

HITS = 10


def rank_rows(collection: Collection, queries: Mapping[str, Gradients], scorer: str) -> list[Ranking]:
    """Rankings of all rows at each checkpoint of ``queries``, then at all of them together.

    The server sums checkpoints by their eta; the sum is divided by the sum of the etas here, which makes it a mean.
    """
    etas = {info.name: info.eta for info in collection.checkpoints()}
    single = [_rank(collection, {name: queries[name]}, scorer, name) for name in queries]
    together = _rank(collection, queries, scorer, " + ".join(queries))
    return [*single, _divided(together, sum(etas[name] for name in queries))]


def _rank(collection: Collection, queries: Mapping[str, Gradients], scorer: str, label: str) -> Ranking:
    asked = dict(queries)
    keys, scores = collection.scores(asked, scorer=scorer).to_numpy()
    hits = collection.query(asked, k=HITS, scorer=scorer)[0]
    return Ranking(label, scorer, dict(zip(keys, scores[0].tolist(), strict=True)), hits)


def _divided(ranking: Ranking, divisor: float) -> Ranking:
    def scaled(hits: Sequence[Hit]) -> tuple[Hit, ...]:
        return tuple(replace(hit, score=hit.score / divisor) for hit in hits)

    scores = {key: score / divisor for key, score in ranking.scores.items()}
    return replace(
        ranking, scores=scores, hits=QueryHits(scaled(ranking.hits.proponents), scaled(ranking.hits.opponents))
    )
