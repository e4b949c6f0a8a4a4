"""The device that is asked for is there, or what to do is said."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from edgecifar.runtime import machine
from edgecifar.runtime.errors import RunError
from edgecifar.train import devices
from edgecifar.train.devices import autocast, choose_device, describe_device, precision
from edgecifar.train.recipes import BEST, REFERENCE

CPU = torch.device("cpu")


def test_auto_takes_the_fastest_that_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device() == choose_device("cpu") == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device().type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device().type == "cuda"


@pytest.mark.parametrize(("name", "word"), [("cuda", "driver"), ("mps", "Apple"), ("tpu", "choose auto")])
def test_a_device_that_is_not_there(monkeypatch, name, word):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(RunError, match=word) as caught:
        choose_device(name)
    assert name in str(caught.value)
    assert caught.value.option == "device"


def test_the_cpu_is_described_by_its_name():
    assert describe_device(CPU) == machine.cpu_info()[0]


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ({"avx2", "avx512f", "avx512_vnni"}, False),
        ({"avx2", "avx512_bf16"}, True),
        ({"amx_bf16"}, True),
        (set(), False),
    ],
)
def test_cpus_compute_in_bfloat16_where_they_have_instructions_for_it(monkeypatch, flags, wanted):
    monkeypatch.setattr(machine, "cpu_info", lambda: ("a processor", frozenset(flags)))
    monkeypatch.setattr(devices, "_cpu_has_bfloat16", devices._cpu_has_bfloat16.__wrapped__)
    with autocast(BEST, CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if wanted else torch.float32)
    assert precision(BEST, CPU) == ("bfloat16" if wanted else "float32")
    with autocast(REFERENCE, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_float32_on_cuda_is_named_as_what_cudnn_makes_of_it():
    assert precision(REFERENCE, torch.device("cuda")) == "tf32"
    assert precision(BEST, torch.device("cuda")) == "bfloat16"


@pytest.mark.parametrize(
    ("cudnn", "wanted"),
    [
        (SimpleNamespace(conv=SimpleNamespace(fp32_precision="tf32")), "tf32"),
        (SimpleNamespace(conv=SimpleNamespace(fp32_precision="ieee")), "float32"),
        (SimpleNamespace(allow_tf32=True), "tf32"),
        (SimpleNamespace(allow_tf32=False), "float32"),
    ],
)
def test_the_older_setting_is_read_only_where_there_is_no_newer_one(monkeypatch, cudnn, wanted):
    """Some versions of torch warn where it is read."""
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    assert precision(REFERENCE, torch.device("cuda")) == wanted
