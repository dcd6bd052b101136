"""Import a checkpoint under a name that `Denoiser` takes, with its quantized variants."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from frcrn_accel._version import __version__
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

if TYPE_CHECKING:
    from frcrn_accel.quantize import Source

__all__ = ["ImportReport", "ImportedVariant", "import_model"]


@dataclass(frozen=True)
class ImportedVariant:
    """Result of one method of quantization.

    Attributes:
        method: One of `models.VARIANT_METHODS`.
        file: The quantized file; None if it was not made.
        refusal: Why the quality gate refused it; None if it passed.
        missing: Why no backend here can run it, in which case it was not made; None if one can.
    """

    method: str
    file: ModelFile | None
    refusal: str | None = None
    missing: str | None = None


@dataclass(frozen=True)
class ImportReport:
    """Result of an import.

    Attributes:
        model: The fp32 model file in the cache.
        difference: Largest difference from PyTorch, as a share of the peak; None if the file existed before.
        variants: Result of each of `models.VARIANT_METHODS`.
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
    """Export a checkpoint into the cache and quantize it for the backends that are usable here.

    Afterwards `Denoiser` takes its name as a model. A variant that the quality gate refuses, or that no backend here
    can run, is left out. Files made before from the same checkpoint are kept, so an interrupted import resumes.

    Args:
        checkpoint: Weights in any of the forms that `network.checkpoint.load_checkpoint` reads.
        name: Name for the model: letters, digits, - and _. A known name is only accepted for its known checkpoint.
            None for the known name of this checkpoint, or the file's name without its suffix.
        overwrite: Replace another model that was imported under this name.
        progress: Called for each step.

    Raises:
        MissingExtraError: The `[export]` extra is not installed.
        ModelError: The checkpoint or the name is not usable, or the cache is not writable.
        ExportError: The exported model differs from PyTorch; it is discarded.
        OutputExistsError: Another model has the name and `overwrite` is false.
    """
    from frcrn_accel.quantize import METHODS, Source

    model, difference = _imported(Path(checkpoint), name, overwrite, progress)
    source = Source(model)
    variants = []
    for method in VARIANT_METHODS:
        try:
            METHODS[method].backend().check()
            file = _variant(source, method, progress)
            variants.append(ImportedVariant(method, file))
        except BackendUnavailable as error:
            variants.append(ImportedVariant(method, None, missing=str(error)))
        except QualityError as error:
            variants.append(ImportedVariant(method, None, refusal=str(error)))
    return ImportReport(model, difference, tuple(variants))


def _imported(
    checkpoint: Path, name: str | None, overwrite: bool, progress: Progress
) -> tuple[ModelFile, float | None]:
    """Return the fp32 model in the cache, with its difference from PyTorch if it was exported now."""
    from frcrn_accel.network.checkpoint import checkpoint_digest

    sha256 = checkpoint_digest(checkpoint)
    name = model_name(checkpoint, name, sha256)
    known = known_models().get(name)
    if known is not None and known.checkpoint_sha256 != sha256:  # the file itself has the name of a known model
        raise ModelError(
            f"{str(checkpoint)!r} has the name of a known model and is not the known checkpoint of {name!r}: choose "
            "another name (set it with --name)"
        )
    if known is not None and known.model_sha256 is not None:
        raise ModelError(f"model {name!r} is in the package: it does not need to be imported")
    if not MODEL_NAME.fullmatch(name):
        raise ModelError(
            f"invalid model name {name!r}: use 1 to 64 letters, digits, '-' or '_', starting with a letter or digit "
            "(set it with --name)"
        )
    before = _whole(name)
    if before is not None and before.metadata.checkpoint_sha256 == sha256:
        if before.metadata.library_version == __version__:
            return before, None
    elif before is not None and not overwrite:
        raise OutputExistsError(
            f"another model was imported as {name!r}, from a checkpoint with sha256 "
            f"{before.metadata.checkpoint_sha256}: choose another name, or overwrite it"
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
    """Return the imported model with that name; None if it is missing or damaged."""
    try:
        return find_imported(name)
    except ModelError:
        return None


def _variant(source: Source, method: str, progress: Progress) -> ModelFile:
    """Return a quantized file that backends find without calibration audio."""
    ready = ready_variant(source.model, method)
    return ready or make_variant(source.model, method, source=source, progress=progress)
