"""Add a model to the package: export its checkpoint, quantize it, build its step for streams, and catalogue it.

    python scripts/package_model.py CHECKPOINT --name frcrn-small --description ... --source ... --licence ...

Options that are left out keep their values in the catalogue, so replacing a model is one command:

    python scripts/package_model.py CHECKPOINT --name frcrn-small

Without a checkpoint the model stays, and its quantized files and its step are made again, as after a change of the
quantizer or of its audio.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import frcrn_accel.models
from frcrn_accel.backends.ort import OrtBackend
from frcrn_accel.digest import sha256_of
from frcrn_accel.export import export_model
from frcrn_accel.models import CACHE_DIR_VARIABLE, STEP, VARIANT_METHODS, find_model, known_models
from frcrn_accel.network.topology import LOOKAHEAD_FRAMES
from frcrn_accel.prepare import prepare_step
from frcrn_accel.quantize import CALIBRATION_AUDIO, METHODS, Source, quantize_model

FOLDER = Path(frcrn_accel.models.__file__).parent
CATALOG = FOLDER / "catalog.json"


def main() -> None:
    parser = argparse.ArgumentParser(description="Add a model to the package.")
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--name", default="frcrn-small")
    for field in ("description", "source", "licence"):
        parser.add_argument(f"--{field}")
    parser.add_argument("--lookahead-frames", type=int, help="frames that each U-Net looks ahead in streams")
    options = parser.parse_args()

    catalog = json.loads(CATALOG.read_text(encoding="utf-8"))
    entry = catalog.setdefault(options.name, {})
    for field in ("description", "source", "licence"):
        entry[field] = getattr(options, field) or entry[field]
    if options.lookahead_frames is not None:
        entry["lookahead_frames"] = options.lookahead_frames
    if options.checkpoint is not None:
        path = FOLDER / "data" / f"{options.name}.onnx"
        entry["checkpoint_sha256"] = sha256_of(options.checkpoint)
        save(catalog)  # the exporter refuses to give another checkpoint the name
        report = export_model(options.checkpoint, path, name=options.name, overwrite=True)
        entry["model_sha256"] = sha256_of(path)
        print(f"{path}: {report.bytes} bytes, differs from PyTorch by {report.difference:.1e} of the peak")
    entry["variants"] = {}
    save(catalog)  # from here on the model is the new one, and has no variants
    model = find_model(options.name)
    source = Source(model)
    for method in VARIANT_METHODS:
        path = FOLDER / "data" / f"{options.name}.{method}.onnx"
        calibration = CALIBRATION_AUDIO if METHODS[method].needs_calibration else None
        quantized = quantize_model(source, path, method, calibration=calibration, overwrite=True)
        entry["variants"][method] = quantized.output_sha256
        kept = ", ".join(quantized.kept_float) or "nothing"
        print(f"{path}: {quantized.output_bytes} bytes, {quantized.verdict}, {kept} in float")
    lookahead = entry.get("lookahead_frames", LOOKAHEAD_FRAMES)
    packaged_step = FOLDER / "data" / f"{options.name}.{STEP}.onnx"
    with tempfile.TemporaryDirectory() as cache:
        os.environ[CACHE_DIR_VARIABLE] = cache
        step = prepare_step(model, OrtBackend(), threads=1, lookahead_frames=lookahead)
        shutil.copyfile(step.path, packaged_step)
    entry["variants"][STEP] = sha256_of(packaged_step)
    save(catalog)


def save(catalog: dict[str, Any]) -> None:
    """Write the catalogue, and let this process read it again."""
    CATALOG.write_text(json.dumps(catalog, indent=2) + "\n", encoding="utf-8")
    known_models.cache_clear()


if __name__ == "__main__":
    main()
