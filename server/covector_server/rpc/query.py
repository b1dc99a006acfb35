"""QueryService: messages to a question, and the answer back to messages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from covector.attribution.scoring import to_float32
from covector.blocks import column_from_message, column_of, column_to_message
from covector.errors import InvalidInput, Unavailable
from covector.types import GradientKind, Stage
from covector.v1 import query_pb2 as pb
from covector.v1 import query_pb2_grpc, types_pb2
from covector_server.fit.cache import FitCache
from covector_server.index.cache import IndexCache
from covector_server.limits import Limits
from covector_server.metadata.fields import canonical
from covector_server.metadata.records import FitRecord
from covector_server.query.cancellation import Cancelled
from covector_server.query.engine import grouped, scores, self_influence
from covector_server.query.filter import parse_where
from covector_server.query.fitted import needs_fit, with_fit
from covector_server.query.grouping import Group, GroupedAnswer
from covector_server.query.omission import DETAIL_ROWS, Omissions, damaged_details, named_scores, told_before
from covector_server.query.question import (
    CheckpointChoice,
    Damaged,
    Ends,
    Missing,
    Question,
    Reduce,
    ScoreBlock,
    TopKAnswer,
)
from covector_server.query.sharing import SharedScans
from covector_server.query.stored_queries import with_stored_vectors
from covector_server.query.workers import Workers
from covector_server.rpc.admission import QueryAdmission, QueryShare
from covector_server.rpc.convert import damage_to_message, kind_from_message, space_from_message
from covector_server.rpc.edge import streaming
from covector_server.rpc.streams import MESSAGE_BYTES, Context, computed, pulled, runs
from covector_server.storage.damage import Damage, OnDamage
from covector_server.storage.view import CollectionView

OpenView: TypeAlias = Callable[[str], AbstractContextManager[CollectionView]]
Request: TypeAlias = "pb.QueryRequest | pb.ScoresRequest"
Message = TypeVar("Message")
AnyRequest = TypeVar("AnyRequest", pb.QueryRequest, pb.ScoresRequest)
Shape = tuple[int, int, int]
Vectors = npt.NDArray[np.float32]

KEY_ROWS = 32_768  # whose keys are read at once
_REDUCES: tuple[Reduce | None, ...] = (None, "mean", "max")
_MISSING: tuple[Missing, ...] = ("omit", "omit", "zero")
_DAMAGED: tuple[Damaged, ...] = ("fail", "fail", "omit")


class QueryServicer(query_pb2_grpc.QueryServiceServicer):
    """Translates; the engine answers, in the pool."""

    def __init__(
        self,
        open_view: OpenView,
        pool: ThreadPoolExecutor,
        limits: Limits,
        workers: Workers | None = None,
        indexes: IndexCache | None = None,
        fits: FitCache | None = None,
    ) -> None:
        self._fits = fits or FitCache(limits.fit_cache_bytes)
        self._open_view = open_view
        self._pool = pool
        self._limits = limits
        self._workers = workers
        self._shared = SharedScans(open_view, limits, workers, indexes)
        self.admission = QueryAdmission(limits)

    @streaming
    async def Query(
        self, requests: AsyncIterator[pb.QueryRequest], context: Context
    ) -> AsyncIterator[pb.QueryResponse]:
        with self.admission.stream() as share:
            messages = aiter(requests)
            spec = _spec_message(await self._next(messages)).spec
            vectors = await self._receive(spec.query, messages, share)
            async for response in pulled(self._pool, lambda cancelled: self._answer(spec, vectors, cancelled)):
                yield response

    @streaming
    async def Scores(
        self, requests: AsyncIterator[pb.ScoresRequest], context: Context
    ) -> AsyncIterator[pb.ScoresResponse]:
        with self.admission.stream() as share:
            messages = aiter(requests)
            spec = _spec_message(await self._next(messages)).spec
            vectors = await self._receive(spec, messages, share)
            async for response in pulled(self._pool, lambda cancelled: self._scores(spec, vectors, cancelled)):
                yield response

    async def _receive(self, spec: pb.QuerySpec, messages: AsyncIterator[Request], share: QueryShare) -> Vectors:
        """The vectors, float32 in the shape that the spec says."""
        if spec.self_influence or spec.HasField("stored_keys"):
            return await self._receive_none(spec, messages)
        shape = await computed(self._pool, lambda _: self._shape_of(spec))
        size_bytes = 4 * shape[0] * shape[1] * shape[2]
        stated = f"{shape[0]} checkpoints x {shape[1]} vectors x dim {shape[2]} are {size_bytes} bytes of float32"
        data, filled = np.empty(size_bytes, dtype=np.uint8), 0  # no memory before bytes come to fill it
        while (message := await self._next(messages)) is not None:
            if message.WhichOneof("message") != "vectors":
                raise InvalidInput("after the spec of a query come vectors only")
            part = message.vectors.data
            if filled + len(part) > size_bytes:
                raise InvalidInput(f"more vectors came than the spec says: {stated}; check the dim and the counts")
            share.take(len(part))
            data[filled : filled + len(part)] = np.frombuffer(part, dtype=np.uint8)
            filled += len(part)
        if filled < size_bytes:
            raise InvalidInput(f"{filled} bytes of vectors came, but {stated}; check the dim and the counts")
        return data.view("<f4").reshape(shape).astype(np.float32, copy=False)

    async def _receive_none(self, spec: pb.QuerySpec, messages: AsyncIterator[Request]) -> Vectors:
        """Stored rows are the queries: no vectors come. They are looked up when the question is answered."""
        if spec.query_count or await self._next(messages) is not None:
            raise InvalidInput("stored rows are the queries: query_count is 0, and no vectors are sent")
        if spec.self_influence and (spec.HasField("stored_keys") or spec.groups or spec.reduce):
            raise InvalidInput("with self_influence every row is its own query: neither keys nor groups are given")
        return np.empty((0, 0, 0), dtype=np.float32)

    async def _next(self, messages: AsyncIterator[Message]) -> Message | None:
        """The next message, None at the end. Raises Unavailable for a client that stalls: it holds a stream and bytes
        that others could use."""
        try:
            async with asyncio.timeout(self._limits.part_wait_s):
                return await anext(messages, None)
        except TimeoutError:
            raise Unavailable(
                f"nothing of the query came within part_wait_s={self._limits.part_wait_s} s; send it again"
            ) from None

    def _shape_of(self, spec: pb.QuerySpec) -> Shape:
        """The shape of the vectors that will come. Raises LimitExceeded before any is received."""
        self._limits.check("query_vectors", spec.query_count, "the query has too many vectors")
        with self._open_view(spec.collection) as view:
            shape = max(1, len(spec.checkpoints)), spec.query_count, view.space.dim
        self._limits.check("query_bytes", 4 * shape[0] * shape[1] * shape[2], "bytes of query vectors")
        return shape

    def _answer(self, spec: pb.TopKSpec, vectors: Vectors, cancelled: Cancelled) -> Iterator[pb.QueryResponse]:
        if spec.query.self_influence:
            raise InvalidInput("what rows score for themselves is asked of Scores, for all rows")
        question = self._top_k_question(spec.query, vectors, cancelled)
        if spec.group_by:
            yield from self._grouped(spec, question, cancelled)
            return
        asked = self._shared.top_k(spec.query.collection, question, spec.k, offset=spec.offset, cancelled=cancelled)
        with asked as (view, answer):
            damages, on_damage = answer.damages, None
            if question.damaged == "omit" and not spec.keys_only:
                details = damaged_details(view, answer.results, self._limits, cancelled)
                damages, on_damage = (*damages, *details), told_before(details)
            yield pb.QueryResponse(summary=_summary(question, answer, damages))
            for index, ends in enumerate(answer.results):
                for hits in _hit_messages(view, index, ends, spec.keys_only, on_damage):
                    yield pb.QueryResponse(hits=hits)

    def _grouped(self, spec: pb.TopKSpec, question: Question, cancelled: Cancelled) -> Iterator[pb.QueryResponse]:
        if spec.offset:
            raise InvalidInput("groups come without an offset; ask for more hits of each", field="offset")
        with self._open_view(spec.query.collection) as view:
            ask = partial(grouped, limits=self._limits, cancelled=cancelled, workers=self._workers)
            answer = ask(view, question, spec.k, spec.group_by)
            damages, on_damage = answer.damages, None
            if question.damaged == "omit" and not spec.keys_only:
                ends = (group.ends for groups in answer.results for group in groups)
                details = damaged_details(view, ends, self._limits, cancelled)
                damages, on_damage = (*damages, *details), told_before(details)
            yield pb.QueryResponse(summary=_summary(question, answer, damages))
            for index, groups in enumerate(answer.results):
                for group in groups:
                    for hits in _hit_messages(view, index, group.ends, spec.keys_only, on_damage):
                        yield pb.QueryResponse(group=_group_message(group, hits))

    def _scores(self, spec: pb.QuerySpec, vectors: Vectors, cancelled: Cancelled) -> Iterator[pb.ScoresResponse]:
        with self._open_view(spec.collection) as view:
            question = self._question(view, spec, vectors, cancelled)
            ask = self_influence if spec.self_influence else scores
            stream = ask(view, question, limits=self._limits, cancelled=cancelled, workers=self._workers)
            row_count, fit = 0, None if question.fit is None else question.fit.record
            for block in stream.blocks:
                for message in _score_messages(view, block, stream.omissions):
                    _name_fit(message, fit)
                    fit = None
                    yield message
                row_count += len(block.row_ids)
            damages = _taken(stream.omissions)
            if damages or not row_count:  # the client still learns how many results there are
                last = pb.ScoresResponse(keys=_key_column([]), result_count=stream.result_count, damages=damages)
                _name_fit(last, fit)
                yield last

    def _top_k_question(self, spec: pb.QuerySpec, vectors: Vectors, cancelled: Cancelled) -> Question:
        """The question, before the view is taken that it is answered in."""
        question = question_of(spec, vectors)
        if not spec.HasField("stored_keys") and not needs_fit(question):
            return question
        with self._open_view(spec.collection) as view:
            return self._question(view, spec, vectors, cancelled)

    def _question(self, view: CollectionView, spec: pb.QuerySpec, vectors: Vectors, cancelled: Cancelled) -> Question:
        question = question_of(spec, vectors)
        if needs_fit(question):
            question = with_fit(view, question, self._fits, cancelled)
        if not spec.HasField("stored_keys"):
            return question
        values = spec.stored_keys.values
        keys = column_from_message(values, len(values.ends) // 4, "stored_keys").values()
        if not keys:
            raise InvalidInput("no keys are given; name at least one stored row")
        self._limits.check("query_vectors", len(keys), "the query has too many keys")
        size_bytes = 4 * max(1, len(spec.checkpoints)) * len(keys) * view.space.dim
        self._limits.check("query_bytes", size_bytes, "bytes of query vectors")
        return with_stored_vectors(view, question, [key or b"" for key in keys])


def question_of(spec: pb.QuerySpec, vectors: Vectors) -> Question:
    """The question in a message. Raises InvalidInput for what this server does not know."""
    return Question(
        vectors=vectors,
        checkpoints=[CheckpointChoice(choice.name, choice.weights_digest or None) for choice in spec.checkpoints],
        scorer=spec.scorer or "dot",
        where=parse_where(spec.where_json),
        groups=list(spec.groups) or None,
        reduce=_REDUCES[_known(spec.reduce, len(_REDUCES), "reduce")],
        missing=_MISSING[_known(spec.missing, len(_MISSING), "missing")],
        damaged=_DAMAGED[_known(spec.damaged, len(_DAMAGED), "damaged")],
        space=space_from_message(spec.space) if spec.HasField("space") else None,
        kind=kind_from_message(spec.kind) if spec.HasField("kind") else GradientKind(),
        exact=spec.exact,
    )


def _known(number: int, count: int, name: str) -> int:
    if not 0 <= number < count:
        raise InvalidInput(f"{name} is newer than this server; update the server", field=name)
    return number


def _spec_message(message: AnyRequest | None) -> AnyRequest:
    if message is None or message.WhichOneof("message") != "spec":
        raise InvalidInput("the first message of a query says what is asked (spec); the vectors follow")
    return message


def _summary(question: Question, answer: TopKAnswer | GroupedAnswer, damages: Iterable[Damage]) -> pb.QuerySummary:
    fit = None if question.fit is None else question.fit.record
    return pb.QuerySummary(
        fit="" if fit is None else fit.id,
        damping=0.0 if fit is None else fit.damping,
        damping_unit="" if fit is None else fit.damping_unit,
        exact=not answer.index,
        index=answer.index,
        reason=answer.reason,
        stages=[_stage(stage) for stage in answer.stages],
        result_count=len(answer.results),
        scorer=answer.scorer if fit is None else fit.method,
        damages=[damage_to_message(damage) for damage in damages],
    )


def _stage(stage: Stage) -> pb.Stage:
    return pb.Stage(name=stage.name, rows_in=stage.rows_in, rows_out=stage.rows_out, seconds=stage.seconds)


def _hit_messages(
    view: CollectionView, index: int, ends: Ends, keys_only: bool, on_damage: OnDamage | None
) -> Iterator[pb.ResultHits]:
    """The hits of a result, in messages of about MESSAGE_BYTES; at least one."""
    message, size_bytes = pb.ResultHits(result_index=index), 0
    for place, hit in enumerate(_hits(view, ends, keys_only, on_damage)):
        if size_bytes >= MESSAGE_BYTES:
            yield message
            message, size_bytes = pb.ResultHits(result_index=index), 0
        field = message.proponents if place < len(ends.proponents.keys) else message.opponents
        field.append(hit)
        size_bytes += hit.ByteSize()
    yield message


def _group_message(group: Group, hits: pb.ResultHits) -> pb.GroupHits:
    return pb.GroupHits(
        result_index=hits.result_index,
        value_json="" if group.value is None else json.dumps(group.value, ensure_ascii=False),
        row_count=group.row_count,
        score_sum=group.score_sum,
        proponents=hits.proponents,
        opponents=hits.opponents,
    )


def _hits(view: CollectionView, ends: Ends, keys_only: bool, on_damage: OnDamage | None) -> Iterator[pb.Hit]:
    """The proponents, then the opponents."""
    keys = [*ends.proponents.keys, *ends.opponents.keys]
    leaving = to_float32(np.concatenate([ends.proponents.scores, ends.opponents.scores])).tolist()
    if keys_only:
        yield from (pb.Hit(key=key, score=score) for key, score in zip(keys, leaving, strict=True))
        return
    row_ids = np.concatenate([ends.proponents.row_ids, ends.opponents.row_ids])
    for start in range(0, len(keys), DETAIL_ROWS):
        stop = start + DETAIL_ROWS
        rows = view.details_of(row_ids[start:stop], on_damage)
        for key, row, score in zip(keys[start:stop], rows, leaving[start:stop], strict=True):
            metadata_json = "" if row.metadata is None else canonical(row.metadata).decode()
            yield pb.Hit(key=key, score=score, text=row.text, metadata_json=metadata_json)


def _score_messages(
    view: CollectionView, block: ScoreBlock, omissions: Omissions | None
) -> Iterator[pb.ScoresResponse]:
    result_count = len(block.scores)
    for start in range(0, len(block.row_ids), KEY_ROWS):
        keys, values = named_scores(view, block, slice(start, start + KEY_ROWS), omissions)
        for run in runs([len(key) + 4 + 4 * result_count for key in keys]):
            data = values[:, run].astype("<f4", copy=False).tobytes()
            yield pb.ScoresResponse(
                keys=_key_column(keys[run]), scores=data, result_count=result_count, damages=_taken(omissions)
            )


def _name_fit(message: pb.ScoresResponse, fit: FitRecord | None) -> None:
    if fit is not None:
        message.fit, message.damping, message.damping_unit = fit.id, fit.damping, fit.damping_unit


def _taken(omissions: Omissions | None) -> list[pb.Damage]:
    return [] if omissions is None else [damage_to_message(damage) for damage in omissions.take()]


def _key_column(keys: list[bytes]) -> types_pb2.KeyColumn:
    return types_pb2.KeyColumn(values=column_to_message(column_of(keys)))
