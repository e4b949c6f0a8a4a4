"""The classifier: a bundle, a variant and a provider, from pictures to classes and probabilities."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

import numpy as np

from . import choice
from .bundle import Bundle
from .contract import FITS, Contract
from .errors import InputError, PictureError
from .machine import usable_cpus
from .providers import AUTO

if TYPE_CHECKING:
    from PIL import Image

    from .manifest import Variant
    from .session import Session

Picture: TypeAlias = "str | Path | bytes | BinaryIO | Image.Image | np.ndarray"
"""What one picture may be: a path, "-" for standard input, a file's content, a binary stream, an image of Pillow, or
an array, uint8 [H, W, 3] RGB of any height and width."""

BATCH = 64
"""How many pictures are classified at once where many are given: enough for full throughput, little memory."""


@dataclass(frozen=True)
class Prediction:
    """What a picture most likely shows.

    Attributes:
        label: the most probable class.
        probability: its probability, 0 to 1.
        top: the most probable classes with their probabilities, the most probable first.
        source: the picture's path, or its index where it has none.
        known: whether the picture is like the training pictures; None if the model cannot tell.
        familiarity: the score behind `known`, higher is more similar; None if the model has none.
    """

    label: str
    probability: float
    top: tuple[tuple[str, float], ...]
    source: str
    known: bool | None = None
    familiarity: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the prediction as JSON values."""
        return {
            "source": self.source,
            "label": self.label,
            "probability": self.probability,
            "top": [{"label": label, "probability": probability} for label, probability in self.top],
            "known": self.known,
            "familiarity": self.familiarity,
        }


class Classifier:
    """Classifies pictures by a variant of a bundle on onnxruntime. Safe to use from several threads.

    It belongs to the process that made it: in a child that was forked since, it raises a `ProviderError`.

    Attributes:
        bundle: where the model comes from.
        variant: which of its variants is used.
        reason: why this variant is used, in a sentence.
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
            variant: the name of a variant; by default the one that suits the provider.
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
        self._warned: set[str] = set()

    def __repr__(self) -> str:
        where = f"{self.provider}, {self.threads} thread{'s' * (self.threads > 1)}"
        return (
            f"<Classifier {str(self.bundle.folder)!r}: {self.variant.name} on {where}, {self.contract.classes} classes>"
        )

    @property
    def contract(self) -> Contract:
        """The model's labels, input and outputs, and how a picture becomes the input."""
        return self.bundle.contract

    @property
    def session(self) -> Session:
        """The loaded model, for what measures or profiles it."""
        return self._session

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities of all classes for `images`, uint8 [N, size, size, 3] RGB: float32 [N, classes].

        Raises:
            InputError: another type, dtype or shape.
            ProviderError: the classifier was made before a fork, by the parent of this process.
        """
        return self._session.probabilities(images)

    def predict(
        self, pictures: Picture | Iterable[Picture], top_k: int = 3, fit: str | None = None
    ) -> list[Prediction]:
        """Return a prediction for each picture, in order.

        Args:
            pictures: one picture or several, of any kinds, also mixed; see `Picture`. An array
                uint8 [N, size, size, 3] is a batch of pictures that are ready as they are.
            top_k: how many classes `Prediction.top` lists, at least 1; there are never more than the model has.
            fit: how a picture is made square: "crop", "squash" or "pad"; by default as in training.

        Raises:
            PictureError: a picture cannot be read.
            InputError: an array of another dtype or shape, no picture at all, a `top_k` below 1, or an unknown `fit`.
        """
        given = cast("Any", pictures)
        if isinstance(pictures, np.ndarray) and given.ndim != 3:
            return self._predict_batch(given, top_k)
        one = isinstance(pictures, np.ndarray | str | Path | bytes) or not isinstance(pictures, Iterable)
        if one or hasattr(given, "read"):  # a stream can be iterated over too, by its lines
            given = [given]  # what is no picture is refused below
        predictions: list[Prediction] = []
        for result in self.stream(given, top_k, fit):
            if isinstance(result, PictureError):
                raise result
            predictions.append(result)
        return predictions

    def stream(
        self, pictures: Iterable[Picture], top_k: int = 3, fit: str | None = None, jobs: int = 1
    ) -> Iterator[Prediction | PictureError]:
        """Yield for each picture, in order, its prediction or the reason why it cannot be read.

        Pictures are read and classified in batches, so that memory stays bounded for any number of them.

        Args:
            pictures: several, of any kinds, also mixed; see `Picture`.
            top_k: how many classes `Prediction.top` lists, as in `predict`.
            fit: how a picture is made square, as in `predict`.
            jobs: processes that decode while this one classifies what is ready, for pictures that are all paths. See
                `parallel.decode_many` for what a program must have to ask for more than one. Then a classifier of one
                thread classifies several batches at a time, on as many cores as there are: that wastes less than
                several threads on one batch.

        Raises:
            InputError: as `predict` says; or there are several jobs and a picture that is no path.
            EdgecifarError: the processes do not start.
        """
        check_choices(top_k, fit)
        self._warn(fit)
        loaded = self._read_here(pictures, fit) if jobs == 1 else self._read_there(pictures, fit, jobs)
        batches = iter(lambda: list(itertools.islice(loaded, BATCH)), [])
        calls = max(1, usable_cpus() // self.threads) if jobs > 1 and self.provider == "cpu" else 1
        ahead = list(itertools.islice(batches, 2)) if calls > 1 else []  # else nothing is read before it is needed
        if len(ahead) < 2:
            for batch in itertools.chain(ahead, batches):
                yield from self._answer(batch, top_k)
            return
        from concurrent.futures import ThreadPoolExecutor  # few pictures need it not

        with ThreadPoolExecutor(calls) as pool:
            pending = deque(pool.submit(self._answer, batch, top_k) for batch in ahead)
            for batch in batches:
                pending.append(pool.submit(self._answer, batch, top_k))
                if len(pending) > calls:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()

    def _answer(
        self, batch: list[tuple[str, np.ndarray | PictureError]], top_k: int
    ) -> list[Prediction | PictureError]:
        """Classify those of a batch that could be read."""
        good = [(name, image) for name, image in batch if isinstance(image, np.ndarray)]
        images = np.stack([image for _, image in good]) if good else None
        predictions = iter(() if images is None else self._predictions(images, [name for name, _ in good], top_k))
        return [entry if isinstance(entry, PictureError) else next(predictions) for _, entry in batch]

    def _read_here(
        self, pictures: Iterable[Picture], fit: str | None
    ) -> Iterator[tuple[str, np.ndarray | PictureError]]:
        """Yield each picture's name, and the picture or the reason why it cannot be read."""
        for index, picture in enumerate(pictures):
            name = str(picture) if isinstance(picture, str | Path) else str(index)
            try:
                yield name, self._read(picture, fit, index)
            except PictureError as error:
                yield name, error

    def _read_there(
        self, pictures: Iterable[Picture], fit: str | None, jobs: int
    ) -> Iterator[tuple[str, np.ndarray | PictureError]]:
        """As `_read_here`, by other processes."""
        from .parallel import decode_many

        names: deque[str] = deque()

        def paths() -> Iterator[str | Path]:
            for picture in pictures:
                if not isinstance(picture, str | Path):
                    raise InputError(
                        f"Several jobs decode paths, and a {type(picture).__name__} is none: decode with one job."
                    )
                names.append(str(picture))
                yield picture

        for decoded in decode_many(paths(), self.contract, fit=fit, jobs=jobs):
            yield names.popleft(), decoded.error or decoded.picture  # pyright: ignore[reportReturnType]: one is there

    def _read(self, picture: Picture, fit: str | None, index: int) -> np.ndarray:
        from .pictures import load_picture  # Pillow is not needed for arrays

        if not isinstance(picture, str | Path | bytes | np.ndarray) and not hasattr(picture, "read"):
            kind = type(picture)
            image = any(base.__module__ == "PIL.Image" for base in kind.__mro__)  # without importing it
            if not image:
                raise InputError(
                    f"A {kind.__name__} is no picture: give a path, bytes, a binary stream, an image of Pillow or an "
                    "array, uint8 [H, W, 3]."
                )
        named = isinstance(picture, str | Path) or isinstance(getattr(picture, "name", None), str)
        return load_picture(picture, self.contract, fit, name=None if named else f"picture {index}")

    def _predict_batch(self, images: np.ndarray, top_k: int) -> list[Prediction]:
        check_choices(top_k)
        self.contract.check_images(images)
        names = [str(index) for index in range(len(images))]
        found: list[Prediction] = []
        for start in range(0, len(images), BATCH):
            found += self._predictions(images[start : start + BATCH], names[start : start + BATCH], top_k)
        return found

    def _predictions(self, images: np.ndarray, names: list[str], top_k: int) -> list[Prediction]:
        """Classify `images`, uint8 [N, size, size, 3], whose sources are `names`."""
        rows, scores = self._session.scores(images)
        threshold = self.variant.familiarity.threshold if self.variant.familiarity else None
        return predictions_from(rows, scores, names, labels=self.contract.labels, top_k=top_k, threshold=threshold)

    def _warn(self, fit: str | None) -> None:
        """Say once that pictures are made square in another way than those of the training."""
        if fit in (None, self.contract.fit, *self._warned):
            return
        import logging  # seldom needed

        self._warned.add(fit)  # pyright: ignore[reportArgumentType]: not None here
        logging.getLogger("edgecifar").warning(
            "The fit is %r, and the model was trained with %r: it may be less accurate.", fit, self.contract.fit
        )


