"""Every limit of the server, in one place. Exceeding one is a LimitExceeded that names it with its value."""

from __future__ import annotations

import os
from dataclasses import dataclass

from covector.errors import LimitExceeded


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one server, units last. ``id_bytes`` holds for the names of checkpoints and the ids of writers and
    requests; it and ``field_name_bytes`` stay below the 511 bytes that the catalog allows a key."""

    message_bytes: int = 8 << 20
    batch_bytes: int = 64 << 20
    batch_rows: int = 65_536
    row_bytes: int = 1 << 30
    id_bytes: int = 200
    key_bytes: int = 1024
    text_bytes: int = 1 << 20
    metadata_bytes: int = 64 << 10
    metadata_fields: int = 256
    field_name_bytes: int = 256
    collections: int = 10_000
    checkpoints: int = 1_000
    snapshots: int = 1_000
    streams: int = 1_000
    queue_bytes: int = 128 << 20
    query_streams: int = 1_000
    query_queue_bytes: int = 2 << 30
    query_bytes: int = 1 << 30
    query_vectors: int = 4_096
    query_groups: int = 1_000  # values of a field that hits are grouped by
    hits: int = 10_000
    result_hits: int = 1_000_000
    filter_terms: int = 1_000
    filter_depth: int = 32
    postings_build_bytes: int = 32 << 20
    postings_cache_bytes: int = 128 << 20
    indexes: int = 64  # of a collection
    index_cache_bytes: int = 4 << 30  # that open indexes keep, mapped or not
    fits: int = 64  # of a collection, those on their way included
    damping_candidates: int = 32  # of a fit, each of which takes an inverse
    fit_bytes: int = 1 << 30  # of a query task's gradients
    fit_cache_bytes: int = 8 << 30  # that loaded fits keep, mapped or not
    fit_save_s: float = 60.0  # of learning that a kill may cost, about
    page_size: int = 1_000
    wait_s: float = 60.0
    part_wait_s: float = 30.0
    mapped_shards: int = 4_096
    damages: int = 1_000
    operations_kept: int = 1_000  # that have ended, the newest
    requests_kept: int = 100_000  # answers to requests that may be sent again, the newest
    request_age_s: int = 7 * 86_400
    compact_readers_wait_s: float = 600.0
    compact_dead_bytes_min: int = 64 << 20

    def check(self, name: str, value: int, what: str) -> None:
        """Raises LimitExceeded if ``value`` is past the limit called ``name``; ``what`` opens the message."""
        limit = getattr(self, name)
        if value > limit:
            raise LimitExceeded(f"{what}: {value} exceeds the limit {name}={limit}", limit=name, value=value)


def memory_half_bytes() -> int:
    """Half of the machine's memory: what a fit may take if nothing else is said."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
