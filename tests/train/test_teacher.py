"""The teacher: what its first layer does, what a run of it is, and that it is never exported."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from edgecifar.export import build, models
from edgecifar.runtime.errors import RunError
from edgecifar.runtime.files import sha256
from edgecifar.train import loop
from edgecifar.train.augment import normalise
from edgecifar.train.inference import classify_with, logits_with
from edgecifar.train.loop import TrainingOptions
from edgecifar.train.nets import NETS, is_teacher
from edgecifar.train.recipes import TEACHER
from edgecifar.train.run import Run
from edgecifar.train.start import TrainingRequest, start
from edgecifar.train.teacher import Teacher


class SmallTeacher(Teacher):
    def __init__(self, classes: int, dropout: float = 0.0) -> None:
        super().__init__(classes, dropout, width=8)


@pytest.fixture
def quick(monkeypatch):
    """The recipe, on so few images that it takes no time."""
    monkeypatch.setitem(NETS, "small-teacher", SmallTeacher)
    return replace(TEACHER, epochs=2, batch_size=10, held_out=0.25, net="small-teacher")


@pytest.fixture
def trained(tmp_path, quick, tiny, no_plots):
    loop.train(quick, tiny, tmp_path / "teacher")
    return tmp_path / "teacher"


class TestTeacher:
    def test_the_first_layer_s_outputs_are_uncorrelated_and_of_variance_1(self, tiny):
        net, pictures = Teacher(10, width=8), normalise(torch.from_numpy(tiny.train_images))
        pictures = pictures + 0.1 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
        net.whiten_with(pictures)
        outputs = net.whiten(pictures).permute(1, 0, 2, 3).flatten(1)
        torch.testing.assert_close(torch.cov(outputs[:12]), torch.eye(12), atol=0.02, rtol=0)
        torch.testing.assert_close(outputs[:12], -outputs[12:], atol=1e-4, rtol=0)

    def test_filters_begin_by_passing_channels_on(self):
        net, x = Teacher(10, width=80), torch.randn(2, 64, 6, 6)
        torch.testing.assert_close(net.block2.conv1(x)[:, :64], x)
        torch.testing.assert_close(net.block3.conv2(torch.ones(1, 80, 4, 4)), torch.ones(1, 80, 4, 4))

    @pytest.mark.parametrize("classes", [3, 10])
    def test_it_gives_a_logit_a_class(self, classes):
        assert Teacher(classes, width=8)(torch.zeros(2, 3, 32, 32)).shape == (2, classes)

    def test_as_many_parameters_as_the_docstring_says(self):
        assert sum(parameter.numel() for parameter in Teacher(10).parameters()) == pytest.approx(2.0e6, rel=0.05)


class TestRun:
    def test_the_first_layer_is_whitened_and_stays(self, trained, tiny, quick):
        wanted = SmallTeacher(10)
        images = tiny.train_images[tiny.hold_out(quick.held_out)[0]]
        wanted.whiten_with(normalise(torch.from_numpy(images)))
        assert torch.equal(Run(trained).net().get_parameter("whiten.weight"), wanted.whiten.weight)

    def test_it_resumes_bit_for_bit(self, trained, tmp_path, quick, tiny, stopper):
        with pytest.raises(KeyboardInterrupt):
            loop.train(quick, tiny, tmp_path / "cut", TrainingOptions(listener=stopper("epoch", 1)))
        loop.resume(Run(tmp_path / "cut"), tiny)
        assert sha256(tmp_path / "cut" / "weights.safetensors") == sha256(trained / "weights.safetensors")

    def test_its_metrics_have_the_recipes_rate_not_that_of_its_last_layer(self, trained, quick):
        wanted = [quick.lr * quick.lr_factor(step, 6) for step in (2, 5)]  # the last of three steps an epoch
        assert [line["learning_rate"] for line in Run(trained).metrics] == pytest.approx(wanted)

    def test_it_is_evaluated_like_any_run(self, trained, tiny):
        loaded, run = models.load(trained), Run(trained)
        wanted = classify_with(run.net(), run.record.temperature)(tiny.test_images)
        assert loaded.kind == "run"
        assert (loaded.probabilities(tiny.test_images) == wanted).all()

    def test_its_record_says_how_good_its_answers_are_with_flips_averaged(self, trained, tiny):
        logits = logits_with(Run(trained).net())
        both = logits(tiny.test_images) + logits(np.ascontiguousarray(tiny.test_images[:, :, ::-1]))
        wanted = (both.argmax(1) == tiny.test_labels).mean()
        assert Run(trained).record.test["accuracy_flips_averaged"] == pytest.approx(wanted)

    def test_it_is_not_exported(self, trained, tiny, tmp_path):
        assert is_teacher("small-teacher")
        assert not is_teacher("net")
        with pytest.raises(RunError, match="holds a small-teacher, whose small students alone"):
            build.export(Run(trained), tmp_path / "bundle", tiny)
        assert not (tmp_path / "bundle").exists()

    def test_the_newest_run_to_export_is_another(self, trained, whole, tmp_path):
        assert Run.newest(under=tmp_path).folder == trained
        with pytest.raises(RunError, match="no trained run"):
            Run.newest(under=tmp_path, without_teachers=True)
        (tmp_path / "whole").symlink_to(whole)
        assert Run.newest(under=tmp_path, without_teachers=True).folder == tmp_path / "whole"

    def test_the_next_step_is_to_learn_from_it(self, quick, tiny, tmp_path, no_plots, monkeypatch):
        from edgecifar.train import data
        from edgecifar.train.listeners import Silent

        class Shown(Silent):
            __enter__, __exit__ = functools.partialmethod(lambda self: self), lambda *_: None

        monkeypatch.setattr(data, "synthetic", lambda: tiny)
        settings = {"net": "small-teacher", "epochs": 1, "held_out": 0.25}
        request = TrainingRequest("teacher", settings, data="synthetic", out=tmp_path / "next", device="cpu")
        plan, _ = start(request, lambda plan: Shown())
        words = f"edgecifar train --recipe best --teacher {tmp_path / 'next'} --held-out 0.25 --data synthetic"
        assert plan.next_command == words  # the teacher held out as many as its student will


def test_the_last_layer_has_a_rate_of_its_own(quick):
    from edgecifar.train.optimizer import make_optimizers

    net = SmallTeacher(10)
    sgd, muon = make_optimizers(net, quick)
    rates = {id(p): group["lr"] for opt in (sgd, muon) for group in opt.param_groups for p in group["params"]}
    assert rates[id(net.head.weight)] == 0.4
    assert rates[id(net.block1.norm1.bias)] == 0.1
    assert rates[id(net.block1.conv1.weight)] == 0.12
    assert id(net.whiten.weight) not in rates
    assert len(rates) == len([p for p in net.parameters() if p.requires_grad])
    assert quick.with_settings({"lr": 0.2}).head_lr == pytest.approx(0.8)
