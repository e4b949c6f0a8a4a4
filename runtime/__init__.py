"""The device's part: bundles, pictures, the classifier. Needs numpy, Pillow and onnxruntime, never torch."""

from .bundle import Bundle
from .classifier import Classifier, Prediction
from .errors import EdgecifarError

__all__ = ["Bundle", "Classifier", "EdgecifarError", "Prediction"]
