"""What is not exactly the bundle that was made is refused, and `verify` names the file and the reason."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgecifar.runtime import bundle as bundles
from edgecifar.runtime.bundle import CONTRACT, Bundle, Manifest, Variant
from edgecifar.runtime.contract import LABELS
from edgecifar.runtime.errors import BundleError, EdgecifarError, VariantError
from edgecifar.runtime.files import sha256

FILES = ("README.md", "SHA256SUMS", "golden.npz", "manifest.json", "model.edge.onnx", "model.onnx", "parity.json")
GOLDEN_CHECKS = ["golden vectors of fp32", "golden vectors of edge"]
AGAIN = "copy the bundle again."


def refusal(folder: Path | str | None) -> str:
    """The message that opening `folder` is refused with: one line, a full stop."""
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def failed(bundle: Bundle) -> dict[str, str]:
    """The checks of `verify` that fail: name and reason."""
    return {check.name: check.detail for check in bundle.verify() if not check.passed}


def found(folder: Path) -> bool:
    """Whether damage is reported, by opening or by verifying."""
    try:
        return bool(failed(Bundle.open(folder)))
    except BundleError:
        return True


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=True, **arrays)
    return file.getvalue()


class TestFixture:
    def test_is_what_its_script_makes(self, tiny, tmp_path):
        pytest.importorskip("onnx")
        script = tiny.parent / "make_tiny_bundle.py"
        subprocess.run([sys.executable, script, tmp_path / "made"], check=True)
        assert sorted(os.listdir(tiny)) == sorted(os.listdir(tmp_path / "made")) == sorted(FILES)
        # Versions of Python write the archive's headers differently: its digest is theirs, its arrays are the script's.
        golden, made_golden = np.load(tiny / "golden.npz"), np.load(tmp_path / "made" / "golden.npz")
        assert golden.files == made_golden.files
        for name in golden.files:
            assert np.array_equal(golden[name], made_golden[name]), name
        for name in set(FILES) - {"golden.npz"}:
            made, kept = (
                [line for line in (folder / name).read_bytes().splitlines() if not line.endswith(b"  golden.npz")]
                for folder in (tmp_path / "made", tiny)
            )
            assert made == kept, name

    @pytest.mark.skipif(not shutil.which("sha256sum"), reason="sha256sum is not installed")
    def test_sha256sum_reads_its_sums(self, tiny):
        done = subprocess.run(
            ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tiny, capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines() == [f"{name}: OK" for name in FILES if name != "SHA256SUMS"]


class TestOpen:
    def test_intact(self, tiny):
        bundle = Bundle.open(str(tiny))
        assert bundle.folder == tiny
        assert bundle.manifest.labels == LABELS
        assert bundle.manifest.dataset == "ten colours"
        assert bundle.manifest.contract == CONTRACT
        assert [variant.name for variant in bundle.manifest.variants] == ["fp32", "edge"]
        assert bundle.manifest.variants[0] == Variant(
            name="fp32",
            file="model.onnx",
            format="onnx",
            precision="fp32",
            bytes=(tiny / "model.onnx").stat().st_size,
            sha256=sha256(tiny / "model.onnx"),
            accuracy=1.0,
            parity={"images": 10, "data": "ten colours", "agree": 10, "accuracy": 1.0},
            made_by="the nearest of ten colours",
            needs="any",
            golden_tolerance=1e-4,
        )

    def test_a_link_to_the_folder(self, tiny, tmp_path):
        (tmp_path / "link").symlink_to(tiny)
        assert Bundle.open(tmp_path / "link").manifest == Bundle.open(tiny).manifest

    def test_none_installed(self, monkeypatch, tmp_path):
        monkeypatch.setattr(bundles, "DEFAULT", tmp_path)
        assert refusal(None) == ("No bundle is installed with edgecifar: name one that 'edgecifar export' made.")

    def test_the_installed_one(self, monkeypatch, tiny):
        monkeypatch.setattr(bundles, "DEFAULT", tiny)
        assert Bundle.open().folder == tiny

    @pytest.mark.parametrize("name", ["", "missing", "file", "a\0b", "x" * 300])
    def test_not_a_bundle(self, tmp_path, name):
        (tmp_path / "file").touch()
        assert refusal(tmp_path / name) == (
            f"{tmp_path / name} is not a bundle (manifest.json is missing): name a folder that 'edgecifar export' made."
        )

    @pytest.mark.parametrize("name", ["manifest.json", "SHA256SUMS"])
    def test_a_manifest_that_is_no_file(self, tiny_bundle, name):
        path = tiny_bundle / name
        path.unlink()
        path.mkdir()
        assert refusal(tiny_bundle) == f"{path} is not a file: copy the bundle again, whole."

    def test_no_sums(self, tiny_bundle):
        (tiny_bundle / "SHA256SUMS").unlink()
        assert refusal(tiny_bundle) == f"{tiny_bundle / 'SHA256SUMS'} is missing: copy the bundle again, whole."

    def test_another_manifest(self, tiny_bundle):
        path = tiny_bundle / "manifest.json"
        path.write_text(path.read_text().replace("ten colours", "CIFAR-10"))
        assert refusal(tiny_bundle) == f"{path} is not what SHA256SUMS names: {AGAIN}"

    def test_sums_without_the_manifest(self, tiny_bundle):
        path = tiny_bundle / "SHA256SUMS"
        path.write_text("".join(line for line in path.read_text().splitlines(True) if "manifest.json" not in line))
        assert refusal(tiny_bundle) == f"{tiny_bundle / 'manifest.json'} is not named in SHA256SUMS: {AGAIN}"

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
    def test_a_manifest_that_may_not_be_read(self, tiny_bundle):
        path = tiny_bundle / "manifest.json"
        path.chmod(0)
        assert refusal(tiny_bundle) == f"{path} cannot be read (Permission denied): {AGAIN}"

    def test_a_disk_that_fails(self, tiny_bundle, monkeypatch):
        def fail(path: Path) -> bytes:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(Path, "read_bytes", fail)
        assert refusal(tiny_bundle) == (f"{tiny_bundle / 'manifest.json'} cannot be read (Input/output error): {AGAIN}")


SUMS_DAMAGE = {
    "nothing": lambda text: "x",
    "no newline at the end": lambda text: text[:-1],
    "a line twice": lambda text: text + text.splitlines(True)[0],
    "a name twice": lambda text: text + "0" * 64 + "  README.md\n",
    "capital digits": lambda text: text[:64].upper() + text[64:],
    "a short digest": lambda text: text[1:],
    "one space": lambda text: text.replace("  ", " ", 1),
    "Windows line ends": lambda text: text.replace("\n", "\r\n"),
    "a vertical tab for a newline": lambda text: text.replace("\n", "\v", 1),
    "a blank line": lambda text: text + "\n",
    "a folder above": lambda text: text + "0" * 64 + "  ../secret\n",
    "an absolute path": lambda text: text + "0" * 64 + "  /etc/passwd\n",
    "a subfolder": lambda text: text + "0" * 64 + "  sub/file\n",
    "a hidden file": lambda text: text + "0" * 64 + "  .secret\n",
    "a null byte": lambda text: text + "0" * 64 + "  a\0b\n",
    "a very long name": lambda text: text + "0" * 64 + f"  {'x' * 101}\n",
}


@pytest.mark.parametrize("damage", SUMS_DAMAGE.values(), ids=SUMS_DAMAGE)
def test_damaged_sums(tiny_bundle, damage):
    path = tiny_bundle / "SHA256SUMS"
    path.write_bytes(damage(path.read_text()).encode())
    assert refusal(tiny_bundle) == f"{path} is damaged: {AGAIN}"


def test_sums_that_are_not_text(tiny_bundle):
    (tiny_bundle / "SHA256SUMS").write_bytes(b"\xff\xfe\x00")
    assert refusal(tiny_bundle) == f"{tiny_bundle / 'SHA256SUMS'} is damaged: {AGAIN}"


def setting(*keys, value):
    """A function that sets a value deep in the manifest."""

    def change(values: dict) -> None:
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = value

    return change


def deleting(*keys):
    def change(values: dict) -> None:
        for key in keys[:-1]:
            values = values[key]
        del values[keys[-1]]

    return change


WRONG = {
    "labels missing": (deleting("labels"), "'labels' is missing or not a list"),
    "labels text": (setting("labels", value="plane"), "'labels' is missing or not a list"),
    "labels object": (setting("labels", value=dict.fromkeys(LABELS)), "'labels' is missing or not a list"),
    "labels in another order": (
        setting("labels", value=list(LABELS[::-1])),
        "its labels or its input contract are not those of this project",
    ),
    "labels fewer": (
        setting("labels", value=list(LABELS[:9])),
        "its labels or its input contract are not those of this project",
    ),
    "contract BGR": (
        setting("contract", "input", "colour", value="BGR"),
        "its labels or its input contract are not those of this project",
    ),
    "contract float": (
        setting("contract", "input", "dtype", value="float32"),
        "its labels or its input contract are not those of this project",
    ),
    "contract missing": (deleting("contract"), "'contract' is missing"),
    "contract list": (setting("contract", value=[]), "'contract' is a list"),
    "variants missing": (deleting("variants"), "'variants' is missing or not a list"),
    "variants object": (setting("variants", value={}), "'variants' is missing or not a list"),
    "variants empty": (
        setting("variants", value=[]),
        "its variants' names or files are not unique, or the default is not among them",
    ),
    "variants numbers": (setting("variants", value=[1]), "an object was expected for variant"),
    "variant null": (setting("variants", 0, value=None), "an object was expected for variant"),
    "dataset missing": (deleting("dataset"), "'dataset' is missing"),
    "dataset number": (setting("dataset", value=10), "'dataset' is a int"),
    "dataset null": (setting("dataset", value=None), "'dataset' is a NoneType"),
    "provenance list": (setting("provenance", value=[]), "'provenance' is a list"),
    "provenance missing": (deleting("provenance"), "'provenance' is missing"),
    "default missing": (deleting("default_variant"), "'default_variant' is missing"),
    "default unknown": (
        setting("default_variant", value="int4"),
        "its variants' names or files are not unique, or the default is not among them",
    ),
    "unknown field": (setting("extra", value=1), "'extra' is unknown"),
    "unknown variant field": (setting("variants", 0, "extra", value=1), "'extra' is unknown"),
    "schema missing": (deleting("schema"), "it names no schema"),
    "schema text": (setting("schema", value="1"), "it names no schema"),
    "schema true": (setting("schema", value=True), "'schema' is a bool"),
    "schema fraction": (setting("schema", value=1.0), "it names no schema"),
    "two of one name": (
        setting("variants", 1, "name", value="fp32"),
        "its variants' names or files are not unique, or the default is not among them",
    ),
    "two of one file": (
        setting("variants", 1, "file", value="model.onnx"),
        "its variants' names or files are not unique, or the default is not among them",
    ),
    "unknown format": (setting("variants", 0, "format", value="tflite"), "variant 'fp32' has an unknown format"),
    "format of another ending": (setting("variants", 0, "format", value="pt2"), "variant 'fp32' has an unknown format"),
    "accuracy above 1": (
        setting("variants", 0, "accuracy", value=78.1),
        "variant 'fp32' has an accuracy or a tolerance that is not between 0 and 1",
    ),
    "accuracy below 0": (
        setting("variants", 0, "accuracy", value=-0.1),
        "variant 'fp32' has an accuracy or a tolerance that is not between 0 and 1",
    ),
    "tolerance of everything": (
        setting("variants", 1, "golden_tolerance", value=1),
        "variant 'edge' has an accuracy or a tolerance that is not between 0 and 1",
    ),
    "tolerance below 0": (
        setting("variants", 1, "golden_tolerance", value=-1e-4),
        "variant 'edge' has an accuracy or a tolerance that is not between 0 and 1",
    ),
    "escape sequence": (setting("dataset", value="\x1b[2J"), "it holds characters that cannot be shown"),
    "newline": (setting("dataset", value="a\u2028b"), "it holds characters that cannot be shown"),
    "control of 8 bits": (setting("dataset", value="\x9b2J"), "it holds characters that cannot be shown"),
    "half a character": (setting("dataset", value="\ud800"), "it holds characters that cannot be shown"),
    "in a name": (setting("provenance", "\x07", value=1), "it holds characters that cannot be shown"),
}
for _field, _value in {
    "name": 1,
    "file": None,
    "format": ["onnx"],
    "precision": 32,
    "bytes": 1.5,
    "sha256": 0,
    "accuracy": "0.9",
    "parity": [],
    "made_by": {},
    "needs": None,
    "golden_tolerance": None,
}.items():
    WRONG[f"variant {_field} of another type"] = (
        setting("variants", 1, _field, value=_value),
        f"{_field!r} is a {type(_value).__name__}",
    )
    WRONG[f"variant {_field} missing"] = (deleting("variants", 1, _field), f"{_field!r} is missing")
for _field in ("bytes", "accuracy", "golden_tolerance"):
    WRONG[f"variant {_field} true"] = (setting("variants", 1, _field, value=True), f"{_field!r} is a bool")
for _name in (
    "../model.onnx",
    "/etc/model.onnx",
    "sub/model.onnx",
    "..\\model.onnx",
    "C:model.onnx",
    ".model.onnx",
    "",
    ".onnx",
    "a b.onnx",
    "-model.onnx",
    "x" * 96 + ".onnx",
    "mödel.onnx",
):
    WRONG[f"file {_name[:20]!r}"] = (setting("variants", 0, "file", value=_name), f"{_name!r} is not a plain name")
for _name in ("", "a b", "../x", "--force", "a/b"):
    WRONG[f"name {_name!r}"] = (setting("variants", 1, "name", value=_name), f"{_name!r} is not a plain name")


class TestManifest:
    @pytest.mark.parametrize(("change", "reason"), WRONG.values(), ids=WRONG)
    def test_a_wrong_field(self, resealed, change, reason):
        folder = resealed(manifest=change)
        assert refusal(folder) == f"{folder / 'manifest.json'} is damaged ({reason}): {AGAIN}"

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            (b"", "Expecting value: line 1 column 1 (char 0)"),
            (b"{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
            (b"[]", "it names no schema"),
            (b"null", "it names no schema"),
            (b'{"schema": 1, "schema": 1}', "a name comes twice in an object"),
            (b'{"schema": NaN}', "NaN is not JSON"),
            (b'{"schema": 1, "a": [-Infinity]}', "-Infinity is not JSON"),
            (b"\xff{}", None),
            (b"\x00", "Expecting value: line 1 column 1 (char 0)"),
        ],
    )
    def test_not_json(self, resealed, text, reason):
        folder = resealed(**{"manifest.json": text})
        reason = reason or "not UTF-8"
        assert refusal(folder) == f"{folder / 'manifest.json'} is damaged ({reason}): {AGAIN}"

    @pytest.mark.parametrize("opening", [b"[", b'{"schema":', b'{"schema": 1, "a": ['])
    def test_deep_nesting(self, resealed, opening):
        folder = resealed(**{"manifest.json": opening * 100_000})
        assert refusal(folder).startswith(f"{folder / 'manifest.json'} is damaged (")

    @pytest.mark.parametrize(("levels", "read"), [(20, True), (40, False), (500, False)])
    def test_what_is_read_can_be_written_again(self, resealed, levels, read):
        """To walk through 500 levels takes more stack than there may be."""
        folder = resealed(manifest=setting("provenance", value={"a": json.loads("[" * levels + "]" * levels)}))
        if read:
            assert "[" * levels in re.sub(r"\s", "", Bundle.open(folder).manifest.as_json())
        else:
            assert refusal(folder).startswith(f"{folder / 'manifest.json'} is damaged (")

    @pytest.mark.parametrize("schema", [0, 2, -1, 10**30])
    def test_another_schema(self, resealed, schema):
        folder = resealed(manifest=setting("schema", value=schema))
        assert refusal(folder) == (
            f"{folder / 'manifest.json'} has schema {schema}, this version of edgecifar reads 1: export the bundle "
            "again, or install the version of edgecifar that made it."
        )

    def test_a_newer_schema_is_not_called_damaged_when_the_sums_differ(self, tiny_bundle):
        (tiny_bundle / "manifest.json").write_text('{"schema": 2}')
        assert "has schema 2, this version of edgecifar reads 1" in refusal(tiny_bundle)

    def test_written_and_read_again(self, tiny):
        manifest = Bundle.open(tiny).manifest
        assert Manifest.parse(manifest.as_json(), tiny) == manifest
        assert manifest.as_json() == (tiny / "manifest.json").read_text()

    JSON = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    )

    @given(data=st.data())
    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_value_anywhere_is_read_or_refused(self, data, tiny):
        values = json.loads((tiny / "manifest.json").read_text())
        place, path = values, []
        while True:
            key = data.draw(st.sampled_from(range(len(place)) if isinstance(place, list) else sorted(place)))
            path.append(key)
            if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
                break
            place = place[key]
        place[key] = data.draw(self.JSON)
        try:
            manifest = Manifest.parse(json.dumps(values), tiny)
        except BundleError:
            return
        assert json.loads(manifest.as_json()) == values

    @given(text=st.text() | st.text('{}[]",:0123456789.eE+-truefalsnl \\u'))
    @settings(max_examples=200, deadline=None)
    def test_no_text_is_a_manifest_by_chance(self, text):
        with pytest.raises(BundleError):
            Manifest.parse(text, Path("manifest.json"))


class TestVariant:
    def test_by_name_and_by_default(self, tiny, resealed):
        bundle = Bundle.open(tiny)
        assert bundle.variant() is bundle.manifest.variants[0]
        assert bundle.variant("edge") is bundle.manifest.variants[1]
        assert Bundle.open(resealed(manifest=setting("default_variant", value="edge"))).variant().name == "edge"

    def test_unknown(self, tiny):
        with pytest.raises(VariantError) as caught:
            Bundle.open(tiny).variant("int4")
        assert str(caught.value) == f"{tiny} has no variant called int4: choose one of fp32, edge."

    def test_one_that_needs_torch(self, resealed):
        changes = {"format": "torchscript", "file": "model.torchscript.pt"}
        folder = resealed(
            manifest=lambda values: values["variants"][1].update(changes), **{"model.torchscript.pt": b"code"}
        )
        bundle = Bundle.open(folder)
        with pytest.raises(VariantError) as caught:
            bundle.load(bundle.variant("edge"))
        assert str(caught.value) == (
            "The variant edge is torchscript, which needs torch: choose an ONNX one, or run "
            f"'edgecifar evaluate {folder / 'model.torchscript.pt'}' where torch is installed."
        )
        # Its digest is checked all the same: it is not what the manifest names.
        assert failed(bundle) == {
            "model.torchscript.pt": f"{folder / 'model.torchscript.pt'} is not what manifest.json names: {AGAIN}",
        }


class TestRead:
    def test_intact(self, tiny):
        bundle = Bundle.open(tiny)
        assert bundle.read(bundle.variant("edge")) == (tiny / "model.edge.onnx").read_bytes()

    def test_not_what_the_sums_name(self, tiny_bundle):
        bundle = Bundle.open(tiny_bundle)
        path = tiny_bundle / "model.onnx"
        path.write_bytes(path.read_bytes() + b"\0")
        with pytest.raises(BundleError) as caught:
            bundle.read(bundle.variant())
        assert str(caught.value) == f"{path} is not what SHA256SUMS names: {AGAIN}"

    @pytest.mark.parametrize("field", ["bytes", "sha256"])
    def test_not_what_the_manifest_names(self, resealed, field):
        folder = resealed(manifest=setting("variants", 0, field, value={"bytes": 1, "sha256": "0" * 64}[field]))
        bundle = Bundle.open(folder)
        with pytest.raises(BundleError) as caught:
            bundle.load(bundle.variant())
        assert str(caught.value) == f"{folder / 'model.onnx'} is not what manifest.json names: {AGAIN}"
        reason = f"{folder / 'model.onnx'} is not what manifest.json names: {AGAIN}"
        assert failed(bundle) == {"model.onnx": reason, "golden vectors of fp32": reason}

    def test_swapped(self, tiny_bundle):
        bundle = Bundle.open(tiny_bundle)
        one, other = tiny_bundle / "model.onnx", tiny_bundle / "model.edge.onnx"
        one.rename(tiny_bundle / "x")
        other.rename(one)
        (tiny_bundle / "x").rename(other)
        for variant, path in zip(bundle.manifest.variants, (one, other), strict=True):
            with pytest.raises(BundleError, match=r"is not what SHA256SUMS names"):
                bundle.load(variant)
            assert failed(bundle)[path.name] == f"{path} is not what SHA256SUMS names: {AGAIN}"

    def test_swapped_with_sums_that_agree(self, tiny, resealed):
        swapped = {
            "model.onnx": (tiny / "model.edge.onnx").read_bytes(),
            "model.edge.onnx": (tiny / "model.onnx").read_bytes(),
        }
        folder = resealed(**swapped)
        assert sorted(failed(Bundle.open(folder))) == sorted(["model.onnx", "model.edge.onnx", *GOLDEN_CHECKS])

    def test_swapped_with_sums_and_manifest_that_agree(self, resealed):
        def swap(values: dict) -> None:
            one, other = values["variants"]
            for field in ("file", "bytes", "sha256"):
                one[field], other[field] = other[field], one[field]

        reasons = failed(Bundle.open(resealed(manifest=swap)))
        assert sorted(reasons) == sorted(GOLDEN_CHECKS)
        assert all(
            "differ by " in reason and "more than 1e-04 on this machine" in reason for reason in reasons.values()
        )

    @pytest.mark.parametrize("name", ["../tiny/model.onnx", "/etc/passwd", "..", ".", "", "a\0b", "x" * 300])
    def test_a_name_that_leaves_the_folder(self, tiny, name):
        bundle = Bundle.open(tiny)
        with pytest.raises(BundleError) as caught:
            bundle.read(replace(bundle.variant(), file=name))
        assert str(caught.value) == f"{name!r} is not the name of a file in {tiny}: {AGAIN}"

    @pytest.mark.parametrize("name", FILES)
    def test_links_are_refused(self, tiny_bundle, tmp_path, name):
        path = tiny_bundle / name
        path.rename(tmp_path / name)
        path.symlink_to(tmp_path / name)  # the content is right, and still
        reason = f"{path} is a link: copy the bundle again, whole."
        if name in ("manifest.json", "SHA256SUMS"):
            assert refusal(tiny_bundle) == reason
        else:
            assert failed(Bundle.open(tiny_bundle))[name] == reason

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
    @pytest.mark.parametrize("name", FILES)
    def test_pipes_are_refused_unopened(self, tiny_bundle, name):
        path = tiny_bundle / name
        path.unlink()
        os.mkfifo(path)  # to open it would wait for a writer for ever
        reason = f"{path} is not a file: copy the bundle again, whole."
        if name in ("manifest.json", "SHA256SUMS"):
            assert refusal(tiny_bundle) == reason
        else:
            assert failed(Bundle.open(tiny_bundle))[name] == reason

    @pytest.mark.parametrize("name", FILES)
    def test_oversize_files_are_refused_unread(self, tiny_bundle, never_read, name):
        path = tiny_bundle / name
        limit = 1 << 30 if name.endswith(".onnx") else 1 << 24
        with path.open("ab") as file:
            file.truncate(limit + 1)  # takes no space: a hole
        never_read(path)
        reason = f"{path} is larger than {limit:,} bytes: this is no bundle of edgecifar."
        if name in ("manifest.json", "SHA256SUMS"):
            assert refusal(tiny_bundle) == reason
        else:
            assert failed(Bundle.open(tiny_bundle))[name] == reason


class TestGolden:
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
        assert failed(bundle) == dict.fromkeys(GOLDEN_CHECKS, str(caught.value))
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
        assert failed(Bundle.open(resealed(**{"golden.npz": content}))) == {
            "golden vectors of edge": "golden.npz holds nothing for it"
        }

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
        assert reasons == {"golden vectors of edge": "differ by 6.25e-02, more than 1e-04 on this machine"}

    def test_not_a_number_differs(self, resealed, tiny):
        with np.load(tiny / "golden.npz") as archive:
            arrays = dict(archive)
        arrays["fp32"] = np.full((3, 10), np.nan, np.float32)
        folder = resealed(**{"golden.npz": npz(**arrays)})
        reasons = failed(Bundle.open(folder))
        assert reasons == {"golden vectors of fp32": "differ by nan, more than 1e-04 on this machine"}

    def test_the_manifests_tolerance_counts(self, resealed, tiny):
        with np.load(tiny / "golden.npz") as archive:
            arrays = dict(archive)
        arrays["edge"] = arrays["edge"] + np.float32(0.0625)
        contents = {"golden.npz": npz(**arrays)}
        assert failed(Bundle.open(resealed(setting("variants", 1, "golden_tolerance", value=0.07), **contents))) == {}
        assert list(
            failed(Bundle.open(resealed(setting("variants", 1, "golden_tolerance", value=0.06), **contents)))
        ) == ["golden vectors of edge"]


class TestVerify:
    def test_the_table_of_an_intact_bundle(self, tiny):
        checks = Bundle.open(tiny).verify()
        assert all(check.passed for check in checks)
        sizes = [(name, f"{(tiny / name).stat().st_size:,} bytes") for name in FILES if name != "SHA256SUMS"]
        table = [(check.name, check.detail) for check in checks]
        assert table[:-2] == [("manifest", "schema 1"), ("SHA256SUMS", "6 files"), *sizes]
        assert [name for name, _ in table[-2:]] == GOLDEN_CHECKS
        for _, detail in table[-2:]:
            assert detail.startswith("3 images, largest difference ")
            assert float(detail.split()[-1]) < 1e-6

    @pytest.mark.parametrize("name", FILES)
    def test_a_missing_file(self, tiny_bundle, name):
        bundle = Bundle.open(tiny_bundle)
        (tiny_bundle / name).unlink()
        assert failed(bundle)[name].startswith(f"{tiny_bundle / name} is ")
        if name == "manifest.json":
            assert "is not a bundle (manifest.json is missing)" in refusal(tiny_bundle)

    @pytest.mark.parametrize("name", ["README.md", "golden.npz", "model.edge.onnx", "parity.json"])
    def test_a_file_missing_together_with_its_line(self, tiny_bundle, resealed, name):
        (tiny_bundle / name).unlink()
        assert (
            failed(Bundle.open(resealed()))[name] == f"{tiny_bundle / name} is missing: copy the bundle again, whole."
        )

    @pytest.mark.parametrize("name", ["README.md", "parity.json"])
    def test_a_line_missing(self, tiny_bundle, name):
        path = tiny_bundle / "SHA256SUMS"
        path.write_text("".join(line for line in path.read_text().splitlines(True) if name not in line))
        assert failed(Bundle.open(tiny_bundle)) == {name: f"{tiny_bundle / name} is not named in SHA256SUMS: {AGAIN}"}

    def test_unknown_files_are_named(self, tiny_bundle):
        reason = "is in the folder but not in SHA256SUMS: remove it"
        for name in ("notes.txt", ".hidden", "a\nb", "\x1b[2J"):
            (tiny_bundle / name).touch()
        (tiny_bundle / "folder").mkdir()
        (tiny_bundle / "folder" / "model.onnx").touch()
        (tiny_bundle / "link").symlink_to("/nowhere")
        unknown = ["notes.txt", ".hidden", r"'a\nb'", r"'\x1b[2J'", "folder", "link"]
        assert failed(Bundle.open(tiny_bundle)) == dict.fromkeys(unknown, reason)

    @pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
    def test_an_unknown_file_whose_name_is_no_text(self, tiny_bundle):
        Path(os.fsdecode(os.fsencode(tiny_bundle) + b"/\xff")).touch()
        names = list(failed(Bundle.open(tiny_bundle)))
        assert names == [r"'\udcff'"]
        names[0].encode()

    def test_a_link_to_a_folder_is_not_followed(self, tiny_bundle, tmp_path):
        (tmp_path / "big").mkdir()
        (tmp_path / "big" / "file").touch()
        (tiny_bundle / "link").symlink_to(tmp_path / "big")
        assert list(failed(Bundle.open(tiny_bundle))) == ["link"]

    def test_changed_after_it_was_opened(self, tiny_bundle):
        bundle = Bundle.open(tiny_bundle)
        path = tiny_bundle / "manifest.json"
        path.write_bytes(path.read_bytes() + b"\n")
        reason = f"{path} is not what SHA256SUMS names: {AGAIN}"
        assert failed(bundle) == {"manifest": reason, "manifest.json": reason}

    def test_gone_after_it_was_opened(self, tiny_bundle):
        bundle = Bundle.open(tiny_bundle)
        shutil.rmtree(tiny_bundle)
        assert list(failed(bundle)) == ["manifest", "SHA256SUMS"]

    def test_a_model_that_cannot_be_loaded(self, resealed):
        broken = b"not a model"

        def rename(values: dict) -> None:
            digest = bundles.sha256(broken).hexdigest()
            values["variants"][0].update(bytes=len(broken), sha256=digest)

        folder = resealed(manifest=rename, **{"model.onnx": broken})
        reasons = failed(Bundle.open(folder))
        assert list(reasons) == ["golden vectors of fp32"]
        assert reasons["golden vectors of fp32"].startswith(
            f"{folder / 'model.onnx'} is not a model that onnxruntime can load ("
        )


class TestFlippedBits:
    """One flipped bit anywhere in the folder is found."""

    def flip(self, path: Path, byte: int, bit: int) -> None:
        content = bytearray(path.read_bytes())
        content[byte] ^= 1 << bit
        path.write_bytes(content)

    @pytest.fixture
    def quick(self, monkeypatch):
        """Leave out the golden vectors: what is found must be found by the digests."""
        monkeypatch.setattr(Bundle, "_reproduce", lambda bundle, variant: "")

    @given(data=st.data())
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @pytest.mark.parametrize("name", FILES)
    def test_somewhere(self, data, name, tiny, tiny_bundle, quick):
        path = tiny_bundle / name
        shutil.copy(tiny / name, path)
        assert not found(tiny_bundle)
        self.flip(path, data.draw(st.integers(0, path.stat().st_size - 1)), data.draw(st.integers(0, 7)))
        assert found(tiny_bundle)

    def test_every_bit_of_a_line_of_the_sums(self, tiny_bundle, quick):
        path = tiny_bundle / "SHA256SUMS"
        size = path.stat().st_size
        missed = []
        for byte in range(size - 17, size):  # three digits, two spaces, "parity.json", the newline
            for bit in range(8):
                self.flip(path, byte, bit)
                missed += [] if found(tiny_bundle) else [(byte, bit)]
                self.flip(path, byte, bit)
        assert missed == []
        assert not found(tiny_bundle)

    @pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".onnx")])
    def test_a_flipped_model_is_never_loaded(self, tiny_bundle, name):
        bundle = Bundle.open(tiny_bundle)
        self.flip(tiny_bundle / name, 500, 3)
        variant = next(variant for variant in bundle.manifest.variants if variant.file == name)
        with pytest.raises(EdgecifarError, match=r"is not what SHA256SUMS names"):
            bundle.load(variant)
