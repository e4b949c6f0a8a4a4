"""Distillation: it learns, is the same twice and after an interruption, and keeps what it computed."""

from __future__ import annotations

import copy
import functools
import hashlib
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgecifar.export import build, variants
from edgecifar.export.compress import distill, lossy, narrow, search
from edgecifar.export.compress.students import Residual
from edgecifar.export.graph import Deployed
from edgecifar.export.options import ExportOptions
from edgecifar.runtime.errors import OutputError, ParityError, RunError
from edgecifar.train import devices
from edgecifar.train.answers import ANSWERS, Teachers
from edgecifar.train.calibration import fit_temperature
from edgecifar.train.inference import logits_with
from edgecifar.train.net import LAYERS
from edgecifar.train.run import Run

WIDTHS = dict(zip(LAYERS, (8, 8, 16, 16, 16, 16, 32, 16), strict=True))
IMAGES = 96
RECIPE = replace(distill.recipe(2), batch_size=32)
ONE = replace(RECIPE, epochs=1)
CANDIDATES = ((8, 8, 16, 16, 16, 16, 32, 16), (8, 16, 16, 16, 16, 16, 32, 16))


@pytest.fixture(scope="module")
def start(net, small):
    """A net so narrow that it has lost nearly everything."""
    return narrow.narrowed(net, WIDTHS, narrow.importance(net, small.train_images))


@pytest.fixture
def distiller(net, small, tmp_path):
    def make(**changes) -> distill.Distiller:
        given = {
            "folder": tmp_path,
            "origin": "a digest",
            "teacher": net,
            "images": small.train_images[:IMAGES],
            "labels": small.train_labels[:IMAGES],
            "recipe": RECIPE,
            "seed": 3,
            "device": torch.device("cpu"),
        }
        return distill.Distiller(**{**given, **changes})

    return make


@pytest.fixture(scope="module")
def tuned(net, start, small, tmp_path_factory):
    """What two epochs make of it, without an interruption."""
    folder = tmp_path_factory.mktemp("tuned")
    images, labels = small.train_images[:IMAGES], small.train_labels[:IMAGES]
    made = distill.Distiller(folder, "a digest", net, images, labels, RECIPE, 3, torch.device("cpu"))
    return made.tune(copy.deepcopy(start), WIDTHS)


def student_in(folder: Path) -> Path:
    """The only file of a student in a run's folder."""
    (path,) = (folder / distill.FOLDER).iterdir()
    return path


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def epochs_of(lines: list[str]) -> list[str]:
    """The lines that say that an epoch was trained."""
    return [line.split(":")[0].strip() for line in lines if ", epoch" in line]


