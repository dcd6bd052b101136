"""Add a model to the package: export its checkpoint, quantize it, build its step for streams, and catalogue it.

    python scripts/package_model.py CHECKPOINT --name frcrn-small --description ... --source ... --licence ...

Options that are left out keep their values in the catalogue, so replacing a model is one command:

    python scripts/package_model.py CHECKPOINT --name frcrn-small
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import frcrn_accel.models
from frcrn_accel.backends.ort import OrtBackend
from frcrn_accel.digest import sha256_of
from frcrn_accel.export import export_model
from frcrn_accel.models import STEP, VARIANT_METHODS, known_models
from frcrn_accel.network.topology import LOOKAHEAD_FRAMES
from frcrn_accel.prepare import prepare_step
from frcrn_accel.quantize import CALIBRATION_AUDIO, METHODS, Source, quantize_model

FOLDER = Path(frcrn_accel.models.__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description="Add a model to the package.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--name", default="frcrn-small")
    for field in ("description", "source", "licence"):
        parser.add_argument(f"--{field}")
    parser.add_argument("--lookahead-frames", type=int, help="frames that each U-Net looks ahead in streams")
    options = parser.parse_args()

    catalog_path = FOLDER / "catalog.json"
    catalog = json.loads(catalog_path.read_text(encoding="utf-8"))
    entry = catalog.setdefault(options.name, {})
    for field in ("description", "source", "licence"):
        entry[field] = getattr(options, field) or entry[field]
    if options.lookahead_frames is not None:
        entry["lookahead_frames"] = options.lookahead_frames
    # In this process only: otherwise the new checkpoint would be checked against the old digest.
    known_models().pop(options.name, None)
    path = FOLDER / "data" / f"{options.name}.onnx"
    report = export_model(options.checkpoint, path, name=options.name, overwrite=True)
    entry["checkpoint_sha256"] = report.model.metadata.checkpoint_sha256
    entry["model_sha256"] = sha256_of(report.model.path)
    entry["variants"] = {}
    source = Source(report.model)
    for method in VARIANT_METHODS:
        path = FOLDER / "data" / f"{options.name}.{method}.onnx"
        calibration = CALIBRATION_AUDIO if METHODS[method].needs_calibration else None
        quantized = quantize_model(source, path, method, calibration=calibration, overwrite=True)
        entry["variants"][method] = quantized.output_sha256
        kept = ", ".join(quantized.kept_float) or "nothing"
        print(f"{path}: {quantized.output_bytes} bytes, {quantized.verdict}, {kept} in float")
    lookahead = entry.get("lookahead_frames", LOOKAHEAD_FRAMES)
    step = prepare_step(report.model, OrtBackend(), threads=1, lookahead_frames=lookahead)
    packaged_step = FOLDER / "data" / f"{options.name}.{STEP}.onnx"
    shutil.copyfile(step.path, packaged_step)
    entry["variants"][STEP] = sha256_of(packaged_step)
    catalog_path.write_text(json.dumps(catalog, indent=2) + "\n", encoding="utf-8")
    print(f"{report.model.path}: {report.bytes} bytes, differs from PyTorch by {report.difference:.1e} of the peak")


if __name__ == "__main__":
    main()
