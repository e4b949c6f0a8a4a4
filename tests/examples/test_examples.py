"""The examples do what their first lines say, on the bundle that ships."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from queue import Empty, Queue
from types import SimpleNamespace

import ctrl_c
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from edgecifar.runtime.bundle import DEFAULT
from edgecifar.runtime.contract import CIFAR10, FITS
from edgecifar.runtime.pictures import load_picture

ROOT = Path(__file__).parents[2]
EXAMPLES, SAMPLES = ROOT / "examples", ROOT / "samples"
SHORT = 150


@pytest.mark.parametrize(
    "path", [path for path in sorted(EXAMPLES.iterdir()) if path.suffix in (".py", ".mjs")], ids=lambda p: p.name
)
def test_short(path):
    assert len(path.read_text().splitlines()) < SHORT


def run(*command, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **options)


@pytest.fixture
def bundle(tmp_path):
    """A copy of the bundle to change."""
    return Path(shutil.copytree(DEFAULT, tmp_path / "bundle"))


def spoil(bundle):
    """Change one value of a golden picture's array."""
    golden = json.loads((bundle / "golden.json").read_text())
    picture = next(entry for entry in golden["pictures"] if entry["file"].endswith(".png"))
    picture["array"][100] ^= 8
    (bundle / "golden.json").write_text(json.dumps(golden))


