"""Each parameter is moved once, as its kind should be; Muon's steps are orthogonal and of the size its rate says."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim import SGD

from edgecifar.runtime.contract import CIFAR10
from edgecifar.train import devices, optimizer
from edgecifar.train.net import Net
from edgecifar.train.nets import make_net
from edgecifar.train.optimizer import NAMES, Muon, make_optimizers, orthogonal
from edgecifar.train.recipes import FAST, RECIPES


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(32, 144), (64, 64), (200, 30)])
def test_orthogonal_brings_singular_values_to_about_one(shape, dtype):
    matrix = random(*shape) * 1e-3
    # Square random matrices have singular values near 0, which five iterations raise but do not bring to 1.
    least = 0.6 if shape[0] != shape[1] else 0.0
    values = torch.linalg.svdvals(orthogonal(matrix.to(dtype)).float())
    assert least < values.min()
    assert values.max() < 1.25
    assert torch.linalg.svdvals(matrix).max() < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(32, 144), (200, 30)])
def test_orthogonal_keeps_the_singular_vectors(shape, dtype):
    u, _, vh = torch.linalg.svd(random(*shape), full_matrices=False)
    found = orthogonal(random(*shape).to(dtype)).float()
    assert torch.cosine_similarity(found.flatten(), (u @ vh).flatten(), dim=0) > 0.98


@pytest.mark.parametrize(("wanted", "there"), [(True, True), (True, False), (False, True)])
def test_muon_computes_in_bfloat16_where_the_recipe_says_so_and_the_device_can(monkeypatch, wanted, there):
    monkeypatch.setattr(devices, "_cpu_has_bfloat16", lambda: there)
    net, seen = Net(10), set()
    muon = make_optimizers(net, replace(FAST, bfloat16=wanted))[1]
    monkeypatch.setattr(optimizer, "orthogonal", lambda matrix: seen.add(matrix.dtype) or matrix)
    for bank in muon.param_groups[0]["params"]:
        bank.grad = torch.ones_like(bank)
    muon.step()
    assert seen == {torch.bfloat16 if wanted and there else torch.float32}
    assert {bank.dtype for bank in muon.param_groups[0]["params"]} == {torch.float32}


def test_orthogonal_of_nothing_is_nothing():
    assert torch.equal(orthogonal(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_a_step_of_muon_has_the_relative_size_of_its_rate():
    bank = nn.Parameter(random(32, 16, 3, 3) * 7)
    direction = bank.detach().clone()
    bank.grad = random(32, 16, 3, 3, seed=1)
    Muon([bank], lr=0.125).step()
    start = direction * 32**0.5 / direction.norm()  # the norm of an orthogonal bank
    step = bank.detach() - start
    assert (step.norm() / start.norm()).item() == pytest.approx(0.125, rel=0.2)
    assert torch.sum(step * bank.grad) < 0  # downhill


def test_momentum_outlasts_its_gradient():
    bank = nn.Parameter(random(8, 4, 3, 3))
    muon = Muon([bank], lr=0.1, momentum=0.5)
    bank.grad = random(8, 4, 3, 3, seed=1)
    muon.step()
    before = bank.detach() * 8**0.5 / bank.detach().norm()
    bank.grad = torch.zeros_like(bank)
    muon.step()
    assert (bank.detach() - before).norm() / before.norm() == pytest.approx(0.1, rel=0.2)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_memory_format_changes_nothing(memory_format):
    plain = nn.Parameter(random(8, 4, 3, 3))
    plain.grad = random(8, 4, 3, 3, seed=1)
    other = nn.Parameter(plain.detach().clone().to(memory_format=memory_format))
    other.grad = plain.grad.to(memory_format=memory_format)
    Muon([plain], lr=0.1).step()
    Muon([other], lr=0.1).step()
    torch.testing.assert_close(other, plain)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_net_is_moved_by_one_optimizer(name):
    net = Net(10)
    moved = [
        p for o in make_optimizers(net, replace(FAST, optimizer=name)) for g in o.param_groups for p in g["params"]
    ]
    assert sorted(map(id, moved)) == sorted(map(id, net.parameters()))


def test_muon_moves_the_filters_that_see_features_and_sgd_the_rest():
    net = Net(10)
    sgd, muon = make_optimizers(net, replace(FAST, optimizer="muon", lr=0.2, muon_lr=0.3, weight_decay=0.25))
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    assert isinstance(sgd, SGD)
    assert isinstance(muon, Muon)
    (group,) = muon.param_groups
    assert [names[id(p)] for p in group["params"]] == [f"conv{i}.weight" for i in range(2, 7)]
    assert (group["lr"], group["max_lr"], group["weight_decay"]) == (0.3, 0.3, 0)
    assert {group["max_lr"] for group in sgd.param_groups} == {0.2}
    decaying, others = sgd.param_groups
    assert [names[id(p)] for p in decaying["params"]] == ["conv1.weight", "fc1.weight", "fc2.weight", "fc3.weight"]
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.25, 0)


def test_muon_goes_on_from_its_state():
    bank = nn.Parameter(random(8, 4, 3, 3))
    muon = Muon([bank], lr=0.1)
    bank.grad = random(8, 4, 3, 3, seed=1)
    muon.step()
    again = nn.Parameter(bank.detach().clone())
    restored = Muon([again], lr=0.7)
    restored.load_state_dict(copy.deepcopy(muon.state_dict()))
    for parameter, mover in ((bank, muon), (again, restored)):
        parameter.grad = random(8, 4, 3, 3, seed=2)
        mover.step()
    assert torch.equal(again, bank)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_without_muon_too_the_rate_of_the_last_layers_is_theirs_alone(name):
    net = Net(10)
    recipe = replace(FAST, optimizer=name, lr=0.1, head_lr=0.4)
    (mover,) = make_optimizers(net, recipe)
    rates = {id(p): (group["max_lr"], group["weight_decay"]) for group in mover.param_groups for p in group["params"]}
    found = {name: rates[id(parameter)] for name, parameter in net.named_parameters()}
    decay = recipe.weight_decay
    assert {found[f"{layer}.weight"] for layer in ("conv1", "fc1", "fc2", "fc3")} == {(0.4, decay)}
    assert {found[f"conv{number}.weight"] for number in range(2, 7)} == {(0.1, decay)}
    assert {found[name] for name, p in net.named_parameters() if p.ndim == 1} == {(0.1, 0.0)}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_the_groups_of_the_recipes_are_those_of_their_checkpoints(recipe):
    net = make_net(recipe.net, CIFAR10)
    shapes = [[len(group["params"]) for group in o.param_groups] for o in make_optimizers(net, recipe)]
    expected = {"reference": [[9, 21]], "fast": [[4, 21], [5]], "best": [[4, 21], [5]], "teacher": [[1, 12], [6]]}
    assert shapes == expected[recipe.name]
