"""Narrowing: what is kept is what matters, and what it computes is the net without the rest."""

from __future__ import annotations

import copy

import narrow_net
import pytest
import torch

from edgecifar.export.compress import narrow
from edgecifar.export.graph import Deployed
from edgecifar.train.augment import normalise
from edgecifar.train.inference import logits_with
from edgecifar.train.net import LAYERS, READERS

FULL = narrow_net.WIDTHS
HALF = {name: width // 2 for name, width in FULL.items()}


@pytest.fixture(scope="module")
def images(small):
    return small.train_images[:60]


@pytest.fixture(scope="module")
def half(net, images):
    return narrow.narrowed(net, HALF, narrow.importance(net, images))


def test_nothing_removed_is_the_net_itself(net, images):
    same = narrow.narrowed(net, FULL, narrow.importance(net, images)).state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in net.state_dict().items())


def test_layers_have_the_widths_asked_for(half):
    assert {name: len(half.get_submodule(name).weight) for name in LAYERS} == HALF
    assert list(half.fc1.weight.shape) == [HALF["fc1"], HALF["conv6"] * 36]
    assert list(half.fc3.weight.shape) == [10, HALF["fc2"]]
    assert all(len(half.get_submodule(f"norm{i}").running_mean) == HALF[f"conv{i}"] for i in range(1, 7))


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_that_nothing_reads_go_first(net, images, name):
    """Those of one layer that are zero, or met by zeros only, are removed; the answers stay."""
    silenced = copy.deepcopy(net)
    reader, width = silenced.get_submodule(READERS[name]), FULL[name]
    unread = torch.randperm(width, generator=torch.Generator().manual_seed(3))[: width // 2]
    with torch.no_grad():
        reader.weight.flatten(1).view(len(reader.weight), width, -1)[:, unread] = 0
    narrower = narrow.narrowed(silenced, {**FULL, name: width // 2}, narrow.importance(silenced, images))
    assert len(narrower.get_submodule(name).weight) == width // 2
    wanted = logits_with(silenced)(images)
    torch.testing.assert_close(
        torch.from_numpy(logits_with(narrower)(images)), torch.from_numpy(wanted), atol=1e-4, rtol=1e-4
    )


def test_importance_by_its_definition(net, images):
    """Of `conv6`, whose outputs `fc1` reads at 36 places each, and of `fc1`."""
    found = narrow.importance(net, images)
    with torch.inference_mode():
        features = net.features(normalise(torch.from_numpy(images))).double()
        hidden = net.fc1(features.float()).relu().double()
    energy = features.unflatten(1, (-1, 36)).pow(2).sum(2).mean(0)
    met = net.fc1.weight.detach().double().unflatten(1, (-1, 36)).pow(2).sum((0, 2))
    torch.testing.assert_close(found["conv6"], energy * met, rtol=1e-4, atol=0)
    met = net.fc2.weight.detach().double().pow(2).sum(0)
    torch.testing.assert_close(found["fc1"], hidden.pow(2).mean(0) * met, rtol=1e-4, atol=1e-9)
    assert not net.training


def test_an_output_that_is_never_on_goes(net, images):
    silenced = copy.deepcopy(net)
    with torch.no_grad():
        silenced.norm3.bias[5] = -1e3  # ReLU lets nothing of it through
    narrower = narrow.narrowed(silenced, {**FULL, "conv3": 31}, narrow.importance(silenced, images))
    left = [index for index in range(32) if index != 5]
    assert torch.equal(narrower.conv3.weight, silenced.conv3.weight[left])
    assert torch.equal(narrower.conv4.weight, silenced.conv4.weight[:, left])


def test_the_net_is_unchanged_and_shares_nothing(net, images):
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    narrower = narrow.narrowed(net, HALF, narrow.importance(net, images))
    assert all(parameter.requires_grad for parameter in narrower.parameters())
    with torch.no_grad():
        for tensor in (*narrower.parameters(), *narrower.buffers()):
            tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("paired", [False, True])
def test_it_deploys_as_a_net_does(half, small, paired):
    pictures = torch.from_numpy(small.test_images[:40])
    half.eval()
    with torch.inference_mode():
        wanted = half(normalise(pictures))
        torch.testing.assert_close(Deployed(half, 1.7, paired)(pictures)[1], wanted, atol=1e-4, rtol=1e-4)
