"""FRCRN as ONNX graphs, written operator by operator, in the forms that suit engines. Needs the ONNX package."""
