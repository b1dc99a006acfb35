"""CollectionsService: make, list, describe, delete, publish, compact."""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias

import grpc

from covector.v1 import collections_pb2 as pb
from covector.v1 import collections_pb2_grpc
from covector_server.ingest.committer import Committer
from covector_server.jobs.compact import Compactor
from covector_server.jobs.operations import Operations
from covector_server.jobs.publish import publish
from covector_server.limits import Limits
from covector_server.rpc.convert import check_name, kind_to_message, space_from_message, space_to_message
from covector_server.rpc.edge import unary
from covector_server.rpc.operations import operation_to_message
from covector_server.rpc.pages import page_of
from covector_server.storage.checkpoint import StoredCheckpoint
from covector_server.storage.collection import StoredCollection
from covector_server.storage.store import Store

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class CollectionsServicer(collections_pb2_grpc.CollectionsServiceServicer):
    """Translates; the store decides."""

    def __init__(
        self, store: Store, committer: Committer, operations: Operations, limits: Limits, compactor: Compactor
    ) -> None:
        self._store = store
        self._committer = committer
        self._operations = operations
        self._limits = limits
        self._compactor = compactor

    @unary
    async def CreateCollection(
        self, request: pb.CreateCollectionRequest, context: Context
    ) -> pb.CreateCollectionResponse:
        check_name("collection", request.name)
        self._limits.check("id_bytes", len(request.request_id.encode()), "bytes of the request's id")
        space = space_from_message(request.space)
        self._limits.check("row_bytes", 2 * space.dim, f"bytes of a row of dim {space.dim}")
        self._limits.check("collections", len(self._store.collections()) + 1, "collections")
        collection = await self._on_store(
            lambda: self._store.create_collection(request.name, space, request.exist_ok, request.request_id)
        )
        return pb.CreateCollectionResponse(collection=collection_to_message(collection))

    @unary
    async def GetCollection(self, request: pb.GetCollectionRequest, context: Context) -> pb.GetCollectionResponse:
        return pb.GetCollectionResponse(collection=collection_to_message(self._store.collection(request.name)))

    @unary
    async def ListCollections(self, request: pb.ListCollectionsRequest, context: Context) -> pb.ListCollectionsResponse:
        page, token = page_of(
            self._store.collections(), lambda c: c.record.name, request.page_size, request.page_token, self._limits
        )
        return pb.ListCollectionsResponse(collections=map(collection_to_message, page), next_page_token=token)

    @unary
    async def DeleteCollection(
        self, request: pb.DeleteCollectionRequest, context: Context
    ) -> pb.DeleteCollectionResponse:
        self._limits.check("id_bytes", len(request.request_id.encode()), "bytes of the request's id")
        row_count = await self._on_store(lambda: self._store.delete_collection(request.name, request.request_id))
        return pb.DeleteCollectionResponse(row_count=row_count)

    @unary
    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, context: Context) -> pb.ListCheckpointsResponse:
        collection = self._store.collection(request.collection)
        page, token = page_of(
            list(collection.checkpoints.values()),
            lambda c: c.record.name,
            request.page_size,
            request.page_token,
            self._limits,
        )
        messages = [_checkpoint_to_message(checkpoint, self._store) for checkpoint in page]
        return pb.ListCheckpointsResponse(checkpoints=messages, next_page_token=token)

    @unary
    async def PublishCollection(
        self, request: pb.PublishCollectionRequest, context: Context
    ) -> pb.PublishCollectionResponse:
        self._limits.check("id_bytes", len(request.request_id.encode()), "bytes of the request's id")
        name = self._store.collection(request.collection).record.name
        work = publish(self._store, self._committer, name)
        record = await asyncio.to_thread(self._operations.start, "publish", name, work, request.request_id)
        return pb.PublishCollectionResponse(operation=operation_to_message(record))

    @unary
    async def CompactCollection(
        self, request: pb.CompactCollectionRequest, context: Context
    ) -> pb.CompactCollectionResponse:
        self._limits.check("id_bytes", len(request.request_id.encode()), "bytes of the request's id")
        record = await asyncio.to_thread(self._compactor.start, request.collection, request.request_id)
        return pb.CompactCollectionResponse(operation=operation_to_message(record))

    async def _on_store(self, work: Any) -> Any:
        return await asyncio.wrap_future(self._committer.call(work))


def collection_to_message(collection: StoredCollection) -> pb.Collection:
    """The message of a collection."""
    return pb.Collection(
        name=collection.record.name,
        id=collection.record.id,
        space=space_to_message(collection.space),
        row_count=collection.row_count,
        deleted_row_count=len(collection.deleted) - collection.erased_row_count,
        read_only_reason="" if collection.read_only is None else collection.read_only.message,
        fields=[pb.Field(name=name, type=type_) for name, type_ in sorted(collection.fields.items())],
    )


def _checkpoint_to_message(checkpoint: StoredCheckpoint, store: Store) -> pb.Checkpoint:
    record, counters = checkpoint.record, checkpoint.counters
    return pb.Checkpoint(
        name=record.name,
        eta=record.eta,
        weights_digest=record.weights_digest or "",
        kind=kind_to_message(record.gradient_kind),
        row_count=counters.row_count - len(checkpoint.dead),
        zero_row_count=counters.zero_row_count,
        path=str(checkpoint.directory.relative_to(store.data)),
        published_row_count=checkpoint.published_row_count(),
        dead_row_count=len(checkpoint.dead),
    )
