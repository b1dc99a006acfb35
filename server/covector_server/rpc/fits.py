"""FitsService: learn, list and drop what scorers need."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import grpc
import numpy as np
import numpy.typing as npt

from covector.errors import InvalidInput, Unavailable
from covector.v1 import fits_pb2 as pb
from covector.v1 import fits_pb2_grpc
from covector_server.fit.spec import FitSpec
from covector_server.jobs.fitting import FitStatus, Fitter
from covector_server.limits import Limits
from covector_server.rpc.edge import unary
from covector_server.rpc.operations import operation_to_message
from covector_server.rpc.pages import page_of
from covector_server.storage.view import CollectionView

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
OpenView: TypeAlias = Callable[[str], AbstractContextManager[CollectionView]]


class FitsServicer(fits_pb2_grpc.FitsServiceServicer):
    """Translates; ``jobs.fitting`` decides."""

    def __init__(self, fitter: Fitter, open_view: OpenView, limits: Limits) -> None:
        self._fitter = fitter
        self._open_view = open_view
        self._limits = limits

    @unary
    async def CreateFit(self, requests: AsyncIterator[pb.CreateFitRequest], context: Context) -> pb.CreateFitResponse:
        messages = aiter(requests)
        first = await self._next(messages)
        if first is None or first.WhichOneof("message") != "spec":
            raise InvalidInput("the first message says what is to be fitted (spec); task_gradients follow")
        asked = first.spec
        self._limits.check("id_bytes", len(asked.request_id.encode()), "bytes of the request's id")
        self._limits.check("checkpoints", len(asked.checkpoints), "checkpoints of a fit")
        self._limits.check("damping_candidates", len(asked.damping_candidates), "damping_candidates")
        tasks = await self._receive(asked, messages)
        record = await asyncio.to_thread(self._fitter.start, asked.collection, spec_of(asked, tasks), asked.request_id)
        return pb.CreateFitResponse(operation=operation_to_message(record))

    @unary
    async def ListFits(self, request: pb.ListFitsRequest, context: Context) -> pb.ListFitsResponse:
        found = await asyncio.to_thread(self._fitter.fits, request.collection)
        page, token = page_of(found, lambda one: one.record.id, request.page_size, request.page_token, self._limits)
        return pb.ListFitsResponse(fits=map(fit_to_message, page), next_page_token=token)

    @unary
    async def DropFit(self, request: pb.DropFitRequest, context: Context) -> pb.DropFitResponse:
        await asyncio.to_thread(self._fitter.drop, request.collection, request.id)
        return pb.DropFitResponse()

    async def _receive(
        self, spec: pb.FitSpec, messages: AsyncIterator[pb.CreateFitRequest]
    ) -> npt.NDArray[np.float32] | None:
        """The gradients of the query task, float32[checkpoints, rows, dim]; None if there are none."""
        shape = (0, 0, 0)
        if spec.task_row_count:
            shape = await asyncio.to_thread(self._shape_of, spec)
        size_bytes = 4 * shape[0] * shape[1] * shape[2]
        self._limits.check("fit_bytes", size_bytes, "bytes of task_gradients")
        data = bytearray()
        while (message := await self._next(messages)) is not None:
            if message.WhichOneof("message") != "task_gradients":
                raise InvalidInput("after the spec of a fit come task_gradients only")
            data += message.task_gradients.data
            if len(data) > size_bytes:
                break
        if len(data) != size_bytes:
            raise InvalidInput(
                f"{len(data)} bytes of task_gradients came; {shape[0]} checkpoints x {shape[1]} rows x dim {shape[2]} "
                f"are {size_bytes}",
                field="task_gradients",
            )
        return np.frombuffer(data, "<f4").reshape(shape).astype(np.float32) if spec.task_row_count else None

    def _shape_of(self, spec: pb.FitSpec) -> tuple[int, int, int]:
        with self._open_view(spec.collection) as view:
            return len(spec.checkpoints) or len(view.checkpoints), spec.task_row_count, view.space.dim

    async def _next(self, messages: AsyncIterator[pb.CreateFitRequest]) -> pb.CreateFitRequest | None:
        """The next message, None at the end. Raises Unavailable for a client that stalls."""
        try:
            async with asyncio.timeout(self._limits.part_wait_s):
                return await anext(messages, None)
        except TimeoutError:
            raise Unavailable(
                f"nothing of the fit came within part_wait_s={self._limits.part_wait_s} s; send it again"
            ) from None


def spec_of(message: pb.FitSpec, tasks: npt.NDArray[np.float32] | None) -> FitSpec:
    """What is asked in a message."""
    return FitSpec(
        method=message.method,
        checkpoints=list(message.checkpoints),
        damping=_damping_of(message),
        rank=message.rank or None,
        by_layer=message.by_layer if message.HasField("by_layer") else None,
        unit_rows=message.unit_rows,
        range_passes=message.range_passes or 1,
        task_share=message.task_share or None,
        tasks=tasks,
    )


def _damping_of(message: pb.FitSpec) -> float | list[float] | None:
    candidates = list(message.damping_candidates)
    if candidates and message.HasField("damping"):
        raise InvalidInput("damping and damping_candidates are both given; give one of them", field="damping")
    return candidates or (message.damping if message.HasField("damping") else None)


def fit_to_message(status: FitStatus) -> pb.Fit:
    """The message of a fit."""
    record = status.record
    return pb.Fit(
        id=record.id,
        method=record.method,
        checkpoints=[part.checkpoint for part in record.covered],
        finished=record.is_finished,
        damping=record.damping,
        damping_unit=record.damping_unit,
        damping_scores=[pb.DampingScore(damping=damping, score=score) for damping, score in record.damping_scores],
        rank=record.rank or 0,
        notes=record.notes,
        row_count=sum(part.learnt_count for part in record.covered),
        fresh_row_count=status.fresh_row_count,
        lost_row_count=status.lost_row_count,
        size_bytes=record.size_bytes,
        made_at_s=record.made_at_s,
        parameters_json=json.dumps(record.parameters),
    )
