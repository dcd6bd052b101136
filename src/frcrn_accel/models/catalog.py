"""The models this library knows by name."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from frcrn_accel.arguments import shown
from frcrn_accel.digest import sha256_of
from frcrn_accel.errors import ModelError
from frcrn_accel.models.cache import MODEL_NAME, find_cached, find_imported, imported_names
from frcrn_accel.models.file import FileStatus, ModelFile
from frcrn_accel.models.recipe import FP32
from frcrn_accel.network.topology import LOOKAHEAD_FRAMES

__all__ = [
    "DEFAULT_MODEL",
    "LIVE_MODEL",
    "STEP",
    "KnownModel",
    "find_model",
    "known_models",
    "model_name",
    "packaged_files",
    "packaged_variant",
    "ready_variant",
    "usual_lookahead",
    "variant_key",
]

DEFAULT_MODEL = "frcrn-small"
LIVE_MODEL = "frcrn-small-stream"  # short latency, for users who hear their own voice
STEP = "step"  # the key of a packaged step of a stream, among the methods of the other variants
_FOLDER = Path(__file__).parent
_DATA = _FOLDER / "data"


@dataclass(frozen=True)
class KnownModel:
    """A model that is known by name.

    Attributes:
        name: Its name.
        description: One line.
        source: Origin of its checkpoint.
        licence: Licence of the weights.
        checkpoint_sha256: Digest of the checkpoint file, hexadecimal.
        model_sha256: Digest of the packaged ONNX file; None if the model is not in the package.
        variants: Digests of the packaged variants by method, and of the packaged step under `STEP`.
        lookahead_frames: Frames that each U-Net looks ahead in streams by default, and in the packaged step.
        checkpoint_bytes: Size of the checkpoint file; None if it cannot be downloaded.
        checkpoint_url: Source of `models.download_checkpoint`; None if it cannot be downloaded.
    """

    name: str
    description: str
    source: str
    licence: str
    checkpoint_sha256: str
    model_sha256: str | None
    variants: Mapping[str, str] = field(default_factory=dict)
    lookahead_frames: int = LOOKAHEAD_FRAMES
    checkpoint_bytes: int | None = None
    checkpoint_url: str | None = None

    @property
    def packaged_path(self) -> Path:
        """Path of the model file in the package."""
        return _DATA / f"{self.name}.onnx"

    def variant_path(self, method: str) -> Path:
        """Return the path of a variant in the package."""
        return _DATA / f"{self.name}.{method}.onnx"


@cache
def known_models() -> dict[str, KnownModel]:
    """Return the known models by name."""
    entries = json.loads((_FOLDER / "catalog.json").read_text(encoding="utf-8"))
    return {name: KnownModel(name, **entry) for name, entry in entries.items()}


def find_model(model: str | Path) -> ModelFile:
    """Find a model by its name or path.

    Args:
        model: A known name, the name of an imported model (`prepare.import_model`), or the path of a file made by
            `frcrn-accel export`. A name takes precedence over a file of that name: write `./name` for the file.

    Raises:
        ModelError: The name is unknown, the model has not been imported yet, or the file is missing, damaged, or a
            checkpoint instead of a model file.
        TypeError: `model` is neither.
    """
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"model must be a name or a path, got {shown(model)}")
    if isinstance(model, str) and (named := _find_named(model)) is not None:
        return named
    try:
        path = Path(model).expanduser()
    except RuntimeError as error:  # "~" without a home folder, or of an unknown user
        raise ModelError(f"{str(model)!r} cannot be found: {error}") from error
    if not path.exists() and path.parent == Path() and not path.suffix:
        names = ", ".join(dict.fromkeys([*known_models(), *imported_names()]))
        raise ModelError(f"unknown model {str(model)!r}: give one of {names} or a path")
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        raise ModelError(
            f"{str(path)!r} is a checkpoint, not a model file: run 'frcrn-accel export {path} "
            f"{path.stem}.onnx' once and use its output"
        )
    found = ModelFile.open(path)
    if found.metadata.is_step:
        raise ModelError(f"{str(path)!r} is a step of a stream, not a model: give the file that it was made from")
    return found


def model_name(path: Path, name: str | None, sha256: str) -> str:
    """Return the name for the model in a checkpoint file.

    Args:
        path: The file.
        name: Name that the user chose; None for the known name of this file, or the file's own name.
        sha256: Digest of the file.

    Raises:
        ModelError: The name is that of a known model, and the file is not its checkpoint.
    """
    by_digest = {model.checkpoint_sha256: model.name for model in known_models().values()}
    if name is None:
        return by_digest.get(sha256, path.stem)
    known = known_models().get(name)
    if known is not None and known.checkpoint_sha256 != sha256:
        raise ModelError(
            f"{str(path)!r} is not the known checkpoint of {name!r}: its sha256 is {sha256}, expected "
            f"{known.checkpoint_sha256}; give it another name if it is your own model"
        )
    return name


def packaged_variant(model: ModelFile, method: str) -> ModelFile | None:
    """Return the packaged variant of a packaged model, if there is one.

    Args:
        model: A model file; only packaged ones have packaged variants.
        method: One of `quantize.METHODS`, or `STEP`.

    Raises:
        ModelError: The file is damaged.
    """
    known = _packaged(model)
    if known is None or method not in known.variants:
        return None
    return _checked(known.variant_path(method), known.variants[method])


def ready_variant(model: ModelFile, method: str) -> ModelFile | None:
    """Find a quantized file that exists already: the model itself, a packaged one, or one in the cache.

    Args:
        model: Any model file.
        method: One of `quantize.METHODS`.
    """
    if model.metadata.method == method:
        return model
    if model.metadata.method != FP32:
        return None
    return packaged_variant(model, method) or find_cached(model, variant_key(method))


def variant_key(method: str, calibration_sha256: str = "") -> dict[str, str]:
    """Return the cache key of a variant, beside its source.

    Args:
        method: One of `quantize.METHODS`.
        calibration_sha256: Digest of the user's own calibration audio; "" for none, or the audio in the package.
    """
    return {"method": method, "calibration": calibration_sha256}


def usual_lookahead(model: ModelFile) -> int:
    """Return the frames that each U-Net of a model looks ahead in streams by default."""
    known = _packaged(model)
    return LOOKAHEAD_FRAMES if known is None else known.lookahead_frames


def packaged_files() -> list[FileStatus]:
    """Check every model file in the package against its digest in the catalogue."""
    files = []
    for known in known_models().values():
        if known.model_sha256 is not None:
            files.append(_status(known.packaged_path, known.model_sha256))
        files += [_status(known.variant_path(method), digest) for method, digest in known.variants.items()]
    return files


def _packaged(model: ModelFile) -> KnownModel | None:
    """Return the catalogue entry of a packaged model file; None for any other file."""
    return next((known for known in known_models().values() if known.packaged_path == model.path), None)


def _find_named(name: str) -> ModelFile | None:
    """Return the model with that name; None if no model has it."""
    known = known_models().get(name)
    if known is not None and known.model_sha256 is not None:
        return _checked(known.packaged_path, known.model_sha256)
    imported = find_imported(name) if MODEL_NAME.fullmatch(name) else None
    if known is None:
        return imported
    if imported is None:
        raise ModelError(
            f"model {name!r} is not in this package: get its checkpoint from {known.source} ('frcrn-accel models "
            f"download {name}' does), then run 'frcrn-accel models import CHECKPOINT' once"
        )
    if imported.metadata.checkpoint_sha256 != known.checkpoint_sha256:
        raise ModelError(f"{str(imported.path)!r} was not made from the known checkpoint of {name!r}: remove it")
    return imported


def _status(path: Path, sha256: str) -> FileStatus:
    try:
        return FileStatus(_checked(path, sha256).path, path.stat().st_size, None)
    except ModelError as error:
        return FileStatus(path, path.stat().st_size if path.exists() else 0, str(error))


def _checked(path: Path, sha256: str) -> ModelFile:
    model = ModelFile.open(path)
    if sha256_of(path) != sha256:
        raise ModelError(f"the packaged model {str(path)!r} is damaged: reinstall frcrn-accel")
    return model
