"""The formats that a net is written in, a module each: ONNX, its half-precision form, `.pt2` and TorchScript."""
