"""Net is the reference's, name by name and shape by shape."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgecifar.runtime.contract import Contract
from edgecifar.runtime.errors import RunError
from edgecifar.train import net as layers
from edgecifar.train.net import INPUT_SHAPE, Net
from edgecifar.train.nets import NETS, describe, make_net, summarise

PARAMETERS = {  # name: weight's shape, bias's length; from the reference experiment's table
    "conv1": ((16, 3, 3, 3), 16),
    "conv2": ((32, 16, 3, 3), 32),
    "conv3": ((64, 32, 3, 3), 64),
    "conv4": ((128, 64, 3, 3), 128),
    "conv5": ((256, 128, 3, 3), 256),
    "conv6": ((512, 256, 3, 3), 512),
    "norm1": ((16,), 16),
    "norm2": ((32,), 32),
    "norm3": ((64,), 64),
    "norm4": ((128,), 128),
    "norm5": ((256,), 256),
    "norm6": ((512,), 512),
    "fc1": ((1024, 18432), 1024),
    "fc2": ((256, 1024), 256),
    "fc3": ((10, 256), 10),
}
COUNTS = {
    "conv1": 448,
    "norm1": 32,
    "conv2": 4_640,
    "norm2": 64,
    "conv3": 18_496,
    "norm3": 128,
    "conv4": 73_856,
    "norm4": 256,
    "conv5": 295_168,
    "norm5": 512,
    "conv6": 1_180_160,
    "norm6": 1_024,
    "fc1": 18_875_392,
    "fc2": 262_400,
    "fc3": 2_570,
}
OUTPUTS = {  # what each stage of the table gives
    "conv1": (16, 30, 30),
    "conv2": (32, 28, 28),
    "pool1": (32, 14, 14),
    "conv3": (64, 12, 12),
    "conv4": (128, 10, 10),
    "pool2": (128, 10, 10),
    "conv5": (256, 8, 8),
    "conv6": (512, 6, 6),
    "pool3": (512, 6, 6),
    "fc1": (1024,),
    "fc2": (256,),
    "fc3": (10,),
}


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net(10).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_parameters_are_the_references(net):
    wanted = {f"{name}.weight": weight for name, (weight, _) in PARAMETERS.items()}
    wanted |= {f"{name}.bias": (bias,) for name, (_, bias) in PARAMETERS.items()}
    assert {name: tuple(parameter.shape) for name, parameter in net.named_parameters()} == wanted
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_parameter_counts_are_the_references(net):
    counts = {name: sum(p.numel() for p in getattr(net, name).parameters()) for name in COUNTS}
    assert counts == COUNTS
    assert sum(parameter.numel() for parameter in net.parameters()) == 20_715_146


def test_state_dict_holds_nothing_but_parameters_and_batch_norm_statistics(net):
    wanted = {f"{name}.{part}" for name in PARAMETERS for part in ("weight", "bias")}
    wanted |= {
        f"norm{i}.{part}" for i in range(1, 7) for part in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert set(net.state_dict()) == wanted


def test_every_stage_has_the_references_output_shape(net, images):
    shapes = {}
    hooks = [
        getattr(net, name).register_forward_hook(lambda _, __, output, name=name: shapes.update({name: output.shape}))
        for name in OUTPUTS
    ]
    with torch.no_grad():
        logits = net(images)
    for hook in hooks:
        hook.remove()
    assert {name: tuple(shape[1:]) for name, shape in shapes.items()} == OUTPUTS
    assert logits.shape == (2, 10)
    assert logits.dtype == torch.float32
    assert INPUT_SHAPE == (3, 32, 32)


def test_layers_have_the_references_settings(net):
    for i in range(1, 7):
        conv, norm = getattr(net, f"conv{i}"), getattr(net, f"norm{i}")
        assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (0, 0))
        assert (norm.eps, norm.momentum) == (1e-5, 0.1)
    assert (net.pool1.kernel_size, net.pool1.stride) == (2, 2)
    assert Net(10).dropout.p == 0.5


@pytest.mark.parametrize("name", ["pool2", "pool3"])
def test_one_by_one_pools_are_identities(net, name):
    x = torch.randn(2, 5, 7, 7)
    assert torch.equal(getattr(net, name)(x), x)


def test_features_are_what_fc1_reads(net, images):
    with torch.no_grad():
        features = net.features(images)
        assert features.shape == (2, 18432)
        head = net.fc3(torch.relu(net.fc2(torch.relu(net.fc1(features)))))
        assert torch.equal(net(images), head)


def test_dropout_changes_training_only(net, images):
    other = Net(10, dropout=0.9)
    other.load_state_dict(net.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(other.eval()(images), net(images))
        features = other.train().features(images)
    assert (features == 0).float().mean() > 0.85


def test_dropout_comes_after_each_block_and_after_fc1(net, images):
    inputs = []
    hook = net.dropout.register_forward_hook(lambda _, args, __: inputs.append(tuple(args[0].shape[1:])))
    with torch.no_grad():
        net(images)
    hook.remove()
    assert inputs == [(32, 14, 14), (128, 10, 10), (512, 6, 6), (1024,)]


def test_what_is_said_of_the_layers_is_so(net):
    read = {name: layer for name, layer in net.named_children() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    assert tuple(read) == (*layers.LAYERS, layers.LAST_LAYER)
    assert {name: len(read[name].weight) for name in layers.LAYERS} == layers.WIDTHS
    channels, height, width = layers.FEATURES
    assert read["fc1"].in_features == channels * height * width
    assert layers.READERS["conv6"] == "fc1"
    assert layers.READERS["fc2"] == "fc3"
    assert "20,715,146" in describe("net", 10)


@pytest.mark.parametrize("classes", [2, 1000])
def test_the_last_layer_follows_the_classes(classes, images):
    with torch.device("meta"):
        net = Net(classes)
    assert net.fc3.weight.shape == (classes, 256)
    assert sum(p.numel() for p in net.parameters()) == 20_715_146 + (classes - 10) * 257


def test_net_takes_32_pixels_only(net):
    with pytest.raises(ValueError, match="32"):
        net(torch.zeros(1, 3, 64, 64))
    with pytest.raises(RunError, match="32x32"):
        make_net("net", Contract(("a", "b"), 28))


def test_a_net_is_made_by_its_name():
    with pytest.raises(RunError, match=r"tower.*net"):
        make_net("tower", Contract(("a", "b"), 32))
    made = make_net("net", Contract(("a", "b", "c"), 32), dropout=0.25)
    assert isinstance(made, NETS["net"])
    assert made.fc3.out_features == 3
    assert made.dropout.p == 0.25


def test_the_summary_names_every_layer(net):
    table = summarise(net, 32)
    assert "20,715,146" in table
    for name in (*layers.LAYERS, "norm6", "pool2", "fc3"):
        assert f"({name})" in table
