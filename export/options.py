"""What an export is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..runtime.signing import Signer
from ..train.adapting import DEFAULT_BUDGET

FORMATS = ("onnx", "torchscript", "pt2")
"""Formats that a bundle can hold."""

VARIANTS = ("fp32", "fp16", "edge", "tiny", "nano")
"""Variants of the ONNX format, the most exact first."""

LOSSY = ("edge", "tiny", "nano")
"""Those that are smaller nets in int8."""

STUDENTS = ("narrowed", "residual")
"""What is fine-tuned: the net itself with fewer channels, or an untrained residual net, which is smaller."""


@dataclass(frozen=True)
class ExportOptions:
    """The settings of `build.export`.

    Attributes:
        formats: of `FORMATS`.
        variants: of `VARIANTS`; they apply to the ONNX format.
        budget: points of held-out accuracy, in per cent, that `edge` may lose; smaller variants multiply it.
        fine_tune: epochs for which a narrower net learns to be `edge`; smaller variants multiply them. The students are
            kept in the run. With 0 the lossy variants are the net itself at low rank.
        students: of `STUDENTS`; `nano` is always residual.
        max_bytes: the int8 file of the one lossy variant that is made may be so large; None for any size. Of residual
            students the widest that fits is made.
        teachers: finished runs that students learn from, instead of from the run's own net; a teacher's own students
            learn from it and from these.
        corrupted: share of the pictures that students learn from which is corrupted, 0 to 1; None for the run's.
        device: what fine-tunes, as `train.devices.choose_device` takes it.
        without_data: whether the run may be exported without the data set that it was trained on: parity is then proved
            on drawn pictures, accuracy stays unknown, and no lossy variant can be made.
        replace: whether a bundle that is there already may be replaced.
        signer: signs the bundle, the last thing before it appears; None leaves it unsigned.

    Raises:
        ValueError: a format or a variant is not known, none is named, a number is negative, or a size is given where
            not exactly one lossy variant is made.
    """

    formats: tuple[str, ...] = ("onnx",)
    variants: tuple[str, ...] = ("fp32",)
    budget: float = DEFAULT_BUDGET
    fine_tune: int = 0
    students: str = "narrowed"
    max_bytes: int | None = None
    teachers: tuple[Path, ...] = ()
    corrupted: float | None = None
    device: str = "auto"
    without_data: bool = False
    replace: bool = False
    signer: Signer | None = None

    def __post_init__(self) -> None:
        for kind, names, known in (("format", self.formats, FORMATS), ("variant", self.variants, VARIANTS)):
            if not names or not set(names) <= set(known):
                wrong = ", ".join(name for name in names if name not in known) or "none"
                raise ValueError(f"{wrong} is no {kind} of an export: choose of {', '.join(known)}")
        if self.students not in STUDENTS:
            raise ValueError(f"there are no {self.students} students: choose of {', '.join(STUDENTS)}")
        if not self.budget >= 0 or self.fine_tune < 0:
            raise ValueError("the budget and the epochs of fine-tuning are at least 0")
        if self.corrupted is not None and not 0 <= self.corrupted <= 1:
            raise ValueError("a share is 0 to 1")
        if self.max_bytes is not None and len({*self.wanted} & {*LOSSY}) != 1:
            raise ValueError(f"a size is for one variant of {', '.join(LOSSY)}: ask for one of them")

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the models to make, the most exact first: variants of ONNX, and formats of torch."""
        onnx = tuple(name for name in VARIANTS if "onnx" in self.formats and name in self.variants)
        return onnx + tuple(name for name in FORMATS[1:] if name in self.formats)
