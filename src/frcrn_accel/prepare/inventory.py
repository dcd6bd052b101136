"""List the models that are available here, and check their files."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from frcrn_accel.errors import ModelError
from frcrn_accel.models import (
    VARIANT_METHODS,
    KnownModel,
    ModelFile,
    find_model,
    imported_names,
    known_models,
    ready_variant,
)

__all__ = ["ABSENT", "IMPORTED", "PACKAGED", "ModelStatus", "model_statuses"]

PACKAGED, IMPORTED, ABSENT = "packaged", "imported", "absent"


@dataclass(frozen=True)
class ModelStatus:
    """A named model and the state of its files.

    Attributes:
        name: Its name.
        description: One line.
        source: Origin of its checkpoint.
        licence: Licence of the weights; "" if unknown.
        checkpoint_sha256: Digest of the checkpoint, hexadecimal; "" if unknown.
        place: "packaged", "imported" (in the cache) or "absent".
        path: Its fp32 file; None if it is absent or damaged.
        bytes: Size of that file; 0 if there is none.
        variants: Methods of the variants that exist.
        problem: What is wrong with its files; None if they are intact.
    """

    name: str
    description: str
    source: str
    licence: str
    checkpoint_sha256: str
    place: str
    path: Path | None
    bytes: int
    variants: tuple[str, ...]
    problem: str | None


def model_statuses() -> list[ModelStatus]:
    """Return the known and the imported models, with each file checked against its digest."""
    imported = imported_names()
    return [_known_status(known, imported) for known in known_models().values()] + [
        _own_status(name) for name in imported if name not in known_models()
    ]


def _known_status(known: KnownModel, imported: Collection[str]) -> ModelStatus:
    place = PACKAGED if known.model_sha256 is not None else IMPORTED if known.name in imported else ABSENT
    status = ModelStatus(
        known.name, known.description, known.source, known.licence, known.checkpoint_sha256, place, None, 0, (), None
    )
    return status if place == ABSENT else _examined(status)


def _own_status(name: str) -> ModelStatus:
    status = _examined(ModelStatus(name, "", "imported by the user", "", "", IMPORTED, None, 0, (), None))
    if status.path is None:
        return status
    metadata = ModelFile.open(status.path).metadata
    description = f"{metadata.channels} complex channels, {metadata.unets} U-Net(s)"
    return replace(status, description=description, checkpoint_sha256=metadata.checkpoint_sha256)


def _examined(status: ModelStatus) -> ModelStatus:
    """Add the path, the size and the variants of a model, or the problem with its files."""
    try:
        model = find_model(status.name)
        variants = tuple(method for method in VARIANT_METHODS if ready_variant(model, method) is not None)
    except ModelError as error:
        return replace(status, problem=str(error))
    return replace(status, path=model.path, bytes=model.path.stat().st_size, variants=variants)
