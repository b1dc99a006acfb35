"""Answers: hits, and the scores of every row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from covector.blocks import column_from_message, decode_key, keys_of
from covector.errors import Internal
from covector.messages import damage_from_message, metadata_from_json
from covector.types import Damage, Hit, Key, QueryHits, QueryResult, Stage
from covector.v1 import query_pb2, types_pb2

ScoreBlock = tuple[list[Key], npt.NDArray[np.float32]]


@dataclass(slots=True)
class _Ends:
    """The two ends of a result while its messages come in."""

    proponents: list[Hit] = field(default_factory=list)
    opponents: list[Hit] = field(default_factory=list)


def read_result(responses: Iterator[query_pb2.QueryResponse]) -> QueryResult:
    """The result in a stream of answers. Raises Internal if the stream is not as the .proto says."""
    first = next(responses, None)
    if first is None or first.WhichOneof("message") != "summary":
        raise Internal("the answer to a query did not begin with its summary")
    summary = first.summary
    ends = [_Ends() for _ in range(summary.result_count)]
    for response in responses:
        if response.hits.result_index >= len(ends):
            raise Internal(f"hits of result {response.hits.result_index} came, there are {len(ends)} results")
        found = ends[response.hits.result_index]
        found.proponents += map(_hit, response.hits.proponents)
        found.opponents += map(_hit, response.hits.opponents)
    return QueryResult(
        hits=tuple(QueryHits(tuple(end.proponents), tuple(end.opponents)) for end in ends),
        exact=summary.exact,
        stages=tuple(Stage(s.name, s.rows_in, s.rows_out, s.seconds) for s in summary.stages),
        scorer=summary.scorer,
        index=summary.index or None,
        fit=summary.fit or None,
        damages=tuple(map(damage_from_message, summary.damages)),
        reason=summary.reason,
    )


class Scores:
    """The scores of every row, read from the server while they are iterated.

    Iterates (keys, float32[m, n]) blocks: m results, n consecutive rows, all rows in the order in which the server
    numbered them. Each iteration asks anew; memory holds one block at a time. Errors of the query are raised by the
    iteration. By the sign convention, a score above zero marks a proponent.

    ``damages``: what the last iteration left out so far under ``damaged="omit"``.
    """

    def __init__(self, ask: Callable[[], Iterator[query_pb2.ScoresResponse]], result_count: int) -> None:
        self._ask = ask
        self._result_count = result_count
        self._damages: list[Damage] = []

    @property
    def damages(self) -> tuple[Damage, ...]:
        """What the last iteration left out so far; complete when it has ended."""
        return tuple(self._damages)

    def __iter__(self) -> Iterator[ScoreBlock]:
        found: list[Damage] = []
        self._damages = found
        for response in self._ask():
            found += map(damage_from_message, response.damages)
            if response.result_count or not response.damages:  # a message may bring damages and no rows
                yield self._block(response)

    def to_numpy(self) -> ScoreBlock:
        """All of them: (keys, float32[m, rows])."""
        keys: list[Key] = []
        parts: list[npt.NDArray[np.float32]] = [np.empty((self._result_count, 0), dtype=np.float32)]
        for block_keys, scores in self:
            keys += block_keys
            parts.append(scores)
        return keys, np.concatenate(parts, axis=1)

    def _block(self, response: query_pb2.ScoresResponse) -> ScoreBlock:
        row_count = len(response.scores) // (4 * self._result_count)
        if response.result_count != self._result_count or len(response.scores) != 4 * self._result_count * row_count:
            raise Internal(
                f"{len(response.scores)} bytes of scores came for {response.result_count} results; "
                f"{self._result_count} were asked for"
            )
        keys = keys_of(column_from_message(_values(response), row_count, "keys"))
        scores = np.frombuffer(response.scores, "<f4").reshape(self._result_count, row_count)
        return keys, scores.astype(np.float32)


def _values(response: query_pb2.ScoresResponse) -> types_pb2.BinaryColumn:
    return response.keys.values


def _hit(hit: query_pb2.Hit) -> Hit:
    text = hit.text if hit.HasField("text") else None
    return Hit(decode_key(hit.key), hit.score, text, metadata_from_json(hit.metadata_json))
