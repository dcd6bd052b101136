"""The models this library knows by name."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from frcrn_accel.errors import ModelError
from frcrn_accel.models.file import ModelFile

__all__ = ["DEFAULT_MODEL", "KnownModel", "find_model", "known_models", "sha256_of"]

DEFAULT_MODEL = "frcrn-small"
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class KnownModel:
    """A model with a name of its own.

    Attributes:
        name: Its name.
        description: One line.
        source: Where its checkpoint comes from.
        licence: Of the weights.
        checkpoint_sha256: Digest of the checkpoint file, hexadecimal.
        model_sha256: Digest of the packaged ONNX file; None if the package does not hold the model.
    """

    name: str
    description: str
    source: str
    licence: str
    checkpoint_sha256: str
    model_sha256: str | None

    @property
    def packaged_path(self) -> Path:
        """Where the package keeps the model file."""
        return _FOLDER / f"{self.name}.onnx"


@cache
def known_models() -> dict[str, KnownModel]:
    """The known models by name."""
    entries = json.loads((_FOLDER / "catalog.json").read_text(encoding="utf-8"))
    return {name: KnownModel(name, **entry) for name, entry in entries.items()}


def find_model(model: str | Path) -> ModelFile:
    """Find a model by its name or path.

    Args:
        model: A known name, or the path of a file made by `frcrn-accel export`.

    Raises:
        ModelError: Unknown name, no file, a damaged packaged file, or a checkpoint instead of a model file.
    """
    known = known_models().get(str(model)) if isinstance(model, str) else None
    if known is not None:
        return _open_packaged(known)
    path = Path(model).expanduser()
    if not path.exists() and path.parent == Path() and not path.suffix:
        raise ModelError(f"unknown model {str(model)!r}: give one of {', '.join(known_models())} or a path")
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        raise ModelError(
            f"{str(path)!r} is a checkpoint, not a model file: run 'frcrn-accel export {path} "
            f"{path.stem}.onnx' once and use its output"
        )
    return ModelFile.open(path)


def sha256_of(path: Path) -> str:
    """Digest of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _open_packaged(known: KnownModel) -> ModelFile:
    if known.model_sha256 is None:
        raise ModelError(
            f"model {known.name!r} is not in this package: get its checkpoint from {known.source}, run "
            f"'frcrn-accel export CHECKPOINT {known.name}.onnx --name {known.name}' and give the path of that file"
        )
    model = ModelFile.open(known.packaged_path)
    if sha256_of(model.path) != known.model_sha256:
        raise ModelError(f"the packaged model {str(model.path)!r} is damaged: reinstall frcrn-accel")
    return model
