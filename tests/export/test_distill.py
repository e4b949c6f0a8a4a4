"""Fine-tuning: it learns, is the same twice and after an interruption, and keeps what it computed."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgecifar.export import build, distill, edge, narrow
from edgecifar.export.graph import Deployed
from edgecifar.runtime.errors import OutputError, RunError
from edgecifar.train import optimizer
from edgecifar.train.loop import logits_with
from edgecifar.train.run import Run

WIDTHS = dict(zip(narrow.LAYERS, (8, 8, 16, 16, 16, 16, 32, 16), strict=True))
IMAGES = 96
RECIPE = replace(distill.recipe(2), batch_size=32)
ONE = replace(RECIPE, epochs=1)
RUNGS = ((8, 8, 16, 16, 16, 16, 32, 16), (8, 16, 16, 16, 16, 16, 32, 16))


@pytest.fixture(scope="module")
def start(net, small):
    """A net so narrow that it has lost nearly everything."""
    return narrow.narrowed(net, WIDTHS, narrow.importance(net, small.train_images))


@pytest.fixture
def tuner(net, small, tmp_path):
    def make(**changes) -> distill.Tuner:
        lines = []
        given = {
            "folder": tmp_path,
            "origin": "a digest",
            "teacher": net,
            "images": small.train_images[:IMAGES],
            "labels": small.train_labels[:IMAGES],
            "recipe": RECIPE,
            "seed": 3,
            "device": torch.device("cpu"),
            "say": lines.append,
        }
        made = distill.Tuner(**{**given, **changes})
        object.__setattr__(made, "lines", lines)
        return made

    return make


@pytest.fixture(scope="module")
def tuned(net, start, small, tmp_path_factory):
    """What two epochs make of it, without an interruption."""
    folder = tmp_path_factory.mktemp("tuned")
    images, labels = small.train_images[:IMAGES], small.train_labels[:IMAGES]
    made = distill.Tuner(folder, "a digest", net, images, labels, RECIPE, 3, torch.device("cpu"), print)
    return made.tune(copy.deepcopy(start), WIDTHS)


def student_in(folder: Path) -> Path:
    """The only file of a student in a run's folder."""
    (path,) = (path for path in (folder / distill.FOLDER).iterdir() if not path.name.startswith("answers."))
    return path


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def epochs_of(tuner: distill.Tuner) -> list[str]:
    """The lines that say that an epoch was trained."""
    return [line.split(":")[0].strip() for line in tuner.lines if ", epoch" in line]


class TestStudentLoss:
    TEACHER = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
    LABELS = torch.tensor([0, 2])

    def test_by_its_formula(self):
        logits = torch.tensor([[1.0, -1.0, 0.3], [0.0, 2.0, 1.0]])
        wanted = 0.0
        for own, taught, label in zip(logits.tolist(), self.TEACHER.tolist(), self.LABELS.tolist(), strict=True):
            soft = np.exp(np.array(taught) / 2) / np.exp(np.array(taught) / 2).sum()
            log_soft = np.array(own) / 2 - math.log(np.exp(np.array(own) / 2).sum())
            log_hard = own[label] - math.log(np.exp(np.array(own)).sum())
            wanted += (0.7 * 4 * -(soft * log_soft).sum() - 0.3 * log_hard) / 2
        assert distill.student_loss(logits, self.TEACHER, self.LABELS).item() == pytest.approx(wanted, rel=1e-5)

    def test_the_teacher_s_part_is_least_at_its_answers(self, monkeypatch):
        monkeypatch.setattr(distill, "DISTILLATION_WEIGHT", 1.0)
        logits = self.TEACHER.clone().requires_grad_()
        distill.student_loss(logits, self.TEACHER, self.LABELS).backward()
        assert logits.grad.abs().max() < 1e-6


