"""What is not exactly the bundle that was made is refused, and `verify` names the file and the reason."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgecifar.runtime import bundle as bundles
from edgecifar.runtime.bundle import Bundle
from edgecifar.runtime.contract import CIFAR10
from edgecifar.runtime.errors import BundleError, EdgecifarError, VariantError
from edgecifar.runtime.files import sha256
from edgecifar.runtime.folder import write_sums
from edgecifar.runtime.manifest import Variant

PICTURES = ("golden.alpha.png", "golden.large.png", "golden.orientation.jpg")
FILES = (
    "README.md",
    "SHA256SUMS",
    *PICTURES[:1],
    "golden.json",
    PICTURES[1],
    "golden.npz",
    PICTURES[2],
    "manifest.json",
    "model.edge.onnx",
    "model.onnx",
    "parity.json",
)
GOLDEN_CHECKS = ["golden vectors of fp32", "golden vectors of edge"]


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


def refused(folder: Path, name: str) -> str:
    """Why the file `name` is refused: by opening the bundle, or by verifying it."""
    return refusal(folder) if name in ("manifest.json", "SHA256SUMS") else failed(Bundle.open(folder))[name]


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
        # Versions of Pillow encode pictures differently; test_golden holds them against what is said of them.
        for name in set(FILES) - {"golden.npz", "golden.json", *PICTURES}:
            made, kept = (
                [line for line in (folder / name).read_bytes().splitlines() if b"  golden." not in line]
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
        assert bundle.contract == bundle.manifest.contract == CIFAR10
        assert bundle.manifest.dataset == "ten colours"
        assert bundle.manifest.schema == 2
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
            made_by="the nearest of some colours",
            golden_tolerance=1e-4,
        )

    def test_a_link_to_the_folder(self, tiny, tmp_path):
        (tmp_path / "link").symlink_to(tiny)
        assert Bundle.open(tmp_path / "link").manifest == Bundle.open(tiny).manifest

    def test_none_installed(self, monkeypatch, tmp_path):
        monkeypatch.setattr(bundles, "DEFAULT", tmp_path)
        assert "No bundle is installed" in refusal(None)

    def test_the_installed_one(self, monkeypatch, tiny):
        monkeypatch.setattr(bundles, "DEFAULT", tiny)
        assert Bundle.open().folder == tiny

    @pytest.mark.parametrize("name", ["", "missing", "file", "a\0b", "x" * 300])
    def test_not_a_bundle(self, tmp_path, name):
        (tmp_path / "file").touch()
        assert "is not a bundle (manifest.json is missing)" in refusal(tmp_path / name)

    @pytest.mark.parametrize("name", ["manifest.json", "SHA256SUMS"])
    def test_a_manifest_that_is_no_file(self, tiny_bundle, name):
        path = tiny_bundle / name
        path.unlink()
        path.mkdir()
        assert f"{path} is not a file" in refusal(tiny_bundle)

    def test_no_sums(self, tiny_bundle):
        (tiny_bundle / "SHA256SUMS").unlink()
        assert "SHA256SUMS is missing" in refusal(tiny_bundle)

    def test_another_manifest(self, tiny_bundle):
        path = tiny_bundle / "manifest.json"
        path.write_text(path.read_text().replace("ten colours", "CIFAR-10"))
        assert f"{path} is not what SHA256SUMS names" in refusal(tiny_bundle)

    def test_sums_without_the_manifest(self, tiny_bundle):
        path = tiny_bundle / "SHA256SUMS"
        path.write_text("".join(line for line in path.read_text().splitlines(True) if "manifest.json" not in line))
        assert "manifest.json is not named in SHA256SUMS" in refusal(tiny_bundle)

    def test_a_folder_that_may_not_be_looked_into(self, tiny_bundle, monkeypatch):
        """It was said to be no bundle, since manifest.json was missing."""

        def forbid(path: Path) -> os.stat_result:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "lstat", forbid)
        assert "manifest.json cannot be read (Permission denied): change its permissions" in refusal(tiny_bundle)

    @pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])  # root, whom tests may run as, is denied nothing
    def test_a_manifest_that_cannot_be_read(self, tiny_bundle, monkeypatch, code):
        def fail(path: Path) -> bytes:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(Path, "read_bytes", fail)
        assert f"{tiny_bundle / 'manifest.json'} cannot be read ({os.strerror(code)})" in refusal(tiny_bundle)


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
    assert f"{path} is damaged" in refusal(tiny_bundle)


def test_sums_that_are_not_text(tiny_bundle):
    (tiny_bundle / "SHA256SUMS").write_bytes(b"\xff\xfe\x00")
    assert "SHA256SUMS is damaged" in refusal(tiny_bundle)


def setting(*keys, value):
    """A function that sets a value deep in the manifest."""

    def change(values: dict) -> None:
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = value

    return change


class TestVariant:
    def test_by_name_and_by_default(self, tiny, resealed):
        bundle = Bundle.open(tiny)
        assert bundle.variant() is bundle.manifest.variants[0]
        assert bundle.variant("edge") is bundle.manifest.variants[1]
        assert Bundle.open(resealed(manifest=setting("default_variant", value="edge"))).variant().name == "edge"

    def test_unknown(self, tiny):
        with pytest.raises(VariantError, match="int4: choose one of fp32, edge"):
            Bundle.open(tiny).variant("int4")

    def test_one_that_needs_torch(self, resealed):
        changes = {"format": "torchscript", "file": "model.torchscript.pt"}
        folder = resealed(
            manifest=lambda values: values["variants"][1].update(changes), **{"model.torchscript.pt": b"code"}
        )
        bundle = Bundle.open(folder)
        with pytest.raises(VariantError, match=r"needs torch: .* 'edgecifar evaluate .*model\.torchscript\.pt'"):
            bundle.load(bundle.variant("edge"))
        # Its digest is checked all the same: it is not what the manifest names. That it is not run is said.
        assert list(failed(bundle)) == ["model.torchscript.pt"]
        (check,) = (check for check in bundle.verify() if check.name == "golden vectors of edge")
        assert check.skipped
        assert "needs torch" in check.detail
        assert not any(check.skipped for check in bundle.verify() if check.name != "golden vectors of edge")


class TestRead:
    def test_intact(self, tiny):
        bundle = Bundle.open(tiny)
        assert bundle.read(bundle.variant("edge")) == (tiny / "model.edge.onnx").read_bytes()

    def test_not_what_the_sums_name(self, tiny_bundle):
        bundle = Bundle.open(tiny_bundle)
        path = tiny_bundle / "model.onnx"
        path.write_bytes(path.read_bytes() + b"\0")
        with pytest.raises(BundleError, match=r"model\.onnx is not what SHA256SUMS names"):
            bundle.read(bundle.variant())

    @pytest.mark.parametrize("field", ["bytes", "sha256"])
    def test_not_what_the_manifest_names(self, resealed, field):
        folder = resealed(manifest=setting("variants", 0, field, value={"bytes": 1, "sha256": "0" * 64}[field]))
        bundle = Bundle.open(folder)
        with pytest.raises(BundleError, match=r"model\.onnx is not what manifest\.json names"):
            bundle.load(bundle.variant())
        assert list(failed(bundle)) == ["model.onnx", "golden vectors of fp32"]

    def test_swapped(self, tiny_bundle):
        bundle = Bundle.open(tiny_bundle)
        one, other = tiny_bundle / "model.onnx", tiny_bundle / "model.edge.onnx"
        one.rename(tiny_bundle / "x")
        other.rename(one)
        (tiny_bundle / "x").rename(other)
        for variant, path in zip(bundle.manifest.variants, (one, other), strict=True):
            with pytest.raises(BundleError, match=r"is not what SHA256SUMS names"):
                bundle.load(variant)
            assert path.name in failed(bundle)

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
        assert all("differ by " in reason for reason in reasons.values())

    @pytest.mark.parametrize("name", ["../tiny/model.onnx", "/etc/passwd", "..", ".", "", "a\0b", "x" * 300])
    def test_a_name_that_leaves_the_folder(self, tiny, name):
        bundle = Bundle.open(tiny)
        with pytest.raises(BundleError, match="is not the name of a file in"):
            bundle.read(replace(bundle.variant(), file=name))

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
    @pytest.mark.parametrize("name", FILES)
    def test_pipes_are_refused_unopened(self, tiny_bundle, name):
        path = tiny_bundle / name
        path.unlink()
        os.mkfifo(path)  # to open it would wait for a writer for ever
        assert f"{path} is not a file" in refused(tiny_bundle, name)

    @pytest.mark.parametrize("name", FILES)
    def test_oversize_files_are_refused_unread(self, tiny_bundle, never_read, name):
        path = tiny_bundle / name
        limit = 1 << 30 if name.endswith(".onnx") else 1 << 24
        with path.open("ab") as file:
            file.truncate(limit + 1)  # takes no space: a hole
        never_read(path)
        assert f"{path} is larger than {limit:,} bytes" in refused(tiny_bundle, name)


class TestLinks:
    @pytest.mark.parametrize("name", FILES)
    def test_that_leave_the_bundle_are_refused(self, tiny_bundle, tmp_path, name):
        path = tiny_bundle / name
        path.rename(tmp_path / name)
        path.symlink_to(tmp_path / name)  # the content is right, and still
        assert f"{path} is a link that leaves the bundle" in refused(tiny_bundle, name)

    def test_to_a_folder_whose_name_begins_alike(self, tiny_bundle):
        beside = tiny_bundle.with_name(f"{tiny_bundle.name}-2")
        beside.mkdir()
        (tiny_bundle / "README.md").rename(beside / "README.md")
        (tiny_bundle / "README.md").symlink_to(beside / "README.md")
        assert "leaves the bundle" in refused(tiny_bundle, "README.md")

    def test_that_lead_nowhere_or_round(self, tiny_bundle):
        for name, target in (("README.md", "nowhere"), ("parity.json", "parity.json")):
            (tiny_bundle / name).unlink()
            (tiny_bundle / name).symlink_to(target)
        reasons = failed(Bundle.open(tiny_bundle))
        assert "is missing" in reasons["README.md"]
        assert "cannot be read" in reasons["parity.json"]

    @pytest.fixture
    def mounted(self, tiny, tmp_path) -> Path:
        """The tiny bundle as Kubernetes mounts a ConfigMap: each file a link through `..data`."""
        folder = tmp_path / "mounted"
        behind = Path(shutil.copytree(tiny, folder / "..2026_01_02_03_04_05.678"))
        (folder / "..data").symlink_to(behind.name)
        for name in FILES:
            (folder / name).symlink_to(Path("..data") / name)
        return folder

    def test_that_stay_in_the_bundle_are_followed(self, mounted):
        bundle = Bundle.open(mounted)
        assert failed(bundle) == {}
        assert bundle.read(bundle.variant()) == (mounted / "model.onnx").read_bytes()

    def test_an_unknown_file_behind_the_links(self, mounted):
        (mounted / "..data" / "extra.so").touch()
        assert list(failed(Bundle.open(mounted))) == ["extra.so"]

    def test_a_folder_behind_that_is_elsewhere(self, mounted, tmp_path):
        (mounted / "..data").resolve().rename(tmp_path / "elsewhere")
        (mounted / "..data").unlink()
        (mounted / "..data").symlink_to(tmp_path / "elsewhere")
        assert "leaves the bundle" in refusal(mounted)

    def test_of_the_installed_bundle_are_followed_anywhere(self, tiny, tmp_path, monkeypatch):
        """As 'uv pip install --link-mode=symlink' links them from its cache."""
        installed = tmp_path / "installed"
        installed.mkdir()
        for name in FILES:
            (installed / name).symlink_to(tiny / name)
        assert "leaves the bundle" in refusal(installed)
        monkeypatch.setattr(bundles, "DEFAULT", installed)
        for folder in (None, installed):
            assert failed(Bundle.open(folder)) == {}


def test_write_sums_leaves_the_signature_out(tiny_bundle):
    before = (tiny_bundle / "SHA256SUMS").read_bytes()
    (tiny_bundle / "model.sig").touch()
    write_sums(tiny_bundle)
    assert (tiny_bundle / "SHA256SUMS").read_bytes() == before


class TestVerify:
    def test_the_table_of_an_intact_bundle(self, tiny):
        checks = Bundle.open(tiny).verify()
        assert all(check.passed for check in checks)
        sizes = [(name, f"{(tiny / name).stat().st_size:,} bytes") for name in FILES if name != "SHA256SUMS"]
        table = [(check.name, check.detail) for check in checks]
        assert table[: len(sizes) + 2] == [("manifest", "schema 2"), ("SHA256SUMS", "10 files"), *sizes]
        pictures = ("orientation.jpg", "alpha.png", "large.png")
        rest = [*(f"preprocessing of golden.{name}" for name in pictures), *GOLDEN_CHECKS]
        assert [name for name, _ in table[len(sizes) + 2 :]] == rest
        for _, detail in table[-2:]:
            assert detail.startswith("6 images, largest difference ")
            assert float(detail.split()[-1]) < 1e-6

    @pytest.mark.parametrize("name", FILES)
    def test_a_missing_file(self, tiny_bundle, name):
        bundle = Bundle.open(tiny_bundle)
        (tiny_bundle / name).unlink()
        assert failed(bundle)[name].startswith(f"{tiny_bundle / name} is ")
        if name == "manifest.json":
            assert "is not a bundle (manifest.json is missing)" in refusal(tiny_bundle)

    @pytest.mark.parametrize("name", ["README.md", "golden.json", "golden.npz", "model.edge.onnx", "parity.json"])
    def test_a_file_missing_together_with_its_line(self, tiny_bundle, resealed, name):
        (tiny_bundle / name).unlink()
        assert f"{tiny_bundle / name} is missing" in failed(Bundle.open(resealed()))[name]

    @pytest.mark.parametrize("name", ["README.md", "parity.json"])
    def test_a_line_missing(self, tiny_bundle, name):
        path = tiny_bundle / "SHA256SUMS"
        path.write_text("".join(line for line in path.read_text().splitlines(True) if name not in line))
        reasons = failed(Bundle.open(tiny_bundle))
        assert list(reasons) == [name]
        assert "is not named in SHA256SUMS" in reasons[name]

    def test_unknown_files_are_named(self, tiny_bundle):
        for name in ("notes.txt", ".hidden", "a\nb", "\x1b[2J"):
            (tiny_bundle / name).touch()
        (tiny_bundle / "folder").mkdir()
        (tiny_bundle / "folder" / "model.onnx").touch()
        (tiny_bundle / "link").symlink_to("/nowhere")
        unknown = ["notes.txt", ".hidden", r"'a\nb'", r"'\x1b[2J'", "folder", "link"]
        reasons = failed(Bundle.open(tiny_bundle))
        assert sorted(reasons) == sorted(unknown)
        assert all("remove it" in reason for reason in reasons.values())

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
        assert list(failed(bundle)) == ["manifest", "manifest.json"]

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
        assert "is not a model that onnxruntime can load" in reasons["golden vectors of fp32"]


class TestFlippedBits:
    """One flipped bit anywhere in the folder is found."""

    def flip(self, path: Path, byte: int, bit: int) -> None:
        content = bytearray(path.read_bytes())
        content[byte] ^= 1 << bit
        path.write_bytes(content)

    @pytest.fixture
    def quick(self, monkeypatch):
        """Leave out the golden vectors: what is found must be found by the digests."""
        monkeypatch.setattr(Bundle, "_golden_checks", lambda bundle: [])

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
