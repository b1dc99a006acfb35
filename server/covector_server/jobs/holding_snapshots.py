"""Which snapshots may hold rows that were erased here: they are copies, which erasure does not reach."""

from __future__ import annotations

import json
from pathlib import Path

SNAPSHOTS, DESCRIPTION = "snapshots", "snapshot.json"


def snapshots_holding(data: Path, collection_id: int) -> list[str]:
    """The names of snapshots made when a collection was there, and of those whose description cannot be read. Some may
    be too new, or too old, to hold the rows that the caller thinks of."""
    directory = data / SNAPSHOTS
    if not directory.is_dir():
        return []
    found = sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    return [path.name for path in found if _may_hold(path / DESCRIPTION, collection_id)]


def _may_hold(description: Path, collection_id: int) -> bool:
    try:
        collections = json.loads(description.read_bytes())["collections"]
        return any(collection["id"] == collection_id for collection in collections)
    except (OSError, ValueError, TypeError, KeyError):
        return True
