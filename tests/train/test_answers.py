"""Learning from finished runs: their answers are right, kept, and what a run learns from them is repeatable."""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgecifar.runtime.errors import RunError
from edgecifar.runtime.files import sha256
from edgecifar.train import answers, data, loop
from edgecifar.train.answers import Teachers, Views, distillation_loss
from edgecifar.train.augment import normalise
from edgecifar.train.loop import TrainingOptions
from edgecifar.train.run import Run
from edgecifar.train.start import TrainingRequest, start

CPU = torch.device("cpu")


def digest(folder: Path) -> str:
    return sha256(folder / "weights.safetensors")


@pytest.fixture
def master(whole, tmp_path) -> Run:
    """A teacher whose folder has no answers yet."""
    return Run(Path(shutil.copytree(whole, tmp_path / "master")))


@pytest.fixture
def views(master, recipe, tiny):
    def make(**changes) -> Views:
        given = {
            "teachers": Teachers((master,)),
            "images": tiny.train_images[:24],
            "recipe": recipe,
            "seed": 3,
            "device": CPU,
            "count": 4,
        }
        return Views(**{**given, **changes})

    return make


class TestDistillationLoss:
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
        assert distillation_loss(logits, self.TEACHER, self.LABELS).item() == pytest.approx(wanted, rel=1e-5)

    def test_the_teacher_s_part_is_least_at_its_logits(self, monkeypatch):
        monkeypatch.setattr(answers, "DISTILLATION_WEIGHT", 1.0)
        logits = self.TEACHER.clone().requires_grad_()
        distillation_loss(logits, self.TEACHER, self.LABELS).backward()
        assert logits.grad.abs().max() < 1e-6


class TestViews:
    def test_logits_are_the_mean_over_runs_and_sides_of_the_images_shown(self, views, master, recipe, tiny, tmp_path):
        loop.train(recipe, tiny, tmp_path / "other", TrainingOptions(seed=1))
        both = Teachers((master, Run(tmp_path / "other")))
        images, logits = views(teachers=both).view(0)
        assert images.dtype == torch.uint8
        shown = normalise(images)
        with torch.no_grad():
            wanted = sum(net(side) for net in both.nets(CPU) for side in (shown, shown.flip(3))) / 4
        torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-5)

    def test_every_other_view_is_the_mirror_image_of_the_one_before(self, views):
        made = views()
        (even, logits), (odd, mirrored) = made.view(2), made.view(3)
        assert torch.equal(odd, even.flip(2))
        assert torch.equal(mirrored, logits)
        assert not torch.equal(made.view(0)[0], even)
        assert torch.equal(made.view(4)[0], made.view(0)[0])

    def test_where_flips_are_not_averaged_each_view_has_answers_of_its_own(self, views, master):
        made = views(teachers=Teachers((master,), flips=False))
        assert not torch.equal(made.view(0)[1], made.view(1)[1])

    def test_what_is_kept_is_not_is_not_computed_again(self, views, monkeypatch, master):
        _, logits = views().view(1)
        monkeypatch.setattr(Teachers, "nets", lambda *_: pytest.fail("computed again"))
        assert torch.equal(views().view(0)[1], logits)
        assert len(list((master.folder / answers.ANSWERS).iterdir())) == 1

    @pytest.mark.parametrize("change", ["seed", "teachers", "recipe"])
    def test_answers_to_others_are_not_taken(self, views, master, recipe, change):
        other = {
            "seed": 4,
            "teachers": Teachers((master, master)),
            "recipe": replace(recipe, translate=1),
        }
        views().view(0)
        views(**{change: other[change]}).view(0)
        assert len(list((master.folder / answers.ANSWERS).iterdir())) == 2

    def test_the_images_are_moved_to_the_device_once(self, views, monkeypatch):
        made, moved, move = views(), [], torch.from_numpy
        monkeypatch.setattr(torch, "from_numpy", lambda array: moved.append(array) or move(array))
        for epoch in range(3):
            made.view(epoch)
        assert sum(array is made.images for array in moved) == 1
        assert torch.equal(made.pictures, move(made.images))

    def test_damaged_answers_are_computed_anew(self, views, master):
        _, whole = views().view(0)
        (path,) = (master.folder / answers.ANSWERS).iterdir()
        path.write_bytes(path.read_bytes()[:-9])
        assert torch.equal(views().view(0)[1], whole)


