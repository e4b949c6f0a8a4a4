"""Residual students: their deployed form is the trained one, int8 keeps to it, and they are searched like others."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from edgecifar.export import build
from edgecifar.export.compress import distill, lossy, search
from edgecifar.export.compress.quantize import quantize
from edgecifar.export.compress.sizes import expected_bytes
from edgecifar.export.compress.students import MIDDLE_WIDTHS, Residual, scaled
from edgecifar.export.familiarity import constants
from edgecifar.export.formats import onnx as onnx_format
from edgecifar.export.options import ExportOptions
from edgecifar.export.parity import Limits, Reference
from edgecifar.export.variants import Source, Target
from edgecifar.runtime import Bundle
from edgecifar.runtime.contract import Contract
from edgecifar.runtime.errors import ParityError, RunError
from edgecifar.runtime.session import Session
from edgecifar.train.answers import Teachers
from edgecifar.train.augment import normalise
from edgecifar.train.calibration import Sharpness
from edgecifar.train.inference import in_batches
from edgecifar.train.nets import NETS
from edgecifar.train.run import Run
from edgecifar.train.teacher import Teacher, prepare

WIDTHS = (8, 8, 8, 16, 8, 16, 16)
ROOT = Path(__file__).parents[2]
COMMITTED = sorted([*ROOT.glob("runtime/default_bundle/*.onnx"), *ROOT.glob("tests/fixtures/*/*.onnx")])
CONTRACT = Contract(("one", "two", "three"), 32)


class NarrowTeacher(Teacher):
    def __init__(self, classes: int, dropout: float = 0.0) -> None:
        super().__init__(classes, dropout, width=16)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def student(images):
    """A student of three classes whose batch norm has statistics, scales and shifts of its own."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        student = Residual(3, WIDTHS)
        for norm in student.norms:
            torch.nn.init.uniform_(norm.weight, -1.5, 1.5)
            torch.nn.init.normal_(norm.bias, std=0.5)
        student.train()
        for _ in range(20):
            student(normalise(torch.from_numpy(images)))
    return student.eval().requires_grad_(False)


class TestResidual:
    @pytest.mark.parametrize("widths", [(8,) * 6, (8,) * 8, (8, 8, 8, 16, 8, 8, 8)])
    def test_widths_that_cannot_be(self, widths):
        with pytest.raises(ValueError, match="7 widths of which the fourth and the sixth are equal"):
            Residual(10, widths)

    def test_the_trial_s_net_has_as_many_parameters(self):
        student = Residual(10, (16, 32, 64, 96, 96, 96, 128))  # which was not halved before the last convolution
        assert sum(parameter.numel() for parameter in student.parameters()) == 358_874

    def test_the_skip_is_there(self, student, images):
        x = normalise(torch.from_numpy(images))
        without = Residual(3, WIDTHS).eval()
        without.load_state_dict(student.state_dict())
        for norm in without.norms[5:6]:
            torch.nn.init.zeros_(norm.weight)
            torch.nn.init.zeros_(norm.bias)
        assert without(x).std(0).min() > 0.01  # what came before the two layers still passes

    @pytest.mark.parametrize("paired", [True, False])
    def test_deployed_it_gives_the_same(self, student, images, paired):
        probabilities, logits = student.deployed(1.7, paired)(torch.from_numpy(images))
        wanted = student(normalise(torch.from_numpy(images)))
        torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(probabilities, (wanted / 1.7).softmax(1), atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def written(student, tmp_path_factory):
    path = tmp_path_factory.mktemp("students") / "float.onnx"
    onnx_format.write(student.deployed(1.7), path, CONTRACT, {})
    return path


def int8_weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name: value for name, value in values.items() if value.dtype == np.int8 and value.ndim > 1}


