"""IndexesService: build, list and drop approximate search structures."""

from __future__ import annotations

import asyncio
import json
from typing import Any, TypeAlias

import grpc

from covector.errors import InvalidInput
from covector.v1 import indexes_pb2 as pb
from covector.v1 import indexes_pb2_grpc
from covector_server.index.contract import Spec
from covector_server.jobs.indexing import Indexer, IndexStatus
from covector_server.limits import Limits
from covector_server.rpc.edge import unary
from covector_server.rpc.operations import operation_to_message
from covector_server.rpc.pages import page_of

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class IndexesServicer(indexes_pb2_grpc.IndexesServiceServicer):
    """Translates; ``jobs.indexing`` decides."""

    def __init__(self, indexer: Indexer, limits: Limits) -> None:
        self._indexer = indexer
        self._limits = limits

    @unary
    async def BuildIndex(self, request: pb.BuildIndexRequest, context: Context) -> pb.BuildIndexResponse:
        self._limits.check("id_bytes", len(request.request_id.encode()), "bytes of the request's id")
        spec = Spec(
            kind=request.kind,
            scorer=request.scorer or "dot",
            recall=request.recall or None,
            parameters=_parameters(request.parameters_json),
        )
        start = self._indexer.start
        record = await asyncio.to_thread(start, request.collection, request.checkpoint, spec, request.request_id)
        return pb.BuildIndexResponse(operation=operation_to_message(record))

    @unary
    async def ListIndexes(self, request: pb.ListIndexesRequest, context: Context) -> pb.ListIndexesResponse:
        found = await asyncio.to_thread(self._indexer.indexes, request.collection)
        page, token = page_of(found, lambda one: one.record.id, request.page_size, request.page_token, self._limits)
        return pb.ListIndexesResponse(indexes=map(index_to_message, page), next_page_token=token)

    @unary
    async def DropIndex(self, request: pb.DropIndexRequest, context: Context) -> pb.DropIndexResponse:
        await asyncio.to_thread(self._indexer.drop, request.collection, request.id)
        return pb.DropIndexResponse()


def index_to_message(status: IndexStatus) -> pb.Index:
    """The message of an index."""
    record = status.record
    return pb.Index(
        id=record.id,
        kind=record.kind,
        checkpoints=status.checkpoints,
        fit=record.fit,
        scorers=record.scorers,
        recall_scorer=record.scorer,
        row_count=sum(part.row_count for part in record.covered),
        fresh_row_count=status.fresh_row_count,
        recall=record.recall,
        recall_asked=record.recall_asked or 0.0,
        warning=record.warning,
        oversampling=record.oversampling,
        size_bytes=record.size_bytes,
        built_at_s=record.built_at_s,
        parameters_json=json.dumps(record.parameters),
    )


def _parameters(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise InvalidInput(f"the parameters are not JSON: {error}", field="parameters") from error
    if not isinstance(found, dict):
        raise InvalidInput("the parameters are a JSON object", field="parameters")
    return found
