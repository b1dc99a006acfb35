"""Requests read by hand are what protobuf reads, whatever the order of their fields, and garbage is refused."""

import contextlib
import random

import pytest

from covector.errors import InvalidInput
from covector.v1 import ingest_pb2 as pb
from covector.v1 import types_pb2
from covector_server.rpc.framing import read_request


def random_request(rng: random.Random) -> pb.IngestRequest:
    kind = rng.choice(["open", "batch", "batch", "batch", "part", "nothing"])
    if kind == "open":
        return pb.IngestRequest(open=pb.OpenWriter(collection="c", writer_id="w" * rng.randint(0, 300), eta=0.5))
    if kind == "part":
        return pb.IngestRequest(part=pb.BatchPart(gradients=rng.randbytes(rng.choice([0, 1, 127, 128, 20_000]))))
    if kind == "nothing":
        return pb.IngestRequest()
    batch = pb.Batch(
        sequence=rng.choice([0, 1, 1 << 40]),
        row_count=rng.randint(0, 1 << 31),
        keys=types_pb2.KeyColumn(values=types_pb2.BinaryColumn(data=rng.randbytes(rng.randint(0, 300)))),
        scales=rng.randbytes(rng.randint(0, 40)),
        gradients_size=rng.randint(0, 1 << 50),
        gradients=rng.randbytes(rng.choice([0, 1, 127, 128, 20_000])),
    )
    if rng.random() < 0.5:
        batch.gradients_crc32, batch.gradients_sum64 = rng.getrandbits(32), rng.getrandbits(64)
    return pb.IngestRequest(batch=batch)


def assert_read_as_by_protobuf(data: bytes) -> None:
    expected = pb.IngestRequest.FromString(data)
    found = read_request(data)
    kind = expected.WhichOneof("message")
    assert found.kind == kind
    gradients = b""
    if kind in ("batch", "part"):
        gradients = getattr(expected, kind).gradients
        getattr(expected, kind).ClearField("gradients")
    assert bytes(found.gradients) == gradients
    assert found.message == expected


@pytest.mark.parametrize("seed", range(50))
def test_it_reads_what_protobuf_reads(seed: int) -> None:
    assert_read_as_by_protobuf(random_request(random.Random(seed)).SerializeToString())


@pytest.mark.parametrize("seed", range(50))
def test_fields_may_come_in_any_order_and_twice(seed: int) -> None:
    rng = random.Random(seed)
    pieces = [
        pb.Batch(sequence=7).SerializeToString(),
        pb.Batch(gradients=b"first").SerializeToString(),
        pb.Batch(gradients=b"last, and so the one that counts").SerializeToString(),
        pb.Batch(row_count=3, gradients_crc32=1, gradients_sum64=2).SerializeToString(),
        pb.Batch(scales=b"1234").SerializeToString(),
        b"\xf8\x07\x05" + b"\xfa\x07\x02hi",  # fields that this version does not know
    ]
    rng.shuffle(pieces)
    body = b"".join(pieces)
    framed = bytes([pb.IngestRequest.BATCH_FIELD_NUMBER << 3 | 2, len(body)]) + body
    assert_read_as_by_protobuf(framed)
    assert_read_as_by_protobuf(framed + framed)
    assert_read_as_by_protobuf(framed + pb.IngestRequest(open=pb.OpenWriter(eta=1)).SerializeToString())


def test_the_gradients_are_a_view() -> None:
    data = pb.IngestRequest(batch=pb.Batch(sequence=1, gradients=b"x" * 1000)).SerializeToString()
    assert read_request(data).gradients.obj is data


@pytest.mark.parametrize("seed", range(300))
def test_garbage_is_refused_or_read_as_protobuf_reads_it(seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(random_request(rng).SerializeToString()[:200] or b"\x12")
    for _ in range(rng.randint(1, 4)):
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
            data += b"\x12"
        else:
            data[rng.randrange(len(data))] = rng.getrandbits(8)
    try:
        pb.IngestRequest.FromString(bytes(data))
    except Exception:  # noqa: BLE001 - whatever protobuf says
        with pytest.raises(InvalidInput, match="no IngestRequest"):
            read_request(bytes(data))
        return
    with contextlib.suppress(InvalidInput):  # stricter than protobuf is allowed: groups, and numbers past 64 bits
        assert_read_as_by_protobuf(bytes(data))
