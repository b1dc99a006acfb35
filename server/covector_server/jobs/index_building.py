"""Building an index of one checkpoint: rows in, files aside, one transaction.

The files are complete and durable before the transaction that lists them, and until then nothing speaks of them: a
build that fails, is cancelled or dies leaves a directory that is removed, and the index that stood goes on serving. The
rows are read as they were committed when the build began; what comes later is scanned exactly by queries.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covector.attribution.scoring import scorer_named
from covector.errors import Conflict, InvalidInput, LimitExceeded
from covector_server.index.contract import Spec
from covector_server.index.kinds import backend_of
from covector_server.index.source import CheckpointSource, Report
from covector_server.jobs.index_carrying import part_of
from covector_server.jobs.index_rules import IndexRule
from covector_server.metadata.records import IndexRecord
from covector_server.storage.disk import Disk
from covector_server.storage.index_files import drafting
from covector_server.storage.view import PositionedCheckpoint

ATTEMPTS = 3  # of a build under whose hands the rows are moved

# Lists a record in one transaction. Raises Moved, Conflict.
ListIndex = Callable[[IndexRecord], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an index goes: the directory of its collection."""

    collection_directory: Path
    dim: int
    disk: Disk


def check_spec(spec: Spec, dim: int) -> None:
    """Raises NotFound or InvalidInput for what cannot be built. Its fit, if it needs one, is named already."""
    if not spec.fit:
        scorer_named(spec.scorer)
    backend_of(spec.kind).check(spec, dim)
    if spec.recall is not None and not 0 < spec.recall < 1:
        raise InvalidInput(f"recall {spec.recall:g}: ask for a share above 0 and below 1, such as 0.99", field="recall")


def build_index(
    place: Place, view: PositionedCheckpoint, rule: IndexRule, report: Report, list_index: ListIndex
) -> IndexRecord:
    """Builds an index of the rows in a view for a rule, and lists it. ``report`` hears of progress and may raise to
    stop. Raises Conflict for a checkpoint without rows, Corrupt for damaged ones, and what ``list_index`` raises."""
    if not view.row_count:
        raise Conflict(f"checkpoint {view.name!r} has no rows to index; write gradients first", checkpoint=view.name)
    spec = rule.spec
    backend = backend_of(spec.kind)
    with drafting(place.collection_directory, spec.kind, place.disk) as draft:
        source = CheckpointSource(view, place.dim, rule.scorer, report, rule.preconditioner)
        if not len(source.live):
            raise Conflict(f"checkpoint {view.name!r} has nothing to index: all its rows are zero")
        built = backend.build(source, spec, draft)
        place.disk.step("index.measured")
        files, checksum = draft.add_manifest(spec.kind, built.parameters)
        place.disk.step("index.synced")
        record = IndexRecord(
            id=draft.directory.name,
            kind=spec.kind,
            directory=draft.directory.name,
            parts=[part_of(view.id, view.generation, source.row_count, view.dead)],
            fit=spec.fit,
            scorers=built.scorers,
            scorer=spec.scorer,
            oversampling=built.oversampling,
            query_elements=built.query_elements,
            recall={name: round(share, 6) for name, share in built.recall.items()},
            recall_asked=spec.recall,
            warning=built.warning,
            parameters=built.parameters,
            files=files,
            checksum=checksum,
            built_at_s=time.time(),
        )
        report(source.row_count, source.row_count)
        draft.may_be_listed = True
        try:
            list_index(record)
        except (Conflict, LimitExceeded):
            draft.may_be_listed = False  # refused: the transaction did not happen
            raise
    place.disk.step("index.listed")
    return record


def summary(record: IndexRecord, checkpoint: str) -> dict[str, Any]:
    """What an operation says of the index that it built."""
    return {
        "index": record.id,
        "kind": record.kind,
        "checkpoint": checkpoint,
        "scorer": record.scorer,
        "fit": record.fit,
        "rows": sum(part.row_count for part in record.covered),
        "size_bytes": record.size_bytes,
        "recall": record.recall,
        "oversampling": record.oversampling,
        "parameters": record.parameters,
        "warning": record.warning,
    }
