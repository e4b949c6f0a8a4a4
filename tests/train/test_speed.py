"""Faster modules compute what those in whose place they are compute, and dropout drops as often as it says."""

from __future__ import annotations

import copy
import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from edgecifar.train.net import Net
from edgecifar.train.speed import (
    LARGE_PAGES,
    SMALL_BATCH,
    ByteDropout,
    SmallBatchLinear,
    flushed_denormals,
    speed_up,
)

CPU = torch.device("cpu")


class TestSpeedUp:
    def test_gives_the_same_bit_for_bit(self, net):
        faster, pictures = copy.deepcopy(net), torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        speed_up(faster, CPU)
        with torch.no_grad():
            assert torch.equal(faster.eval()(pictures), net.eval()(pictures))

    def test_keeps_the_parameters_and_the_real_pool(self):
        net = Net(10, 0.25)
        names = list(net.state_dict())
        speed_up(net, CPU)
        assert list(net.state_dict()) == names
        assert (type(net.pool1), type(net.pool2), type(net.pool3)) == (nn.MaxPool2d, nn.Identity, nn.Identity)
        assert type(net.dropout) is ByteDropout
        assert net.dropout.p == 0.25
        assert type(net.fc1) is SmallBatchLinear

    def test_leaves_dropout_and_layers_to_other_devices(self):
        net = Net(10, 0.25)
        speed_up(net, torch.device("cuda"))
        assert type(net.dropout) is nn.Dropout
        assert type(net.fc1) is nn.Linear


class TestKeepFreedMemory:
    @pytest.mark.skipif(
        sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc alone has mallopt"
    )
    def test_a_large_block_is_used_again(self):
        before, after = map(int, python(FILLING, "0").split())
        assert after < before / 5


class TestLargePages:
    @pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux alone has transparent huge pages")
    @pytest.mark.parametrize(("variable", "asked"), [(None, True), ("0", False)])
    def test_are_asked_for_unless_the_user_says_otherwise(self, variable, asked):
        if not Path("/sys/kernel/mm/transparent_hugepage").exists():
            pytest.skip("this kernel has no transparent huge pages")
        assert python(MAPPINGS, variable).strip() == str(asked)


def python(code: str, large_pages: str | None) -> str:
    """Return what Python prints, in a process of its own whose environment says this, or nothing, of large pages."""
    environment = {name: value for name, value in os.environ.items() if name != LARGE_PAGES}
    environment |= {} if large_pages is None else {LARGE_PAGES: large_pages}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


MAPPINGS = """
import edgecifar.train.speed, torch
tensor = torch.ones(2**24)
flags = [line.split() for line in open("/proc/self/smaps") if line.startswith("VmFlags")]
print(any("hg" in each for each in flags))
"""
"""Prints whether the kernel was asked for huge pages of any part of the memory."""


FILLING = """
import resource, torch
from edgecifar.train.speed import keep_freed_memory

def faults():
    began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - began

print(faults())
keep_freed_memory()
faults()  # an aligned block needs more than a free one of its size has: glibc takes up to eight, then uses them again
print(faults())
"""
"""Prints how many page faults it costs to fill 64 MB ten times, before and after."""


class TestFlushedDenormals:
    def test_tiny_numbers_become_zero_in_each_thread_and_are_numbers_again_after_it(self):
        found = subprocess.run([sys.executable, "-c", MULTIPLYING], capture_output=True, text=True, check=True)
        if found.stdout == "not supported\n":
            pytest.skip("this processor cannot")
        assert found.stdout.split() == ["0", "1"]

    def test_other_devices_are_left_alone(self):
        with flushed_denormals(torch.device("cuda")):
            assert (torch.tensor([1e-40]) * 1).item() > 0


MULTIPLYING = """
import torch
from edgecifar.train.speed import flushed_denormals

torch.set_num_threads(2)
if torch.set_flush_denormal(True):
    torch.set_flush_denormal(False)
    with flushed_denormals(torch.device("cpu")):
        tiny = torch.full((2**22,), 1000, dtype=torch.int32).view(torch.float32)
        print((tiny * 0.9).view(torch.int32).count_nonzero().item())
    print((tiny[:1] * 0.9).view(torch.int32).count_nonzero().item())
else:
    print("not supported")
"""
"""Prints how many of four million tiny numbers are not zero after a multiplication, and how many of one after it."""


class TestSmallBatchLinear:
    @pytest.mark.parametrize(
        ("images", "dtype"), [(SMALL_BATCH, torch.float32), (SMALL_BATCH + 1, torch.bfloat16)], ids=["small", "large"]
    )
    def test_computes_a_small_batch_in_float32(self, images, dtype):
        linear = nn.Linear(40, 3)
        ours, given = SmallBatchLinear.of(linear), torch.randn(images, 40).bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            answer = ours(given)
        assert answer.dtype == dtype
        torch.testing.assert_close(
            answer.float(), linear(given.float()), atol=0 if images <= SMALL_BATCH else 0.03, rtol=0
        )

    def test_its_parameters_are_those_of_the_other(self):
        linear = nn.Linear(40, 3, bias=False).eval()
        ours = SmallBatchLinear.of(linear)
        assert ours.weight is linear.weight
        assert ours.bias is None
        assert not ours.training


class TestByteDropout:
    @pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_drops_as_often_as_it_says_and_scales_the_rest(self, p, dtype):
        torch.manual_seed(0)
        dropped = ByteDropout(p)(torch.ones(400, 500, dtype=dtype))
        share = round(p * 256) / 256
        kept = dropped[dropped != 0]
        assert dropped.dtype == dtype
        assert (dropped == 0).double().mean().item() == pytest.approx(share, abs=5 * (share * (1 - share) / 2e5) ** 0.5)
        assert kept.unique().tolist() == [pytest.approx(1 / (1 - share), rel=0.01)]

    def test_the_gradient_is_dropped_likewise(self):
        x = torch.ones(50, 50, requires_grad=True)
        dropped = ByteDropout(0.3)(x)
        dropped.sum().backward()
        assert torch.equal(x.grad, dropped.detach())

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_keeps_the_layout_and_drops_each_element_on_its_own(self, layout):
        x = torch.ones(8, 32, 20, 20).contiguous(memory_format=layout)
        dropped = ByteDropout(0.5)(x)
        assert dropped.is_contiguous(memory_format=layout)
        for axes in ((1, 2, 3), (0, 2, 3), (0, 1, 3)):  # no image, channel or row is dropped more than another
            assert (dropped == 0).double().mean(axes).sub(0.5).abs().max() < 0.08

    def test_of_a_view_with_gaps(self):
        x = torch.ones(100, 100)[:, ::3]
        dropped = ByteDropout(0.5)(x)
        assert dropped.shape == x.shape
        assert 0.4 < (dropped == 0).double().mean() < 0.6

    def test_follows_from_torchs_seed_and_differs_from_call_to_call(self):
        dropout, x = ByteDropout(0.5), torch.ones(1000)
        torch.manual_seed(3)
        first, second = dropout(x), dropout(x)
        torch.manual_seed(3)
        assert torch.equal(dropout(x), first)
        assert torch.equal(dropout(x), second)
        assert not torch.equal(first, second)

    def test_nothing_and_everything(self):
        x = torch.ones(1000)
        assert torch.equal(ByteDropout(0.0)(x), x)
        assert torch.equal(ByteDropout(0.5).eval()(x), x)
        assert torch.equal(ByteDropout(1.0)(x), 0 * x)
