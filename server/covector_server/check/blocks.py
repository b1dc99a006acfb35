"""Blocks of the row log, opened with every checksum verified: for the checks and for the scrubber."""

from __future__ import annotations

import zstandard

from covector.errors import Corrupt
from covector_server.storage.row_block import NEW, SUPPLEMENT, Block

__all__ = ["NEW", "SUPPLEMENT", "Block", "open_block"]


def open_block(data: bytes) -> Block:
    """The block in ``data``. Raises Corrupt if its header or any section is damaged."""
    try:
        block = Block(data)
        block.check()
        return block
    except (ValueError, zstandard.ZstdError) as error:
        raise Corrupt(f"a block cannot be unpacked: {error}") from error