def predictions_from(
    rows: np.ndarray,
    scores: np.ndarray | None,
    names: list[str],
    *,
    labels: tuple[str, ...],
    top_k: int,
    threshold: float | None,
) -> list[Prediction]:
    """Return a prediction for each picture of what a model gave.

    Args:
        rows: the probabilities, float32 [N, classes].
        scores: the familiarity, float32 [N]; None where the model has none.
        names: the sources of the N pictures.
        labels: of the classes.
        top_k: how many classes `Prediction.top` lists.
        threshold: the familiarity below which a picture is not known; None where the model cannot tell.
    """
    order = np.argsort(-rows, axis=1, kind="stable")[:, :top_k]
    probabilities: list[list[float]] = np.take_along_axis(rows, order, axis=1).tolist()
    indices: list[list[int]] = order.tolist()
    familiarity: list[float | None] = [None] * len(rows) if scores is None else scores.tolist()
    found: list[Prediction] = []
    for name, best, likely, score in zip(names, indices, probabilities, familiarity, strict=True):
        top = tuple(zip([labels[index] for index in best], likely, strict=True))
        known = None if score is None or threshold is None else score >= threshold
        found.append(Prediction(*top[0], top, name, known, score))
    return found


def check_choices(top_k: int, fit: str | None = None) -> None:
    """Raise an `InputError` where `top_k` is below 1, or `fit` is neither None, as in training, nor one of `FITS`."""
    if fit not in (None, *FITS):
        raise InputError(f"There is no fit {fit!r}: choose one of {', '.join(FITS)}.")
    if top_k < 1:
        raise InputError(f"The {top_k} most probable classes cannot be listed: choose 1 or more.")
