"""Numpy, Pillow and onnxruntime; never torch."""