class TestInt8:
    def test_it_is_near_its_torch_form(self, written, student, images, tmp_path):
        model = quantize(written, images, CONTRACT, "MinMax")
        logits = Session(model.SerializeToString(), contract=CONTRACT, provider="cpu").logits(images)
        wanted = student(normalise(torch.from_numpy(images))).numpy()
        assert np.abs(logits - wanted).max() < 0.1 * np.abs(wanted).max()
        assert (logits.argmax(1) == wanted.argmax(1)).mean() > 0.9

    def test_all_of_it_but_the_last_layer_is_int8(self, written, images, tmp_path):
        import onnxruntime

        model = quantize(written, images, CONTRACT, "MinMax")
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
        assert kinds.count("QLinearConv") == 7
        assert kinds.count("QLinearAdd") == 1
        assert "Conv" not in kinds
        assert "Add" not in kinds

    @pytest.mark.parametrize("reduce_range", [True, False])
    def test_no_weight_is_minus_128(self, written, images, reduce_range):
        """On Arm cores without dot products onnxruntime's kernels overflow there (its issue 31573)."""
        found = int8_weights(quantize(written, images, CONTRACT, "MinMax", reduce_range))
        assert len(found) == 7
        for name, weight in found.items():
            assert weight.min() >= (-64 if reduce_range else -127), name

    @pytest.mark.parametrize("path", COMMITTED, ids=lambda p: p.name)
    def test_nor_in_any_file_that_is_committed(self, path):
        for name, weight in int8_weights(onnx.load(path)).items():
            assert weight.min() > -128, name


class TestSharpness:
    """A student's logits may be multiplied by what depends on their two largest."""

    @pytest.fixture(scope="class")
    @classmethod
    def sharp(cls, student):
        model = student.deployed(1.7)
        model.sharpness = Sharpness((1.3, -0.2, 0.05), 6.0)
        return model

    @pytest.fixture(scope="class")
    @classmethod
    def file(cls, sharp, tmp_path_factory):
        path = tmp_path_factory.mktemp("sharp") / "float.onnx"
        onnx_format.write(sharp, path, CONTRACT, {})
        return path

    def test_the_file_has_it(self, sharp, student, images, file):
        plain = student.deployed(1.7)(torch.from_numpy(images))[1]
        probabilities, logits = sharp(torch.from_numpy(images))
        top = plain.topk(2).values
        gap = (top[:, :1] - top[:, 1:]).clamp(max=6.0)
        torch.testing.assert_close(logits, plain * (1.3 - 0.2 * gap + 0.05 * gap**2))
        torch.testing.assert_close(probabilities, (logits / 1.7).softmax(1))
        session = Session(file.read_bytes(), provider="cpu")
        np.testing.assert_allclose(session.logits(images), logits.numpy(), atol=1e-4, rtol=1e-4)

    def test_its_last_layer_is_found_and_stays_in_float(self, file, student, images):
        last = onnx_format.last_layer(onnx.load(file), CONTRACT)
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer}
        assert weights[last.input[1]].shape == tuple(student.head.weight.shape)
        quantized = quantize(file, images, CONTRACT, "MinMax")
        assert len(int8_weights(quantized)) == 7
        assert onnx_format.last_layer(quantized, CONTRACT).op_type == "Gemm"
        logits = Session(quantized.SerializeToString(), contract=CONTRACT, provider="cpu").logits(images)
        assert np.isfinite(logits).all()

    def test_its_nodes_are_counted(self, file, images, sharp):
        size = len(quantize(file, images, CONTRACT, "MinMax").SerializeToString())
        assert size < expected_bytes(sharp, CONTRACT, {}) - 4 * constants(2 * WIDTHS[-1])


