"""A batch that lies is refused by name, before anything of the store is touched."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from covector.errors import CovectorError, InvalidInput, LimitExceeded
from covector.v1 import ingest_pb2
from covector_server.ingest.batch import parse_batch
from covector_server.kernels import keys as kernels
from covector_server.kernels import rows as row_kernels
from covector_server.limits import Limits
from covector_server.metadata.fields import new_fields
from covector_server.testing.batches import batch_message, batch_of

DIM = 3
LIMITS = Limits(batch_rows=10, key_bytes=16, text_bytes=20, metadata_bytes=40)
WIDE = Limits(metadata_bytes=1 << 20)


@pytest.fixture(autouse=True, params=["compiled", "numpy"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "numpy":
        monkeypatch.setattr(kernels, "IS_COMPILED", False)
        monkeypatch.setattr(row_kernels, "LIBRARY", None)
        monkeypatch.setattr(row_kernels, "BRIEF", None)


def message() -> ingest_pb2.Batch:
    return batch_message(1, ["a", 2], np.ones((2, DIM)), ["text", None], [None, {"n": 1}])


def parse(made: ingest_pb2.Batch, dim: int | None = DIM) -> None:
    parse_batch(made, made.gradients, dim, LIMITS)


def set_gradients(made: ingest_pb2.Batch, value: float) -> None:
    rows = np.ones((2, DIM), "<f2")
    rows[1, 2] = value
    made.gradients = rows.tobytes()


def set_scales(made: ingest_pb2.Batch, value: float) -> None:
    made.scales = np.array([1, value], "<f4").tobytes()


def set_q(made: ingest_pb2.Batch, value: float) -> None:
    made.trak_q = np.array([0.5, value], "<f4").tobytes()


def set_metadata(made: ingest_pb2.Batch, text: bytes) -> None:
    made.metadata.data, made.metadata.present = text, b"\x02"
    made.metadata.ends = np.array([0, len(text)], "<u4").tobytes()


def set_keys(made: ingest_pb2.Batch, *keys: bytes) -> None:
    made.keys.values.data = b"".join(keys)
    made.keys.values.ends = np.cumsum([len(key) for key in keys]).astype("<u4").tobytes()


LIES: dict[str, Callable[[ingest_pb2.Batch], object]] = {
    "at least one row": lambda made: setattr(made, "row_count", 0),
    "12 needed": lambda made: setattr(made, "gradients", made.gradients[:-1]),
    "row 1 .key 2. holds NaN": lambda made: set_gradients(made, math.nan),
    "row 1 .key 2. holds": lambda made: set_gradients(made, math.inf),
    "has scale nan": lambda made: set_scales(made, math.nan),
    "has scale -1": lambda made: set_scales(made, -1),
    "4 a row": lambda made: setattr(made, "scales", b""),
    "trak_q of row 1 is 2": lambda made: set_q(made, 2),
    "bytes of trak_q": lambda made: setattr(made, "trak_q", b"1234"),
    "stands twice": lambda made: set_keys(made, b"\x02a", b"\x02a"),
    "not an encoded key": lambda made: set_keys(made, b"\x02a", b""),
    "is not UTF-8": lambda made: set_keys(made, b"\x02a", b"\x02\xff"),
    "is not flat JSON": lambda made: set_metadata(made, b"{"),
    "not flat JSON: max": lambda made: set_metadata(made, b'{"a":' + b"[" * 100_000),
    "half of a surrogate": lambda made: set_metadata(made, b'{"a": "\\ud800"}'),
    "not an object": lambda made: set_metadata(made, b"[1]"),
    "nested": lambda made: set_metadata(made, b'{"a": [1]}'),
    "NaN is not JSON": lambda made: set_metadata(made, b'{"a": NaN}'),
    "past the range": lambda made: set_metadata(made, b'{"a": 1e999}'),
    "for 3 rows": lambda made: setattr(made, "row_count", 3),
}


@pytest.mark.parametrize("said", LIES)
def test_a_lie_is_refused_by_name(said: str) -> None:
    made = message()
    parse(made)
    LIES[said](made)
    with pytest.raises(InvalidInput, match=said):
        parse_batch(made, made.gradients, DIM, WIDE)


@pytest.mark.parametrize(
    ("limit", "made"),
    [
        ("batch_rows", lambda: batch_message(1, range(11), np.ones((11, DIM)))),
        ("key_bytes", lambda: batch_message(1, ["k" * 17], np.ones((1, DIM)))),
        ("text_bytes", lambda: batch_message(1, ["k"], np.ones((1, DIM)), ["t" * 21])),
        ("metadata_bytes", lambda: batch_message(1, ["k"], np.ones((1, DIM)), None, [{"field": "v" * 40}])),
    ],
)
def test_a_limit_is_named_with_its_value(limit: str, made: Callable[[], ingest_pb2.Batch]) -> None:
    with pytest.raises(LimitExceeded, match=f"{limit}={getattr(LIMITS, limit)}"):
        parse(made())


def test_gradients_need_a_checkpoint() -> None:
    with pytest.raises(InvalidInput, match="without a checkpoint"):
        parse(message(), dim=None)


def test_noise_is_never_more_than_an_error() -> None:
    rng = np.random.default_rng(0)
    good = message().SerializeToString()
    for _ in range(2000):
        noisy = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            noisy[rng.integers(len(noisy))] = rng.integers(256)
        made = ingest_pb2.Batch()
        try:
            made.ParseFromString(bytes(noisy))
        except Exception:  # noqa: BLE001 - protobuf's own refusal
            continue
        try:
            parse(made)
        except CovectorError:
            continue


def test_the_digest_tells_batches_apart() -> None:
    gradients = np.arange(6.0).reshape(2, 3) + 1
    digests = {
        batch_of(1, ["a", "b"], gradients).digest,
        batch_of(1, ["a", "c"], gradients).digest,
        batch_of(1, ["ab", ""], gradients).digest,
        batch_of(1, ["b", "a"], gradients).digest,
        batch_of(1, ["a", "b"], gradients * 2).digest,
        batch_of(1, ["a", "b"], gradients[::-1]).digest,
        batch_of(1, ["a", "b"], gradients, ["", None]).digest,
        batch_of(1, ["a", "b"], gradients, None, [{}, None]).digest,
    }
    assert len(digests) == 8
    assert batch_of(1, ["a", "b"], gradients).digest == batch_of(9, ["a", "b"], gradients).digest


def test_a_field_keeps_the_type_of_its_first_value() -> None:
    assert new_fields({}, [(0, {"a": 1, "b": None}), (1, {"a": 2.5, "c": True})]) == {"a": "number", "c": "boolean"}
    assert new_fields({"a": "number"}, [(0, {"a": 3})]) == {}
    for value in ("text", True):
        with pytest.raises(InvalidInput, match=r"row 4, field 'a'.*holds numbers"):
            new_fields({"a": "number"}, [(4, {"a": value})])
    with pytest.raises(InvalidInput, match="field 'a'"):
        new_fields({}, [(0, {"a": 1}), (1, {"a": "text"})])
