"""Golden vectors and golden pictures: what a bundle must give on any machine, and in any language."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecifar.runtime.bundle import Bundle
from edgecifar.runtime.errors import BundleError
from edgecifar.runtime.folder import write_sums

CHECKS = ["golden vectors of fp32", "golden vectors of edge"]
PICTURES = ("golden.alpha.png", "golden.large.png", "golden.orientation.jpg")


def failed(bundle: Bundle) -> dict[str, str]:
    """The checks of `verify` that fail: name and reason."""
    return {check.name: check.detail for check in bundle.verify() if not check.passed}


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=True, **arrays)
    return file.getvalue()


class TestVectors:
    def test_intact(self, tiny, colours):
        images, arrays = Bundle.open(tiny).golden()
        assert (images.dtype, images.shape) == (np.uint8, (3, 32, 32, 3))
        assert (images[0] == colours["car"]).all()
        assert sorted(arrays) == ["edge", "fp32"]
        assert {(array.dtype.name, array.shape) for array in arrays.values()} == {("float32", (3, 10))}
        with np.load(tiny / "golden.npz") as archive:  # numpy reads the same
            assert all((archive[name] == array).all() for name, array in {**arrays, "images": images}.items())

    def broken(self, resealed, content: bytes) -> str:
        folder = resealed(**{"golden.npz": content})
        bundle = Bundle.open(folder)
        with pytest.raises(BundleError) as caught:
            bundle.golden()
        assert str(caught.value).startswith(f"{folder / 'golden.npz'} is damaged (")
        assert failed(bundle) == dict.fromkeys(CHECKS, str(caught.value))
        return str(caught.value)

    PICTURES = np.zeros((3, 32, 32, 3), np.uint8)
    ROWS = np.zeros((3, 10), np.float32)

    @pytest.mark.parametrize(
        "arrays",
        [
            {},
            {"fp32": ROWS},
            {"images": PICTURES[:0], "fp32": ROWS[:0]},
            {"images": PICTURES.astype(np.float32), "fp32": ROWS},
            {"images": PICTURES[:, :31], "fp32": ROWS},
            {"images": PICTURES[0], "fp32": ROWS},
            {"images": PICTURES, "fp32": ROWS[:2]},
            {"images": PICTURES, "fp32": ROWS[:1]},
            {"images": PICTURES, "fp32": ROWS[:, :1]},
            {"images": PICTURES, "fp32": ROWS[0]},
            {"images": PICTURES, "fp32": ROWS.astype(np.float64)},
            {"images": PICTURES, "fp32": ROWS.astype(">f4")},
            {"images": PICTURES, "fp32": ROWS, "edge": np.array("text")},
        ],
        ids=str,
    )
    def test_other_arrays(self, resealed, arrays):
        self.broken(resealed, npz(**arrays))

    def test_a_variant_without_vectors(self, resealed, tiny):
        with np.load(tiny / "golden.npz") as archive:
            content = npz(images=archive["images"], fp32=archive["fp32"])
        reasons = failed(Bundle.open(resealed(**{"golden.npz": content})))
        assert list(reasons) == ["golden vectors of edge"]
        assert "holds nothing for it" in reasons["golden vectors of edge"]

    def test_no_object_is_unpickled(self, resealed, tmp_path):
        class Trap:
            def __reduce__(self):
                return Path.touch, (tmp_path / "sprung",)

        objects = np.empty((3, 10), object)
        objects[:] = Trap()
        self.broken(resealed, npz(images=self.PICTURES, fp32=objects))
        self.broken(resealed, npz(images=objects))
        assert not (tmp_path / "sprung").exists()

    @pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x04N.", b"\x93NUMPY\x01\x00", b"no archive"])
    def test_no_archive(self, resealed, content):
        self.broken(resealed, content)

    def test_a_single_array(self, resealed):
        file = io.BytesIO()
        np.save(file, self.PICTURES)
        self.broken(resealed, file.getvalue())

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
    def test_truncated(self, resealed, tiny, share):
        content = (tiny / "golden.npz").read_bytes()
        self.broken(resealed, content[: int(share * len(content))])

    def member(self, content: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", compression) as archive:
            archive.writestr("images.npy", content)
        return file.getvalue()

    def test_a_bomb(self, resealed):
        bomb = self.member(bytes(1 << 25), zipfile.ZIP_DEFLATED)
        assert len(bomb) < 100_000
        assert "it unpacks to more than 16,777,216 bytes" in self.broken(resealed, bomb)

    def test_a_bomb_that_lies_about_its_size(self, resealed):
        bomb = self.member(bytes(1 << 25), zipfile.ZIP_DEFLATED)
        assert bomb.count((1 << 25).to_bytes(4, "little")) == 2
        self.broken(resealed, bomb.replace((1 << 25).to_bytes(4, "little"), (1000).to_bytes(4, "little")))

    @pytest.mark.parametrize("shape", ["(1000000000000, 32, 32, 3)", "(-1, 32, 32, 3)", "(3, 32, 32)", "((),)", "()"])
    def test_an_array_that_claims_another_size(self, resealed, shape):
        text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
        header = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()
        self.broken(resealed, self.member(header + bytes(3 * 3072 + 1)))

    def test_other_vectors(self, resealed, tiny):
        with np.load(tiny / "golden.npz") as archive:
            arrays = dict(archive)
        arrays["edge"] = arrays["edge"].copy()
        arrays["edge"][1, 4] += 0.0625
        folder = resealed(**{"golden.npz": npz(**arrays)})
        reasons = failed(Bundle.open(folder))
        assert list(reasons) == ["golden vectors of edge"]
        assert "differ by 6.25e-02, more than 1e-04" in reasons["golden vectors of edge"]

    def test_not_a_number_differs(self, resealed, tiny):
        with np.load(tiny / "golden.npz") as archive:
            arrays = dict(archive)
        arrays["fp32"] = np.full((3, 10), np.nan, np.float32)
        folder = resealed(**{"golden.npz": npz(**arrays)})
        reasons = failed(Bundle.open(folder))
        assert "differ by nan" in reasons["golden vectors of fp32"]

    def test_the_manifests_tolerance_counts(self, resealed, tiny):
        with np.load(tiny / "golden.npz") as archive:
            arrays = dict(archive)
        arrays["edge"] = arrays["edge"] + np.float32(0.0625)

        def failures(tolerance: float) -> list[str]:
            folder = resealed(
                lambda values: values["variants"][1].update(golden_tolerance=tolerance), **{"golden.npz": npz(**arrays)}
            )
            return list(failed(Bundle.open(folder)))

        assert failures(0.07) == []
        assert failures(0.06) == ["golden vectors of edge"]


WRONG = {
    "no JSON": lambda document: "{",
    "not UTF-8": lambda document: b"\xff",
    "nested": lambda document: "[" * 100_000,
    "a list": lambda document: [],
    "no pictures": lambda document: {"pictures": []},
    "another field": lambda document: {**document, "extra": 1},
    "one twice": lambda document: {"pictures": document["pictures"][:1] * 2},
    "a picture that is none": lambda document: {"pictures": [1]},
    "a field missing": lambda document: {"pictures": [{"file": "golden.alpha.png"}]},
    **{
        f"{field} {value!r}": lambda document, field=field, value=value: {
            "pictures": [{**document["pictures"][0], field: value}]
        }
        for field, value in [
            ("file", 1),
            ("tolerance", -1),
            ("tolerance", True),
            ("tolerance", 256),
            ("shape", [32, 32]),
            ("array", [0] * 3071),
            ("array", [256] * 3072),
            ("array", [0.5] * 3072),
            ("array", "x" * 3072),
            ("array", None),
            ("probabilities", []),
            ("probabilities", {"fp32": [1.0]}),
            ("probabilities", {"fp32": "x"}),
            ("probabilities", {"fp32": [10**400] * 10}),
            ("familiarity", {"fp32": 10**400}),
            ("familiarity", {"fp32": "high"}),
        ]
    },
}


class TestPictures:
    """The golden pictures, and the arrays that they must become."""

    @pytest.fixture
    def document(self, tiny) -> dict:
        return json.loads((tiny / "golden.json").read_text())

    def test_are_what_they_are_for(self, tiny, document):
        sizes = {}
        for entry in document["pictures"]:
            with Image.open(tiny / entry["file"]) as image:
                sizes[entry["file"]] = image.size
                if image.format == "JPEG":
                    assert image.getexif()[0x0112] == 6
                    assert entry["tolerance"] > 0
                else:
                    assert entry["tolerance"] == 0
                if "alpha" in entry["file"]:
                    assert image.mode == "RGBA"
        assert sorted(sizes) == sorted(PICTURES)
        assert max(sizes["golden.large.png"]) > 1000
        assert all(width != height for width, height in sizes.values())

    def test_can_be_followed_without_this_project(self, tiny, document):
        """As a port would: read the JSON, run the model on the flat array, compare."""
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(tiny / "model.onnx", providers=["CPUExecutionProvider"])
        for entry in document["pictures"]:
            array = np.array(entry["array"], np.uint8).reshape(1, *entry["shape"])
            (probabilities,) = session.run(["probabilities"], {"images": array})
            np.testing.assert_allclose(probabilities[0], entry["probabilities"]["fp32"], atol=1e-6)

    def test_a_transparent_picture_lies_over_white(self, document):
        (entry,) = (entry for entry in document["pictures"] if "alpha" in entry["file"])
        left = np.array(entry["array"]).reshape(entry["shape"])[:, 0]
        right = np.array(entry["array"]).reshape(entry["shape"])[:, -1]
        assert left.min() > 200  # the crop begins where the picture is nearly clear
        assert right.max(1).mean() < 250

    def test_another_reading_is_found(self, tiny_bundle, resealed, document):
        entry = document["pictures"][1]
        entry["array"][5] ^= 128
        folder = resealed(**{"golden.json": json.dumps(document).encode()})
        checks = failed(Bundle.open(folder))
        assert "decoded differently" in checks[f"preprocessing of {entry['file']}"]

    def test_other_probabilities_are_found(self, resealed, document):
        document["pictures"][0]["probabilities"]["edge"] = [0.1] * 10
        checks = failed(Bundle.open(resealed(**{"golden.json": json.dumps(document).encode()})))
        assert list(checks) == ["golden vectors of edge"]

    def test_a_picture_replaced_by_another(self, resealed, tiny):
        other = (tiny / "golden.alpha.png").read_bytes()
        checks = failed(Bundle.open(resealed(**{"golden.large.png": other})))
        assert list(checks) == ["preprocessing of golden.large.png"]

    @pytest.mark.parametrize("name", ["../../etc/passwd", "missing.png"])
    def test_a_picture_elsewhere(self, resealed, document, name):
        document["pictures"][0]["file"] = name
        assert failed(Bundle.open(resealed(**{"golden.json": json.dumps(document).encode()})))

    @pytest.mark.parametrize("change", WRONG.values(), ids=lambda change: "")
    def test_damaged(self, resealed, document, change):
        made = change(document)
        content = made if isinstance(made, bytes) else (made if isinstance(made, str) else json.dumps(made)).encode()
        bundle = Bundle.open(resealed(**{"golden.json": content}))
        with pytest.raises(BundleError, match=r"golden\.json is damaged"):
            bundle.golden_pictures()
        assert "golden pictures" in failed(bundle)

    def test_missing(self, tiny_bundle, resealed):
        (tiny_bundle / "golden.json").unlink()
        assert "golden pictures" in failed(Bundle.open(resealed()))


class TestFamiliarity:
    @pytest.fixture
    def three(self, three_classes, tmp_path) -> Path:
        return shutil.copytree(three_classes, tmp_path / "three")

    def test_that_none_is_stored_is_said(self, three):
        found = [check for check in Bundle.open(three).verify() if check.name.startswith("golden vectors")]
        assert found
        assert all(check.passed and "not checked" in check.detail for check in found)

    def test_some_missing(self, three):
        images, vectors = Bundle.open(three).golden()
        scores = {f"familiarity/{name}": np.zeros(len(images), np.float32) for name in vectors}
        (three / "golden.npz").write_bytes(npz(images=images, **vectors, **scores))
        write_sums(three)
        reasons = failed(Bundle.open(three))
        assert set(reasons) == {f"golden vectors of {name}" for name in vectors}
        assert all("lack familiarities" in reason for reason in reasons.values())

    @pytest.mark.parametrize(("moved", "holds"), [(0, True), (1, False), (np.nan, False)])
    def test_they_are_held_against_what_is_stored(self, three, moved, holds):
        bundle = Bundle.open(three)
        (images, vectors), pictures = bundle.golden(), bundle.golden_pictures()
        every = np.concatenate([images, *(picture.array[None] for picture in pictures)])
        scores = {variant.name: bundle.load(variant, "cpu").scores(every)[1] for variant in bundle.manifest.variants}
        stored = {f"familiarity/{name}": found[: len(images)] + np.float32(moved) for name, found in scores.items()}
        (three / "golden.npz").write_bytes(npz(images=images, **vectors, **stored))
        document = json.loads((three / "golden.json").read_text())
        for place, entry in enumerate(document["pictures"], len(images)):
            entry["familiarity"] = {name: float(found[place]) for name, found in scores.items()}
        (three / "golden.json").write_text(json.dumps(document))
        write_sums(three)
        reasons = failed(Bundle.open(three))
        assert set(reasons) == (set() if holds else {f"golden vectors of {name}" for name in vectors})
        assert all("have familiarities that differ" in reason for reason in reasons.values())
