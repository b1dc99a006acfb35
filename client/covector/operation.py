"""Long work on the server, as its caller sees it."""

from __future__ import annotations

import json
import time
from typing import Any, Literal

from covector.connection import Connection
from covector.errors import Unavailable, of_kind
from covector.progress import Bar
from covector.v1 import operations_pb2

Status = Literal["running", "succeeded", "failed", "cancelled"]

_STATUS: dict[int, Status] = {
    operations_pb2.OPERATION_STATE_RUNNING: "running",
    operations_pb2.OPERATION_STATE_SUCCEEDED: "succeeded",
    operations_pb2.OPERATION_STATE_FAILED: "failed",
    operations_pb2.OPERATION_STATE_CANCELLED: "cancelled",
}
_POLL_S = 0.5


class Operation:
    """A piece of long work. It goes on without its caller: leaving ``wait`` does not stop it, ``cancel`` does."""

    def __init__(self, connection: Connection, message: operations_pb2.Operation) -> None:
        self._connection = connection
        self._message = message

    @property
    def id(self) -> str:
        """The server's name for it."""
        return self._message.id

    @property
    def kind(self) -> str:
        """What it does, such as ``publish``."""
        return self._message.kind

    @property
    def status(self) -> Status:
        """``running``, ``succeeded``, ``failed`` or ``cancelled``, asked of the server."""
        if self._last_status() == "running":
            request = operations_pb2.GetOperationRequest(id=self.id)
            self._message = self._connection.call(self._connection.operations.GetOperation, request).operation
        return self._last_status()

    @property
    def metadata(self) -> dict[str, Any]:
        """What was known of it before it began, such as the memory that a fit takes."""
        return json.loads(self._message.metadata_json or "{}") or {}

    def wait(self, progress: bool = False, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Waits until it has ended, and returns its result. ``progress`` shows a bar on stderr.

        Raises the error it failed with; Unavailable if it was cancelled, or is not done after ``timeout_s``.
        """
        bar = Bar(f"{self._message.kind} {self._message.collection}".strip()) if progress else None
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            while self._last_status() == "running":
                self._wait_once(deadline_s)
                if bar is not None:
                    bar.show(self._message.steps_done, self._message.steps_total)
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(f"interrupted; operation {self.id} goes on at the server") from interrupt
        finally:
            if bar is not None:
                bar.close()
        return self._result()

    def cancel(self) -> None:
        """Asks it to stop at its next safe point; work already committed stays."""
        request = operations_pb2.CancelOperationRequest(id=self.id)
        self._message = self._connection.call(self._connection.operations.CancelOperation, request).operation

    def __repr__(self) -> str:
        return f"Operation({self.kind!r}, id={self.id!r}, {self._last_status()})"

    def _last_status(self) -> Status:
        return _STATUS.get(self._message.state, "running")

    def _wait_once(self, deadline_s: float | None) -> None:
        left_s = _POLL_S if deadline_s is None else min(_POLL_S, deadline_s - time.monotonic())
        if left_s <= 0:
            raise Unavailable(f"operation {self.id} is still running; wait again, or cancel it")
        request = operations_pb2.WaitOperationRequest(id=self.id, timeout_s=left_s)
        deadline = left_s + self._connection.timeout_s
        response = self._connection.call(self._connection.operations.WaitOperation, request, timeout_s=deadline)
        self._message = response.operation

    def _result(self) -> dict[str, Any]:
        status = self._last_status()
        if status == "failed":
            raise of_kind(self._message.error_kind, self._message.error_message, operation=self.id)
        if status == "cancelled":
            raise Unavailable(f"operation {self.id} was cancelled", operation=self.id)
        return json.loads(self._message.result_json or "{}") or {}
