"""The contract of a model: its labels, its input, its outputs, and how a picture becomes that input.

A data set and a run make a `Contract`; the ONNX file, the bundle and everything that reads them carry it. Nothing else
knows a label or a size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from .errors import InputError

METADATA_PREFIX = "io.github.edgecifar."
"""Prefix of our keys in an ONNX file's metadata, whose values are JSON; ONNX asks for a reverse-DNS prefix."""

FITS = ("crop", "squash", "pad")
"""Ways to make a picture square: take the centre square, ignore the aspect ratio, or pad the shorter side."""

MIN_CLASSES, MAX_CLASSES = 2, 1_000

MAX_LABEL_LENGTH = 200
"""Characters of a label."""


@dataclass(frozen=True)
class Preprocessing:
    """The steps from a decoded picture to the input, in the order of the fields.

    docs/contract.md has each step's formula. The defaults are the only values that this version knows, `fit` aside.

    Attributes:
        decoding: version of the rules of docs/pictures.md: orientation, colour, depth, transparency.
        orientation: "exif": the picture is turned upright as its EXIF orientation says.
        colour: "srgb": 8-bit R'G'B'; colour profiles of photographs are ignored.
        transparency: what lies behind transparent pixels, RGB.
        fit: one of `FITS`.
        filter: "bicubic": cubic convolution with a = -0.5, widened by the scale where it shrinks (antialiased).
        reducing_gap: a picture that is more than this many times too large is first averaged in whole blocks.
        padding: RGB of the bars that the fit "pad" adds.
    """

    decoding: int = 1
    orientation: str = "exif"
    colour: str = "srgb"
    transparency: tuple[int, int, int] = (255, 255, 255)
    fit: str = "crop"
    filter: str = "bicubic"
    reducing_gap: float = 4.0
    padding: tuple[int, int, int] = (128, 128, 128)


