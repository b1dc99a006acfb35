"""Values of ``covector.types`` to messages and back, and filters to JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

from covector.errors import InvalidInput
from covector.types import (
    CheckpointInfo,
    Correction,
    Damage,
    FitInfo,
    Function,
    GradientKind,
    IndexInfo,
    SnapshotInfo,
    Space,
    StoreStatus,
    TokenReduction,
)
from covector.v1 import admin_pb2, collections_pb2, fits_pb2, indexes_pb2, query_pb2, types_pb2

_FUNCTIONS: tuple[Function | None, ...] = (None, *get_args(Function))
_REDUCTIONS: tuple[TokenReduction | None, ...] = (None, *get_args(TokenReduction))
_CORRECTIONS: tuple[Correction | None, ...] = (None, *get_args(Correction))


def space_to_message(space: Space) -> types_pb2.Space:
    """The message of a space."""
    return types_pb2.Space(json=space.json, fingerprint=space.fingerprint)


def kind_to_message(kind: GradientKind) -> types_pb2.GradientKind:
    """The message of a gradient kind. Raises InvalidInput naming a word that is none of the kind's."""
    numbers: dict[str, Any] = {
        "function": _number(kind.function, _FUNCTIONS, "function"),
        "token_reduction": _number(kind.reduction, _REDUCTIONS, "reduction"),
        "optimiser_correction": _number(kind.correction, _CORRECTIONS, "correction"),
    }
    return types_pb2.GradientKind(**numbers)


def kind_from_message(message: types_pb2.GradientKind) -> GradientKind:
    """The gradient kind in a message; a number that this version does not know reads as not stated."""
    return GradientKind(
        dict(enumerate(_FUNCTIONS)).get(message.function),
        dict(enumerate(_REDUCTIONS)).get(message.token_reduction),
        dict(enumerate(_CORRECTIONS)).get(message.optimiser_correction),
    )


def checkpoint_from_message(message: collections_pb2.Checkpoint) -> CheckpointInfo:
    """The checkpoint in a message."""
    return CheckpointInfo(
        name=message.name,
        eta=message.eta,
        weights_digest=message.weights_digest or None,
        kind=kind_from_message(message.kind),
        row_count=message.row_count,
        zero_row_count=message.zero_row_count,
        published_row_count=message.published_row_count,
        path=message.path,
        dead_row_count=message.dead_row_count,
    )


def damage_from_message(message: query_pb2.Damage) -> Damage:
    """The damage in a message."""
    return Damage(message.checkpoint or None, message.path, message.message, message.row_count)


def snapshot_from_message(message: admin_pb2.Snapshot) -> SnapshotInfo:
    """The snapshot in a message."""
    return SnapshotInfo(message.name, message.created_at_s, message.path, message.row_count, message.size_bytes)


def index_from_message(message: indexes_pb2.Index) -> IndexInfo:
    """The index in a message."""
    return IndexInfo(
        id=message.id,
        kind=message.kind,
        checkpoints=tuple(message.checkpoints),
        fit=message.fit or None,
        scorers=tuple(message.scorers),
        recall_scorer=message.recall_scorer,
        row_count=message.row_count,
        fresh_row_count=message.fresh_row_count,
        recall=dict(message.recall),
        recall_asked=message.recall_asked or None,
        warning=message.warning,
        oversampling=message.oversampling,
        size_bytes=message.size_bytes,
        built_at_s=message.built_at_s,
        parameters=json.loads(message.parameters_json or "{}"),
    )


def fit_from_message(message: fits_pb2.Fit) -> FitInfo:
    """The fit in a message."""
    return FitInfo(
        id=message.id,
        method=message.method,
        checkpoints=tuple(message.checkpoints),
        finished=message.finished,
        damping=message.damping,
        damping_unit=message.damping_unit,
        damping_scores=tuple((one.damping, one.score) for one in message.damping_scores),
        rank=message.rank or None,
        notes=tuple(message.notes),
        row_count=message.row_count,
        fresh_row_count=message.fresh_row_count,
        lost_row_count=message.lost_row_count,
        size_bytes=message.size_bytes,
        made_at_s=message.made_at_s,
        parameters=json.loads(message.parameters_json or "{}"),
    )


def status_from_message(message: admin_pb2.GetStatusResponse) -> StoreStatus:
    """The status of a store in a message."""
    damages: dict[str, tuple[Damage, ...]] = {}
    for found in message.damages:
        damages[found.collection] = (*damages.get(found.collection, ()), damage_from_message(found.damage))
    return StoreStatus(
        version=message.version,
        format_version=message.format_version,
        disk_free_bytes=message.disk_free_bytes,
        disk_low_water_bytes=message.disk_low_water_bytes,
        read_only_collections={found.collection: found.reason for found in message.read_only_collections},
        damages=damages,
        scrubbed_bytes=message.scrubbed_bytes,
        scrub_total_bytes=message.scrub_total_bytes or None,
        scrub_round_count=message.scrub_round_count,
    )


def filter_json(where: Mapping[str, Any] | None) -> str:
    """A filter as JSON, empty for none. Raises InvalidInput for what JSON cannot say."""
    if where is None or (isinstance(where, Mapping) and not where):
        return ""
    if not isinstance(where, Mapping):
        raise InvalidInput(f'where is a dict such as {{"source": "wikipedia"}}, not {type(where).__name__}')
    try:
        return json.dumps(where, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"where holds what a filter cannot: {error}") from error


def metadata_from_json(text: str) -> dict[str, Any] | None:
    """A row's metadata, None for none."""
    return json.loads(text) if text else None


def _number(word: str | None, words: tuple[str | None, ...], field: str) -> int:
    if word not in words:
        known = ", ".join(repr(w) for w in words if w)
        raise InvalidInput(f"the gradient kind has {field} {word!r}; known are {known}", field=field)
    return words.index(word)
