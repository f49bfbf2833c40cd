"""The student as ONNX: exporting and running it."""