@dataclass(frozen=True)
class Contract:
    """What a model takes and gives.

    Attributes:
        labels: the classes in the order of the outputs, 2 to 1,000, no two alike.
        size: height and width of the input picture, in pixels.
        preprocessing: how a picture becomes the input.
        channels: 3, in RGB order.
        input_name: the graph's only input, uint8 [batch, size, size, channels], 0 to 255.
        probabilities_name: the output float32 [batch, classes] whose rows sum to 1.
        logits_name: the output float32 [batch, classes] before temperature and softmax.
        familiarity_name: the output float32 [batch] that says how much a picture is like those the net was trained on,
            higher is more alike; None where the model has none.
    """

    labels: tuple[str, ...]
    size: int
    preprocessing: Preprocessing = Preprocessing()
    channels: int = 3
    input_name: str = "images"
    probabilities_name: str = "probabilities"
    logits_name: str = "logits"
    familiarity_name: str | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: there are fewer than 2 or more than 1,000 labels, two are alike, one is empty, too long or not
                printable; or a step of the preprocessing is not one that this version knows.
        """
        if not MIN_CLASSES <= len(self.labels) <= MAX_CLASSES:
            raise ValueError(f"there are {len(self.labels)} labels, not {MIN_CLASSES} to {MAX_CLASSES:,}")
        for label in self.labels:
            text = isinstance(label, str)  # pyright: ignore[reportUnnecessaryIsInstance]: JSON may hold anything
            if not text or not 0 < len(label) <= MAX_LABEL_LENGTH or not label.isprintable():
                raise ValueError(f"{label!r} is not a label: 1 to {MAX_LABEL_LENGTH} printable characters")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("two labels are alike")
        if type(self.size) is not int or not 1 <= self.size <= 4096 or self.channels != 3:
            raise ValueError(f"{self.size} pixels by {self.channels} channels are not a size that is known")
        if self.preprocessing.fit not in FITS:
            raise ValueError(f"there is no fit {self.preprocessing.fit!r}: choose one of {', '.join(FITS)}")
        if replace(self.preprocessing, fit="crop") != Preprocessing():
            raise ValueError("its preprocessing has a step that this version of edgecifar does not know")
        names = [name for name in (self.input_name, *self.output_names) if not name or not name.isprintable()]
        if names or len({self.input_name, *self.output_names}) != 1 + len(self.output_names):
            raise ValueError("its tensors' names are not unique")

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.labels)

    @property
    def fit(self) -> str:
        """How a picture is made square, one of `FITS`."""
        return self.preprocessing.fit

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """Shape of one input picture: height, width, channels."""
        return (self.size, self.size, self.channels)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the graph's outputs, in order."""
        familiarity = () if self.familiarity_name is None else (self.familiarity_name,)
        return (self.probabilities_name, self.logits_name, *familiarity)

    @property
    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each output, without the batch, by its name and in the order of `output_names`."""
        rows = (self.probabilities_name, self.logits_name)
        return {name: (self.classes,) if name in rows else () for name in self.output_names}

    def with_fit(self, fit: str) -> Contract:
        """Return this contract with another fit.

        Raises:
            ValueError: `fit` is none of `FITS`.
        """
        return replace(self, preprocessing=replace(self.preprocessing, fit=fit))

    def check_images(self, images: object) -> None:
        """Raise an `InputError` unless `images` is an array that the model takes, uint8 [N, size, size, 3]."""
        shape = self.picture_shape
        array = cast("np.ndarray", images) if isinstance(images, np.ndarray) else None
        if array is None or array.dtype != np.uint8 or array.shape[1:] != shape:
            got = type(cast("object", images)).__name__ if array is None else f"{array.dtype} {list(array.shape)}"
            raise InputError(
                f"Images must be a numpy array, uint8 [N, {', '.join(map(str, shape))}] in RGB order, not {got}: read "
                "pictures with load_picture, and convert floats in 0 to 1 with (x * 255).round().astype('uint8')."
            )

    def as_json(self) -> dict[str, Any]:
        """Return the contract as JSON values, as manifest.json and an ONNX file's metadata hold it."""
        return {
            "labels": list(self.labels),
            "input": {
                "name": self.input_name,
                "dtype": "uint8",
                "shape": ["batch", *self.picture_shape],
                "layout": "NHWC",
                "colour": "RGB",
                "range": [0, 255],
            },
            "outputs": [
                {"name": name, "dtype": "float32", "shape": ["batch", *shape]}
                for name, shape in self.output_shapes.items()
            ],
            "preprocessing": _preprocessing_as_json(self.preprocessing),
        }

    @classmethod
    def parse(cls, values: Any) -> Contract:
        """Read what `as_json` returned, strictly.

        Raises:
            ValueError: a field is missing, unknown, of another type, or says what this version does not know.
        """
        try:
            steps = values["preprocessing"]
            outputs = [output["name"] for output in values["outputs"]]
            contract = cls(
                labels=tuple(values["labels"]),
                size=values["input"]["shape"][1],
                preprocessing=Preprocessing(fit=steps["fit"]),
                input_name=values["input"]["name"],
                probabilities_name=outputs[0],
                logits_name=outputs[1],
                familiarity_name=outputs[2] if len(outputs) > 2 else None,
            )
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"its contract lacks a field or has one of another type ({error})") from None
        if contract.as_json() != values:
            raise ValueError("its contract is not one that this version of edgecifar knows")
        return contract

    @classmethod
    def parse_first(cls, labels: Any, tensors: Any) -> Contract:
        """Read the form of bundles of schema 1 and of ONNX files of then: the preprocessing was the default one.

        Args:
            labels: JSON value, the list of labels.
            tensors: JSON value, an object with the fields "input" and "outputs" of `as_json`.

        Raises:
            ValueError: as `parse` says.
        """
        if not isinstance(labels, list) or not isinstance(tensors, dict):
            raise ValueError("its labels or its contract are missing or of another type")
        return cls.parse({"labels": labels, **tensors, "preprocessing": _preprocessing_as_json(Preprocessing())})

    def same_tensors(self, other: Contract) -> bool:
        """Whether `other` has the same labels, input and outputs, whatever its preprocessing."""
        return replace(self, preprocessing=other.preprocessing) == other


def _preprocessing_as_json(steps: Preprocessing) -> dict[str, Any]:
    return {
        "decoding": steps.decoding,
        "orientation": steps.orientation,
        "colour": steps.colour,
        "transparency": list(steps.transparency),
        "fit": steps.fit,
        "filter": {"name": steps.filter, "a": -0.5, "antialias": True, "reducing_gap": steps.reducing_gap},
        "padding": list(steps.padding),
    }


CIFAR10 = Contract(("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"), 32)
"""The contract of nets trained on CIFAR-10: its classes in label order, by the reference experiment's names."""