class TestTuner:
    def test_it_learns(self, tuner, start):
        made = tuner(recipe=replace(distill.recipe(8), batch_size=16, shift=0))
        made.tune(copy.deepcopy(start), WIDTHS)
        losses = [float(line.split("loss ")[1].split(",")[0]) for line in made.lines if ", epoch" in line]
        assert len(losses) == 8
        assert losses[-1] < 0.9 * losses[0], losses

    def test_the_same_twice(self, tuner, start, tuned):
        assert same(tuner().tune(copy.deepcopy(start), WIDTHS), tuned)

    def test_another_seed_gives_others(self, tuner, start, tuned):
        assert not same(tuner(seed=4).tune(copy.deepcopy(start), WIDTHS), tuned)

    def test_what_is_interrupted_goes_on(self, tuner, start, tuned, monkeypatch):
        made, whole = tuner(), distill.Tuner._train_epoch

        def stop(self, student, optimizers, epoch):
            if epoch:
                raise KeyboardInterrupt
            whole(self, student, optimizers, epoch)

        monkeypatch.setattr(distill.Tuner, "_train_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            made.tune(copy.deepcopy(start), WIDTHS)
        monkeypatch.setattr(distill.Tuner, "_train_epoch", whole)
        assert same(made.tune(copy.deepcopy(start), WIDTHS), tuned)
        assert epochs_of(made) == ["fine-tuning, epoch 1 of 2", "fine-tuning, epoch 2 of 2"]

    def test_what_is_finished_is_kept_beside_what_other_settings_gave(self, tuner, start, tuned):
        made, shorter = tuner(), tuner(recipe=ONE)
        made.tune(copy.deepcopy(start), WIDTHS)
        shorter.tune(copy.deepcopy(start), WIDTHS)
        made.lines.clear()
        assert same(made.tune(copy.deepcopy(start), WIDTHS), tuned)
        assert epochs_of(made) == []
        assert made.lines[0].startswith("  fine-tuned before, taken from ")

    @pytest.mark.parametrize(
        "changes",
        [{"origin": "another"}, {"seed": 9}, {"recipe": replace(ONE, lr=0.001)}],
        ids=lambda c: next(iter(c)),
    )
    def test_what_was_kept_for_another_is_not_taken(self, tuner, start, changes):
        made = tuner(recipe=ONE)
        made.tune(copy.deepcopy(start), WIDTHS)
        other = tuner(**{"recipe": ONE, **changes})
        other.tune(copy.deepcopy(start), WIDTHS)
        assert len(epochs_of(other)) == 1

    @pytest.mark.parametrize("name", ["DISTILLATION_TEMPERATURE", "DISTILLATION_WEIGHT", "VIEWS", "AT_ONCE"])
    def test_nor_what_was_kept_under_other_constants(self, tuner, start, name, monkeypatch):
        made = tuner(recipe=ONE)
        made.tune(copy.deepcopy(start), WIDTHS)
        assert made.holds(start, WIDTHS)
        monkeypatch.setattr(distill, name, getattr(distill, name) / 2)
        assert not made.holds(start, WIDTHS)

    def test_it_holds_what_is_finished(self, tuner, start, tmp_path):
        made = tuner()
        assert not made.holds(start, WIDTHS)
        assert not any(tmp_path.iterdir())
        made.tune(copy.deepcopy(start), WIDTHS)
        assert made.holds(start, WIDTHS)
        path = student_in(tmp_path)
        path.unlink()
        path.mkdir()  # whatever it is, it is not a student
        assert not made.holds(start, WIDTHS)

    def test_memory_that_runs_out(self, tuner, start, monkeypatch):
        def hungry(self, *_):
            raise torch.OutOfMemoryError("CUDA out of memory.")

        monkeypatch.setattr(distill.Tuner, "_train_epoch", hungry)
        with pytest.raises(RunError, match=r"^Memory ran out: export with --device cpu, or where there is more\.$"):
            tuner().tune(copy.deepcopy(start), WIDTHS)

    @pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
    def test_a_damaged_file_is_computed_anew(self, tuner, start, tmp_path, damage):
        made = tuner(recipe=ONE)
        whole = made.tune(copy.deepcopy(start), WIDTHS)
        path = student_in(tmp_path)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes({"cut": content[:5_000], "flipped": content, "empty": b""}[damage])
        made.lines.clear()
        assert same(made.tune(copy.deepcopy(start), WIDTHS), whole)
        assert len(epochs_of(made)) == 1

    def test_a_pickle_is_never_run(self, tuner, start, tmp_path):
        class Evil:
            def __reduce__(self):
                return (tmp_path / "ran").touch, ()

        made = tuner(recipe=ONE)
        made.tune(copy.deepcopy(start), WIDTHS)
        path = student_in(tmp_path)
        content = pickle.dumps(Evil())
        path.write_bytes(hashlib.sha256(content).digest() + content)
        made.lines.clear()
        made.tune(copy.deepcopy(start), WIDTHS)
        assert not (tmp_path / "ran").exists()
        assert len(epochs_of(made)) == 1

    def test_a_loss_that_is_not_finite_is_said(self, tuner, start):
        made = tuner(recipe=replace(RECIPE, lr=1e30, filter_lr=1e30))
        with pytest.raises(RunError, match="not finite any more: export without --fine-tune"):
            made.tune(copy.deepcopy(start), WIDTHS)

    def test_a_folder_that_cannot_be_written(self, tuner, start, tmp_path):
        (tmp_path / distill.FOLDER).write_text("taken")
        with pytest.raises(OutputError):
            tuner().tune(copy.deepcopy(start), WIDTHS)

    def test_the_teacher_is_unchanged(self, net, tuner, start):
        before = copy.deepcopy(net)
        tuner(recipe=replace(RECIPE, epochs=1)).tune(copy.deepcopy(start), WIDTHS)
        assert same(net, before)
        assert not net.training


class TestViews:
    def answers(self, folder):
        return sorted((folder / distill.FOLDER).glob("answers.*"))

    def test_the_teacher_answers_once_a_view(self, tuner, start, tmp_path, monkeypatch):
        monkeypatch.setattr(distill, "VIEWS", 2)
        made = tuner(recipe=replace(RECIPE, epochs=5))
        made.tune(copy.deepcopy(start), WIDTHS)
        assert sum("the whole net's answers" in line for line in made.lines) == len(self.answers(tmp_path)) == 2
        other = tuner(recipe=ONE, images=made.images)
        other.tune(copy.deepcopy(start), WIDTHS)
        assert not any("the whole net's answers" in line for line in other.lines)

    @pytest.mark.parametrize("changes", [{"seed": 9}, {"origin": "another"}, {"recipe": replace(ONE, shift=1)}])
    def test_answers_to_other_views_are_not_taken(self, tuner, tmp_path, changes):
        tuner()._view(0)
        tuner(**changes)._view(0)
        assert len(self.answers(tmp_path)) == 2

    def test_answers_are_those_of_the_images_shown(self, net, tuner):
        made = tuner(recipe=replace(ONE, bfloat16=False))
        for number in (0, 1):
            images, answers = made._view(number)
            assert images.dtype == torch.uint8
            np.testing.assert_allclose(answers, logits_with(net)(images.numpy()), atol=1e-4)
        assert not torch.equal(made._view(0)[0], made._view(1)[0])
        assert torch.equal(made._view(1)[0], images)

    def test_in_bfloat16_they_are_about_the_same(self, tuner, monkeypatch):
        monkeypatch.setattr(optimizer, "_cpu_has_bfloat16", lambda: True)
        exact, rough = (tuner(recipe=replace(ONE, bfloat16=bfloat16))._view(0)[1] for bfloat16 in (False, True))
        assert not torch.equal(exact, rough)
        assert (exact - rough).abs().max() < 0.05 * exact.abs().max()

    def test_another_precision_has_students_and_answers_of_its_own(self, tuner, start, tmp_path, monkeypatch):
        for there in (True, False):
            monkeypatch.setattr(optimizer, "_cpu_has_bfloat16", lambda there=there: there)
            made = tuner(recipe=ONE)
            assert not made.holds(start, WIDTHS)
            made.tune(copy.deepcopy(start), WIDTHS)
            assert made.holds(start, WIDTHS)
        assert len(self.answers(tmp_path)) == 2

    def test_a_view_and_the_next_show_both_sides(self, tuner):
        made = tuner(recipe=replace(RECIPE, shift=0))
        one, other = made._view(0)[0], made._view(1)[0]
        assert torch.equal(one, other.flip(2))
        originals = torch.from_numpy(made.images)
        mirrored = [not torch.equal(shown, image) for shown, image in zip(one, originals, strict=True)]
        assert 0 < sum(mirrored) < len(mirrored)

    def test_damaged_answers_are_computed_anew(self, tuner, tmp_path):
        made = tuner()
        _, whole = made._view(0)
        (path,) = self.answers(tmp_path)
        path.write_bytes(path.read_bytes()[:-9])
        assert torch.equal(made._view(0)[1], whole)


class TestSearch:
    """The ladder of widths, with fine-tuning and quantization replaced: what is decided is tested here."""

    @pytest.fixture
    def search(self, deployed, small, tuner, monkeypatch):
        def make(int8: list[float]):
            lines, tuned, answers = [], [], iter(int8)
            monkeypatch.setattr(
                distill.Tuner, "tune", lambda self, student, widths: tuned.append(widths) or student.eval()
            )

            def quantized(self, model, shown, full, provenance):
                accuracy = full + next(answers)
                self._note(f"{shown}, int8, MinMax", accuracy, full)
                return model, "MinMax", accuracy

            monkeypatch.setattr(edge.EdgeExporter, "_quantize", quantized)
            monkeypatch.setattr(edge.to_onnx, "save", lambda model, path, provenance: saved.append(model))
            saved = []
            images, labels = small.train_images[:100], small.train_labels[:100]
            found = edge.EdgeExporter(deployed, images, images, labels, lines.append, tuner())
            return found, tuned, saved

        return make

    def test_the_first_that_keeps_the_budget(self, search, tmp_path, deployed):
        found, tuned, saved = search([-0.03, -0.01])
        made_by = found.write(tmp_path / "model.onnx", {}, 2.0, [RUNGS[0], RUNGS[1], RUNGS[1]])
        assert [tuple(widths.values()) for widths in tuned] == list(RUNGS)
        assert made_by.startswith(
            "narrowed (conv1 to fc2: 8, 16, 16, 16, 16, 16, 32, 16 outputs), fine-tuned for 2 epochs on labels and the "
            "whole net's answers, then static int8"
        )
        assert len(saved) == 1
        assert saved[0].temperature == deployed.temperature

    def test_none_keeps_it(self, search, tmp_path):
        from edgecifar.runtime.errors import ParityError

        found, _, saved = search([-0.5, -0.3])
        with pytest.raises(
            ParityError,
            match=r"the closest \(widths 8-16-16-.*\) loses 30.00; .*, fine-tune for more epochs, or leave out",
        ):
            found.write(tmp_path / "model.onnx", {}, 0.2, RUNGS)
        assert saved == []

    def test_one_temperature_calibrates_all(self, search, tmp_path, small, deployed):
        from edgecifar.train.calibration import fit_temperature

        found, _, saved = search([0.0])
        found.write(tmp_path / "model.onnx", {}, 2.0, [(16, 32, 64, 128, 256, 512, 1024, 256)])
        with torch.inference_mode():
            logits = saved[0](torch.from_numpy(small.train_images[:100]))[1].numpy()
        assert fit_temperature(logits, small.train_labels[:100]) == pytest.approx(deployed.temperature, rel=1e-3)
        assert isinstance(saved[0], Deployed)


@pytest.mark.slow
def test_export_fine_tunes_once_and_gives_the_same_bytes_again(run, small, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for path in run.folder.iterdir():
        if path.is_file():
            os.link(path, folder / path.name)
    lines, out = [], tmp_path / "bundle"
    bundle, results = build.export(
        Run(folder), out, variants=["tiny"], dataset=small, budget=20, say=lines.append, fine_tune=1
    )
    assert results["tiny"].passed
    assert bundle.variant("tiny").bytes < 1_000_000
    assert ", fine-tuned for 5 epochs on labels and the whole net's answers, " in bundle.variant("tiny").made_by
    assert sum("fine-tuning, epoch" in line for line in lines) == 5
    assert student_in(folder).name.startswith("-".join(map(str, edge.WIDTHS["tiny"][0])) + "-")
    lines.clear()
    again, _ = build.export(
        Run(folder), tmp_path / "again", variants=["tiny"], dataset=small, budget=20, say=lines.append, fine_tune=1
    )
    assert not any("fine-tuning, epoch" in line for line in lines)
    assert (again.folder / "SHA256SUMS").read_bytes() == (out / "SHA256SUMS").read_bytes()


class TestCommandLine:
    def test_what_it_would_fine_tune_must_be_wanted(self, edgecifar, run, tmp_path):
        result = edgecifar("export", run.folder, "--fine-tune", "2", "--out", tmp_path / "bundle")
        assert result.exit_code == 2
        assert "--fine-tune is for the lossy variants: add --variant edge or" in " ".join(result.stderr.split())
        assert not (tmp_path / "bundle").exists()

    def test_it_is_passed_on(self, edgecifar, run, tmp_path, monkeypatch):
        asked = []

        def stop(*arguments):
            asked.append(arguments[-2:])
            raise RunError("enough.")

        monkeypatch.setattr(build, "export", stop)
        options = ["--variant", "tiny", "--fine-tune", "2", "--device", "cpu", "--data", "synthetic"]
        assert edgecifar("export", run.folder, *options, "--out", tmp_path / "bundle").exit_code == 1
        assert asked == [(2, "cpu")]
