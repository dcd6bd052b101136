"""The models this library knows by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
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
        variants: Digests of the quantized files that the package holds, by method.
    """

    name: str
    description: str
    source: str
    licence: str
    checkpoint_sha256: str
    model_sha256: str | None
    variants: Mapping[str, str] = field(default_factory=dict)

    @property
    def packaged_path(self) -> Path:
        """Where the package keeps the model file."""
        return _FOLDER / f"{self.name}.onnx"

    def variant_path(self, method: str) -> Path:
        """Where the package keeps the file that a method of quantization made of it."""
        return _FOLDER / f"{self.name}.{method}.onnx"


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


def packaged_variant(model: ModelFile, method: str) -> ModelFile | None:
    """The quantized file that the package holds of a packaged model, if there is one.

    Args:
        model: A model file; only the packaged ones have variants.
        method: See `frcrn_accel.quantize.METHODS`.

    Raises:
        ModelError: The file is damaged.
    """
    for known in known_models().values():
        if model.path == known.packaged_path and method in known.variants:
            return _checked(known.variant_path(method), known.variants[method])
    return None


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
    return _checked(known.packaged_path, known.model_sha256)


def _checked(path: Path, sha256: str) -> ModelFile:
    model = ModelFile.open(path)
    if sha256_of(path) != sha256:
        raise ModelError(f"the packaged model {str(path)!r} is damaged: reinstall frcrn-accel")
    return model
