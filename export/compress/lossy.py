"""The lossy variants: what each may lose, and the widths at which it is tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .students import scaled


@dataclass(frozen=True)
class LossyVariant:
    """A variant that is searched for.

    Widths decide size and speed. What is fine-tuned is either narrowed from the net, or a residual student, which
    begins untrained.

    Attributes:
        name: its name in the bundle.
        multiplier: multiplier on the user's budget, and on the epochs for which a narrowed net is fine-tuned.
        candidates: outputs of `LAYERS` at which a narrowed net is fine-tuned, the smallest first; none where the
            variant is a residual student or nothing.
        residual: widths of `students.Residual`, likewise.
        residual_multiplier: multiplier on the epochs for which a residual student is trained.
        residual_budget: multiplier on the user's budget where it is a residual student: a net of another shape, and of
            a tenth or a hundredth of the size of the one that it is held against.
    """

    name: str
    multiplier: int
    candidates: Sequence[Sequence[int]]
    residual: Sequence[Sequence[int]] = ()
    residual_multiplier: int = 3
    residual_budget: int = 15


EDGE = LossyVariant(
    "edge",
    1,
    candidates=((16, 32, 64, 128, 160, 192, 256, 128), (16, 32, 64, 128, 192, 256, 256, 128)),
    residual=(scaled(128), scaled(144)),
    residual_multiplier=2,
)
TINY = LossyVariant(
    "tiny",
    5,
    candidates=((16, 32, 64, 64, 80, 128, 128, 64), (16, 32, 64, 80, 96, 144, 128, 64)),
    residual=(scaled(96),),
)
NANO = LossyVariant(
    "nano", 1, candidates=(), residual=((16, 16, 32, 40, 40, 40, 48),), residual_multiplier=5, residual_budget=40
)
"""A variant for the smallest devices: MLPerf Tiny's reference IC01 has 98,496 bytes, and its int8 file has fewer."""


@dataclass(frozen=True)
class Wanted:
    """What a user says of the nets that are searched.

    Attributes:
        residual: whether residual students are fine-tuned where a variant has such, instead of the net narrowed.
        max_bytes: an int8 file may be so large; of residual students the widest that fits is then tried, instead of
            those that the variant names. None for any size.
    """

    residual: bool = False
    max_bytes: int | None = None
