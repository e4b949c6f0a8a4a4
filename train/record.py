"""What run.json says of a run, parsed once: every setting, where it was trained, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from ..runtime.contract import CIFAR10, Contract
from .recipes import Recipe

RUNNING, FINISHED = "running", "finished"

Value = TypeVar("Value")


class RecordError(ValueError):
    """run.json lacks something, or says something that cannot be; the message names the key."""


@dataclass(frozen=True)
class DatasetRecord:
    """The data set that a run was trained on.

    Attributes:
        name: "CIFAR-10", "synthetic", or the name of a folder or CSV.
        sha256: digest over all its images and labels.
        trained_on: the number of images that were trained on, the held-out ones not among them.
        origin: of a folder or CSV, how it was read and split, as `folders.describe` returns it; else empty.
    """

    name: str
    sha256: str
    trained_on: int
    origin: Mapping[str, Any] = field(default_factory=dict)

    def is_other_than(self, given: str) -> str:
        """Return what is wrong with a data set called `given` whose digest is another, and what to do: "was ..."."""
        if self.name != given:
            return f"was trained on other data ({self.name}): name those."
        return (
            f"was trained on {given} as it was then, and pictures were added, removed or changed since, or are split "
            "otherwise: restore them, or train again."
        )

    def as_json(self) -> dict[str, Any]:
        """Return the record as JSON values; an origin only where there is one."""
        values = {"name": self.name, "sha256": self.sha256, "trained_on": self.trained_on}
        return values | ({"origin": dict(self.origin)} if self.origin else {})


@dataclass(frozen=True)
class Conditions:
    """Where a run was trained: this decides its weights to the last bit, beside the recipe and seed.

    Attributes:
        device: torch's name for it, such as "cpu" or "cuda:0".
        hardware: the name of the processor or the GPU.
        precision: "float32", "bfloat16", or "tf32": float32 whose products cuDNN rounds to 10 bits.
        processes: how many trained together.
        threads: torch's, of each process.
        torch: its version.

    The last four are None where an older run does not say.
    """

    device: str
    hardware: str
    precision: str | None = None
    processes: int | None = None
    threads: int | None = None
    torch: str | None = None


@dataclass(frozen=True)
class SelectionRun:
    """The run that a full-data run follows: it held images out, and everything was decided on those.

    Attributes:
        weights_sha256: digest of its weights.
        data_sha256: digest of its data set.
        held_out: the share of the training images that it held out.
        seed: its seed, which the full-data run takes over.
        temperature: the temperature fitted on its held-out images; likewise.
    """

    weights_sha256: str
    data_sha256: str
    held_out: float
    seed: int
    temperature: float


@dataclass(frozen=True)
class RunRecord:
    """The contents of run.json.

    Attributes:
        recipe: how the net is trained.
        contract: the labels and the input of the net.
        seed: the number that all randomness derives from.
        conditions: where the run was begun.
        machine: what `runtime.machine.describe` said there, with the versions of packages.
        dataset: the data that it is trained on.
        started: when it was begun, ISO 8601.
        status: "running" or "finished".
        epochs_done: complete epochs.
        training_seconds: seconds spent in them, evaluation not included.
        weights_sha256: digest of weights.safetensors; None before the first epoch is complete.
        finished: when it was finished, ISO 8601; None before.
        temperature: the logits are divided by it before the softmax; 1 before the run is finished.
        test: figures on the test images, as `Evaluation.as_json` gives them; None before.
        selection_run: the run that this full-data run follows; None of others.
        distillation: of a net that learns from teachers, which and how, as `answers.Views.describe` gives it; None of
            others.
        begun_from: of a run that began with another's weights, which that is, as `initial.describe` gives it; None of
            others.
        resumed: where it went on under other conditions, each with the number of epochs before it.
        unknown_settings: settings of the recipe that this version does not know.
    """

    recipe: Recipe
    contract: Contract
    seed: int
    conditions: Conditions
    machine: Mapping[str, Any]
    dataset: DatasetRecord
    started: str
    status: str = RUNNING
    epochs_done: int = 0
    training_seconds: float = 0.0
    weights_sha256: str | None = None
    finished: str | None = None
    temperature: float = 1.0
    test: Mapping[str, Any] | None = None
    selection_run: SelectionRun | None = None
    distillation: Mapping[str, Any] | None = None
    begun_from: Mapping[str, Any] | None = None
    resumed: tuple[tuple[int, Conditions], ...] = ()
    unknown_settings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def is_finished(self) -> bool:
        """Whether training has come to its end."""
        return self.status == FINISHED

    @property
    def latest_conditions(self) -> Conditions:
        """Where the run was trained last."""
        return self.resumed[-1][1] if self.resumed else self.conditions

    def differs(self, given: str, digest: str, labels: Sequence[str]) -> str:
        """Return why a data set is not the run's, and what to do: "was ..."; "" where it is.

        Args:
            given: the data set's name.
            digest: over its images and labels, which are numbers there: renamed classes may leave it as it was.
            labels: its classes.
        """
        if self.dataset.sha256 != digest:
            return self.dataset.is_other_than(given)
        renamed = [f"{old}, now {new}" for old, new in zip(self.contract.labels, labels, strict=False) if old != new]
        if renamed:
            return f"was trained when classes were called otherwise ({renamed[0]}): rename them back, or train again."
        return ""

    def as_json(self) -> dict[str, Any]:
        """Return the record as JSON values; what is not known yet is left out."""
        values = {
            "recipe": asdict(self.recipe),
            "contract": self.contract.as_json(),
            "seed": self.seed,
            **asdict(self.conditions),
            "machine": dict(self.machine),
            "dataset": self.dataset.as_json(),
            "started": self.started,
            "status": self.status,
            "selection_run": asdict(self.selection_run) if self.selection_run else None,
            "distillation": dict(self.distillation) if self.distillation else None,
            "begun_from": dict(self.begun_from) if self.begun_from else None,
        }
        if self.weights_sha256 is not None:
            values |= {"epochs_done": self.epochs_done, "training_seconds": self.training_seconds}
            values |= {"weights_sha256": self.weights_sha256}
        if self.is_finished:
            values |= {"finished": self.finished, "temperature": self.temperature, "test": self.test}
        values["resumed"] = self.resumed_as_json() or None
        return _known(values)

    def resumed_as_json(self) -> list[dict[str, Any]]:
        """Return where the run went on under other conditions as JSON values; what is not known is left out."""
        return [_known({"after_epochs": epochs, **asdict(where)}) for epochs, where in self.resumed]

    @classmethod
    def parse(cls, values: Any) -> RunRecord:
        """Read what `as_json` returned, and what earlier versions wrote.

        Raises:
            RecordError: a key is missing or of another type, or a value cannot be.
        """
        recipe = _get(values, "recipe", dict)
        for name, kind in (("name", str), ("epochs", int), ("batch_size", int), ("held_out", float)):
            _get(values, f"recipe.{name}", kind)
        settings, unknown = Recipe.known(recipe)
        dataset = DatasetRecord(
            name=_get(values, "dataset.name", str),
            sha256=_get(values, "dataset.sha256", str),
            trained_on=_get(values, "dataset.trained_on", int),
            origin=_get(values, "dataset.origin", dict, {}),
        )
        _get(values, "machine.cpu_features", list)
        _get(values, "machine.versions", dict)
        status = _get(values, "status", str)
        trained = status == FINISHED or "epochs_done" in values or "weights_sha256" in values
        selection = "selection_run" if "selection_run" in values else "trial"  # the name in earlier versions
        try:
            return cls(
                recipe=Recipe(**settings),
                # Nets were CIFAR-10's before runs recorded a contract.
                contract=Contract.parse(values["contract"]) if "contract" in values else CIFAR10,
                seed=_get(values, "seed", int),
                conditions=_conditions(values, torch=_get(values, "machine.versions.torch", str, None)),
                machine=_get(values, "machine", dict),
                dataset=dataset,
                started=_get(values, "started", str),
                status=status,
                epochs_done=_get(values, "epochs_done", int) if trained else 0,
                training_seconds=_get(values, "training_seconds", float, 0.0),
                weights_sha256=_get(values, "weights_sha256", str) if trained else None,
                finished=_get(values, "finished", str, None),
                temperature=_get(values, "temperature", float) if status == FINISHED else 1.0,
                test=_get(values, "test", dict) if status == FINISHED else None,
                selection_run=_selection_run(values, selection) if selection in values else None,
                distillation=_get(values, "distillation", dict, None),
                begun_from=_get(values, "begun_from", dict, None),
                resumed=tuple(
                    (_get(entry, "after_epochs", int), _conditions(entry))
                    for entry in _get(values, "resumed", list, [])
                ),
                unknown_settings=unknown,
            )
        except RecordError:
            raise
        except (TypeError, ValueError) as error:
            raise RecordError(str(error)) from None


def validation_accuracy(line: Mapping[str, Any]) -> tuple[str, float] | None:
    """Return the images that an epoch was validated on, "held-out" or "test", and the accuracy on them, 0 to 1.

    Args:
        line: of metrics.jsonl.


    Returns:
        None of a full-data run: it sees the test images once, at its end.
    """
    for name in ("held_out", "test"):
        if f"{name}_accuracy" in line:
            return name.replace("_", "-"), line[f"{name}_accuracy"]
    return None


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _conditions(values: Any, torch: str | None = None) -> Conditions:
    return Conditions(
        device=_get(values, "device", str),
        hardware=_get(values, "hardware", str),
        precision=_get(values, "precision", str, None),
        processes=_get(values, "processes", int, None),
        threads=_get(values, "threads", int, None),
        torch=_get(values, "torch", str, torch),
    )


def _selection_run(values: Any, key: str) -> SelectionRun:
    return SelectionRun(
        weights_sha256=_get(values, f"{key}.weights_sha256", str),
        data_sha256=_get(values, f"{key}.data_sha256", str),
        held_out=_get(values, f"{key}.held_out", float),
        seed=_get(values, f"{key}.seed", int),
        temperature=_get(values, f"{key}.temperature", float),
    )


_REQUIRED: Any = object()


def _get(values: Any, name: str, kind: type[Value], default: Any = _REQUIRED) -> Any:
    """Return what `name`, such as "recipe.epochs", leads to in nested objects.

    Raises:
        RecordError: it is not there, and there is no default; or it is not of this kind. Numbers without a fraction are
            floats too.
    """
    found = values
    for key in name.split("."):
        if not isinstance(found, dict) or key not in found:
            if default is _REQUIRED:
                raise RecordError(f"it lacks {name}")
            return default
        found = found[key]
    kinds = (int, float) if kind is float else (kind,)
    if not isinstance(found, kinds) or (isinstance(found, bool) and kind is not bool):
        raise RecordError(f"{name} cannot be {found!r}"[:200])
    return found
