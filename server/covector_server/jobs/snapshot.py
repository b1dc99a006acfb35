"""Making a snapshot: the work of an operation. Its steps are bytes, shared ones included."""

from __future__ import annotations

from typing import Any

from covector_server.jobs.operations import Progress, Work
from covector_server.storage.snapshot import Snapshots


def create_snapshot(snapshots: Snapshots, name: str) -> Work:
    """The work of making the snapshot whose name was reserved. The name is free again when it fails or is cancelled;
    then nothing of it is left."""

    def work(progress: Progress) -> dict[str, Any]:
        try:
            record = snapshots.create(name, progress.report)
        finally:
            snapshots.release(name)
        return {"name": record.name, "row_count": record.row_count, "size_bytes": record.size_bytes}

    return work
