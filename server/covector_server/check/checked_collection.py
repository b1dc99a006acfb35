"""What a checker of derived files is given of the collection."""

from __future__ import annotations

from dataclasses import dataclass

from covector_server.check.catalog_state import CatalogState
from covector_server.check.context import Context
from covector_server.metadata.records import CollectionRecord


@dataclass(frozen=True, slots=True)
class CheckedCollection:
    """A collection that is being checked."""

    context: Context
    state: CatalogState
    record: CollectionRecord