class TestPython:
    def example(self, *arguments):
        return run(sys.executable, EXAMPLES / "classify.py", *arguments)

    def test_golden_pictures(self, bundle):
        ran = self.example(bundle)
        assert ran.returncode == 0, ran.stderr
        lines = ran.stdout.splitlines()
        assert len(lines) == len(list(bundle.glob("golden.*.png")))
        assert all("pixels differ by 0" in line and line.endswith("ok") for line in lines)

    def test_every_fit_and_orientation(self, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(str(EXAMPLES))
        import classify  # pyright: ignore[reportMissingImports]

        rng = np.random.default_rng(7)
        for number in range(60):
            width, height = (int(np.exp(rng.uniform(0, np.log(700)))) for _ in range(2))
            exif = Image.Exif()
            exif[0x0112] = number % 9
            noise = rng.integers(0, 256, (height, width, 3 + number % 2), np.uint8)
            file = tmp_path / f"{number}.png"
            Image.fromarray(noise).save(file, compress_level=1, exif=exif)
            contract = replace(CIFAR10.with_fit(FITS[number % 3]), size=(32, 48)[number // 3 % 2])
            np.testing.assert_array_equal(
                classify.prepare(file, contract.as_json()), load_picture(file, contract), err_msg=f"{width}x{height}"
            )

    def test_what_it_would_read_wrongly_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(str(EXAMPLES))
        import classify  # pyright: ignore[reportMissingImports]

        grey, exif = np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64, Image.Exif()
        exif[0x0112] = 6
        colour, gamma = Image.new("RGB", (32, 32), "red"), PngInfo()
        gamma.add(b"gAMA", (100_000).to_bytes(4, "big"))
        Image.fromarray(grey).save(tmp_path / "deep.png")
        colour.save(tmp_path / "turned.tif", exif=exif)
        colour.convert("CMYK").save(tmp_path / "cmyk.jpg")
        colour.save(tmp_path / "gamma.png", pnginfo=gamma)
        colour.convert("L").save(tmp_path / "key.png", transparency=76)
        linear = PngInfo()
        linear.add(b"cICP", bytes([1, 8, 0, 1]))
        colour.save(tmp_path / "linear.png", pnginfo=linear)
        for file in tmp_path.iterdir():
            with pytest.raises(SystemExit, match=file.name):
                classify.prepare(file, CIFAR10.as_json())

    @pytest.mark.parametrize("arguments", [[], [DEFAULT, EXAMPLES / "README.md"]])
    def test_what_cannot_be_read_is_said_without_a_traceback(self, arguments):
        ran = self.example(*arguments)
        assert ran.returncode == 1
        assert "Traceback" not in ran.stderr
        assert (Path(arguments[-1]).name if arguments else "BUNDLE") in ran.stderr

    def test_a_difference_is_seen(self, bundle):
        spoil(bundle)
        ran = self.example(bundle)
        assert ran.returncode == 1
        assert "WRONG" in ran.stdout

    def test_pictures(self):
        ran = self.example(DEFAULT, SAMPLES / "cat.png", SAMPLES / "ship.jpg")
        assert [line.split(": ")[1].split()[0] for line in ran.stdout.splitlines()] == ["cat", "ship"]


@pytest.mark.browser
class TestNode:
    @pytest.fixture
    def example(self, tmp_path):
        modules = ROOT / "serve" / "web" / "node_modules"
        if not shutil.which("node") or not (modules / "onnxruntime-web").is_dir():
            pytest.skip("needs Node and npm packages: run scripts/web")
        shutil.copy(EXAMPLES / "classify.mjs", tmp_path)
        (tmp_path / "node_modules").symlink_to(modules)
        return lambda *arguments: run("node", tmp_path / "classify.mjs", *arguments)

    def test_golden_pictures(self, example, bundle):
        ran = example(bundle)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.count("pixels differ by 0") == len(list(bundle.glob("golden.*.png")))

    def test_a_difference_is_seen(self, example, bundle):
        spoil(bundle)
        assert example(bundle).returncode == 1

    def test_pictures(self, example):
        ran = example(DEFAULT, SAMPLES / "cat.png", SAMPLES / "dog.png")
        assert [line.split(": ")[1].split()[0] for line in ran.stdout.splitlines()] == ["cat", "dog"]


@pytest.mark.skipif(not shutil.which("node"), reason="needs Node")
def test_node_refuses_what_it_would_read_wrongly(tmp_path, bundle):
    shutil.copy(EXAMPLES / "classify.mjs", tmp_path)
    runtime = tmp_path / "node_modules" / "onnxruntime-web"  # that never runs: it comes to no model
    runtime.mkdir(parents=True)
    (runtime / "package.json").write_text('{"type": "module", "exports": "./index.js"}')
    (runtime / "index.js").write_text("export const InferenceSession = { create: () => ({}) };")
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    Image.new("RGB", (32, 32), "red").save(tmp_path / "turned.png", pnginfo=text)
    (tmp_path / "cut.png").write_bytes((SAMPLES / "cat.png").read_bytes()[:2000])
    for file in (tmp_path / "turned.png", SAMPLES / "ship.jpg", tmp_path / "missing.png"):
        ran = run("node", tmp_path / "classify.mjs", DEFAULT, file)
        assert ran.returncode == 1
        assert ran.stdout == ""
        assert file.name in ran.stderr
        assert len(ran.stderr.splitlines()) == 1
    manifest = json.loads((bundle / "manifest.json").read_text())
    filtered = json.loads((bundle / "manifest.json").read_text())
    filtered["contract"]["preprocessing"]["filter"]["name"] = "lanczos"
    for changed, named in (({**manifest, "schema": 3}, "schema"), (filtered, "preprocessing")):
        (bundle / "manifest.json").write_text(json.dumps(changed))
        ran = run("node", tmp_path / "classify.mjs", bundle, SAMPLES / "cat.png")
        assert ran.returncode == 1
        assert named in ran.stderr
        assert len(ran.stderr.splitlines()) == 1
    for arguments in ((), (tmp_path,), (DEFAULT, tmp_path / "cut.png")):
        ran = run("node", tmp_path / "classify.mjs", *arguments)
        assert ran.returncode == 1
        assert len(ran.stderr.splitlines()) == 1


class TestCamera:
    @pytest.fixture
    def cv2(self):
        return pytest.importorskip("cv2", reason="needs OpenCV")

    @pytest.fixture
    def camera(self, monkeypatch, cv2):
        """The example as a module."""
        monkeypatch.syspath_prepend(str(EXAMPLES))
        import camera  # pyright: ignore[reportMissingImports]

        return camera

    def draw(self, cv2, path, *samples, frames=8):
        """Write a video that shows each sample for some frames."""
        made = path.with_name(f"making-{path.name}")
        video = cv2.VideoWriter(str(made), cv2.VideoWriter_fourcc(*"MJPG"), 25, (160, 120))
        assert video.isOpened()
        for name in samples:
            picture = Image.open(SAMPLES / name).convert("RGB").resize((120, 120))
            frame = np.full((120, 160, 3), 128, np.uint8)
            frame[:, 20:140] = np.array(picture)[..., ::-1]
            for _ in range(frames):
                video.write(frame)
        video.release()
        made.replace(path)

    def test_a_line_whenever_the_class_changes(self, cv2, tmp_path):
        path = tmp_path / "video.avi"
        self.draw(cv2, path, "cat.png", "horse.png", "horse.png", "truck.png")
        ran = run(sys.executable, EXAMPLES / "camera.py", path, "--retry", "0")
        assert ran.returncode == 0, ran.stderr
        lines = [json.loads(line) for line in ran.stdout.splitlines()]
        assert [(line["class"], line["frame"]) for line in lines] == [("cat", 2), ("horse", 10), ("truck", 26)]
        assert all(0 < line["probability"] <= 1 for line in lines)

    def test_a_pipe_that_closes_ends_it(self, cv2, tmp_path):
        path = tmp_path / "video.avi"
        self.draw(cv2, path, "cat.png")
        reading, writing = os.pipe()
        os.close(reading)
        command = [sys.executable, EXAMPLES / "camera.py", path, "--retry", "0"]
        ran = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
        os.close(writing)
        assert (ran.returncode, ran.stderr) == (0, "")

    def test_a_source_that_never_gives_a_picture(self, camera, tmp_path):
        with pytest.raises(SystemExit, match=r"missing.mp4 gives no picture"):
            list(camera.frames(str(tmp_path / "missing.mp4"), 0))

    @pytest.mark.parametrize("given", [["--bundle", "missing"], ["--retry", "-1"], ["--retry", "nan"]])
    def test_what_cannot_be_is_said(self, camera, monkeypatch, capsys, given):
        monkeypatch.setattr(sys, "argv", ["camera.py", *given])
        with pytest.raises(SystemExit) as ended:
            camera.main()
        assert (given[1] if given[0] == "--bundle" else given[0]) in f"{ended.value}{capsys.readouterr().err}"

    def test_it_goes_on_when_the_source_comes_back(self, cv2, tmp_path):
        path = tmp_path / "video.avi"
        command = [sys.executable, "-u", EXAMPLES / "camera.py", path, "--retry", "0.1"]
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            preexec_fn=ctrl_c.heed,
        )
        lines: Queue[str] = Queue()
        reader = threading.Thread(target=lambda: [lines.put(line) for line in process.stdout or ()], daemon=True)
        reader.start()
        try:
            with pytest.raises(Empty):
                lines.get(timeout=0.5)
            self.draw(cv2, path, "cat.png")
            assert json.loads(lines.get(timeout=60))["class"] == "cat"
            path.unlink()
            time.sleep(0.3)
            self.draw(cv2, path, "ship.jpg")
            assert json.loads(lines.get(timeout=60))["class"] == "ship"
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGINT)
            reader.join(30)  # before `communicate` closes what it reads
            _, errors = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "is back" in errors
        assert "Traceback" not in errors

    def test_unknown_pictures_and_short_changes(self, camera):
        seen = [
            ("cat", True),
            ("cat", True),
            ("dog", True),
            ("cat", True),
            ("cat", False),
            ("car", False),
            ("cat", None),
        ]
        answers = iter(
            [[SimpleNamespace(label=label, known=known, probability=0.75)] for label, known in [*seen, seen[-1]]]
        )
        classifier = SimpleNamespace(predict=lambda pictures, top_k: next(answers))
        lines = list(camera.changes(classifier, iter([None] * 8), hold=2))
        assert [(line["class"], line.get("nearest"), line["frame"]) for line in lines] == [
            ("cat", None, 1),
            ("unknown", "car", 5),
            ("cat", None, 7),
        ]
