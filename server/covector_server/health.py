"""``python -m covector_server.health HOST:PORT``: is a server serving? Exit status 0 if so, 1 if not, 2 for wrong use.

It asks the standard gRPC health service, so containers and orchestrators need no other tool.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 4.0


def status_of(address: str, *, timeout_s: float = TIMEOUT_S) -> str:
    """The health of the server at ``address``: ``SERVING``, another word of the health service, or, if the server does
    not answer within ``timeout_s``, the gRPC status of the failed call."""
    with grpc.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            response = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))


def main(arguments: Sequence[str]) -> int:
    """Prints the status of the one address given and returns the exit status."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m covector_server.health HOST:PORT", file=sys.stderr)
        return 2
    status = status_of(arguments[0])
    print(status)
    return 0 if status == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