class TestTeachers:
    def test_there_is_one_at_least(self):
        with pytest.raises(ValueError, match="without a run"):
            Teachers(())

    def test_one_that_has_seen_what_is_held_out_is_refused(self, whole, tiny):
        Teachers((Run(whole),)).check(tiny, 0.25)
        with pytest.raises(RunError, match="has seen images"):
            Teachers((Run(whole),)).check(tiny, 0.3)

    def test_one_of_other_data_is_refused(self, whole):
        with pytest.raises(RunError, match="other data"):
            Teachers((Run(whole),)).check(data.synthetic(41, 20), 0.25)

    def test_one_that_is_not_finished_is_refused(self, tmp_path, recipe, tiny, no_plots, stopper):
        with pytest.raises(KeyboardInterrupt):
            loop.train(recipe, tiny, tmp_path / "cut", TrainingOptions(listener=stopper("epoch", 1)))
        with pytest.raises(RunError, match="not finished"):
            Teachers((Run(tmp_path / "cut"),)).check(tiny, 0.25)

    def test_other_weights_in_its_folder_are_noticed(self, whole, tmp_path, recipe, tiny, no_plots):
        shutil.copytree(whole, tmp_path / "teacher")
        teachers = Teachers((Run(tmp_path / "teacher"),))
        described = answers.describe_distillation(teachers)
        assert Teachers.recorded(described, tmp_path).origin == teachers.origin
        shutil.rmtree(tmp_path / "teacher")
        with pytest.raises(RunError, match=r"a teacher of .* is not there any more: put it back"):
            Teachers.recorded(described, tmp_path)
        loop.train(recipe, tiny, tmp_path / "teacher", TrainingOptions(seed=1))
        with pytest.raises(RunError, match="other weights"):
            Teachers.recorded(described, tmp_path)

    @pytest.mark.parametrize("damaged", [{}, {"teachers": [{}]}, {"teachers": []}, {"teachers": 3}])
    def test_a_damaged_record_is_said(self, damaged, tmp_path):
        with pytest.raises(RunError, match="does not say what taught it"):
            Teachers.recorded(damaged, tmp_path)


@pytest.fixture
def taught(master, recipe, tiny, tmp_path, no_plots):
    """Train into a folder of this name what `master` teaches."""

    def train(name: str, **options) -> Path:
        loop.train(recipe, tiny, tmp_path / name, TrainingOptions(teachers=Teachers((master,)), **options))
        return tmp_path / name

    return train


class TestTaughtRun:
    def test_it_learns_from_its_teacher(self, taught, whole, recipe, tiny, tmp_path):
        folder = taught("taught")
        record = Run(folder).record
        assert digest(folder) != digest(whole)
        assert [teacher["weights_sha256"] for teacher in record.distillation["teachers"]] == [digest(whole)]
        assert record.distillation["views"] == answers.RUN_VIEWS
        assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}

    def test_the_time_for_its_views_is_told_apart(self, taught, whole, monkeypatch):
        made = Views.view

        def slowly(*given):
            time.sleep(0.05)
            return made(*given)

        monkeypatch.setattr(Views, "view", slowly)
        run = Run(taught("taught"))
        assert all(line["view_seconds"] >= 0.05 for line in run.metrics)
        assert run.record.training_seconds == pytest.approx(sum(line["seconds"] for line in run.metrics))
        assert all("view_seconds" not in line for line in Run(whole).metrics)

    def test_answers_are_kept_with_the_teacher_for_all(self, taught, master, monkeypatch):
        first = taught("taught")
        monkeypatch.setattr(answers, "mean_logits", None)
        assert digest(taught("again")) == digest(first)
        assert (master.folder / answers.ANSWERS).is_dir()

    def test_the_teacher_decides(self, taught, master, monkeypatch):
        folder = taught("taught")
        shutil.rmtree(master.folder / answers.ANSWERS)
        monkeypatch.setattr(answers, "mean_logits", lambda nets, pictures, flips: torch.zeros(len(pictures), 10))
        assert digest(taught("other")) != digest(folder)

    def test_the_same_twice_and_after_an_interruption(self, taught, tiny, tmp_path, stopper):
        folder = taught("taught")
        assert digest(taught("again")) == digest(folder)
        with pytest.raises(KeyboardInterrupt):
            taught("cut", listener=stopper("progress", 2))
        loop.resume(Run(tmp_path / "cut"), tiny)
        assert digest(tmp_path / "cut") == digest(folder)

    def test_what_it_would_be_judged_on_is_refused_before_a_folder_is_made(self, whole, recipe, tiny, tmp_path):
        greedy = replace(recipe, held_out=0.5)
        with pytest.raises(RunError, match="has seen images"):
            loop.train(greedy, tiny, tmp_path / "taught", TrainingOptions(teachers=Teachers((Run(whole),))))
        assert not (tmp_path / "taught").exists()

    def test_a_full_data_run_has_the_teachers_of_the_run_that_it_follows(self, taught, tiny, tmp_path, monkeypatch):
        folder = taught("taught")
        monkeypatch.setattr(data, "synthetic", lambda: tiny)
        start(TrainingRequest(follow=folder, out=tmp_path / "all", device="cpu"), lambda plan: NoDisplay())
        record = Run(tmp_path / "all").record
        assert record.distillation == Run(folder).record.distillation
        assert record.dataset.trained_on == len(tiny.train_labels)

    def test_run_json_of_others_does_not_mention_it(self, whole):
        assert "distillation" not in json.loads((whole / "run.json").read_text())


class NoDisplay(loop.Silent):
    def __enter__(self):
        return self

    def __exit__(self, *failure):
        pass
