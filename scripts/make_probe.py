"""Write the small model that the INT8 backends use to check that the CPU multiplies 8-bit integers exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import frcrn_accel.backends


def main() -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "weight"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 16])],
        [numpy_helper.from_array(np.full((64, 16), 127, np.int8), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path = Path(frcrn_accel.backends.__file__).with_name("u8s8-probe.onnx")
    path.write_bytes(model.SerializeToString())
    print(path)


if __name__ == "__main__":
    main()
