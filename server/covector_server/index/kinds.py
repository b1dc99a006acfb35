"""The kinds of index there are."""

from __future__ import annotations

from covector.errors import NotFound, near_matches
from covector_server.index.annoy_parts import AnnoyLibrary
from covector_server.index.contract import Backend
from covector_server.index.parted import Parted
from covector_server.index.scann_parts import ScannLibrary
from covector_server.index.subspace import Subspace

_BACKENDS: dict[str, Backend] = {
    backend.kind: backend for backend in (Subspace(), Parted(ScannLibrary()), Parted(AnnoyLibrary()))
}


def kinds() -> list[str]:
    """Their names."""
    return list(_BACKENDS)


def summing_kinds() -> list[str]:
    """Those whose indexes of several checkpoints can be summed."""
    return [kind for kind, backend in _BACKENDS.items() if backend.can_sum]


def backend_of(kind: str) -> Backend:
    """The backend of a kind. Raises NotFound."""
    try:
        return _BACKENDS[kind]
    except KeyError:
        raise NotFound(f"no kind of index {kind!r}; {near_matches(kind, _BACKENDS)}", kind=kind) from None
