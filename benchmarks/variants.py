"""Accuracy over latency over size: every variant of a run, in one table and one picture with the frontier drawn.

    python benchmarks/variants.py RUN --bundle RUN/bundle --picture
    python benchmarks/variants.py RUN --bundle RUN/bundle --variant edge --variant int8-7bit --images 2000

RUN is the folder of a finished training run. Measured are the ONNX variants of the bundles that were exported of it,
and forms to compare them with, made for the occasion in a temporary folder, none of them trained for it:

    fp32          the net itself, where no bundle has it; every figure is held against it
    int8-7bit     static int8 of the whole net, weights in 7 bits: the same answers on every processor
    int8-8bit     likewise, weights in all 8 bits: on x86 without VNNI, sums of two products may saturate in 16 bits
    NAME-8bit     the bundle's int8 variant NAME with weights in 8 bits, where RUN still gives its float form
    fc1-R         fc1 alone at rank R, in fp32
    all-L         fc1, conv6, conv5 and conv4, each at the smallest rank that loses the share L of its outputs' variance

Accuracy is that of onnxruntime on this processor. What is int8 is measured a second time in a session without graph
optimizations, which computes quantizing and dequantizing in float: as the file defines it, free of what a processor's
integer instructions do. Latency is that of `Session`, which `Classifier` calls, in turns with all the others and with a
plain InferenceSession on the fp32 file, which the ratios are to.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import harness
import numpy as np
import onnx
import torch
from harness import Entry
from onnx import TensorProto, numpy_helper

from edgecifar.export import distill, edge, low_rank, narrow, to_onnx
from edgecifar.export.graph import Deployed
from edgecifar.export.parity import mcnemar
from edgecifar.runtime import Bundle
from edgecifar.runtime.contract import INPUT_NAME, METADATA_PREFIX, PROBABILITIES
from edgecifar.runtime.errors import BundleError, DataError, VariantError
from edgecifar.runtime.files import write_file
from edgecifar.runtime.machine import cpu_info
from edgecifar.runtime.metrics import Evaluation, evaluate
from edgecifar.runtime.session import Session, import_onnxruntime
from edgecifar.train import data as datasets
from edgecifar.train.run import Run

FULL, PLAIN = "fp32", "onnxruntime"
BATCHES = (1, 64)
"""Images a call: the first is what the frontier's latency is of, the second what throughput is of."""

RANKS = (16, 32, 64, 128, 256)
"""Of `fc1`, where it alone is split."""
LOSSES = (0.1, 0.05, 0.02, 0.01)
"""Shares of the variance of a layer's outputs that are lost where every layer is split that it is worth for."""

FEWEST = edge.CALIBRATION // 10
"""Held-out images that int8 is calibrated with at least."""

VNNI = ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
"""Features with which a processor adds products of bytes in 32 bits."""


@dataclass(frozen=True)
class Form:
    """An ONNX file to be measured, or the reason why there is none.

    Attributes:
        name: what it is called in the table.
        bundle: name of the bundle's folder; None where it was made here.
        precision: of its weights and arithmetic.
        made_by: how it was made, in a sentence.
        needs: what a processor needs to give these results.
        model: the file; empty where there is none.
        problem: why there is none.
    """

    name: str
    bundle: str | None
    precision: str
    made_by: str
    needs: str = "any"
    model: bytes = b""
    problem: str = ""


def of_bundles(bundles: Sequence[Bundle], run: Run) -> list[Form]:
    """Return the ONNX variants of bundles of `run`, a file that several have once; fp32 first.

    Raises:
        BundleError: a bundle was exported from another run, or a file in it is damaged.
        VariantError: a bundle has no ONNX variant, or two files would have the same name.
    """
    found: dict[str, tuple[Bundle, Any]] = {}
    for bundle in bundles:
        if bundle.manifest.provenance.get("checkpoint_sha256") != run.record["weights_sha256"]:
            raise BundleError(
                f"{bundle.folder} was not exported from {run.folder} as it is now (the checkpoints differ): name the "
                "run that it was exported from, or export it again."
            )
        onnx_variants = [variant for variant in bundle.manifest.variants if variant.format == "onnx"]
        if not onnx_variants:
            raise VariantError(f"{bundle.folder} has no ONNX variant to measure: export one with --format onnx.")
        for variant in onnx_variants:
            found.setdefault(variant.sha256, (bundle, variant))
    names = [variant.name for _, variant in found.values()]
    forms = [
        Form(
            name=variant.name if names.count(variant.name) == 1 else f"{bundle.folder.name}/{variant.name}",
            bundle=bundle.folder.name,
            precision=variant.precision,
            made_by=variant.made_by,
            needs=variant.needs,
            model=bundle.read(variant),
        )
        for bundle, variant in found.values()
    ]
    names = [form.name for form in forms]
    if twice := [name for name in names if names.count(name) > 1]:
        raise VariantError(f"Two different variants would be called {twice[0]}: name bundles whose folders differ.")
    return sorted(forms, key=lambda form: form.precision != FULL)


