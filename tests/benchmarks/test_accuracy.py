"""Corruptions by their definitions, equal ones for equal seeds, and figures of classifiers whose figures are known."""

from __future__ import annotations

import colorsys
import io
import math
import sys

import accuracy
import numpy as np
import pytest
from accuracy import CORRUPTIONS, corrupt
from PIL import Image

from edgecifar.export.models import Model
from edgecifar.runtime import Bundle
from edgecifar.runtime.errors import EdgecifarError


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Ten images, uint8 [10, 32, 32, 3], of all values."""
    return np.random.default_rng(3).integers(0, 256, (10, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def point() -> np.ndarray:
    """A black image with one white pixel in the middle: what a filter makes of it is its kernel."""
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[0, 16, 16] = 255
    return image


class TestCorrupt:
    @pytest.mark.parametrize("severity", accuracy.SEVERITIES)
    @pytest.mark.parametrize("name", CORRUPTIONS)
    def test_copies(self, images, name, severity):
        before = images.copy()
        made = corrupt(images, name, severity)
        assert made.dtype == np.uint8
        assert made.shape == images.shape
        assert (made != images).any()
        assert (images == before).all()
        assert (made == corrupt(images, name, severity)).all()
        assert (made[:3] == corrupt(images[:3], name, severity)).all()  # of fewer images, the same ones

    @pytest.mark.parametrize("name", ["gaussian noise", "gaussian blur", "contrast", "JPEG"])
    def test_farther_from_the_image_at_each_severity(self, images, name):
        smooth = np.asarray([np.asarray(Image.fromarray(i).resize((4, 4)).resize((32, 32))) for i in images])
        away = [np.abs(corrupt(smooth, name, severity) - smooth.astype(float)).mean() for severity in (1, 2, 3, 4, 5)]
        assert away == sorted(away)

    def test_noise_is_another_one_each_time(self, images):
        noise = [corrupt(images, "gaussian noise", 1, seed) for seed in (0, 1)] + [corrupt(images, "gaussian noise", 2)]
        assert (noise[0] != noise[1]).any()
        spread = np.corrcoef(
            noise[0].ravel() - images.ravel().astype(float), noise[2].ravel() - images.ravel().astype(float)
        )
        assert abs(spread[0, 1]) < 0.2

    @pytest.mark.parametrize("severity", accuracy.SEVERITIES)
    def test_noise(self, severity):
        """Of the published deviations; truncation takes half a step."""
        grey = np.full((30, 32, 32, 3), 128, np.uint8)
        noise = corrupt(grey, "gaussian noise", severity).astype(float) - 128
        assert noise.std() == pytest.approx(255 * (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1], rel=0.02)
        assert noise.mean() == pytest.approx(-0.5, abs=0.3)

    @pytest.mark.parametrize("severity", accuracy.SEVERITIES)
    def test_gaussian_blur(self, point, severity):
        sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1]
        weights = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(-6, 7) if abs(k) <= int(4 * sigma + 0.5)]
        reach = len(weights) // 2
        made = corrupt(point, "gaussian blur", severity)[0, :, :, 1]
        for row, one in enumerate(weights):
            for column, other in enumerate(weights):
                wanted = int(255 * one * other / sum(weights) ** 2)
                assert made[16 - reach + row, 16 - reach + column] == wanted
        assert (made > 0).sum() <= len(weights) ** 2

    @pytest.mark.parametrize(("severity", "sigma"), [(1, 0.4), (2, 0.5), (3, 0.6)])
    def test_defocus_of_less_than_a_pixel(self, point, severity, sigma):
        """The disk is one pixel, so that the kernel is the 3 x 3 Gaussian that softens it."""
        side = math.exp(-1 / (2 * sigma**2))
        middle = 1 / (1 + 2 * side)
        made = corrupt(point, "defocus blur", severity)[0, :, :, 0]
        assert made[16, 16] == int(255 * middle**2)
        assert made[16, 15] == made[17, 16] == int(255 * middle**2 * side)
        assert made[15, 15] == made[17, 15] == int(255 * (middle * side) ** 2)

    @pytest.mark.parametrize(("severity", "pixels"), [(4, 5), (5, 9)])
    def test_defocus_of_a_disk(self, point, severity, pixels):
        """Nearly unsoftened: a plus of five pixels at the radius 1, a square of nine at 1.5."""
        made = corrupt(point, "defocus blur", severity)[0, :, :, 0].astype(float)
        assert (made > 255 / pixels * 0.9).sum() == pixels
        assert made[16, 16] == pytest.approx(255 / pixels, abs=1)

    @pytest.mark.parametrize("name", ["gaussian blur", "defocus blur"])
    def test_borders_lose_no_light(self, name):
        white = np.full((1, 32, 32, 3), 255, np.uint8)
        assert (corrupt(white, name, 5) >= 254).all()

    def test_jpeg_is_pillows(self, images):
        file = io.BytesIO()
        Image.fromarray(images[4]).save(file, "JPEG", quality=58)
        assert (corrupt(images, "JPEG", 3)[4] == np.asarray(Image.open(file))).all()

    def test_brightness_is_of_hsv(self, images):
        colours = [*images[0, 0], (0, 0, 0), (255, 255, 255), (255, 0, 0)]
        row = np.zeros((1, 32, 32, 3), np.uint8)
        row[0, 0], row[0, 1, :3] = images[0, 0], colours[-3:]
        made = corrupt(row, "brightness", 4)[0]
        for place, colour in [*enumerate(images[0, 0]), *enumerate(colours[-3:], 32)]:
            hue, saturation, value = colorsys.rgb_to_hsv(*(int(channel) / 255 for channel in colour))
            wanted = [255 * channel for channel in colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.2))]
            assert made[place // 32, place % 32] == pytest.approx(np.array(wanted), abs=1)

    def test_contrast_is_about_each_channels_mean(self, images):
        x = images[:1].astype(float)
        mean = x.mean(axis=(1, 2), keepdims=True)
        assert corrupt(images[:1], "contrast", 5) == pytest.approx(mean + 0.15 * (x - mean), abs=1)

    def test_many_are_done_in_parts(self, images, monkeypatch):
        whole = corrupt(images, "gaussian noise", 2)
        monkeypatch.setattr(accuracy, "CHUNK", 3)
        assert (corrupt(images, "gaussian noise", 2) == whole).all()


def one_hot(labels: np.ndarray) -> np.ndarray:
    return np.eye(10, dtype=np.float32)[labels]


@pytest.fixture(scope="module")
def rows(small):
    """A model that knows the answers on clean images alone, and one that always says 3."""
    answers = {image.tobytes(): label for image, label in zip(small.test_images, small.test_labels, strict=True)}

    def knowing(images):
        return one_hot(np.array([answers.get(image.tobytes(), 3) for image in images]))

    def stubborn(images):
        return one_hot(np.full(len(images), 3))

    return accuracy.measure({"a": model_of(knowing), "b": model_of(stubborn)}, small, 50, 20)


def model_of(call) -> Model:
    return Model("onnx", call, call, lambda images: (call(images), call(images)), "cpu")


class TestMeasure:
    def test_clean(self, rows, small):
        threes = float((small.test_labels[:50] == 3).mean())
        clean = rows[0]["clean"]
        assert (clean["images"], clean["accuracy"], clean["ece"], clean["agreement"]) == (50, 1, 0, 1)
        assert rows[1]["clean"]["accuracy"] == rows[1]["clean"]["agreement"] == threes
        assert rows[1]["clean"]["ece"] == pytest.approx(1 - threes)

    def test_corrupted(self, rows, small):
        threes = float((small.test_labels[:20] == 3).mean())
        for row in rows:
            assert [*row["corrupted"]] == [*CORRUPTIONS]
            figures = [figures for severities in row["corrupted"].values() for figures in severities]
            assert len(figures) == 30
            assert {entry["images"] for entry in figures} == {20}
            assert row["mean_corrupted"]["accuracy"] == pytest.approx(threes)
            assert row["mean_corrupted"]["agreement"] == 1

    def test_table(self, rows):
        lines = accuracy.table(rows).splitlines()
        assert lines[1].split()[:4] == ["a", "100.00", "0.00", "100.00"]
        assert sum(line.startswith("gaussian blur") for line in lines) == 2

    def test_none_corrupted(self, small):
        found = {"a": model_of(lambda images: one_hot(np.zeros(len(images), int)))}
        rows = accuracy.measure(found, small, 20, 0)
        assert rows[0]["mean_corrupted"] == rows[0]["corrupted"] == {}
        assert "severity" not in accuracy.table(rows)


def test_an_unknown_model_is_refused(tiny):
    with pytest.raises(EdgecifarError, match=r"h5.*fp32, edge"):
        accuracy.find(tiny, None, ["edge", "h5"])


def test_it_runs(tiny, synthetic_is_small, check_document, monkeypatch, capsys):
    arguments = ["--data", "synthetic", "--images", "40", "--corrupted", "4"]
    monkeypatch.setattr(sys, "argv", ["accuracy.py", str(tiny), *arguments])
    accuracy.main()
    *lines, last = capsys.readouterr().out.splitlines()
    document = check_document(last, entries=False)
    assert document["settings"]["dataset"] == "synthetic"
    assert document["settings"]["models"] == {name: Bundle.open(tiny).variant(name).sha256 for name in ("fp32", "edge")}
    assert document["settings"]["agreement_with"] == "fp32"
    assert [row["model"] for row in document["rows"]] == ["fp32", "edge"]
    for row in document["rows"]:
        assert row["clean"]["correct"] == round(40 * row["clean"]["accuracy"])
        assert {len(severities) for severities in row["corrupted"].values()} == {5}
        assert any(line.startswith(row["model"]) for line in lines)
