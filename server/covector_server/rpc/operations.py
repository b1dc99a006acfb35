"""OperationsService: look at long work, wait for it, stop it."""

from __future__ import annotations

import asyncio
import json
from typing import Any, TypeAlias

import grpc

from covector.v1 import operations_pb2 as pb
from covector.v1 import operations_pb2_grpc
from covector_server.jobs.operations import CANCELLED, FAILED, RUNNING, SUCCEEDED, Operations
from covector_server.limits import Limits
from covector_server.metadata.records import OperationRecord
from covector_server.rpc.edge import unary
from covector_server.rpc.pages import page_of

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_POLL_S = 0.05
_STATES = {
    RUNNING: pb.OPERATION_STATE_RUNNING,
    SUCCEEDED: pb.OPERATION_STATE_SUCCEEDED,
    FAILED: pb.OPERATION_STATE_FAILED,
    CANCELLED: pb.OPERATION_STATE_CANCELLED,
}


class OperationsServicer(operations_pb2_grpc.OperationsServiceServicer):
    """Translates; ``jobs.operations`` decides."""

    def __init__(self, operations: Operations, limits: Limits) -> None:
        self._operations = operations
        self._limits = limits

    @unary
    async def GetOperation(self, request: pb.GetOperationRequest, context: Context) -> pb.GetOperationResponse:
        return pb.GetOperationResponse(operation=operation_to_message(self._operations.get(request.id)))

    @unary
    async def ListOperations(self, request: pb.ListOperationsRequest, context: Context) -> pb.ListOperationsResponse:
        page, token = page_of(
            self._operations.list(), lambda o: o.id, request.page_size, request.page_token, self._limits
        )
        return pb.ListOperationsResponse(operations=map(operation_to_message, page), next_page_token=token)

    @unary
    async def CancelOperation(self, request: pb.CancelOperationRequest, context: Context) -> pb.CancelOperationResponse:
        return pb.CancelOperationResponse(operation=operation_to_message(self._operations.cancel(request.id)))

    @unary
    async def WaitOperation(self, request: pb.WaitOperationRequest, context: Context) -> pb.WaitOperationResponse:
        """Polls, so that a thousand waiting clients hold no thread."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(max(request.timeout_s, 0.0), self._limits.wait_s)
        while (record := self._operations.get(request.id)).state == RUNNING and loop.time() < deadline:
            await asyncio.sleep(_POLL_S)
        return pb.WaitOperationResponse(operation=operation_to_message(record))


def operation_to_message(record: OperationRecord) -> pb.Operation:
    """The message of an operation."""
    return pb.Operation(
        id=record.id,
        kind=record.kind,
        collection=record.collection,
        state=_STATES[record.state],
        steps_done=record.steps_done,
        steps_total=record.steps_total,
        error_kind=record.error_kind,
        error_message=record.error_message,
        result_json=json.dumps(record.result),
        metadata_json=json.dumps(record.metadata),
    )
