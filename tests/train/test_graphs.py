"""Steps by a graph are the steps that eager torch takes: on the CPU without recording, on a GPU with it."""

from __future__ import annotations

import contextlib
import copy
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_net import SmallNet

from edgecifar.train import data, graphs, loop
from edgecifar.train.augment import normalise
from edgecifar.train.devices import searched_algorithms
from edgecifar.train.distributed import Group
from edgecifar.train.epochs import Loss, Material, Steps
from edgecifar.train.graphs import GraphedSteps, make_steps
from edgecifar.train.loop import TrainingOptions
from edgecifar.train.nets import make_net
from edgecifar.train.optimizer import make_optimizers
from edgecifar.train.recipes import RECIPES, Recipe
from edgecifar.train.run import Run
from edgecifar.train.speed import speed_up
from edgecifar.train.step import TrainingStep, class_weights, epoch_plan, load_optimizers, optimizer_states

BATCH, COUNT, CLASSES = 4, 43, 10
"""An epoch has ten whole batches and a smaller one."""

EVERY = {
    **RECIPES,
    "adam": replace(RECIPES["reference"], optimizer="adam", weight_decay=1e-4),
    "no momentum": replace(RECIPES["reference"], momentum=0.0, lr=0.05),
    "balanced": replace(RECIPES["fast"], balance=True, label_smoothing=0.1),
}


class Training:
    """Three epochs, of 33 steps in all, from the same weights and random numbers however the steps are taken."""

    def __init__(self, recipe: Recipe, net: torch.nn.Module, device: torch.device, taught: bool = False) -> None:
        self.recipe, self.device = replace(recipe, batch_size=BATCH, epochs=3), device
        self.net = copy.deepcopy(net).to(device).to(memory_format=torch.channels_last).train()
        dataset = data.synthetic(COUNT, CLASSES)
        self.images = torch.from_numpy(dataset.train_images).to(device)
        self.labels = torch.from_numpy(dataset.train_labels).to(device)
        self.teacher = torch.randn(COUNT, CLASSES, generator=torch.Generator().manual_seed(1)).to(device)
        self.classes = CLASSES if taught else None
        self.optimizers = make_optimizers(self.net, self.recipe)
        self.step = TrainingStep(self.net, self.optimizers, self.recipe, device, 33)
        weights = class_weights(dataset.train_labels, CLASSES).to(device) if recipe.balance else None
        self.loss = Loss(recipe.label_smoothing, weights, Group())

    def steps(self, graph: bool) -> Steps:
        return make_steps(self.step, self.loss, self.images, self.labels, self.classes, graph)

    def run(self, steps: Steps, epochs=range(3)) -> list[float]:
        """Return the loss of every step."""
        found = []
        for epoch in epochs:
            torch.manual_seed(epoch)
            plan = epoch_plan(0, epoch, COUNT, BATCH, self.device)
            teacher = None if self.classes is None else self.teacher
            done = list(steps.run(Material(epoch, plan, self.images, self.labels, teacher)))
            assert done == list(range(1, 12))
            found += steps.losses.tolist()
        return found

    @torch.no_grad()
    def logits(self) -> torch.Tensor:
        """Return those of the net in training; single weights may differ where batch norm takes them back."""
        torch.manual_seed(0)
        return self.net.train()(normalise(self.images)).cpu()

    def state(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().cpu() for name, value in self.net.state_dict().items()}


def agree(recipe: Recipe, net: torch.nn.Module, device: torch.device, tolerance: float, taught: bool = False) -> None:
    """Train both ways; the first losses are the same, all losses and weights to rounding."""
    eager, graphed = (Training(recipe, net, device, taught) for _ in range(2))
    wanted = eager.run(eager.steps(graph=False))
    steps = graphed.steps(graph=True)
    assert isinstance(steps, GraphedSteps)
    found = graphed.run(steps)
    assert found[0] == pytest.approx(wanted[0], rel=1e-3)
    assert found == pytest.approx(wanted, rel=tolerance, abs=tolerance)
    wanted, found, before = eager.logits(), graphed.logits(), Training(recipe, net, device).logits()
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    assert not torch.allclose(before, wanted, rtol=0.1, atol=0.1)
    rates = [group["lr"] for optimizer in eager.optimizers for group in optimizer.param_groups]
    mine = [float(group["lr"]) for optimizer in graphed.optimizers for group in optimizer.param_groups]
    assert mine == pytest.approx(rates, abs=1e-6)


