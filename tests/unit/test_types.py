"""Spaces tell what differs; gradients keep what they know; errors cross the wire."""

import grpc
import numpy as np
import pytest

from covector import errors
from covector.errors import InvalidInput, NotFound, near_matches, to_status
from covector.types import Block, GradientKind, Gradients, Parameter, Projection, Space
from covector.v1 import types_pb2

SPACE = Space(
    dim=8,
    architecture="Tiny",
    parameters=(Parameter("w", (2, 3)), Parameter("b", (2,))),
    projection=Projection("count_sketch", 8, 0),
    blocks=(Block("layer", 0, 8, 8),),
)


def test_a_space_comes_back_from_its_json() -> None:
    assert Space.from_json(SPACE.json) == SPACE
    assert Space.from_json(SPACE.json).fingerprint == SPACE.fingerprint
    assert Space.from_json(Space(dim=3).json) == Space(dim=3)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Space(dim=9), "dim: 8 here, 9 there"),
        (Space(dim=8), "architecture: Tiny here, None there"),
        (Space(dim=8, architecture="Tiny", parameters=SPACE.parameters[:1]), "parameters: 2 entries here, 1 there"),
    ],
)
def test_the_field_that_differs_is_named(other: Space, said: str) -> None:
    assert SPACE.difference(other) == said


def test_the_entry_that_differs_is_named() -> None:
    other = Space(dim=8, architecture="Tiny", parameters=(Parameter("w", (2, 3)), Parameter("b", (3,))))
    assert "entry 1" in str(SPACE.difference(other))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"dim": 0}', '{"dim": "8"}', '{"dim": 8, "colour": 1}', "null"])
def test_what_is_no_space(text: str) -> None:
    with pytest.raises(InvalidInput):
        Space.from_json(text)


def test_kinds_differ_only_where_both_speak() -> None:
    loss = GradientKind("loss", "token_mean", "none")
    assert loss.difference(GradientKind()) is None
    assert loss.difference(GradientKind("margin")) == "function: loss here, margin there"
    assert GradientKind().filled_from(loss) == loss


def test_gradients_behave_as_an_array_of_rows() -> None:
    values = np.arange(24, dtype=np.float32).reshape(3, 8)
    gradients = Gradients(values, SPACE, trak_q=np.array([0, 1, 0.5], np.float32))
    assert gradients.shape == (3, 8)
    assert len(gradients) == 3
    np.testing.assert_array_equal(np.asarray(gradients), values)
    np.testing.assert_array_equal(gradients[1].values, values[1:2])
    np.testing.assert_array_equal(gradients[-1].values, values[2:])
    np.testing.assert_array_equal(gradients[[2, 0]].values, values[[2, 0]])
    assert gradients[1:].trak_q is not None
    with pytest.raises(InvalidInput, match="dim 8"):
        Gradients(values[:, :5], SPACE)


class FailedCall(grpc.RpcError):
    def __init__(self, status: grpc.StatusCode, text: str, metadata: tuple[tuple[str, bytes], ...]) -> None:
        self._status, self._text, self._metadata = status, text, metadata

    def code(self) -> grpc.StatusCode:
        return self._status

    def details(self) -> str:
        return self._text

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:  # type: ignore[override]
        return self._metadata


KINDS = [getattr(errors, name) for name in errors.__all__ if name != "CovectorError"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_crosses_the_wire(kind: type[errors.CovectorError]) -> None:
    sent = kind("what to do", field="dim")
    received = errors.from_rpc_error(FailedCall(*to_status(sent)))
    assert type(received) is kind
    assert received.message == "what to do"
    assert received.facts == {"field": "dim"}


def test_a_kind_from_the_future_is_still_an_error() -> None:
    detail = types_pb2.ErrorDetail(kind="quota", message="no")
    metadata = ((errors.DETAIL_METADATA_KEY, detail.SerializeToString()),)
    received = errors.from_rpc_error(FailedCall(grpc.StatusCode.UNKNOWN, "", metadata))
    assert isinstance(received, errors.Internal)


@pytest.mark.parametrize("status", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
def test_a_server_that_is_not_there_is_unavailable(status: grpc.StatusCode) -> None:
    assert isinstance(errors.from_rpc_error(FailedCall(status, "text", ())), errors.Unavailable)


def test_near_matches() -> None:
    assert near_matches("resume", ["resumes", "books"]) == "did you mean 'resumes'?"
    assert near_matches("zzz", ["a", "b"]) == "there are: 'a', 'b'"
    assert near_matches("zzz", []) == "there are none yet"
    assert issubclass(NotFound, errors.CovectorError)
