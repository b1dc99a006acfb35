"""The health probe, against a real gRPC server with the real health service."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from covector_server.health import main, status_of


@pytest.fixture
def served() -> Iterator[tuple[str, health.HealthServicer]]:
    """The address of a server, and the health service in it."""
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", servicer
    server.stop(None).wait()


def test_serving(served: tuple[str, health.HealthServicer], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([served[0]]) == 0
    assert capsys.readouterr().out == "SERVING\n"


def test_not_serving(served: tuple[str, health.HealthServicer]) -> None:
    address, servicer = served
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert status_of(address) == "NOT_SERVING"
    assert main([address]) == 1


def test_nobody_there() -> None:
    assert status_of("127.0.0.1:1", timeout_s=0.5) in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--help"]])
def test_wrong_use(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "usage" in capsys.readouterr().err
