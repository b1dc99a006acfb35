"""Fits on the server: asked for, and waited for."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from covector.attribution.held_out import CANDIDATES, HELD_OUT
from covector.connection import Connection
from covector.errors import InvalidInput, NotFound, near_matches
from covector.inputs import GradientRows, origin_of, query_array
from covector.messages import fit_from_message
from covector.operation import Operation, Status
from covector.queries import Checkpoints, Queries, checkpoint_names
from covector.types import FitInfo, Space
from covector.v1 import fits_pb2, query_pb2

_PART_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """What may be chosen of a fit; None for the method's own choice."""

    damping: float | str | Sequence[float] | None = None
    rank: int | None = None
    by_layer: bool | None = None
    unit_rows: bool = False
    range_passes: int = 1
    task_share: float | None = None


def options_of(**given: Any) -> FitOptions:
    """The options in keyword arguments. Raises InvalidInput for one that there is not."""
    known = {one.name for one in fields(FitOptions)}
    unknown = sorted(set(given) - known)
    if unknown:
        raise InvalidInput(f"a fit has no option {unknown[0]!r}; {near_matches(unknown[0], known)}", field=unknown[0])
    return FitOptions(**given)


class FitOperation:
    """A fit on its way. It goes on without its caller: leaving ``wait`` does not stop it, ``cancel`` does. One that was
    cut off goes on from where it stood when the same fit is asked for again."""

    def __init__(self, connection: Connection, collection: str, operation: Operation) -> None:
        self._connection = connection
        self._collection = collection
        self._operation = operation

    @property
    def id(self) -> str:
        """The server's name for the operation."""
        return self._operation.id

    @property
    def status(self) -> Status:
        """``running``, ``succeeded``, ``failed`` or ``cancelled``, asked of the server."""
        return self._operation.status

    @property
    def metadata(self) -> dict[str, Any]:
        """What was known before it began: ``memory_bytes``, its peak; ``checkpoints``, their rows and passes."""
        return self._operation.metadata

    def wait(self, progress: bool = False, *, timeout_s: float | None = None) -> FitInfo:
        """Waits until it has ended, and returns the fit. Raises as ``Operation.wait``."""
        fit_id = self._operation.wait(progress, timeout_s=timeout_s)["fit"]
        for fit in list_fits(self._connection, self._collection):
            if fit.id == fit_id:
                return fit
        raise NotFound(f"fit {fit_id!r} was dropped or replaced meanwhile; fit again", fit=fit_id)

    def cancel(self) -> None:
        """Asks it to stop at its next safe point."""
        self._operation.cancel()

    def __repr__(self) -> str:
        return f"FitOperation(id={self.id!r})"


def start_fit(
    connection: Connection,
    collection: str,
    space: Space,
    spec: fits_pb2.FitSpec,
    task_gradients: Queries | None,
) -> FitOperation:
    """Starts a fit of what ``spec`` says. Raises InvalidInput for gradients of the task that do not fit."""
    arrays = _task_arrays(task_gradients, spec, space, collection)
    spec.task_row_count = len(arrays[0]) if arrays else 0
    response = connection.call(connection.fits.CreateFit, _requests(spec, arrays))
    return FitOperation(connection, collection, Operation(connection, response.operation))


def fit_spec(collection: str, method: str, checkpoints: Checkpoints, options: FitOptions) -> fits_pb2.FitSpec:
    """The message that asks for a fit."""
    if not isinstance(method, str):
        raise InvalidInput(f"the method is a name, such as 'trak', not {method!r}", field="method")
    spec = fits_pb2.FitSpec(
        collection=collection,
        method=method,
        checkpoints=[] if checkpoints is None else checkpoint_names(checkpoints),
        damping=options.damping if isinstance(options.damping, int | float) else None,
        damping_candidates=_candidates(options.damping),
        rank=_count("rank", options.rank),
        unit_rows=options.unit_rows,
        range_passes=_count("range_passes", options.range_passes),
        task_share=options.task_share or 0.0,
        request_id=str(uuid.uuid4()),
    )
    if options.by_layer is not None:
        spec.by_layer = options.by_layer
    return spec


def list_fits(connection: Connection, collection: str) -> list[FitInfo]:
    """The fits of a collection, oldest first."""
    request = fits_pb2.ListFitsRequest(collection=collection)
    pages = connection.pages(connection.fits.ListFits, request)
    return [fit_from_message(message) for page in pages for message in page.fits]


def _task_arrays(
    given: Queries | None, spec: fits_pb2.FitSpec, space: Space, collection: str
) -> list[npt.NDArray[np.float32]]:
    """Gradients of the task at each checkpoint, in the order of the spec, which takes the mapping's if it has none."""
    if given is None:
        return []
    if not isinstance(given, Mapping):
        if len(spec.checkpoints) > 1:
            raise InvalidInput("task_gradients: give each checkpoint its own, as a mapping", field="task_gradients")
        return [_task_array(given, space, collection)]
    if not spec.checkpoints:
        spec.checkpoints.extend(checkpoint_names(list(given)))
    if set(spec.checkpoints) != set(given):
        raise InvalidInput(
            f"task_gradients are for {list(given)}, the fit is over {list(spec.checkpoints)}", field="task_gradients"
        )
    arrays = [_task_array(given[name], space, collection) for name in spec.checkpoints]
    if len({len(array) for array in arrays}) > 1:
        raise InvalidInput("task_gradients: as many are needed at each checkpoint", field="task_gradients")
    return arrays


def _task_array(given: GradientRows, space: Space, collection: str) -> npt.NDArray[np.float32]:
    origin_of(given, space, collection)
    return query_array(given, space.dim, "task_gradients")


def _requests(spec: fits_pb2.FitSpec, arrays: list[npt.NDArray[np.float32]]) -> Iterator[fits_pb2.CreateFitRequest]:
    yield fits_pb2.CreateFitRequest(spec=spec)
    for array in arrays:
        data = np.ascontiguousarray(array, "<f4").reshape(-1).view(np.uint8).data
        for start in range(0, len(data), _PART_BYTES):
            part = query_pb2.VectorPart(data=bytes(data[start : start + _PART_BYTES]))
            yield fits_pb2.CreateFitRequest(task_gradients=part)


def _candidates(damping: float | str | Sequence[float] | None) -> Sequence[float]:
    """The dampings to choose among, none if there is no choice."""
    if damping is None or isinstance(damping, int | float):
        return ()
    if isinstance(damping, str):
        if damping != HELD_OUT:
            raise InvalidInput(f"damping is a number, several, or {HELD_OUT!r}, not {damping!r}", field="damping")
        return CANDIDATES
    if not len(damping):
        raise InvalidInput("damping: no candidates; give at least one", field="damping")
    return damping


def _count(name: str, value: int | None) -> int:
    """A number from 1 on as it is sent, 0 for None."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InvalidInput(f"{name} is an integer of at least 1, not {value!r}", field=name)
    return int(value)