class TestSearch:
    @pytest.fixture
    def searching(self, deployed, small, net, tmp_path, monkeypatch):
        tuned = []

        def tune(self, student, widths):
            tuned.append((type(student), tuple(widths.values()), self.recipe))
            return student.eval().requires_grad_(False)

        monkeypatch.setattr(distill.Distiller, "tune", tune)
        monkeypatch.setattr(search, "CALIBRATORS", ("MinMax",))
        images, labels = small.train_images[:100], small.train_labels[:100]
        recipe, device = distill.recipe(2), torch.device("cpu")
        distiller = distill.Distiller(tmp_path, "a digest", net, images, labels, recipe, 3, device)

        def make(residual: bool, max_bytes: int | None = None):
            arguments = small.contract, images, images, labels, distiller, lossy.Wanted(residual, max_bytes)
            return search.Search(deployed, *arguments), tuned

        return make

    def test_a_residual_student_is_trained_and_written(self, searching, tmp_path, small):
        found, tuned = searching(residual=True)
        wanted = lossy.LossyVariant("tiny", 5, candidates=((8,) * 8,), residual=(WIDTHS,), residual_multiplier=3)
        made = found.write(tmp_path / "model.onnx", wanted, 100.0, {})
        ((kind, widths, recipe),) = tuned
        assert kind is Residual
        assert widths == WIDTHS
        assert recipe.epochs == 3 * 2
        assert recipe.cutout == distill.STUDENT_CUTOUT
        assert (
            "residual net (7 3x3 convolutions: 8, 8, 8, 16, 8, 16, 16 channels), trained for 6 epochs" in made.made_by
        )
        exported = Session((tmp_path / "model.onnx").read_bytes(), provider="cpu").logits(small.test_images)
        with torch.inference_mode():
            own = in_batches(lambda some: made.torch_form(torch.from_numpy(some))[1].numpy(), small.test_images)
        assert np.abs(exported - own).max() < 0.2 * np.abs(own).max()

    def test_the_same_student_each_time(self, searching):
        found, _ = searching(residual=True)
        first, second = (next(found._students(found.distiller, (WIDTHS,)))[0] for _ in range(2))
        assert torch.equal(first.head.weight, second.head.weight)

    def test_the_widest_that_fits_is_made(self, searching, tmp_path):
        allowed = expected_bytes(Residual(10, scaled(24)).deployed(), CONTRACT, {}) + 1_000
        found, tuned = searching(residual=True, max_bytes=allowed)
        found.write(tmp_path / "model.onnx", lossy.NANO, 100.0, {})
        ((_, widths, _),) = tuned
        assert widths == scaled(24)
        assert (tmp_path / "model.onnx").stat().st_size <= allowed

    @pytest.mark.parametrize("residual", [True, False])
    def test_none_fits(self, searching, tmp_path, residual):
        found, tuned = searching(residual, max_bytes=20_000)
        with pytest.raises(ParityError, match="fits into 20,000 bytes") as caught:
            found.write(tmp_path / "model.onnx", lossy.LossyVariant("tiny", 5, ((8,) * 8,), (WIDTHS,)), 100.0, {})
        assert caught.value.option == "max_bytes"
        assert not tuned  # nothing is trained in vain
        assert not (tmp_path / "model.onnx").exists()

    def test_narrowed_nets_that_do_not_fit_are_passed_over(self, searching, tmp_path):
        narrow, wide = (8,) * 8, (8, 8, 16, 16, 16, 16, 32, 16)
        found, tuned = searching(residual=False, max_bytes=40_000)
        found.write(tmp_path / "model.onnx", lossy.LossyVariant("tiny", 1, (wide, narrow)), 100.0, {})
        assert [trained for _, trained, _ in tuned] == [narrow]

    def test_none_keeps_the_budget(self, searching, tmp_path, monkeypatch):
        found, _ = searching(residual=True)

        def losing(self, model, shown):
            self._note(f"{shown}, as integers", self._full - 0.5, quantized=True)
            return onnx.ModelProto(), "MinMax", self._full - 0.5

        monkeypatch.setattr(search.Search, "_quantize", losing)
        with pytest.raises(ParityError, match="residual 8-8-8-16-8-16-16"):
            found.write(tmp_path / "model.onnx", lossy.LossyVariant("tiny", 5, (), (WIDTHS,)), 0.1, {})

    @pytest.mark.parametrize(
        ("variant", "residual", "wanted"),
        [
            (lossy.EDGE, False, False),
            (lossy.EDGE, True, True),
            (lossy.TINY, True, True),
            (lossy.NANO, False, True),
        ],
    )
    def test_nano_is_always_residual_and_others_where_asked_for(self, searching, variant, residual, wanted):
        assert searching(residual)[0].is_residual(variant) is wanted

    @pytest.mark.parametrize("variant", [lossy.EDGE, lossy.TINY, lossy.NANO], ids=lambda v: v.name)
    def test_candidates_can_be_made(self, variant):
        for widths in variant.residual:
            Residual(10, widths)


