"""The page in a real browser: whatever a person can do with it, and that it notices when it computes wrongly."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecifar.runtime.bundle import Bundle
from edgecifar.runtime.classifier import Classifier
from edgecifar.runtime.pictures import load_picture
from edgecifar.serve.page import page_files, single_file

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SAMPLES = Path(__file__).parents[2] / "samples"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".wasm": "application/wasm"}


def break_filter(files):
    """Bilinear in place of bicubic."""
    code = files["pixels.js"].decode()
    broken = code.replace("return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;", "return 0;").replace(
        "if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;", "if (x < 1) return 1 - x;"
    )
    return {**files, "pixels.js": broken.encode()}


def break_channels(files):
    """BGR in place of RGB."""
    code = files["pixels.js"].decode()
    broken = code.replace("flat[to] = blend(red, data[from]", "flat[to] = blend(red, data[from + 2]").replace(
        "flat[to + 2] = blend(blue, data[from + 2]", "flat[to + 2] = blend(blue, data[from]"
    )
    return {**files, "pixels.js": broken.encode()}


def break_model(files):
    """Another model of the same labels under the name of the right one."""
    return {**files, "bundle/model.tiny.onnx": Bundle.open().read(Bundle.open().variant("nano"))}


def break_bundle(files):
    """A model cut off in the middle."""
    whole = files["bundle/model.tiny.onnx"]
    return {**files, "bundle/model.tiny.onnx": whole[: len(whole) // 2]}


def leave_out_runtime(files):
    """A page that was made without onnxruntime-web."""
    return {name: content for name, content in files.items() if not name.startswith("ort.")}


BROKEN = {
    "filter": break_filter,
    "channels": break_channels,
    "model": break_model,
    "bundle": break_bundle,
    "runtime": leave_out_runtime,
}


@pytest.fixture(scope="module")
def files(modules):
    return page_files(Bundle.open(), wasm=modules / "onnxruntime-web", variant="tiny")


@pytest.fixture(scope="module")
def server(files, three_classes, modules):
    """Serve the page, its broken forms, and that of another bundle, each under its name; the result is the port."""
    folders = {"intact": files, **{name: change(files) for name, change in BROKEN.items()}}
    for name in BROKEN:
        assert folders[name] != files
    folders["three"] = page_files(Bundle.open(three_classes), wasm=modules / "onnxruntime-web")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            folder, _, name = self.path.lstrip("/").partition("/")
            content = folders.get(folder, {}).get(name or "index.html")
            self.send_response(200 if content is not None else 404)
            self.send_header("Content-Type", TYPES.get(Path(name or "index.html").suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, format, *args):  # noqa: A002 - the name that http.server has
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running.server_port
        running.shutdown()


@pytest.fixture(scope="module")
def seen(server, files, node, modules, chromium, tmp_path_factory):
    """What the page showed, of everything that drive.mjs does with it."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "single.html").write_bytes(single_file(files))
    (folder / "notes.txt").write_text("no picture at all")
    (folder / "oriented.jpg").write_bytes(Bundle.open().file("golden.orientation.jpg"))
    for name, colour in {"known.png": (200, 25, 20), "unknown.png": (255, 255, 255)}.items():
        Image.new("RGB", (90, 60), colour).save(folder / name)
    noise = np.random.default_rng(5).integers(0, 256, (40, 60_000, 3), np.uint8)
    Image.fromarray(noise).save(folder / "wider.bmp")
    shots = Path(os.environ.get("EDGECIFAR_SHOTS") or folder)
    shots.mkdir(exist_ok=True)
    pictures = {
        "cat": SAMPLES / "cat.png",
        "ship": SAMPLES / "ship.jpg",
        "oriented": folder / "oriented.jpg",
        "bad": folder / "notes.txt",
        "known": folder / "known.png",
        "unknown": folder / "unknown.png",
        "wider": folder / "wider.bmp",
    }
    given = {
        "modules": str(modules),
        "chromium": chromium,
        "origin": f"http://127.0.0.1:{server}",
        "insecure": f"http://page.test:{server}",
        "single": str(folder / "single.html"),
        "pictures": {name: str(path) for name, path in pictures.items()},
        "broken": list(BROKEN),
        "shots": str(shots),
    }
    driver = Path(__file__).with_name("drive.mjs")
    ran = subprocess.run([node, driver, json.dumps(given)], capture_output=True, text=True, check=False, timeout=600)
    assert ran.returncode == 0, ran.stderr
    return {**json.loads(ran.stdout), "folder": folder}


@cache
def expected(path: Path):
    """The input that `load_picture` makes, the classes in the order of their probabilities, and whether it is known."""
    classifier = Classifier(variant="tiny", provider="cpu")
    (prediction,) = classifier.predict([path], top_k=len(classifier.contract.labels))
    return load_picture(path, classifier.contract), prediction.top, prediction.known


