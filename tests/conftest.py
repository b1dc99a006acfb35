"""What every test relies on: few threads, no network, the same examples in every run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports numpy or torch: tests share two cores, and no model is ever fetched.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import grpc
import hypothesis

from covector.testing import ServerProcess

hypothesis.settings.register_profile("covector", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("covector")

# Kept for the whole run: else the last server of grpc.aio to be garbage-collected ends its poller from inside the
# collector, and may wait for it for ever.
grpc.aio.init_grpc_aio()  # type: ignore[attr-defined]  # missing in the stubs


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A real server on an empty store, small shards, stopped at the end."""
    with ServerProcess(tmp_path / "store", arguments=["--shard-mib", "1"]) as running:
        yield running