@pytest.mark.parametrize("variant", [lossy.EDGE, lossy.TINY, lossy.NANO], ids=lambda variant: variant.name)
def test_what_is_kept_in_git_is_what_the_documentation_s_command_takes(variant):
    """That is `export benchmarks/runs/teacher --fine-tune 20 --corrupted 0.5` with the variants."""
    run, labels = Run(ROOT / "benchmarks" / "runs" / "teacher"), np.zeros(45_000, np.int64)
    recipe, teachers = replace(distill.recipe(20), corrupted=0.5), Teachers((run,))
    made = distill.Distiller(ROOT, "a run's", None, labels, labels, recipe, 0, torch.device("cpu"), teachers)
    student = Residual.untrained(10, variant.residual[0], seed=0)
    assert made.from_nothing(variant.residual_multiplier).holds(student, student.widths)


@pytest.mark.parametrize(("given", "wanted"), [(1_999, 1_000), (1_400, 825), (10, 10), (5, 9), (7, 0)])
def test_images_are_spread_over_all(given, wanted):
    found = search.spread_over(np.arange(given), wanted)
    assert len(found) == len(set(found.tolist())) == min(given, wanted)
    if wanted > 1:
        assert (found[0], found[-1]) == (0, given - 1)
        assert np.ptp(np.diff(found)) <= 1


class TestSizes:
    @pytest.mark.parametrize("variant", [lossy.EDGE, lossy.TINY, lossy.NANO], ids=lambda variant: variant.name)
    def test_what_ships_is_no_larger_than_expected(self, variant):
        """With all that a real file holds: a temperature for each picture, a familiarity, what taught it."""
        bundle = Bundle.open()
        shipped = bundle.variant(variant.name)
        metadata = Session(bundle.read(shipped), provider="cpu").metadata()["provenance"]
        expected = expected_bytes(Residual(10, variant.residual[0]).deployed(), bundle.contract, metadata)
        assert expected - 3_500 < shipped.bytes < expected

    @pytest.mark.parametrize(("middle", "counts"), [(16, 0), (40, 2_000), (96, 10)])
    def test_a_file_is_a_little_smaller_than_expected(self, images, tmp_path, middle, counts):
        """Both before what an export adds: the familiarity."""
        provenance = {"dataset": {f"class {number}": 100 for number in range(counts)}}
        student = Residual(3, scaled(middle)).eval()
        for norm in student.norms:
            torch.nn.init.normal_(norm.bias)
        model, path = student.deployed(), tmp_path / "model.onnx"
        onnx_format.write(model, path, CONTRACT, {})
        onnx_format.save(quantize(path, images, CONTRACT, "MinMax"), path, CONTRACT, provenance)
        expected = expected_bytes(model, CONTRACT, provenance) - 4 * constants(model.head.in_features)
        assert expected - 3_500 < path.stat().st_size < expected

    def test_scaled_widths_grow(self):
        assert scaled(96) == (16, 32, 64, 96, 96, 96, 192)
        for narrow, wide in itertools.pairwise(MIDDLE_WIDTHS):
            Residual(10, scaled(wide))
            assert all(a <= b for a, b in zip(scaled(narrow), scaled(wide), strict=True))

    def test_a_file_that_became_too_large_fails(self, bundle, small, eager):
        path, size = bundle.folder / "model.edge.onnx", (bundle.folder / "model.edge.onnx").stat().st_size
        reference = Reference(small.test_images, "synthetic test", eager, small.test_labels, 1.7)
        for allowed, passes in ((size, True), (size - 1, False)):
            target = Target("edge", "onnx", "int8", Limits(200), lambda path: search.Made(""), allowed)
            result = build._check(path, target, reference, search.Made(""))
            assert result.passed is passes
            assert passes or f"{size:,} bytes" in result.failure


