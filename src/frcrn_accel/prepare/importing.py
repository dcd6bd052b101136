"""Bringing in a model that the user has: from a checkpoint to a name that `Denoiser` takes, variants included."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from frcrn_accel._version import __version__
from frcrn_accel.digest import sha256_of
from frcrn_accel.errors import BackendUnavailable, ModelError, OutputExistsError, QualityError
from frcrn_accel.models import (
    MODEL_NAME,
    VARIANT_METHODS,
    ModelFile,
    find_imported,
    keep_imported,
    known_models,
    model_name,
    ready_variant,
)
from frcrn_accel.prepare.variants import make_variant
from frcrn_accel.progress import Progress, no_progress

__all__ = ["ImportReport", "ImportedVariant", "import_model"]


@dataclass(frozen=True)
class ImportedVariant:
    """What became of one method of quantization.

    Attributes:
        method: One of `VARIANT_METHODS`.
        file: The quantized file; None if there is none.
        refusal: Why the quality gate refused it; None if it did not.
        missing: Why no engine here can run it, so that none was made; None if one can.
    """

    method: str
    file: ModelFile | None
    refusal: str | None = None
    missing: str | None = None


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Attributes:
        model: The fp32 model file in the cache.
        difference: Largest difference from PyTorch, as a share of the peak; None if the file was there before.
        variants: What became of each of `VARIANT_METHODS`.
    """

    model: ModelFile
    difference: float | None
    variants: tuple[ImportedVariant, ...]


def import_model(
    checkpoint: str | Path,
    *,
    name: str | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> ImportReport:
    """Export a checkpoint into the cache and quantize it for the engines that are here.

    From then on its name is a model for `Denoiser`. A variant that the quality gate refuses, or that no engine here
    can run, is left out. What is there already from the same checkpoint is not made again, so an import that was
    interrupted goes on where it was.

    Args:
        checkpoint: A released or fine-tuned checkpoint, see `network.checkpoint.load_checkpoint`.
        name: What the model is to be called: letters, digits, - and _. A known name must come with the known file.
            Without, it is the known name of this file, or the file's own.
        overwrite: Replace another model that was imported under this name.
        progress: Called with what is being done, how many steps of it are done and how many there are.

    Raises:
        MissingExtraError: The `[export]` extra is not installed.
        ModelError: The checkpoint or the name is not usable, or the cache cannot be written.
        ExportError: The model does not give what PyTorch gives; it is not kept.
        OutputExistsError: Another model has the name and `overwrite` is false.
    """
    from frcrn_accel.quantize import METHODS

    model, difference = _imported(Path(checkpoint), name, overwrite, progress)
    variants = []
    for method in VARIANT_METHODS:
        try:
            METHODS[method].backend().check()
            file = _variant(model, method, progress)
            variants.append(ImportedVariant(method, file))
        except BackendUnavailable as error:
            variants.append(ImportedVariant(method, None, missing=str(error)))
        except QualityError as error:
            variants.append(ImportedVariant(method, None, refusal=str(error)))
    return ImportReport(model, difference, tuple(variants))


def _imported(
    checkpoint: Path, name: str | None, overwrite: bool, progress: Progress
) -> tuple[ModelFile, float | None]:
    """The fp32 model in the cache, and how it compares with PyTorch if it was made now."""
    try:
        sha256 = sha256_of(checkpoint)
    except OSError as error:
        raise ModelError(f"checkpoint {str(checkpoint)!r} cannot be read: {error.strerror}") from error
    name = model_name(checkpoint, name, sha256)
    known = known_models().get(name)
    if known is not None and known.model_sha256 is not None:
        raise ModelError(f"model {name!r} is in the package: there is nothing to import")
    if not MODEL_NAME.fullmatch(name):
        raise ModelError(
            f"{name!r} is no name for a model: give one with --name, at most 64 letters, digits, - and _, the first "
            "no - or _"
        )
    before = _whole(name)
    if before is not None and before.metadata.checkpoint_sha256 == sha256:
        if before.metadata.library_version == __version__:
            return before, None
    elif before is not None and not overwrite:
        raise OutputExistsError(
            f"another model was imported as {name!r}, from a checkpoint with sha256 "
            f"{before.metadata.checkpoint_sha256}: choose another name or ask to overwrite it"
        )
    difference = 0.0

    def build(path: Path) -> None:
        nonlocal difference
        from frcrn_accel.export import export_model

        difference = export_model(checkpoint, path, name=name, overwrite=True).difference

    progress("export", 0, 1)
    model = keep_imported(name, build)
    progress("export", 1, 1)
    return model, difference


def _whole(name: str) -> ModelFile | None:
    """The model of that name, if there is one that is not damaged."""
    try:
        return find_imported(name)
    except ModelError:
        return None


def _variant(model: ModelFile, method: str, progress: Progress) -> ModelFile:
    """Return a quantized file that backends find without calibration audio."""
    return ready_variant(model, method) or make_variant(model, method, progress=progress)
