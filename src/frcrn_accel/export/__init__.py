"""From a checkpoint to the one model file that every engine runs. Needs the `[export]` extra."""

from frcrn_accel.export.exporter import ExportReport, export_model, read_weights

__all__ = ["ExportReport", "export_model", "read_weights"]