@pytest.fixture
def net() -> SmallNet:
    torch.manual_seed(0)
    made = SmallNet(CLASSES, dropout=0.3)
    speed_up(made, torch.device("cpu"))
    return made


@pytest.mark.parametrize("name", EVERY)
def test_every_recipe(net, name):
    agree(EVERY[name], net, torch.device("cpu"), 1e-4)


def test_a_teachers_pupil(net):
    agree(RECIPES["best"], net, torch.device("cpu"), 1e-4, taught=True)


def test_a_run_that_goes_on(net):
    """State is restored before the graph is made; it is stored with plain numbers as rates."""
    recipe, device = RECIPES["fast"], torch.device("cpu")
    whole, first = Training(recipe, net, device), Training(recipe, net, device)
    wanted = whole.run(whole.steps(graph=True))
    losses = first.run(first.steps(graph=True), range(1))
    states = copy.deepcopy(optimizer_states(first.optimizers))
    assert all(isinstance(group["lr"], float) for state in states for group in state["param_groups"])
    second = Training(recipe, first.net, device)
    load_optimizers(second.optimizers, states)
    losses += second.run(second.steps(graph=True), range(1, 3))
    assert losses == wanted


def test_recording_changes_nothing(net):
    """Steps are taken before it: weights, statistics, optimizers and random numbers are then as they were."""
    training = Training(RECIPES["fast"], net, torch.device("cpu"))
    training.run(training.steps(graph=False), range(1))
    steps = GraphedSteps(training.step, training.loss, training.images, training.labels)
    kept = copy.deepcopy((training.state(), optimizer_states(training.optimizers), torch.get_rng_state()))
    with steps._restored():
        steps._advance()
        steps._advance()
    now = (training.state(), optimizer_states(training.optimizers), torch.get_rng_state())
    assert all(torch.equal(now[0][name], value) for name, value in kept[0].items())
    for mine, other in zip(now[1], kept[1], strict=True):
        torch.testing.assert_close(mine["state"], other["state"], rtol=0, atol=0)
    assert torch.equal(now[2], kept[2])
    assert steps._buffers.counter.item() == 0


def test_what_an_optimizer_made_anew_becomes_zero(net):
    training = Training(RECIPES["fast"], net, torch.device("cpu"))
    steps = GraphedSteps(training.step, training.loss, training.images, training.labels)
    with steps._restored():
        steps._advance()
    values = [
        v for o in training.optimizers for state in o.state.values() for v in state.values() if torch.is_tensor(v)
    ]
    assert values
    assert not any(value.any() for value in values)


