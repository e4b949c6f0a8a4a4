"""The device that trains: which one, what it is called, in what precision it computes, and what if its memory ends."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator

import torch

from ..runtime import machine
from ..runtime.errors import RunError
from .recipes import Recipe


def choose_device(name: str = "auto") -> torch.device:
    """Return the device that `name` means: CUDA, else MPS, else the CPU for "auto".

    Raises:
        RunError: the device is not known or not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, is_there in there.items() if is_there))
    if name not in there:
        raise RunError(f"There is no device called {name}: choose auto, {', '.join(there)}.", option="device")
    if not there[name]:
        remedy = "install a driver and a CUDA build of torch" if name == "cuda" else "it needs an Apple GPU"
        raise RunError(f"torch finds no {name} device here: {remedy}, or use the CPU.", option="device")
    return torch.device(name)


def describe_device(device: torch.device) -> str:
    """Return the name of the hardware behind `device`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else machine.cpu_info()[0]


def in_bfloat16(recipe: Recipe, device: torch.device) -> bool:
    """Return whether `recipe` computes in bfloat16 on `device`.

    It does where it says so and the device multiplies in it: CUDA does, and CPUs that say so; others would emulate it.
    """
    return recipe.bfloat16 and (device.type == "cuda" or (device.type == "cpu" and _cpu_has_bfloat16()))


@functools.cache
def _cpu_has_bfloat16() -> bool:
    return not machine.cpu_info()[1].isdisjoint({"avx512_bf16", "amx_bf16"})  # Arm's has not been measured


def precision(recipe: Recipe, device: torch.device) -> str:
    """Return in what `recipe` computes on `device`, as `record.Conditions` says it."""
    if in_bfloat16(recipe, device):
        return "bfloat16"
    return "tf32" if device.type == "cuda" and _convolves_in_tf32() else "float32"


def _convolves_in_tf32() -> bool:
    convolutions = getattr(torch.backends.cudnn, "conv", None)
    if convolutions is None:  # torch before 2.9; some later versions warn where the older setting is read
        return torch.backends.cudnn.allow_tf32
    return convolutions.fp32_precision == "tf32"


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """Return the context in which nets compute: bfloat16 where `in_bfloat16` says so, else float32.

    Weights that were converted are not kept: each is used once a step, and a CUDA graph may not hold on to them.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16(recipe, device), cache_enabled=False)


@contextlib.contextmanager
def searched_algorithms(device: torch.device) -> Iterator[None]:
    """On CUDA let cuDNN time its algorithms for each shape that is new, and take the fastest; elsewhere do nothing."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def synchronize(device: torch.device) -> None:
    """Return when the device has done what it was told, so that a clock reads true; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def enough_memory(remedy: str, option: str | None = None) -> Iterator[None]:
    """Turn running out of memory into a `RunError` that ends with what to do, and names the option that mends it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # CUDA has an exception of its own; the allocators of the CPU and of MPS only have their words.
        by_words = re.search("can't allocate memory|not enough memory|out of memory", str(error))
        if not by_words and not isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            raise
        raise RunError(f"Memory ran out: {remedy}.", option=option) from error
