"""What all collections of a store share."""

from __future__ import annotations

from dataclasses import dataclass

from covector_server.metadata.catalog import Catalog
from covector_server.storage.damage import DamageLog
from covector_server.storage.disk import Disk
from covector_server.storage.layout import Sizes
from covector_server.storage.shard_cache import ShardCache


@dataclass(frozen=True, slots=True)
class Shared:
    """Handed to each collection when it is opened."""

    catalog: Catalog
    disk: Disk
    sizes: Sizes
    shards: ShardCache
    damages: DamageLog