def assert_right(shown, path, tolerance=0):
    image, ranked, known = expected(path)
    difference = np.abs(np.array(shown["input"]).reshape(image.shape) - image.astype(int)).max()
    assert difference <= tolerance
    assert shown["error"] is None
    assert ranked[0][0] in shown["answer"]
    assert shown["answer"].startswith("Unknown") is not known
    assert shown["rows"][0][0] == ranked[0][0]
    assert float(shown["rows"][0][1].removesuffix(" %")) == pytest.approx(100 * ranked[0][1], abs=0.3)
    assert "net" in shown["times"]


def test_the_device_is_verified(seen):
    assert "good" in seen["badge"]["className"]
    assert "Verified on this device" in seen["badge"]["text"]
    assert "3 golden pictures" in seen["badge"]["facts"][0]


@pytest.mark.parametrize(
    ("way", "name"),
    [
        ("chosen", "cat.png"),
        ("dropped", "ship.jpg"),
        ("pasted", "cat.png"),
        ("again", "ship.jpg"),
        ("offline", "cat.png"),
    ],
)
def test_a_picture_is_classified(seen, way, name):
    assert_right(seen[way], SAMPLES / name, tolerance=0 if name.endswith("png") else 4)


def test_a_picture_on_its_side(seen, tmp_path):
    path = tmp_path / "oriented.jpg"
    path.write_bytes(Bundle.open().file("golden.orientation.jpg"))
    assert_right(seen["oriented"], path, tolerance=4)


def test_a_picture_much_wider_than_a_screen(seen):
    assert_right(seen["wider"], seen["folder"] / "wider.bmp")


def test_what_is_no_picture_is_named(seen):
    assert "notes.txt cannot be classified" in seen["bad"]["error"]
    assert seen["bad"]["answer"] is None


def test_a_bundle_of_another_kind(seen, three_colours):
    """Unicode labels, 40 pixels, bars at the sides, and a score of familiarity."""
    found = seen["three"]
    assert "good" in found["badge"]["className"], found["badge"]
    red, *_ = three_colours
    assert found["known"]["answer"].startswith(red)
    assert found["known"]["input"][:3] == [128, 128, 128]
    assert len(found["known"]["input"]) == 40 * 40 * 3
    assert {row[0] for row in found["known"]["rows"]} == set(three_colours)
    assert found["unknown"]["answer"].startswith("Unknown")


def test_the_camera_by_keyboard(seen):
    assert seen["focus"] == ["SUMMARY", "file", "camera"]
    assert seen["outline"] == "solid"
    assert seen["camera"]["answer"]
    assert "decoding" not in seen["camera"]["times"]
    assert len(set(seen["camera"]["input"])) > 2  # the fake camera's picture, not an empty frame
    assert seen["cameraStopped"]


def test_no_camera_without_https(seen):
    assert "good" in seen["insecure"]["badge"]["className"]
    assert seen["insecure"]["disabled"]
    assert "https or localhost" in seen["insecure"]["note"]


@pytest.mark.parametrize(
    ("broken", "word"),
    [
        ("filter", "golden.large.png"),
        ("channels", "pixels"),
        ("model", "probabilities differ"),
        ("bundle", "does not work"),
        ("runtime", "--wasm"),
    ],
)
def test_a_broken_page_says_so(seen, broken, word):
    found = seen["broken"][broken]
    assert "bad" in found["className"]
    assert word in " ".join([found["text"], *found["facts"]])


def test_one_file_from_the_disk_offline(seen):
    assert "good" in seen["single"]["badge"]["className"]
    assert_right(seen["single"]["shown"], SAMPLES / "cat.png")


def test_nothing_leaves_the_page(seen, server):
    own = (f"http://127.0.0.1:{server}/", f"http://page.test:{server}/", "blob:", "data:", "file:///")
    assert [url for url in seen["requests"] if not url.startswith(own)] == []


def test_accessible(seen):
    assert seen["violations"] == {"wide": [], "error": [], "phone": [], "broken": [], "unknown": []}


def test_the_same_answer_is_said_again(seen):
    assert [bool(sentence) for sentence in seen["said"]] == [False, True, False, True]
    assert seen["said"][1] == seen["said"][3]
    assert seen["said"][1].startswith("cat.png: cat")


def test_a_picture_that_was_overtaken_is_let_go_of(seen):
    assert seen["overtaken"]["answer"] == seen["again"]["answer"]
    assert seen["overtaken"]["held"] == 0


def test_a_phone_needs_no_scrolling_sideways(seen):
    assert seen["overflow"] <= 0


def test_the_browser_has_nothing_to_complain_of(seen):
    """No script fails and no policy is hit, but for what the broken pages lack and what the test itself reads."""
    expected = ("404", "ort", "Canvas2D: Multiple readback")
    complaints = [line for line in seen["complaints"] if not any(word in line for word in expected)]
    assert complaints == []
