"""Get the file that a backend wants for a model: packaged, cached, or made now and cached."""

from frcrn_accel.prepare.importing import ImportedVariant, ImportReport, import_model
from frcrn_accel.prepare.inventory import ModelStatus, model_statuses
from frcrn_accel.prepare.steps import prepare_step
from frcrn_accel.prepare.variants import make_variant, prepare

__all__ = [
    "ImportReport",
    "ImportedVariant",
    "ModelStatus",
    "import_model",
    "make_variant",
    "model_statuses",
    "prepare",
    "prepare_step",
]