class TestExport:
    def test_nano_must_learn(self, run, small, tmp_path):
        with pytest.raises(RunError, match="nano must be trained") as caught:
            build.export(run, tmp_path / "bundle", small, ExportOptions(variants=("nano",)))
        assert caught.value.option == "fine_tune"
        assert not (tmp_path / "bundle").exists()

    def test_a_teacher_that_has_seen_the_held_out_images_is_refused(self, run, linked, small, tmp_path):
        record = run.record.as_json()
        other = linked(recipe={**record["recipe"], "held_out": 0.1})
        options = ExportOptions(variants=("tiny",), fine_tune=1, teachers=(other.folder,))
        with pytest.raises(RunError, match="has seen images"):
            build.export(run, tmp_path / "bundle", small, options)

    def test_what_is_not_its_torch_form_any_more_fails(self, bundle, small, eager):
        target = Target("edge", "onnx", "int8", Limits(200), lambda path: search.Made(""))
        path = bundle.folder / "model.edge.onnx"

        shifted = np.roll(eager.argmax(1), 1)
        reference = Reference(small.test_images, "synthetic test", eager, shifted, 1.7)
        right = torch.nn.functional.one_hot(torch.from_numpy(shifted), 10).float()

        class Better(torch.nn.Module):
            """It has every image right, so that the model has lost much to it."""

            def forward(self, images):
                logits = right[: len(images)]
                return logits, logits

        assert build._check(path, target, reference, search.Made("")).passed
        result = build._check(path, target, reference, search.Made("", torch_form=Better()))
        assert "not its torch form any more" in result.failure
        assert result.torch_form["accuracy"] == 1.0

    @pytest.mark.slow
    def test_a_student_goes_the_whole_way(self, run, small, tmp_path, linked):
        own = linked()
        options = ExportOptions(variants=("nano",), budget=20, fine_tune=1, teachers=(run.folder,))
        bundle, results = build.export(own, tmp_path / "bundle", small, options)
        variant = bundle.variant("nano")
        assert variant.bytes < 98_496  # MLPerf Tiny's IC01
        assert "trained for 5 epochs on labels and the logits of a run by fast (weights " in variant.made_by
        assert set(results["nano"].torch_form) == {"agree", "accuracy", "max_probability_difference"}
        metadata = Session(bundle.read(variant), provider="cpu").metadata()["provenance"]
        expected = expected_bytes(Residual(10, lossy.NANO.residual[0]).deployed(), bundle.contract, metadata)
        assert expected - 3_500 < variant.bytes < expected
        (teacher,) = metadata["fine_tuning"]["teachers"]
        assert teacher["weights_sha256"] == run.record.weights_sha256
        assert "folder" not in teacher


