"""Pictures spoilt as cameras spoil them, for training; all vectorised on the training device.

`benchmarks/accuracy.py` measures others: Gaussian noise, Gaussian and defocus blur, JPEG, brightness, contrast. None of
them is drawn here, so that its figures say how far what is learnt carries over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

MOST_NOISE = 0.15
"""Standard deviation of the strongest noise, where black is 0 and white 1."""

DEAD_PIXELS = 0.05
"""Share of the pixels that are black or white in the strongest noise."""

LONGEST_MOTION = 6.0
"""Pixels that the picture moves during the longest exposure."""

COARSEST_STEP = 0.3
"""Coarsest step of the coefficients of a block of 8x8 pixels, whose largest is 8."""

THICKEST_HAZE = 0.75
"""Share of the light that is haze, at most."""


def noise(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Add evenly distributed noise, in part in proportion to the light, and in half of the pictures dead pixels."""
    size, device = (len(x), 1, 1, 1), x.device
    drawn = torch.rand(x.shape, generator=generator, device=device).sub_(0.5).mul_(math.sqrt(12.0))
    light = torch.rand(size, generator=generator, device=device)  # how much of the noise goes with the light
    noisy = x + MOST_NOISE * strength * drawn * (1 - light + light * x)
    dead = torch.rand((len(x), 1, *x.shape[2:]), generator=generator, device=device)
    share = DEAD_PIXELS * strength * (torch.rand(size, generator=generator, device=device) < 0.5)
    return torch.where(dead < share / 2, 0.0, torch.where(dead < share, 1.0, noisy))


def light(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Change the curve of the light, its colour, and let a shadow fall from one side."""
    size, device = (len(x), 1, 1, 1), x.device
    curve = torch.exp(_signed(size, generator, device) * strength)  # exponents from 1 / e to e
    colour = 1 + 0.3 * strength * _signed((len(x), 3, 1, 1), generator, device)
    down, right = 0.5 * strength * _signed((2, *size), generator, device)
    rows, columns = (torch.linspace(-1, 1, side, device=device) for side in x.shape[2:])
    shadow = 1 + down * rows[:, None] + right * columns
    return x.clamp(0, 1) ** curve * colour * shadow


def motion(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Blur along a line of any direction."""
    count, device = len(x), x.device
    radius, moments = math.ceil(LONGEST_MOTION / 2), 15
    angle = math.pi * torch.rand((count, 1), generator=generator, device=device)
    along = LONGEST_MOTION * strength.view(count, 1) * torch.linspace(-0.5, 0.5, moments, device=device)
    row, column = (radius + (along * turned).round().long() for turned in (angle.sin(), angle.cos()))
    side = 2 * radius + 1
    kernels = torch.zeros(count, side * side, device=device)
    kernels.scatter_add_(1, row * side + column, torch.full(row.shape, 1 / moments, device=device))
    kernels = kernels.view(count, 1, side, side).repeat_interleave(x.shape[1], 0)
    planes = functional.pad(x, (radius,) * 4, mode="reflect").reshape(1, -1, *(s + 2 * radius for s in x.shape[2:]))
    return functional.conv2d(planes, kernels, groups=planes.shape[1]).view_as(x)


def blocks(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001 - all take one
    """Round the cosine coefficients of blocks of 8x8 pixels, all to one step: coarser than JPEG, and not its tables."""
    height, width = x.shape[2:]
    padded = functional.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
    rows, columns = (side // 8 for side in padded.shape[2:])
    tiles = padded.view(*x.shape[:2], rows, 8, columns, 8).transpose(3, 4)  # [N, 3, rows, columns, 8, 8]
    frequency, place = torch.arange(8.0, device=x.device)[:, None], torch.arange(8.0, device=x.device)
    cosines = torch.cos(math.pi * frequency * (place + 0.5) / 8) / 2  # DCT-II, orthonormal
    cosines[0] /= math.sqrt(2)
    step = (COARSEST_STEP * strength).clamp(min=1 / 255)[..., None, None]
    rounded = (cosines @ tiles @ cosines.T / step).round() * step
    return (cosines.T @ rounded @ cosines).transpose(3, 4).reshape(padded.shape)[..., :height, :width]


def haze(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Mix the picture with a pale colour that is the same everywhere."""
    grey = torch.rand((len(x), 1, 1, 1), generator=generator, device=x.device)
    colour = grey + 0.1 * _signed((len(x), 3, 1, 1), generator, x.device)
    return x.lerp(colour.expand_as(x), THICKEST_HAZE * strength.expand_as(x))


FAMILIES: dict[str, Callable[[Tensor, Tensor, torch.Generator], Tensor]] = {
    "noise": noise,
    "light": light,
    "motion": motion,
    "blocks": blocks,
    "haze": haze,
}
"""Maps float32 [N, 3, height, width], where black is 0 and white 1, and strengths, float32 [N, 1, 1, 1] of 0 to 1."""


def corrupt(
    images: Tensor, share: float, generator: torch.Generator, first: int = 0, families: Sequence[str] = (*FAMILIES,)
) -> Tensor:
    """Return the batch with a share of its pictures corrupted, uint8 [N, height, width, 3].

    Which ones and by what is decided by their place in the training, the order of whose epochs is drawn anew each time:
    the device need not be asked. How strongly is drawn for each. Half of them are corrupted twice.

    Args:
        images: uint8 [N, height, width, 3]; they are not changed.
        share: of the pictures, 0 to 1.
        generator: on the images' device.
        first: place of the first of them in the training: over many small batches, and epochs of few pictures, each
            family has its share, too.
        families: of `FAMILIES`.
    """
    result = images.clone()
    for number, chosen in _places(first, len(images), share, len(families)):
        places = torch.tensor(chosen, device=images.device)
        some = result[places].permute(0, 3, 1, 2).float().div_(255)
        strength = torch.rand((len(some), 1, 1, 1), generator=generator, device=images.device)
        corrupted = FAMILIES[families[number]](some, strength, generator)
        result[places] = corrupted.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return result


def _places(first: int, count: int, share: float, families: int) -> list[tuple[int, list[int]]]:
    """Return which of `count` pictures get which family, one pair of its number and their places after the other."""
    once, again = ([[] for _ in range(families)] for _ in range(2))
    for place in range(count):
        number = int((first + place) * share)
        if int((first + place + 1) * share) == number:
            continue
        once[number % families].append(place)
        turn = number // families
        if families > 1 and turn % 2:
            other = 1 + turn // 2 % (families - 1)  # in the end, each of the others
            again[(number + other) % families].append(place)
    return [(number, places) for number, places in [*enumerate(once), *enumerate(again)] if places]


def _signed(size: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Return numbers drawn evenly from -1 to 1."""
    return 2 * torch.rand(tuple(size), generator=generator, device=device) - 1
