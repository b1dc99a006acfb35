"""covector, a gradient vector database: which training rows taught a model what it does.

    import covector

    with covector.connect("127.0.0.1:7337") as client:
        collection = client.create_collection("my-model", covector.Space(dim=4096))
        with collection.writer("epoch-1") as writer:
            writer.add(keys, gradients, texts)
        for hit in collection.query(query, k=10)[0].proponents:
            print(hit.score, hit.text)

This package needs numpy, grpcio and protobuf only. ``covector.gradients`` (extra ``torch``) computes the gradients,
``covector serve`` (extra ``server``) runs a server. The rest of the errors is in ``covector.errors``.
"""

from covector._version import __version__
from covector.client import Client, connect
from covector.collection import Collection
from covector.errors import (
    AlreadyExists,
    Conflict,
    CovectorError,
    InvalidInput,
    LimitExceeded,
    NotFound,
    Unavailable,
)
from covector.operation import Operation
from covector.results import Scores
from covector.types import (
    CheckpointInfo,
    GradientKind,
    Gradients,
    Hit,
    QueryHits,
    QueryResult,
    Row,
    SnapshotInfo,
    Space,
    StoreStatus,
)
from covector.writer import Writer

__all__ = [
    "AlreadyExists",
    "CheckpointInfo",
    "Client",
    "Collection",
    "Conflict",
    "CovectorError",
    "GradientKind",
    "Gradients",
    "Hit",
    "InvalidInput",
    "LimitExceeded",
    "NotFound",
    "Operation",
    "QueryHits",
    "QueryResult",
    "Row",
    "Scores",
    "SnapshotInfo",
    "Space",
    "StoreStatus",
    "Unavailable",
    "Writer",
    "__version__",
    "connect",
]
