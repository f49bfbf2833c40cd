"""The student as ONNX, and running it."""
