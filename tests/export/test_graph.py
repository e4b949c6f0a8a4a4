"""The deployed graph is the net: every fold is exact, alone and together."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from edgecifar.export.graph import Deployed, FlattenChannelsLast, channels_first, fold, fold_normalisation

PICTURES = {
    "drawn": lambda small: small.test_images[:20],
    "black": lambda small: np.zeros((3, 32, 32, 3), np.uint8),
    "white": lambda small: np.full((3, 32, 32, 3), 255, np.uint8),
    "one channel": lambda small: np.eye(3, dtype=np.uint8)[:, None, None, :].repeat(32, 1).repeat(32, 2) * 255,
    "noise": lambda small: np.random.default_rng(1).integers(0, 256, (20, 32, 32, 3), np.uint8),
}


def by_definition(net, images: np.ndarray, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and logits as the docstring of `Deployed` defines them, in float64."""
    exact = copy.deepcopy(net).double().eval()
    x = torch.from_numpy(images).double().permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        logits = exact(x)
    return torch.softmax(logits / temperature, 1), logits


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("temperature", [1.0, 0.4, 1.7])
def test_equals_the_net_by_definition(net, small, kind, temperature):
    images = PICTURES[kind](small)
    probabilities, logits = Deployed(net, temperature)(torch.from_numpy(images))
    expected_probabilities, expected_logits = by_definition(net, images, temperature)
    assert probabilities.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), expected_logits, atol=3e-5, rtol=3e-6)
    torch.testing.assert_close(probabilities.double(), expected_probabilities, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", PICTURES)
def test_pairs_of_pixels_give_the_same(deployed, net, small, kind):
    images = torch.from_numpy(PICTURES[kind](small))
    paired = Deployed(net, deployed.temperature, paired=True)
    outputs = 2 * net.conv1.out_channels
    assert list(paired.conv1.weight.shape) == [outputs, 6, 3, 2]
    assert int((paired.conv1.weight == 0).sum()) == outputs * 3 * 3  # one pixel of each window of four
    torch.testing.assert_close(paired.features(images), deployed.features(images), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(paired(images)[1], deployed(images)[1], atol=3e-5, rtol=3e-6)


def test_channels_last_and_first_are_inverse(deployed, net, small):
    weight = net.fc1.weight.detach()
    torch.testing.assert_close(channels_first(deployed.fc1[-1].weight), weight.unflatten(1, (-1, 6, 6)))
    x = torch.arange(2 * 512 * 36).view(2, 512, 6, 6).float()
    flat = FlattenChannelsLast()(x)
    assert flat[1, 0] == x[1, 0, 0, 0]
    assert flat[1, 1] == x[1, 1, 0, 0]
    assert flat[1, 512] == x[1, 0, 0, 1]
    assert flat[1, 6 * 512] == x[1, 0, 1, 0]


def test_equals_what_training_evaluates(eager, deployed, small):
    logits = deployed(torch.from_numpy(small.test_images))[1].numpy()
    np.testing.assert_allclose(logits, eager, atol=3e-5, rtol=1e-5)


def test_the_pictures_decide(eager):
    assert len(set(eager.argmax(1).tolist())) >= 5  # or the comparisons here and in the gate would show little


@pytest.mark.parametrize("index", range(1, 7))
def test_batch_norm_fold_alone(net, index):
    convolution, norm = getattr(net, f"conv{index}"), getattr(net, f"norm{index}")
    assert norm.running_mean.abs().max() > 0.01  # or the fold would have nothing to do
    assert (norm.running_var - 1).abs().max() > 0.05
    x = torch.randn(4, convolution.in_channels, 9, 9, generator=torch.Generator().manual_seed(0))
    folded = fold(convolution, norm)
    torch.testing.assert_close(folded(x), norm(convolution(x)), atol=2e-5, rtol=1e-5)


def test_batch_norm_fold_regards_eps():
    convolution, norm = nn.Conv2d(2, 3, 3).requires_grad_(False), nn.BatchNorm2d(3, eps=0.5).requires_grad_(False)
    norm.eval().running_var.copy_(torch.tensor([0.0, 0.01, 4.0]))
    x = torch.ones(1, 2, 4, 4)
    torch.testing.assert_close(fold(convolution, norm)(x), norm(convolution(x)))


@pytest.mark.parametrize("value", [0, 1, 127, 128, 254, 255])
def test_normalisation_fold_alone(net, value):
    x = torch.full((1, 3, 32, 32), float(value))
    torch.testing.assert_close(fold_normalisation(net.conv1)(x), net.conv1(x / 127.5 - 1), atol=1e-5, rtol=1e-5)


def test_normalisation_fold_keeps_channels_apart(net):
    for channel in range(3):
        x = torch.zeros(1, 3, 32, 32)
        x[:, channel] = 255
        torch.testing.assert_close(fold_normalisation(net.conv1)(x), net.conv1(x / 127.5 - 1), atol=1e-5, rtol=1e-5)


def test_probabilities_sum_to_one(deployed):
    probabilities, _ = deployed(torch.from_numpy(PICTURES["noise"](None)))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(20))


def test_the_source_net_is_unchanged_and_shares_nothing(net, small):
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    deployed = Deployed(net, 1.7)
    deployed(torch.from_numpy(small.test_images[:2]))
    for parameter in deployed.parameters():
        parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_nothing_to_train_and_no_identities(deployed):
    assert not deployed.training
    assert not any(parameter.requires_grad for parameter in deployed.parameters())
    assert {type(module) for module in deployed.modules()} == {
        Deployed,
        nn.Conv2d,
        nn.Linear,
        nn.Sequential,
        FlattenChannelsLast,
    }
