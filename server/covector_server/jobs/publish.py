"""Publishing: every committed row, the partial last shard included, made readable by Zarr tools."""

from __future__ import annotations

from typing import Any

from covector_server.ingest.committer import Committer
from covector_server.jobs.operations import Progress, Work
from covector_server.storage.store import Store


def publish(store: Store, committer: Committer, name: str) -> Work:
    """The work of publishing the collection called ``name``."""

    def work(progress: Progress) -> dict[str, Any]:
        progress.report(0, 1)
        committer.call(lambda: store.publish(store.collection(name))).result()
        progress.report(1, 1)
        checkpoints = store.collection(name).checkpoints.values()
        return {checkpoint.record.name: checkpoint.published_row_count() for checkpoint in checkpoints}

    return work
