"""What every model of this project takes and gives: the labels, the picture's shape, the tensor names."""

from __future__ import annotations

LABELS = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""CIFAR-10's ten classes in label order, by the reference experiment's names."""

SIDE = 32
"""Height and width of the input picture, in pixels."""

INPUT_NAME = "images"
"""Name of the graph's only input: uint8 [batch, 32, 32, 3], RGB, 0 to 255."""

PROBABILITIES = "probabilities"
"""Name of the output float32 [batch, 10] whose rows sum to 1."""

LOGITS = "logits"
"""Name of the output float32 [batch, 10] before temperature and softmax."""

METADATA_PREFIX = "io.github.edgecifar."
"""Of our own keys in an ONNX file's metadata, whose values are JSON; ONNX asks for a reverse-DNS prefix."""