class Workshop:
    """Makes the forms that a run's variants are compared with.

    Args:
        run: with at least one complete epoch.
        dataset: the one that it was trained on.
        given: forms that there are already, of bundles.
        folder: where files may be written.
        say: called with a line about what takes long.

    Attributes:
        makers: by the name of each form, what makes it.
    """

    def __init__(
        self,
        run: Run,
        dataset: datasets.Dataset,
        given: Sequence[Form],
        folder: Path,
        say: Callable[[str], object] = harness.say,
    ) -> None:
        self.dataset, self.folder, self.say = dataset, folder, say
        record = run.record
        self.run = run
        self.model, self.paired = (
            Deployed(run.net(), record.get("temperature", 1.0), paired) for paired in (False, True)
        )
        self.provenance = {"checkpoint_sha256": record["weights_sha256"], "dataset": record["dataset"]}
        self.trained_on, self.held_out = dataset.hold_out(record["recipe"].get("held_out", 0))
        self._given = next((form for form in given if form.precision == FULL), None)
        self.makers: dict[str, Callable[[], Form]] = {} if self._given else {FULL: lambda: self.full}
        for bits in (7, 8):
            self.makers[f"int8-{bits}bit"] = partial(self._whole, bits)
        for form in given:
            if form.precision == "int8" and form.needs == "any":
                self.makers[f"{form.name}-8bit"] = partial(self._in_eight_bits, form)
        for rank in RANKS:
            self.makers[f"fc1-{rank}"] = partial(self._fc1, rank)
        for lost in LOSSES:
            self.makers[f"all-{lost:g}"] = partial(self._all, lost)

    @functools.cached_property
    def full(self) -> Form:
        """The net itself in fp32."""
        return self._given or Form(FULL, None, "fp32", "the net itself", model=self._write(self.model, FULL))

    def check_held_out(self) -> None:
        """Make sure that int8 can be calibrated.

        Raises:
            DataError: too few images are held out.
        """
        if len(self.held_out) < FEWEST:
            raise DataError(
                f"{len(self.held_out)} held-out images are too few to calibrate int8 on ({FEWEST} at least): name a "
                "run whose recipe holds more out, or choose forms that are not int8, as with --variant "
                f"fc1-{RANKS[0]}."
            )

    @functools.cached_property
    def _few(self) -> np.ndarray:
        """Training images that directions and channels are judged by, uint8 [N, 32, 32, 3], as in the export."""
        return edge.judged(self.dataset, self.trained_on)

    @functools.cached_property
    def _principals(self) -> Mapping[str, low_rank.Principal]:
        self.say(f"Principal directions of {len(self._few):,} training images …")
        return low_rank.principal_outputs(self.paired, self._few)

    def _student(self, outputs: Mapping[str, int], epochs: int) -> Deployed | None:
        """Return the fine-tuned net whose layers have these outputs as the export made it; None if RUN lacks it."""
        if not all(outputs.get(layer) for layer in narrow.LAYERS):
            return None  # exported before fine-tuning meant narrowing
        widths = {layer: outputs[layer] // (2 if layer == "conv1" else 1) for layer in narrow.LAYERS}  # pairs of pixels
        record, net, cpu = self.run.record, self.run.net(), torch.device("cpu")
        tuner = distill.tuner_of(self.run.folder, record, net, self.dataset, epochs, cpu, self.say)
        held_out = self.dataset.train_images[self.held_out], self.dataset.train_labels[self.held_out]
        return edge.EdgeExporter(self.paired, self._few, *held_out, self.say, tuner).stored_student(widths)

    def _split(self, model: Deployed, lost: Mapping[str, float]) -> tuple[Deployed, str]:
        """Return the net with its layers split by the shares that each may lose, and the ranks in words."""
        reduced, ranks = model, []
        for name, share in lost.items():
            reduced, rank = low_rank.split(reduced, name, self._principals[name], share)
            ranks += [f"{name} {rank}"] if rank else []
        return reduced, ", ".join(ranks)

    def _lost(self, name: str, rank: int) -> float:
        """Return the share of the variance of a layer's outputs that is lost at `rank`."""
        variances = self._principals[name].variances
        return float((1 - variances.cumsum(0) / variances.sum())[rank - 1])

    def _fc1(self, rank: int) -> Form:
        return self._low_rank(f"fc1-{rank}", {"fc1": self._lost("fc1", rank)})

    def _all(self, lost: float) -> Form:
        return self._low_rank(f"all-{lost:g}", dict.fromkeys(low_rank.FACTORED, lost))

    def _low_rank(self, name: str, lost: Mapping[str, float]) -> Form:
        reduced, ranks = self._split(self.model, lost)
        made_by = f"low rank by principal outputs ({ranks}), not fine-tuned"
        if not ranks:
            return Form(name, None, "fp32", made_by, problem="no layer becomes smaller by being split at such ranks.")
        return Form(name, None, "fp32", made_by, model=self._write(reduced, name))

    def _whole(self, bits: int) -> Form:
        return self._int8(f"int8-{bits}bit", "the whole net", self.full.model, bits, edge.CALIBRATORS[0])

    def _in_eight_bits(self, form: Form) -> Form:
        """Return an int8 form with its weights in 8 bits: its float form is made again, and must be the same."""
        quantized = onnx.load_from_string(form.model)
        outputs = {
            tensor.name.removesuffix(".weight_quantized"): tensor.dims[0]
            for tensor in quantized.graph.initializer
            if tensor.name.endswith(".weight_quantized")
        }
        settings = {entry.key: entry.value for entry in quantized.metadata_props}
        tuning = json.loads(settings.get(METADATA_PREFIX + "provenance", "{}")).get("fine_tuning")
        name = f"{form.name}-8bit"
        if tuning:
            what = f"the fine-tuned net of {form.name}"
            reduced = self._student({**outputs, "fc1": outputs.get("fc1.1", 0)}, tuning["epochs"])
            if not reduced:
                problem = f"{self.run.folder} does not hold {what} as it is made on a processor like this."
                return Form(name, None, "int8", what, problem=problem)
        else:
            ranks = {layer: rank for layer in low_rank.FACTORED if (rank := outputs.get(f"{layer}.0"))}
            lost = {layer: self._lost(layer, rank) for layer, rank in ranks.items()}
            reduced, shown = self._split(self.paired, lost)
            what = f"the factors of {form.name} ({shown or 'none'})"
        source = self._write(reduced, name)
        if not same_weights(quantized, onnx.load_from_string(source)):
            problem = f"the run does not give the weights of {form.name} again."
            return Form(name, None, "int8", what, problem=problem)
        calibrator = next((name for name in edge.CALIBRATORS if name in form.made_by), edge.CALIBRATORS[0])
        return self._int8(name, what, source, 8, calibrator)

    def _int8(self, name: str, what: str, source: bytes, bits: int, calibrator: str) -> Form:
        """Return the int8 form of `source`, an fp32 file of `what`."""
        path, images = self.folder / "float.onnx", self.dataset.train_images[self.held_out][: edge.CALIBRATION]
        path.write_bytes(source)
        quantized = edge.quantize(path, images, calibrator, reduce_range=bits == 7)
        to_onnx.save(quantized, path, {**self.provenance, "variant": name})
        ranges = f"{calibrator} ranges of {len(images):,} held-out images"
        made_by = f"{what}, static int8 (QDQ, per channel, {bits}-bit weights, {ranges})"
        return Form(name, None, "int8", made_by, "any" if bits == 7 else "|".join(VNNI), path.read_bytes())

    def _write(self, model: Deployed, name: str) -> bytes:
        path = self.folder / "float.onnx"
        to_onnx.write(model, path, {**self.provenance, "variant": name})
        return path.read_bytes()


def same_weights(quantized: onnx.ModelProto, source: onnx.ModelProto) -> bool:
    """Return whether the int8 weights of a QDQ model are those of the float model `source`, to a step of each scale.

    Threads change the rounding of the principal directions, and with it now and then a weight by one step.
    """
    tensors = {tensor.name: tensor for model in (source, quantized) for tensor in model.graph.initializer}
    for name, tensor in tensors.items():
        weight = name.removesuffix("_quantized")
        if tensor.data_type != TensorProto.INT8 or weight == name:
            continue
        steps, scale = numpy_helper.to_array(tensor), numpy_helper.to_array(tensors[f"{weight}_scale"])
        if weight not in tensors or [*tensors[weight].dims] != [*tensor.dims]:
            return False
        scales = scale.reshape(-1, *[1] * (steps.ndim - 1))
        if (np.abs(numpy_helper.to_array(tensors[weight]) - steps * scales) > 1.5 * scales).any():
            return False
    return True


def bare(model: bytes, threads: int, fused: bool = True) -> Callable[[np.ndarray], np.ndarray]:
    """Return what onnxruntime makes of a file with its default options: uint8 [N, 32, 32, 3] to probabilities.

    Args:
        model: an ONNX file.
        threads: of a call.
        fused: whether the graph is optimised; if not, what is between quantizing and dequantizing is computed in float.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if not fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run([PROBABILITIES], {INPUT_NAME: images})[0]


def against(result: Evaluation, reference: Evaluation, labels: np.ndarray) -> dict[str, Any]:
    """Return the figures of a classifier of test images, and how it compares with the reference on the same ones."""
    right, right_before = result.predictions == labels, reference.predictions == labels
    return {
        "images": result.images,
        "correct": result.correct,
        "accuracy": result.accuracy,
        "points": 100 * (result.correct - reference.correct) / result.images,
        "agreement": float((result.predictions == reference.predictions).mean()),
        "p_value": mcnemar(right, right_before),
        "nll": result.nll,
        "ece": result.ece,
    }


def measure(
    forms: Sequence[Form],
    images: np.ndarray,
    labels: np.ndarray,
    threads: int,
    seconds: float,
    rounds: int,
    say: Callable[[str], object] = harness.say,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return a row a form, and the figures of plain onnxruntime on the first form's file by the batch size.

    Args:
        forms: the first is the exact one, which all are held against.
        images: uint8 [N, 32, 32, 3], test images.
        labels: integer [N].
        threads: of a call.
        seconds: of each form at each batch size.
        rounds: turns of each.
        say: called with a line about what takes long.
    """
    rows = [
        {
            "variant": form.name,
            "bundle": form.bundle,
            "precision": form.precision,
            "made_by": form.made_by,
            "needs": form.needs,
            "bytes": len(form.model) or None,
            "bytes_ratio": len(form.model) / len(forms[0].model) or None,
            "test": None,
            "test_as_defined": None,
            "latency": {},
            "frontier": False,
            "problem": form.problem or None,
        }
        for form in forms
    ]
    sessions: dict[str, Session] = {}
    reference: Evaluation | None = None
    for form, row in zip(forms, rows, strict=True):
        if form.problem:
            continue
        say(f"{form.name}: {len(images):,} images …")
        try:
            session = Session(form.model, "cpu", threads, form.name)
            result = evaluate(session.probabilities, images, labels)
            reference = reference or result
            row["test"] = against(result, reference, labels)
            if form.precision == "int8":
                defined = evaluate(bare(form.model, threads, fused=False), images, labels)
                row["test_as_defined"] = against(defined, reference, labels)
        except Exception as error:  # onnxruntime raises a dozen types that share no base of their own
            if reference is None:
                raise
            row["problem"] = harness.problem(error)
            continue
        sessions[form.name] = session
    classify = bare(forms[0].model, threads)
    baseline: dict[str, Any] = {}
    for batch in BATCHES:
        some = np.ascontiguousarray(np.resize(images, (batch, *images.shape[1:])))
        base = Entry({"variant": PLAIN}, partial(classify, some), batch)
        entries = {
            name: Entry({"variant": name}, partial(session.probabilities, some), batch, bases={PLAIN: base})
            for name, session in sessions.items()
        }
        say(f"Batch {batch}: {len(entries)} forms and plain onnxruntime in {rounds} rounds …")
        harness.alternate([base, *entries.values()], seconds, rounds)
        baseline[str(batch)] = _times(base)
        for row in rows:
            if row["variant"] in entries:
                row["latency"][str(batch)] = _times(entries[row["variant"]])
    measured = [row for row in rows if row["latency"]]
    for row, best in zip(measured, frontier([costs(row) for row in measured]), strict=True):
        row["frontier"] = best
    return rows, baseline


def _times(entry: Entry) -> dict[str, Any]:
    return {key: value for key, value in entry.row().items() if key not in ("variant", "problem")}


def costs(row: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return what should be small in a measured row: images misclassified, ms of one image, bytes."""
    wrong = row["test"]["images"] - row["test"]["correct"]
    return wrong, row["latency"][str(BATCHES[0])]["milliseconds"]["p50"], row["bytes"]


def frontier(points: Sequence[Sequence[float]]) -> list[bool]:
    """Return of each point, whose coordinates should all be small, whether no other one is better.

    Better is what is nowhere larger and somewhere smaller; of two equal points neither is.
    """

    def better(one: Sequence[float], other: Sequence[float]) -> bool:
        pairs = [*zip(one, other, strict=True)]
        return all(mine <= its for mine, its in pairs) and any(mine < its for mine, its in pairs)

    return [not any(better(other, point) for other in points) for point in points]


def table(rows: Sequence[Mapping[str, Any]], baseline: Mapping[str, Any]) -> str:
    """Return the rows as lines of text; what could not be measured says why, below."""
    one, many = (str(batch) for batch in BATCHES)
    header = ["variant", "bytes", "of fp32", "accuracy, %", "points", "p", "agrees, %", "ECE, %", "as defined, %"]
    header += [f"p50 ms, batch {one}", "faster", f"images/s, batch {many}", "more", "frontier"]
    lines = [header]
    for row in rows:
        if not row["latency"]:
            continue
        test, defined, single, batch = row["test"], row["test_as_defined"], row["latency"][one], row["latency"][many]
        lines.append(
            [
                row["variant"],
                f"{row['bytes']:,}",
                f"{row['bytes_ratio']:.4f}",
                f"{100 * test['accuracy']:.2f}",
                f"{test['points']:+.2f}",
                f"{test['p_value']:.2g}",
                f"{100 * test['agreement']:.2f}",
                f"{100 * test['ece']:.2f}",
                f"{100 * defined['accuracy']:.2f}" if defined else "",
                f"{single['milliseconds']['p50']:.3f}",
                f"{1 / single['ratios'][PLAIN]['median']:.2f}x",
                f"{batch['images_per_second']:,.0f}",
                f"{1 / batch['ratios'][PLAIN]['median']:.2f}x",
                "*" if row["frontier"] else "",
            ]
        )
    base = [PLAIN, *[""] * 8, f"{baseline[one]['milliseconds']['p50']:.3f}", "1.00x"]
    lines.append([*base, f"{baseline[many]['images_per_second']:,.0f}", "1.00x", ""])
    notes = [f"{row['variant']}: {row['problem']}" for row in rows if row["problem"]]
    return "\n".join([harness.aligned(lines, 1), *([""] if notes else []), *notes])


def draw(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw accuracy over latency at batch 1 into a PNG, areas in proportion to bytes, names beside the points.

    The line is the most that is had within a latency, whatever its size. Filled is what is on the frontier where size
    counts too, hollow what something else is better than.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [row for row in rows if row["latency"]]
    points = [(costs(row)[1], 100 * row["test"]["accuracy"]) for row in shown]
    figure = Figure(figsize=(9, 6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    best = sorted(
        point for point, is_best in zip(points, frontier([(ms, -y) for ms, y in points]), strict=True) if is_best
    )
    best.append((max(ms for ms, _ in points), best[-1][1]))  # nothing slower is better than the last
    axes.step(*zip(*best, strict=True), where="post", color="#999999", linewidth=1, zorder=1)
    largest = max(row["bytes"] for row in shown)
    areas = [1500 * row["bytes"] / largest for row in shown]  # in points, the square of the diameter
    for (x, y), area, row in zip(points, areas, shown, strict=True):
        colour = "#c44e52" if row["precision"] == "int8" else "#4c72b0"
        face = {"facecolor": colour} if row["frontier"] else {"facecolor": "none"}
        axes.scatter(x, y, s=area, edgecolor=colour, alpha=0.7, zorder=2, **face)
    axes.set_xscale("log")
    axes.margins(0.22, 0.1)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:.0e}"[0] in "25" else "")
    axes.grid(alpha=0.3)
    axes.set_xlabel("ms an image at batch 1, median (red: int8; area: bytes; filled: on the frontier)", fontsize=9)
    axes.set_ylabel("accuracy on the test images, %", fontsize=9)
    axes.set_title(title, fontsize=10)
    canvas.draw()  # from here on the places of all points are known
    names = [f"{row['variant']}, {row['bytes'] / 1e6:.3g} MB" for row in shown]
    _name(axes, [(*point, area**0.5 / 2, name) for point, area, name in zip(points, areas, names, strict=True)])
    write_file(path, lambda staged: figure.savefig(staged, format="png", dpi=110))


def _name(axes: Any, points: Sequence[tuple[float, float, float, str]]) -> None:
    """Write names beside points, given as x, y, radius, name, at the nearest place that no other and no point takes."""
    from matplotlib.transforms import Bbox

    taken = [Bbox.from_bounds(x - 3, y - 3, 6, 6) for x, y in axes.transData.transform([point[:2] for point in points])]
    for x, y, radius, name in points:
        for distance in radius + np.array((5, 13, 21, 33, 45)):
            for dx, dy, side in ((1, 0, "left"), (-1, 0, "right"), (0, 1, "center"), (0, -1, "center"), (1, 1, "left")):
                offset = (distance * dx, distance * dy)
                text = axes.annotate(
                    name, (x, y), offset, textcoords="offset points", fontsize=7, ha=side, va="center", zorder=3
                )
                box = text.get_window_extent()
                if not any(box.overlaps(other) for other in taken):
                    break
                text.remove()
            else:
                continue
            taken.append(box)
            break


def main() -> None:
    """Parse, make, measure, report."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--bundle", type=Path, action="append", default=[], help="exported of it; may be repeated")
    parser.add_argument("--variant", action="append", help="of a bundle, or made here; may be repeated; default: all")
    parser.add_argument("--data", help="where CIFAR-10 is; by default $EDGECIFAR_DATA")
    parser.add_argument("--images", type=int, default=10_000, help="the first N test images (default: all 10,000)")
    parser.add_argument("--threads", type=int, default=2, help="of a call (default: 2)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each form at each batch size")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each form")
    harness.add_picture(parser, __file__)
    given = parser.parse_args()
    if min(given.images, given.rounds, given.threads) < 1:
        parser.error("--images, --rounds and --threads must be at least 1")

    run = Run(given.run)
    run.net()  # its weights are there and those that run.json describes
    exported = of_bundles([Bundle.open(folder) for folder in given.bundle], run)
    trained_on = run.record["dataset"]
    dataset = datasets.load(datasets.SYNTHETIC if trained_on["name"] == datasets.SYNTHETIC else given.data)
    if dataset.digest != trained_on.get("sha256"):
        raise DataError(f"{run.folder} was trained on other data ({trained_on['name']}): name those with --data.")
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(run, dataset, exported, Path(folder))
        forms = choose(exported, workshop, given.variant)
    rows, baseline = measure(
        forms,
        dataset.test_images[: given.images],
        dataset.test_labels[: given.images],
        given.threads,
        given.seconds,
        given.rounds,
    )
    settings = {
        "run": run.folder.name,
        "bundles": [folder.name for folder in given.bundle],
        "dataset": dataset.name,
        "dataset_sha256": dataset.digest,
        "threads": given.threads,
        "seconds": given.seconds,
        "rounds": given.rounds,
        "batches": list(BATCHES),
        "vnni": not cpu_info()[1].isdisjoint(VNNI),
    }
    document = harness.document("variants", [], settings)
    print(f"{harness.header(document['machine'])}\n")
    threads = f"{given.threads} thread{'s' if given.threads > 1 else ''}"
    print(f"{rows[0]['test']['images']:,} {dataset.name} test images, {threads}\n")
    print(table(rows, baseline))
    if not settings["vnni"]:
        print("\nThis processor has no VNNI: sums of products of 8-bit weights may saturate here, unlike 'as defined'.")
    title = f"{dataset.name}: {document['machine']['cpu']}, {threads}"
    harness.finish({**document, PLAIN: baseline, "rows": rows}, given.picture, lambda path: draw(rows, path, title))


def choose(exported: Sequence[Form], workshop: Workshop, wanted: Sequence[str] | None) -> list[Form]:
    """Return the forms of the names `wanted`, by default all, those made here made now; the exact one always, first.

    Raises:
        VariantError: there is none of a name.
        DataError: an int8 form is to be made, and too few images are held out.
    """
    there = {form.name: form for form in exported}
    names = [*there, *(name for name in workshop.makers if name not in there)]
    if unknown := sorted({*(wanted or ())} - {*names}):
        raise VariantError(f"There is no variant called {unknown[0]} here: choose among {', '.join(names)}.")
    chosen = [name for name in names if name in (wanted or names)]
    if any(name not in there and name.endswith("bit") for name in chosen):
        workshop.check_held_out()
    forms = {workshop.full.name: workshop.full}
    for name in chosen:
        if name not in there and name != FULL:
            workshop.say(f"Making {name} …")
        forms.setdefault(name, there[name] if name in there else workshop.makers[name]())
    return [*forms.values()]


if __name__ == "__main__":
    harness.main(main)