@pytest.mark.parametrize(
    ("graph", "count", "size"), [(None, COUNT, 1), (False, COUNT, 1), (True, BATCH - 1, 1), (True, COUNT, 2)]
)
def test_where_there_is_none(net, graph, count, size):
    """On the CPU unless asked for, where it is declined, without a whole batch, and in several processes."""
    training = Training(RECIPES["fast"], net, torch.device("cpu"))
    loss = replace(training.loss, group=Group(size=size))
    steps = make_steps(training.step, loss, training.images[:count], training.labels[:count], None, graph)
    assert type(steps) is Steps
    assert len(steps.losses) == -(-count // BATCH)


def test_where_recording_fails_it_goes_on_without(net, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graphs.GraphedSteps, "__init__", fail)
    training = Training(RECIPES["fast"], net, torch.device("cpu"))
    with caplog.at_level(logging.WARNING):
        assert type(training.steps(graph=True)) is Steps
    assert "(CUDA error: operation not permitted when stream is capturing)" in caplog.text


class FakeCuda:
    """What recording takes of `torch.cuda`, up to where it fails: torch leaves the graph's stream current then."""

    def __init__(self) -> None:
        self.before, self.now, self.generator = self.Stream(None), None, FakeGenerator()
        self.now, self.default_generators, self.CUDAGraph = self.before, [self.generator], object

    class Stream:
        device_index = 0

        def __init__(self, device) -> None:
            self.device = device

        def wait_stream(self, other) -> None:
            pass

    def current_stream(self, device):
        return self.now

    def set_stream(self, stream) -> None:
        self.now = stream

    def stream(self, stream):
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def graph(self, graph, stream):
        self.now, self.generator.capturing = stream, True
        yield
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


class FakeGenerator:
    capturing = False

    def clone_state(self):
        return FakeGenerator()

    def graphsafe_set_state(self, other) -> None:
        self.capturing = other.capturing


def test_where_recording_fails_stream_generator_and_weights_are_as_before(net, monkeypatch):
    training = Training(RECIPES["fast"], net, torch.device("cpu"))
    steps = training.steps(graph=True)
    assert isinstance(steps, GraphedSteps)
    kept, cuda = copy.deepcopy(training.state()), FakeCuda()
    monkeypatch.setattr(graphs.torch, "cuda", cuda)
    with pytest.raises(RuntimeError, match="previous error"):
        steps._record()
    assert cuda.now is cuda.before
    assert not cuda.generator.capturing
    assert all(torch.equal(training.state()[name], value) for name, value in kept.items())


def test_memory_that_runs_out_is_not_hidden(net, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(graphs.GraphedSteps, "__init__", fail)
    with pytest.raises(torch.OutOfMemoryError):
        Training(RECIPES["fast"], net, torch.device("cpu")).steps(graph=True)


def test_a_whole_training(whole, recipe, tiny, tmp_path, no_plots):
    """The loop takes the same steps by a graph; a run that was begun so goes on without, and the other way round."""
    loop.train(recipe, tiny, tmp_path / "run", TrainingOptions(cuda_graph=True))
    wanted, found = (Run(folder).net().state_dict() for folder in (whole, tmp_path / "run"))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)
    metrics = Run(tmp_path / "run").metrics
    assert [line["learning_rate"] for line in metrics] == pytest.approx(
        [line["learning_rate"] for line in Run(whole).metrics]
    )
    assert not any("cuda_graph" in line for line in metrics)  # nothing is recorded on a CPU


def test_each_epoch_says_whether_a_graph_was_replayed(recipe, tiny, tmp_path, no_plots, monkeypatch):
    def make(*given):
        made = make_steps(*given)
        made.recorded = True
        return made

    monkeypatch.setattr(loop, "make_steps", make)
    loop.train(replace(recipe, epochs=1), tiny, tmp_path / "run")
    assert [line["cuda_graph"] for line in Run(tmp_path / "run").metrics] == [True]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", EVERY)
def test_on_a_gpu(name):
    """Recorded, with the nets themselves: the first losses are the same to rounding, in bfloat16 a hundredth.

    Sums differ in order from run to run: later ones are held against how far two eager trainings are apart.
    """
    recipe, device = EVERY[name], torch.device("cuda")
    torch.manual_seed(0)
    net = make_net(recipe.net, data.synthetic(10, 10).contract, recipe.dropout)
    speed_up(net, device)
    eager, again, graphed = (Training(recipe, net, device) for _ in range(3))
    with searched_algorithms(device):
        wanted, other = (np.array(training.run(training.steps(graph=False))) for training in (eager, again))
        steps = graphed.steps(graph=True)
        assert steps.recorded
        found = np.array(graphed.run(steps))
    assert found[:8] == pytest.approx(wanted[:8], rel=2e-2, abs=2e-3)
    assert np.abs(found - wanted).mean() <= 0.05 * wanted.mean() + 3 * np.abs(other - wanted).mean()
    assert any(
        not torch.equal(value, graphed.state()[key]) for key, value in Training(recipe, net, device).state().items()
    )