class TestTeachersOwn:
    """A teacher's own run is exported: its students alone, held against it."""

    @pytest.fixture(scope="class")
    @classmethod
    def teacher(cls, record, small, tmp_path_factory):
        """A finished run of a teacher, whose last layer alone is fitted."""
        run = Run(tmp_path_factory.mktemp("taught"))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(3)
            net = NarrowTeacher(10)
            prepare(net, small.train_images)
            hidden = net.train().features(normalise(torch.from_numpy(small.train_images)))
            targets = torch.nn.functional.one_hot(torch.from_numpy(small.train_labels), 10).float()
            hidden = net.eval().features(normalise(torch.from_numpy(small.train_images)))
            net.head.weight.copy_(torch.linalg.lstsq(hidden, 90 * (targets - 0.1)).solution.T)
        run.finish(net, replace(record, recipe=replace(record.recipe, name="teacher", net="narrow-teacher")), [])
        return run

    @pytest.fixture(autouse=True)
    def small_teacher(self, monkeypatch):
        monkeypatch.setitem(NETS, "narrow-teacher", NarrowTeacher)

    def test_its_students_learn_from_it(self, teacher, small, tmp_path):
        source = Source(teacher, small, ExportOptions(variants=("edge", "nano"), fine_tune=2, corrupted=0.25))
        for variant in (lossy.EDGE, lossy.NANO):
            assert source.search.is_residual(variant)
            distiller = source.search.distiller_for(variant)
            assert distiller.teachers.runs == (teacher,)
            assert distiller.folder == teacher.folder
            assert distiller.recipe.corrupted == 0.25
            assert distiller.recipe.epochs == 2 * variant.residual_multiplier

    def test_others_may_teach_with_it_and_it_counts_once(self, teacher, run, small):
        options = ExportOptions(variants=("nano",), fine_tune=2, teachers=(teacher.folder, run.folder))
        runs = Source(teacher, small, options).search.distiller_for(lossy.NANO).teachers.runs
        assert [each.folder for each in runs] == [teacher.folder, run.folder]

    def test_the_net_itself_is_not_exported(self, teacher, small, tmp_path):
        with pytest.raises(RunError, match="--fine-tune"):
            build.export(teacher, tmp_path / "new", small)
        with pytest.raises(RunError, match="must be trained"):
            build.export(teacher, tmp_path / "new", small, ExportOptions(variants=("edge",)))
        assert not (tmp_path / "new").exists()

    @pytest.mark.slow
    def test_the_whole_way(self, teacher, small, tmp_path):
        options = ExportOptions(variants=("nano",), budget=20, fine_tune=1, corrupted=0.5)
        bundle, results = build.export(teacher, tmp_path / "bundle", small, options)
        assert bundle.manifest.provenance["recipe"]["net"] == "narrow-teacher"
        assert results["nano"].passed
        card = (bundle.folder / "README.md").read_text()
        assert "The teacher" in card
        assert "50 % of the pictures corrupted" in card
        assert all(check.passed for check in bundle.verify())


class TestCommandLine:
    def test_how_is_asked_only_where_something_is_fine_tuned(self, edgecifar, run, tmp_path):
        result = edgecifar("export", run.folder, "--variant", "tiny", "--students", "residual", "--out", tmp_path / "b")
        assert result.exit_code == 2
        assert "--fine-tune" in result.stderr

    @pytest.mark.parametrize("variants", [("fp32",), ("edge", "tiny"), ("all",)])
    def test_a_size_is_for_one_small_variant(self, edgecifar, run, tmp_path, variants):
        options = [text for variant in variants for text in ("--variant", variant)]
        result = edgecifar("export", run.folder, *options, "--max-bytes", 500_000, "--out", tmp_path / "b")
        assert result.exit_code == 2
        assert "--max-bytes" in result.stderr

    @pytest.mark.parametrize(
        ("options", "wanted"),
        [
            (["--variant", "all"], ("fp32", "fp16", "edge", "tiny")),
            (["--variant", "all", "--fine-tune", "2"], ("fp32", "fp16", "edge", "tiny")),
            (["--variant", "nano", "--variant", "all", "--fine-tune", "2"], ("fp32", "fp16", "edge", "tiny", "nano")),
            (["--variant", "nano", "--fine-tune", "2", "--students", "residual", "--teacher", "t"], ("nano",)),
        ],
    )
    def test_what_is_asked_for_arrives(self, edgecifar, run, tmp_path, monkeypatch, options, wanted):
        asked = []

        def stop(run, out, dataset, options):
            asked.append(options)
            raise RunError("enough.")

        monkeypatch.setattr(build, "export", stop)
        edgecifar("export", run.folder, *options, "--data", "synthetic", "--out", tmp_path / "bundle")
        assert asked[0].wanted == wanted
        assert asked[0].teachers == ((Path("t"),) if "--teacher" in options else ())
        assert asked[0].students == ("residual" if "--students" in options else "narrowed")
