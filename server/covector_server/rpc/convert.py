"""Messages to values and back, where more than one handler needs it."""

from __future__ import annotations

import re
from typing import Any, TypeVar, get_args

from covector.errors import InvalidInput
from covector.types import Correction, Function, GradientKind, Space, TokenReduction
from covector.v1 import query_pb2, types_pb2
from covector_server.storage.damage import Damage

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_FUNCTIONS: tuple[Function | None, ...] = (None, *get_args(Function))
_REDUCTIONS: tuple[TokenReduction | None, ...] = (None, *get_args(TokenReduction))
_CORRECTIONS: tuple[Correction | None, ...] = (None, *get_args(Correction))


def check_name(what: str, name: str) -> None:
    """Raises InvalidInput unless ``name`` is one for a collection or a snapshot."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{name!r} is no {what} name: 1 to 200 letters, digits, '.', '_', '-', the first a letter or a digit",
            field="name",
        )


def kind_from_message(message: types_pb2.GradientKind) -> GradientKind:
    """The gradient kind in a message. Raises InvalidInput for a number this server does not know."""
    return GradientKind(
        _known(_FUNCTIONS, message.function),
        _known(_REDUCTIONS, message.token_reduction),
        _known(_CORRECTIONS, message.optimiser_correction),
    )


def _known(values: tuple[T, ...], number: int) -> T:
    if not 0 <= number < len(values):
        raise InvalidInput(f"gradient kind: number {number} is not known to this server; update the server")
    return values[number]


def kind_to_message(kind: GradientKind) -> types_pb2.GradientKind:
    """The message of a gradient kind."""
    numbers: dict[str, Any] = {
        "function": _FUNCTIONS.index(kind.function),
        "token_reduction": _REDUCTIONS.index(kind.reduction),
        "optimiser_correction": _CORRECTIONS.index(kind.correction),
    }
    return types_pb2.GradientKind(**numbers)


def space_from_message(message: types_pb2.Space) -> Space:
    """The space in a message. Raises InvalidInput if it is none, or is not what its fingerprint says."""
    space = Space.from_json(message.json)
    if message.fingerprint and message.fingerprint != space.fingerprint:
        raise InvalidInput("the fingerprint is not the SHA-256 of the space's canonical JSON")
    return space


def space_to_message(space: Space) -> types_pb2.Space:
    """The message of a space."""
    return types_pb2.Space(json=space.json, fingerprint=space.fingerprint)


def damage_to_message(damage: Damage) -> query_pb2.Damage:
    """The message of damage."""
    return query_pb2.Damage(
        checkpoint=damage.checkpoint, path=damage.path, message=damage.message, row_count=damage.row_count
    )
