"""Augmentation against slow loops that say the same plainly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import transforms

from edgecifar.train.augment import augment, normalise
from edgecifar.train.recipes import REFERENCE


def noise(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 32, 32, 3), generator=generator, dtype=torch.uint8)


def augmented(images: Tensor, seed: int = 0, epoch: int = 0, **settings) -> Tensor:
    flipped_first = torch.zeros(len(images), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    return augment(images, epoch, flipped_first, replace(REFERENCE, **settings), generator)


def shifted(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """The image as a window that moved by (down, right) sees it; what is outside is reflected at the edge pixel."""
    result = np.empty_like(image)
    for row in range(32):
        for column in range(32):
            y, x = abs(row + down), abs(column + right)
            result[row, column] = image[min(y, 62 - y), min(x, 62 - x)]
    return result


def test_normalise_is_bit_for_bit_torchvisions():
    every_value = torch.arange(256, dtype=torch.uint8).repeat(12).view(1, 32, 32, 3)
    images = torch.cat([every_value, noise(3)])
    theirs = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])
    wanted = torch.stack([theirs(image.numpy()) for image in images])
    ours = normalise(images)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, wanted)
    assert (ours.min(), ours.max()) == (-1, 1)


def test_normalise_leaves_its_input_alone_and_is_channels_last():
    images = noise(2)
    before = images.clone()
    assert normalise(images).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


def test_nothing_is_augmented_where_the_recipe_asks_for_nothing():
    images = noise(4)
    assert torch.equal(augmented(images), images)


@pytest.mark.parametrize("epoch", [0, 1, 6, 7])
def test_flips_alternate(epoch):
    images = noise(4)
    flipped_first = torch.tensor([True, False, True, False])
    recipe = replace(REFERENCE, flip=True)
    seen = augment(images, epoch, flipped_first, recipe, torch.Generator())
    for image, first, shown in zip(images, flipped_first, seen, strict=True):
        mirrored = bool(first) == (epoch % 2 == 0)
        wanted = torch.from_numpy(image.numpy()[:, ::-1].copy()) if mirrored else image
        assert torch.equal(shown, wanted)


def test_two_successive_epochs_show_both_sides_of_every_image():
    images, recipe = noise(64), replace(REFERENCE, flip=True)
    flipped_first = torch.randint(2, (64,), generator=torch.Generator().manual_seed(0)).bool()
    first, second = (augment(images, epoch, flipped_first, recipe, torch.Generator()) for epoch in (4, 5))
    assert torch.equal(first, second.flip(2))
    as_it_is = (first == images).flatten(1).all(1)
    assert torch.equal(as_it_is, ~flipped_first)


@pytest.mark.parametrize("most", [1, 2, 4])
def test_shift_is_a_reflected_window_and_reaches_every_offset(most):
    image = noise(1)[0].numpy()
    wanted = {
        shifted(image, down, right).tobytes(): (down, right)
        for down in range(-most, most + 1)
        for right in range(-most, most + 1)
    }
    assert len(wanted) == (2 * most + 1) ** 2
    count = 40 * len(wanted)
    seen = augmented(torch.from_numpy(image).expand(count, -1, -1, -1), translate=most)
    offsets = [wanted[shown.numpy().tobytes()] for shown in seen]  # a KeyError: not a shift of the image
    assert set(offsets) == set(wanted.values())
    for axis in (0, 1):
        counts = np.bincount(np.array(offsets)[:, axis] + most, minlength=2 * most + 1)
        assert counts.min() > 0.6 * count / (2 * most + 1)  # uniform; deviations are below 0.3 of it


def test_each_image_of_a_batch_is_shifted_on_its_own():
    images = noise(16)
    seen = augmented(images, translate=2)
    for image, shown in zip(images.numpy(), seen.numpy(), strict=True):
        every = (shifted(image, down, right) for down in range(-2, 3) for right in range(-2, 3))
        assert any(np.array_equal(shown, other) for other in every)


@pytest.mark.parametrize("side", [1, 8, 31, 40])
def test_cutout_is_a_grey_square_also_partly_outside(side):
    images = torch.full((1000, 32, 32, 3), 7, dtype=torch.uint8)
    images[..., 1] = 200
    seen = augmented(images, cutout=side).numpy()
    corners = set()
    for image in seen:
        cut = (image == 128).all(axis=2)
        assert (image[~cut] == (7, 200, 7)).all()
        rows, columns = np.flatnonzero(cut.any(axis=1)), np.flatnonzero(cut.any(axis=0))
        wanted = np.zeros((32, 32), bool)
        wanted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        assert np.array_equal(cut, wanted)
        for found in (rows, columns):  # shorter only where an edge cuts it
            assert len(found) == side or (len(found) < side and (found[0] == 0 or found[-1] == 31))
        corners |= {("row", int(rows[0]), int(rows[-1])), ("column", int(columns[0]), int(columns[-1]))}
    for axis in ("row", "column"):
        extents = {(first, last) for name, first, last in corners if name == axis}
        assert extents == {(max(at, 0), min(at + side - 1, 31)) for at in range(1 - side, 32)}


def test_everything_is_a_function_of_the_generator():
    images, settings = noise(32), {"translate": 3, "cutout": 8}
    assert torch.equal(augmented(images, 1, **settings), augmented(images, 1, **settings))
    assert not torch.equal(augmented(images, 1, **settings), augmented(images, 2, **settings))
    state = torch.get_rng_state()
    augmented(images, 1, **settings)
    assert torch.equal(torch.get_rng_state(), state)


def test_dtype_and_shape_are_kept_and_the_input_is_left_alone():
    images = noise(5)
    before = images.clone()
    seen = augment(
        images,
        0,
        torch.ones(5, dtype=torch.bool),
        replace(REFERENCE, flip=True, translate=4, cutout=8),
        torch.Generator().manual_seed(0),
    )
    assert (seen.dtype, seen.shape) == (torch.uint8, (5, 32, 32, 3))
    assert torch.equal(images, before)
