"""Where a model comes from: the run's settings and results, for the manifest, the card and the files' metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..runtime.errors import BundleError
from ..train.record import RunRecord

OPTIONAL = ("selection_run", "distillation", "begun_from", "resumed")
"""Not every model has these."""


@dataclass(frozen=True)
class Provenance:
    """What made a model. All times are the run's, so that exporting a run again gives the same bytes.

    Attributes:
        edgecifar: version that trained the net; "" where the run does not say.
        recipe: every setting of the training, as `Recipe`'s fields.
        seed: what all randomness derived from.
        epochs_done: complete epochs.
        temperature: what the logits are divided by before the softmax.
        dataset: name, sha256 over all images and labels, and the number of images trained on.
        training_images: the same number.
        checkpoint_sha256: digest of the run's weights.
        checkpoint_test_accuracy: the run's own, 0 to 1; None where training has not ended.
        started: when training began, ISO 8601.
        finished: when it ended; None where it has not.
        trained_with: hardware, device and versions of packages where training was begun.
        selection_run: of a full-data run, what it took from the run that decided on held-out images; None of others.
        distillation: of a net that learnt from other runs, from which and how; None of others.
        begun_from: of a net that began with another run's weights, which that was: their digest, recipe and data set,
            and whether the last layer was taken over; None of others.
        resumed: where training went on under other conditions, as `RunRecord.resumed_as_json` gives it; None where it
            did not.
    """

    edgecifar: str
    recipe: Mapping[str, Any]
    seed: int
    epochs_done: int
    temperature: float
    dataset: Mapping[str, Any]
    training_images: int
    checkpoint_sha256: str
    checkpoint_test_accuracy: float | None
    started: str
    finished: str | None
    trained_with: Mapping[str, str]
    selection_run: Mapping[str, Any] | None = None
    distillation: Mapping[str, Any] | None = None
    begun_from: Mapping[str, Any] | None = None
    resumed: Sequence[Mapping[str, Any]] | None = None

    @classmethod
    def of(cls, record: RunRecord) -> Provenance:
        """Return where a model that is made from a run comes from."""
        versions = record.machine["versions"]
        return cls(
            edgecifar=versions.get("edgecifar", ""),
            recipe=asdict(record.recipe),
            seed=record.seed,
            epochs_done=record.epochs_done,
            temperature=record.temperature,
            dataset=record.dataset.as_json(),
            training_images=record.dataset.trained_on,
            checkpoint_sha256=record.weights_sha256 or "",
            checkpoint_test_accuracy=record.test["accuracy"] if record.test else None,
            started=record.started,
            finished=record.finished,
            trained_with={
                "hardware": record.conditions.hardware,
                "device": record.conditions.device,
                **versions,
            },
            selection_run=asdict(record.selection_run) if record.selection_run else None,
            distillation=_without_folders(record.distillation) if record.distillation else None,
            begun_from={name: value for name, value in (record.begun_from or {}).items() if name != "folder"} or None,
            resumed=record.resumed_as_json() or None,
        )

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Provenance:
        """Read what `as_json` returned, as a manifest holds it, or earlier versions; what else is there is left out.

        Raises:
            BundleError: something is missing.
        """
        if "trial" in values:  # the name of the selection run until 0.1
            values = {"selection_run": values["trial"], **values}
        known = {field.name for field in fields(cls)}
        if missing := sorted(known - values.keys() - set(OPTIONAL)):
            raise BundleError(f"The manifest's provenance lacks {missing[0]}: export the run again.")
        return cls(**{name: value for name, value in values.items() if name in known})

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON values; what is `OPTIONAL` only where there is one."""
        return {name: value for name, value in asdict(self).items() if name not in OPTIONAL or value}

    @property
    def net(self) -> str:
        """The name of the net that was trained, of `train.nets.NETS`; before there were several it was not told."""
        return self.recipe.get("net", "net")

    @property
    def calibrated_on(self) -> str:
        """What the temperature was fitted on, in words; "" where none was fitted."""
        if not self.finished or self.temperature == 1:  # before training ends, and where there was nothing to fit it on
            return ""
        if self.selection_run:
            return "held-out images of the selection run, the same training without them"
        return "held-out images" if self.recipe["held_out"] else ""


def _without_folders(distillation: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record says of a distillation, without where the teachers are on the machine that trained."""
    teachers = [dict(teacher) for teacher in distillation["teachers"]]
    for teacher in teachers:
        teacher.pop("folder", None)
    return {**distillation, "teachers": teachers}