class TestDistiller:
    def test_it_learns(self, distiller, start, lines):
        made = distiller(recipe=replace(distill.recipe(8), batch_size=16, translate=0))
        made.tune(copy.deepcopy(start), WIDTHS)
        losses = [float(line.split("loss ")[1].split(",")[0]) for line in lines() if ", epoch" in line]
        assert len(losses) == 8
        assert losses[-1] < 0.9 * losses[0], losses

    def test_the_same_twice(self, distiller, start, tuned):
        assert same(distiller().tune(copy.deepcopy(start), WIDTHS), tuned)

    def test_another_seed_gives_others(self, distiller, start, tuned):
        assert not same(distiller(seed=4).tune(copy.deepcopy(start), WIDTHS), tuned)

    def test_what_is_interrupted_goes_on(self, distiller, start, tuned, monkeypatch, lines):
        made, whole = distiller(), distill.Distiller._train_epoch

        def stop(self, student, optimizers, epoch):
            if epoch:
                raise KeyboardInterrupt
            whole(self, student, optimizers, epoch)

        monkeypatch.setattr(distill.Distiller, "_train_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            made.tune(copy.deepcopy(start), WIDTHS)
        monkeypatch.setattr(distill.Distiller, "_train_epoch", whole)
        assert same(made.tune(copy.deepcopy(start), WIDTHS), tuned)
        assert epochs_of(lines()) == ["fine-tuning, epoch 1 of 2", "fine-tuning, epoch 2 of 2"]

    def test_what_is_finished_is_kept_beside_what_other_settings_gave(self, distiller, start, tuned, lines):
        made, shorter = distiller(), distiller(recipe=ONE)
        made.tune(copy.deepcopy(start), WIDTHS)
        shorter.tune(copy.deepcopy(start), WIDTHS)
        lines()
        assert same(made.tune(copy.deepcopy(start), WIDTHS), tuned)
        (line,) = lines()
        assert "fine-tuned before" in line

    @pytest.mark.parametrize(
        "changes",
        [{"origin": "another"}, {"seed": 9}, {"recipe": replace(ONE, lr=0.001)}],
        ids=lambda c: next(iter(c)),
    )
    def test_what_was_kept_for_another_is_not_taken(self, distiller, start, changes, lines):
        made = distiller(recipe=ONE)
        made.tune(copy.deepcopy(start), WIDTHS)
        lines()
        distiller(**{"recipe": ONE, **changes}).tune(copy.deepcopy(start), WIDTHS)
        assert len(epochs_of(lines())) == 1

    @pytest.mark.parametrize("name", ["DISTILLATION_TEMPERATURE", "DISTILLATION_WEIGHT", "VIEWS", "VIEW_BATCH_SIZE"])
    def test_nor_what_was_kept_under_other_constants(self, distiller, start, name, monkeypatch):
        made = distiller(recipe=ONE)
        made.tune(copy.deepcopy(start), WIDTHS)
        assert made.holds(start, WIDTHS)
        monkeypatch.setattr(distill, name, getattr(distill, name) / 2)
        assert not made.holds(start, WIDTHS)

    def test_nor_that_of_a_net_arranged_otherwise(self, distiller, monkeypatch):
        made, student = distiller(recipe=ONE), Residual.untrained(10, (8,) * 7, 0)
        made.tune(student, student.widths)
        assert made.holds(student, student.widths)
        monkeypatch.setattr(Residual, "arrangement", (2, (2, 3), (5, 6)))
        assert not made.holds(student, student.widths)

    def test_it_holds_what_is_finished(self, distiller, start, tmp_path):
        made = distiller()
        assert not made.holds(start, WIDTHS)
        assert not any(tmp_path.iterdir())
        made.tune(copy.deepcopy(start), WIDTHS)
        assert made.holds(start, WIDTHS)
        path = student_in(tmp_path)
        path.unlink()
        path.mkdir()  # whatever it is, it is not a student
        assert not made.holds(start, WIDTHS)

    def test_what_is_finished_is_taken_wherever_it_was_made(self, distiller, start, monkeypatch):
        monkeypatch.setattr(devices, "_cpu_has_bfloat16", lambda: True)
        distiller(recipe=ONE).tune(copy.deepcopy(start), WIDTHS)
        monkeypatch.setattr(devices, "_cpu_has_bfloat16", lambda: False)
        assert distiller(recipe=ONE).holds(start, WIDTHS)

    def test_from_nothing_under_other_teachers_it_is_kept_with_them_for_all_runs(self, distiller, run, small, tmp_path):
        kept = run.folder / distill.FOLDER
        for name in ("one", "other"):
            student = Residual.untrained(10, (8,) * 7, 0)
            made = distiller(folder=tmp_path / name, origin=name, recipe=ONE, teachers=Teachers((run,)))
            made = made.from_nothing(1)
            assert made.holds(student, student.widths) is (name == "other")
            made.tune(student, student.widths)
        assert list(kept.glob("8-8-8-8-8-8-8-*.state"))
        assert not (tmp_path / "one").exists()
        shutil.rmtree(kept)
        shutil.rmtree(run.folder / ANSWERS)

    def test_memory_that_runs_out(self, distiller, start, monkeypatch):
        def hungry(self, *_):
            raise torch.OutOfMemoryError("CUDA out of memory.")

        monkeypatch.setattr(distill.Distiller, "_train_epoch", hungry)
        with pytest.raises(RunError, match="Memory ran out: fine-tune on the CPU"):
            distiller().tune(copy.deepcopy(start), WIDTHS)

    @pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
    def test_a_damaged_file_is_computed_anew(self, distiller, start, tmp_path, damage, lines):
        made = distiller(recipe=ONE)
        whole = made.tune(copy.deepcopy(start), WIDTHS)
        path = student_in(tmp_path)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes({"cut": content[:5_000], "flipped": content, "empty": b""}[damage])
        lines()
        assert same(made.tune(copy.deepcopy(start), WIDTHS), whole)
        assert len(epochs_of(lines())) == 1

    def test_a_pickle_is_never_run(self, distiller, start, tmp_path, lines):
        class Evil:
            def __reduce__(self):
                return (tmp_path / "ran").touch, ()

        made = distiller(recipe=ONE)
        made.tune(copy.deepcopy(start), WIDTHS)
        path = student_in(tmp_path)
        content = pickle.dumps(Evil())
        path.write_bytes(hashlib.sha256(content).digest() + content)
        lines()
        made.tune(copy.deepcopy(start), WIDTHS)
        assert not (tmp_path / "ran").exists()
        assert len(epochs_of(lines())) == 1

    def test_a_loss_that_is_not_finite_is_said(self, distiller, start):
        made = distiller(recipe=replace(RECIPE, lr=1e30, muon_lr=1e30))
        with pytest.raises(RunError, match="not finite"):
            made.tune(copy.deepcopy(start), WIDTHS)

    def test_a_folder_that_cannot_be_written(self, distiller, start, tmp_path):
        (tmp_path / distill.FOLDER).write_text("taken")
        with pytest.raises(OutputError):
            distiller().tune(copy.deepcopy(start), WIDTHS)

    def test_the_teacher_is_unchanged(self, net, distiller, start):
        before = copy.deepcopy(net)
        distiller(recipe=replace(RECIPE, epochs=1)).tune(copy.deepcopy(start), WIDTHS)
        assert same(net, before)
        assert not net.training


class TestViews:
    def stored(self, folder):
        return sorted((folder / ANSWERS).iterdir())

    def test_the_teacher_s_logits_are_computed_once_a_view(self, distiller, start, tmp_path, monkeypatch, lines):
        monkeypatch.setattr(distill, "VIEWS", 2)
        made = distiller(recipe=replace(RECIPE, epochs=5))
        made.tune(copy.deepcopy(start), WIDTHS)
        assert sum("the teacher's logits" in line for line in lines()) == len(self.stored(tmp_path)) == 2
        distiller(recipe=ONE).tune(copy.deepcopy(start), WIDTHS)
        assert not any("the teacher's logits" in line for line in lines())

    @pytest.mark.parametrize("changes", [{"seed": 9}, {"origin": "another"}, {"recipe": replace(ONE, translate=1)}])
    def test_answers_to_other_views_are_not_taken(self, distiller, tmp_path, changes):
        distiller().views.view(0)
        distiller(**changes).views.view(0)
        assert len(self.stored(tmp_path)) == 2

    def test_answers_are_those_of_the_images_shown(self, net, distiller):
        made = distiller(recipe=replace(ONE, bfloat16=False))
        for number in (0, 1):
            images, answers = made.views.view(number)
            assert images.dtype == torch.uint8
            np.testing.assert_allclose(answers, logits_with(net)(images.numpy()), atol=1e-4)
        assert not torch.equal(made.views.view(0)[0], made.views.view(1)[0])
        assert torch.equal(made.views.view(1)[0], images)

    def test_another_teacher_answers_for_the_run_s_net(self, distiller, start, net, tmp_path):
        class Doubled:
            flips, origin, folder = True, "another", tmp_path / "teacher"

            def nets(self, device):
                return [lambda x: 2 * net(x)]

        exact = replace(RECIPE, bfloat16=False)
        one, other = distiller(recipe=exact), distiller(recipe=exact, teachers=Doubled())
        images, logits = other.views.view(0)
        assert torch.equal(images, one.views.view(0)[0])
        both = (logits_with(net)(images.numpy()) + logits_with(net)(images.flip(2).numpy())).copy()
        np.testing.assert_allclose(logits, both, atol=1e-4)
        one = distiller(recipe=ONE)
        one.tune(copy.deepcopy(start), WIDTHS)
        assert not distiller(recipe=ONE, teachers=Doubled()).holds(start, WIDTHS)

    def test_in_bfloat16_they_are_about_the_same(self, distiller, monkeypatch):
        monkeypatch.setattr(devices, "_cpu_has_bfloat16", lambda: True)
        exact, rough = (
            distiller(recipe=replace(ONE, bfloat16=bfloat16)).views.view(0)[1] for bfloat16 in (False, True)
        )
        assert not torch.equal(exact, rough)
        assert (exact - rough).abs().max() < 0.05 * exact.abs().max()

    def test_another_precision_has_answers_of_its_own(self, distiller, tmp_path, monkeypatch):
        for there in (True, False):
            monkeypatch.setattr(devices, "_cpu_has_bfloat16", lambda there=there: there)
            distiller(recipe=ONE).views.view(0)
        assert len(self.stored(tmp_path)) == 2

    def test_a_view_and_the_next_show_both_sides(self, distiller):
        made = distiller(recipe=replace(RECIPE, translate=0))
        one, other = made.views.view(0)[0], made.views.view(1)[0]
        assert torch.equal(one, other.flip(2))
        originals = torch.from_numpy(made.images)
        mirrored = [not torch.equal(shown, image) for shown, image in zip(one, originals, strict=True)]
        assert 0 < sum(mirrored) < len(mirrored)

    def test_damaged_answers_are_computed_anew(self, distiller, tmp_path):
        made = distiller()
        _, whole = made.views.view(0)
        (path,) = self.stored(tmp_path)
        path.write_bytes(path.read_bytes()[:-9])
        assert torch.equal(made.views.view(0)[1], whole)


class TestCandidates:
    """The search over widths, with fine-tuning and quantization replaced: what is decided is tested here."""

    @pytest.fixture
    def searching(self, deployed, small, distiller, monkeypatch):
        def make(int8: list[float]):
            tuned, losses, saved = [], iter(int8), []
            monkeypatch.setattr(
                distill.Distiller, "tune", lambda self, student, widths: tuned.append(widths) or student.eval()
            )

            def quantized(self, model, shown):
                accuracy = self._full + next(losses)
                self._note(f"{shown}, as integers", accuracy, quantized=True)
                return model, "MinMax", accuracy

            monkeypatch.setattr(search.Search, "_quantize", quantized)
            monkeypatch.setattr(search.onnx_format, "save", lambda model, *_: saved.append(model))
            images, labels = small.train_images[:100], small.train_labels[:100]
            return search.Search(deployed, small.contract, images, images, labels, distiller()), tuned, saved

        return make

    def test_the_first_that_keeps_the_budget(self, searching, tmp_path, deployed):
        found, tuned, saved = searching([-0.03, -0.01])
        wanted = lossy.LossyVariant("edge", 1, [CANDIDATES[0], CANDIDATES[1], CANDIDATES[1]])
        made = found.write(tmp_path / "model.onnx", wanted, 2.0, {})
        assert [tuple(widths.values()) for widths in tuned] == list(CANDIDATES)
        assert "(conv1 to fc2: 8, 16, 16, 16, 16, 16, 32, 16 outputs), fine-tuned for 2 epochs" in made.made_by
        assert made.held_out_accuracy == pytest.approx(found.trials[0][1] - 0.01)
        assert len(saved) == 1
        assert saved[0].temperature == deployed.temperature

    def test_that_another_is_trained_is_said(self, searching, tmp_path, lines, monkeypatch):
        wanted = lossy.LossyVariant("edge", 1, CANDIDATES)
        for kept, said in ((False, 1), (True, 0)):  # what is kept from before costs nothing
            monkeypatch.setattr(distill.Distiller, "holds", lambda self, student, widths, kept=kept: kept)
            searching([-0.03, -0.01])[0].write(tmp_path / "model.onnx", wanted, 2.0, {})
            shown = "-".join(map(str, CANDIDATES[1]))
            assert sum(f"widths {shown} is trained, too" in line for line in lines()) == said

    def test_a_multiplier_is_of_the_budget_and_of_the_epochs(self, searching, tmp_path):
        found, _, _ = searching([-0.09])
        made = found.write(tmp_path / "model.onnx", lossy.LossyVariant("tiny", 5, CANDIDATES[:1]), 2.0, {})
        assert "fine-tuned for 10 epochs" in made.made_by

    def test_none_keeps_it(self, searching, tmp_path):
        found, _, saved = searching([-0.5, -0.3])
        with pytest.raises(ParityError, match=r"\(widths 8-16-16-.*\) loses 30.00; fine-tune for more epochs"):
            found.write(tmp_path / "model.onnx", lossy.LossyVariant("edge", 1, CANDIDATES), 0.2, {})
        assert saved == []

    def test_one_temperature_calibrates_all(self, searching, tmp_path, small, net, deployed):
        found, _, saved = searching([0.0])
        whole = [len(net.get_submodule(name).weight) for name in LAYERS]
        found.write(tmp_path / "model.onnx", lossy.LossyVariant("edge", 1, [whole]), 2.0, {})
        with torch.inference_mode():
            logits = saved[0](torch.from_numpy(small.train_images[:100]))[1].numpy()
        assert fit_temperature(logits, small.train_labels[:100]) == pytest.approx(deployed.temperature, rel=1e-3)
        assert isinstance(saved[0], Deployed)


@pytest.mark.slow
def test_export_fine_tunes_once_and_gives_the_same_bytes_again(run, small, tmp_path, lines, monkeypatch):
    narrower = lossy.LossyVariant("tiny", 5, CANDIDATES[:1])
    monkeypatch.setitem(variants.MAKERS, "tiny", functools.partial(variants.lossy, variant=narrower))
    folder = tmp_path / "run"
    folder.mkdir()
    for path in run.folder.iterdir():
        if path.is_file():
            os.link(path, folder / path.name)
    options = ExportOptions(variants=("tiny",), budget=20, fine_tune=1)
    bundle, results = build.export(Run(folder), tmp_path / "bundle", small, options)
    assert results["tiny"].passed
    assert bundle.variant("tiny").bytes < 100_000
    assert ", fine-tuned for 5 epochs on labels and the net's logits, " in bundle.variant("tiny").made_by
    assert len(epochs_of(lines())) == 5
    assert student_in(folder).name.startswith("-".join(map(str, CANDIDATES[0])) + "-")
    again, _ = build.export(Run(folder), tmp_path / "again", small, options)
    assert epochs_of(lines()) == []
    assert (again.folder / "SHA256SUMS").read_bytes() == (bundle.folder / "SHA256SUMS").read_bytes()


class TestCommandLine:
    def test_what_it_would_fine_tune_must_be_wanted(self, edgecifar, run, tmp_path):
        result = edgecifar("export", run.folder, "--fine-tune", "2", "--out", tmp_path / "bundle")
        assert result.exit_code == 2
        assert "--variant edge" in " ".join(result.stderr.split())
        assert not (tmp_path / "bundle").exists()

    def test_it_is_passed_on(self, edgecifar, run, tmp_path, monkeypatch):
        asked = []

        def stop(run, out, dataset, options):
            asked.append((options.fine_tune, options.device, options.wanted))
            raise RunError("enough.")

        monkeypatch.setattr(build, "export", stop)
        options = ["--variant", "tiny", "--fine-tune", "2", "--device", "cpu", "--data", "synthetic"]
        assert edgecifar("export", run.folder, *options, "--out", tmp_path / "bundle").exit_code == 1
        assert asked == [(2, "cpu", ("tiny",))]

    @pytest.mark.parametrize("option", [("--corrupted", "0.5"), ("--device", "cpu"), ("--students", "narrowed")])
    def test_how_nothing_is_fine_tuned_is_refused(self, edgecifar, run, option):
        result = edgecifar("export", run.folder, "--variant", "tiny", *option)
        assert (result.exit_code, "add --fine-tune" in " ".join(result.stderr.split())) == (2, True)

    def test_a_share_is_a_number(self, edgecifar, run):
        result = edgecifar("export", run.folder, "--variant", "tiny", "--fine-tune", "2", "--corrupted", "nan")
        assert (result.exit_code, "not a finite number" in " ".join(result.stderr.split())) == (2, True)
