"""The classifier: a bundle, a variant and a provider, from pictures to classes and probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import choice
from .bundle import Bundle
from .contract import CIFAR10, LABELS, SIDE
from .errors import InputError, PictureError
from .session import AUTO, check_images

if TYPE_CHECKING:
    from .bundle import Variant

BATCH = 64
"""Pictures classified at once where many are given: enough for full throughput, little memory."""


@dataclass(frozen=True)
class Prediction:
    """What a picture most likely shows.

    Attributes:
        label: the most probable class.
        probability: its probability, 0 to 1.
        top: the `top_k` most probable classes with their probabilities, the most probable first.
        source: the picture's path, or its index where an array was given.
    """

    label: str
    probability: float
    top: tuple[tuple[str, float], ...]
    source: str


class Classifier:
    """Classifies pictures by a variant of a bundle on onnxruntime. Safe to use from several threads.

    It belongs to the process that made it: in a child that was forked since, it raises a `ProviderError`.

    Attributes:
        bundle: where the model comes from.
        variant: which of its variants is used.
        reason: why it is that one, in a sentence.
        provider: which execution provider every node of it runs on.
        threads: how many threads one call may use on the CPU.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path | None = None,
        variant: str | None = None,
        provider: str = AUTO,
        threads: int | None = None,
    ) -> None:
        """Open the bundle and load the model; its digest is checked first.

        Args:
            bundle: a bundle or its folder; by default the one installed with the package.
            variant: the name of a variant; by default the one that suits the provider and this processor.
            provider: "cpu", "cuda" and so on; "auto" takes CUDA where it runs, else the CPU.
            threads: by default as many as the affinity mask and the control group's quota allow.

        Raises:
            BundleError: the bundle is missing or damaged.
            VariantError: it has no such variant, or one that needs torch.
            ProviderError: the provider is unknown, or cannot run every node here.
            ModelError: the model cannot be loaded.
        """
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.variant: Variant
        self.variant, self.reason, self._session = choice.load(self.bundle, variant, provider, threads)
        self.provider, self.threads = self._session.provider, self._session.threads

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities of the ten classes, float32 [N, 10], for `images`, uint8 [N, 32, 32, 3] RGB.

        Raises:
            InputError: another type, dtype or shape.
            ProviderError: the classifier was made before a fork, by the parent of this process.
        """
        return self._session.probabilities(images)

    def predict(
        self, images_or_paths: np.ndarray | str | Path | Sequence[str | Path], top_k: int = 3, fit: str = "crop"
    ) -> list[Prediction]:
        """Return a prediction for each picture, in order.

        Args:
            images_or_paths: uint8 [N, 32, 32, 3] RGB, or paths of pictures of up to `MAX_PIXELS`.
            top_k: how many classes `Prediction.top` lists, 1 to 10.
            fit: how a picture is made square: "crop", "squash" or "pad".

        Raises:
            PictureError: a picture cannot be read.
            InputError: an array of another dtype or shape, or a `top_k` that is not 1 to 10.
        """
        if isinstance(images_or_paths, np.ndarray):
            _check_top_k(top_k)
            check_images(images_or_paths)
            batches = (images_or_paths[start : start + BATCH] for start in range(0, len(images_or_paths) or 1, BATCH))
            rows = np.concatenate([self.probabilities(batch) for batch in batches])
            return [_prediction(row, top_k, str(index)) for index, row in enumerate(rows)]
        paths = [images_or_paths] if isinstance(images_or_paths, str | Path) else images_or_paths
        predictions = []
        for result in self.stream(paths, top_k, fit):
            if isinstance(result, PictureError):
                raise result
            predictions.append(result)
        return predictions

    def stream(
        self, paths: Iterable[str | Path], top_k: int = 3, fit: str = "crop"
    ) -> Iterator[Prediction | PictureError]:
        """Yield for each path, in order, its prediction or the reason why the picture cannot be read.

        Pictures are read and classified in batches, so that memory stays bounded for any number of them.

        Raises:
            InputError: `top_k` is not 1 to 10, or a path is neither a string nor a `Path`.
        """
        from .pictures import load_picture  # Pillow is not needed for arrays

        _check_top_k(top_k)
        batch: list[np.ndarray | PictureError] = []
        names: list[str] = []

        def flush() -> Iterator[Prediction | PictureError]:
            images = [entry for entry in batch if not isinstance(entry, PictureError)]
            rows = iter(self.probabilities(np.stack(images)) if images else ())
            for name, entry in zip(names, batch, strict=True):
                yield entry if isinstance(entry, PictureError) else _prediction(next(rows), top_k, name)
            batch.clear()
            names.clear()

        for path in paths:
            if not isinstance(path, str | Path):
                raise InputError(
                    f"A picture is named by its path, not by a {type(path).__name__}: give arrays as one, uint8 "
                    f"[N, {SIDE}, {SIDE}, 3]."
                )
            names.append(str(path))
            try:
                batch.append(load_picture(path, CIFAR10, fit))
            except PictureError as error:
                batch.append(error)
            if len(batch) == BATCH:
                yield from flush()
        yield from flush()


def _check_top_k(top_k: int) -> None:
    if not 1 <= top_k <= len(LABELS):
        raise InputError(
            f"The {top_k} most probable of {len(LABELS)} classes cannot be listed: choose 1 to {len(LABELS)}."
        )


def _prediction(row: np.ndarray, top_k: int, source: str) -> Prediction:
    order = np.argsort(-row, kind="stable")[:top_k]
    top = tuple((LABELS[index], float(row[index])) for index in order)
    return Prediction(*top[0], top, source)
