"""Write FRCRN as ONNX graphs, operator by operator, in a form for each engine. Needs the ONNX package."""
