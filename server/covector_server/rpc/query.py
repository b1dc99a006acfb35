"""QueryService: messages to a question, and the answer back to messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from covector.blocks import column_from_message
from covector.errors import InvalidInput, Unavailable
from covector.types import GradientKind
from covector.v1 import query_pb2 as pb
from covector.v1 import query_pb2_grpc
from covector_server.fit.cache import FitCache
from covector_server.index.cache import IndexCache
from covector_server.kernels.pages import Losses
from covector_server.limits import Limits
from covector_server.query.cancellation import Cancelled
from covector_server.query.engine import grouped, scores, self_influence
from covector_server.query.filter import parse_where
from covector_server.query.fitted import needs_fit, with_fit
from covector_server.query.joint import Found
from covector_server.query.omission import damaged_details, told_before
from covector_server.query.question import CheckpointChoice, Damaged, Missing, Question, Reduce
from covector_server.query.sharing import SharedScans
from covector_server.query.stored_queries import with_stored_vectors
from covector_server.query.workers import Workers
from covector_server.rpc.admission import QueryAdmission, QueryShare
from covector_server.rpc.answers import (
    gathered,
    group_message,
    hit_messages,
    key_column,
    name_fit,
    once_message,
    score_messages,
    summary_message,
    taken_damages,
)
from covector_server.rpc.convert import kind_from_message, space_from_message
from covector_server.rpc.edge import streaming, unary
from covector_server.rpc.streams import Context, computed, pulled
from covector_server.storage.view import CollectionView

OpenView: TypeAlias = Callable[[str], AbstractContextManager[CollectionView]]
Request: TypeAlias = "pb.QueryRequest | pb.ScoresRequest"
Message = TypeVar("Message")
AnyRequest = TypeVar("AnyRequest", pb.QueryRequest, pb.ScoresRequest)
Shape = tuple[int, int, int]
Vectors = npt.NDArray[np.float32]

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

    def close(self) -> None:
        """Waits for the scans under way; there are none afterwards."""
        self._shared.close()

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

    @unary
    async def QueryOnce(self, request: pb.QueryOnceRequest, context: Context) -> pb.QueryOnceResponse:
        with self.admission.stream() as share:
            share.take(len(request.vectors))
            response = await self._once(request.spec, self._vectors_of(request))
            share.take(response.ByteSize())
            return response

    async def _once(self, spec: pb.TopKSpec, vectors: Vectors) -> pb.QueryOnceResponse:
        """Asked with others, without a thread that waits, if that can be done, else alone."""
        if spec.group_by:
            raise InvalidInput("hits by group do not come in one message; ask Query", field="group_by")
        if not spec.query.self_influence and not spec.query.HasField("stored_keys"):
            question = question_of(spec.query, vectors)
            asked = None if needs_fit(question) else self._ask_with_others(spec, question)
            losses = Losses()
            found = None if asked is None else await asyncio.wrap_future(asked)
            losses.check()
            if found is not None:
                return once_message(question, found, keys_only=spec.keys_only)
        return await computed(self._pool, lambda cancelled: gathered(self._answer(spec, vectors, cancelled)))

    def _ask_with_others(self, spec: pb.TopKSpec, question: Question) -> Future[Found | None] | None:
        return self._shared.ask(spec.query.collection, question, spec.k, offset=spec.offset)

    def _vectors_of(self, request: pb.QueryOnceRequest) -> Vectors:
        """The vectors, float32 in the shape that their bytes say; whether the dim is right is seen later."""
        spec, size_bytes = request.spec.query, len(request.vectors)
        if spec.self_influence or spec.HasField("stored_keys"):
            _check_no_vectors(spec, size_bytes > 0)
            return np.empty((0, 0, 0), dtype=np.float32)
        self._limits.check("query_vectors", spec.query_count, "the query has too many vectors")
        self._limits.check("query_bytes", size_bytes, "bytes of query vectors")
        checkpoint_count = max(1, len(spec.checkpoints))
        vector_count = checkpoint_count * spec.query_count
        if not vector_count:
            raise InvalidInput("the query has no vectors; send at least one")
        if not size_bytes or size_bytes % (4 * vector_count):
            raise InvalidInput(
                f"{size_bytes} bytes of vectors came, which are not {checkpoint_count} checkpoints x "
                f"{spec.query_count} vectors of float32; check the counts"
            )
        values = np.frombuffer(request.vectors, dtype="<f4").astype(np.float32, copy=False)
        return values.reshape(checkpoint_count, spec.query_count, -1)

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
        _check_no_vectors(spec, await self._next(messages) is not None)
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
            yield pb.QueryResponse(summary=summary_message(question, answer, damages))
            for index, ends in enumerate(answer.results):
                for hits in hit_messages(view, index, ends, spec.keys_only, on_damage):
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
            yield pb.QueryResponse(summary=summary_message(question, answer, damages))
            for index, groups in enumerate(answer.results):
                for group in groups:
                    for hits in hit_messages(view, index, group.ends, spec.keys_only, on_damage):
                        yield pb.QueryResponse(group=group_message(group, hits))

    def _scores(self, spec: pb.QuerySpec, vectors: Vectors, cancelled: Cancelled) -> Iterator[pb.ScoresResponse]:
        with self._open_view(spec.collection) as view:
            question = self._question(view, spec, vectors, cancelled)
            ask = self_influence if spec.self_influence else scores
            stream = ask(view, question, limits=self._limits, cancelled=cancelled, workers=self._workers)
            row_count, fit = 0, None if question.fit is None else question.fit.record
            for block in stream.blocks:
                for message in score_messages(view, block, stream.omissions):
                    name_fit(message, fit)
                    fit = None
                    yield message
                row_count += len(block.row_ids)
            damages = taken_damages(stream.omissions)
            if damages or not row_count:  # the client still learns how many results there are
                last = pb.ScoresResponse(keys=key_column([]), result_count=stream.result_count, damages=damages)
                name_fit(last, fit)
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


def _check_no_vectors(spec: pb.QuerySpec, some_came: bool) -> None:
    """What goes for a query by stored rows."""
    if spec.query_count or some_came:
        raise InvalidInput("stored rows are the queries: query_count is 0, and no vectors are sent")
    if spec.self_influence and (spec.HasField("stored_keys") or spec.groups or spec.reduce):
        raise InvalidInput("with self_influence every row is its own query: neither keys nor groups are given")


def _known(number: int, count: int, name: str) -> int:
    if not 0 <= number < count:
        raise InvalidInput(f"{name} is newer than this server; update the server", field=name)
    return number


def _spec_message(message: AnyRequest | None) -> AnyRequest:
    if message is None or message.WhichOneof("message") != "spec":
        raise InvalidInput("the first message of a query says what is asked (spec); the vectors follow")
    return message
