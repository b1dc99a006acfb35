"""Whether a writer fits the collection and the checkpoint it writes to."""

from __future__ import annotations

from covector.errors import Conflict, InvalidInput
from covector_server.ingest.batch import WriterSpec
from covector_server.metadata.records import CheckpointRecord
from covector_server.storage.collection import StoredCollection


def check_open(collection: StoredCollection) -> None:
    """Raises Unavailable if the collection is read-only, or what made it fail."""
    if collection.read_only is not None:
        raise collection.read_only
    if collection.fault is not None:
        raise collection.fault


def check_writer(spec: WriterSpec, collection: StoredCollection, checkpoint: CheckpointRecord | None = None) -> None:
    """Raises InvalidInput or Conflict naming what differs; what ``check_open`` raises."""
    check_open(collection)
    if spec.space is not None:
        difference = collection.space.difference(spec.space)
        if difference is not None:
            raise InvalidInput(
                f"these gradients are from another space than collection {collection.record.name!r}: {difference}",
                field=difference.split(":")[0],
            )
    if spec.checkpoint is None:
        return
    stored = collection.checkpoints.get(spec.checkpoint)
    record = checkpoint or (None if stored is None else stored.record)
    if record is not None:
        _check_checkpoint(spec, record)


def _check_checkpoint(spec: WriterSpec, record: CheckpointRecord) -> None:
    if spec.eta != record.eta:
        raise Conflict(
            f"checkpoint {record.name!r} has eta {record.eta}, this writer says {spec.eta}; pass eta={record.eta}",
            field="eta",
        )
    difference = record.gradient_kind.difference(spec.kind)
    if difference is not None:
        raise InvalidInput(f"checkpoint {record.name!r} holds gradients of another kind: {difference}")
    digest = record.weights_digest
    if digest and spec.weights_digest and digest != spec.weights_digest:
        raise Conflict(
            f"checkpoint {record.name!r} was made at weights {digest[:12]}, these gradients at "
            f"{spec.weights_digest[:12]}; give them a checkpoint of their own",
            field="weights_digest",
        )
