"""`POST /classify`: uploaded pictures, answered as `edgecifar predict --json` answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import numpy as np

from ..runtime.classifier import Prediction, predictions_from
from ..runtime.contract import FITS
from ..runtime.errors import PictureError
from .errors import RequestError

if TYPE_CHECKING:
    from .models import Model
    from .settings import Settings

MAX_HEADER = 8192
"""Bytes of the header of one part of a form."""

MAX_TOP_K = 9999
"""The greatest `top_k`; no more classes are listed than there are."""


@dataclass(frozen=True)
class Question:
    """What the query of a request asks for.

    Attributes:
        model: its name; None: the default.
        top_k: how many classes are listed.
        fit: how a picture is made square; None: as in training.
    """

    model: str | None
    top_k: int
    fit: str | None

    @classmethod
    def parse(cls, query: bytes) -> Question:
        """Read a query string.

        Raises:
            RequestError: 400, a name is unknown or comes twice, or a value is not one that it can have.
        """
        known = ("model", "top_k", "fit")
        try:
            pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=len(known))
        except ValueError:  # there are more
            pairs = [("", "")]
        values = dict(pairs)
        if len(values) != len(pairs) or values.keys() - set(known):
            raise RequestError(400, "The query takes 'model', 'top_k' and 'fit', once each.")
        top_k, fit = values.get("top_k", "3"), values.get("fit")
        if not (top_k.isascii() and top_k.isdigit() and len(top_k) < 5 and 1 <= int(top_k) <= MAX_TOP_K):
            raise RequestError(400, f"'top_k' is how many classes are listed: a number from 1 to {MAX_TOP_K}.")
        if fit is not None and fit not in FITS:
            raise RequestError(400, f"'fit' is one of {', '.join(FITS)}.")
        return cls(values.get("model"), int(top_k), fit)


def split(body: bytes, content_type: str, settings: Settings) -> list[tuple[str, bytes]]:
    """Return name and content of each picture in a body: every part of a form, or the body as a whole.

    Raises:
        RequestError: 400, the form cannot be read, has no picture, or too many; 415, the body is of no kind that can
            be a picture.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        pictures = _parts(body, content_type, settings.max_images)
    elif kind in ("", "application/octet-stream", "application/x-www-form-urlencoded") or kind.startswith("image/"):
        pictures = [("body", body)]  # curl --data-binary calls it a form of the second kind
    else:
        raise RequestError(
            415, "The body is neither a picture (image/*, application/octet-stream) nor a form (multipart/form-data)."
        )
    if not pictures:
        raise RequestError(400, "The form has no picture: add one with 'curl -F image=@photo.jpg'.")
    return pictures


def _parts(body: bytes, content_type: str, limit: int) -> list[tuple[str, bytes]]:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= 200:
        raise RequestError(400, "The form's content type has no boundary.")
    pictures: list[tuple[str, bytes]] = []
    header, field, value, content = {}, bytearray(), bytearray(), bytearray()
    ended = False

    def begin() -> None:
        header.clear()
        content.clear()
        if len(pictures) >= limit:
            raise RequestError(400, f"The form has more than {limit} pictures: send fewer at once.")

    def add(target: bytearray, most: int | None = None) -> Callable[[bytes, int, int], None]:
        def call(data: bytes, start: int, end: int) -> None:
            target.extend(memoryview(data)[start:end])
            if most and len(target) > most:
                raise RequestError(400, "The header of a part of the form is too long.")

        return call

    def header_end() -> None:
        header[bytes(field).lower()] = bytes(value)
        field.clear()
        value.clear()

    def part_end() -> None:
        _, found = parse_options_header(header.get(b"content-disposition", b""))
        name = found.get(b"filename") or found.get(b"name") or b"picture"
        pictures.append((name.decode(errors="replace")[:300], bytes(content)))

    def end() -> None:
        nonlocal ended
        ended = True

    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": begin,
            "on_part_data": add(content),
            "on_part_end": part_end,
            "on_header_field": add(field, MAX_HEADER),
            "on_header_value": add(value, MAX_HEADER),
            "on_header_end": header_end,
            "on_end": end,
        },
    )
    try:
        parser.write(body)
        parser.finalize()
    except FormParserError:
        ended = False
    if not ended:
        raise RequestError(400, "The form is damaged or incomplete: send it again.")
    return pictures


def document(
    model: Model, pictures: list[tuple[str, bytes]], results: list[Prediction | PictureError]
) -> dict[str, Any]:
    """Return what `edgecifar predict --json` prints, with the bundle's name in place of its folder."""
    entries = [
        {"source": name, "error": str(result)} if isinstance(result, PictureError) else result.as_json()
        for (name, _), result in zip(pictures, results, strict=True)
    ]
    return {
        "bundle": model.bundle_name,
        "dataset": model.bundle.manifest.dataset,
        "variant": model.variant.name,
        "provider": model.session.provider,
        "threads": model.session.threads,
        "predictions": entries,
    }


def predictions(
    model: Model,
    question: Question,
    pictures: list[tuple[str, bytes]],
    images: list[np.ndarray | PictureError],
    rows: list[np.ndarray],
) -> list[Prediction | PictureError]:
    """Return each picture's prediction, or why it has none; `rows`: the outputs for the arrays among `images`."""
    if not rows:
        return [image for image in images if isinstance(image, PictureError)]
    names = [name for (name, _), image in zip(pictures, images, strict=True) if isinstance(image, np.ndarray)]
    scores = rows[2] if model.contract.familiarity_name else None
    found = iter(
        predictions_from(
            rows[0], scores, names, labels=model.contract.labels, top_k=question.top_k, threshold=model.threshold
        )
    )
    return [image if isinstance(image, PictureError) else next(found) for image in images]
