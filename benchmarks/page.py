"""How long the page takes in Chromium: from a click on a link to it to its first answer, and for each picture.

    python benchmarks/page.py [--bundle BUNDLE] [--variant tiny] [--visits 20] [--images 500]

The page is made as `edgecifar page` makes it, and comes from `python -m http.server`. Every visit is a click in one
browser, whose cache the first visit fills; it is not counted. A picture, samples/cat.png, is handed over as soon as the
page takes one: when it has verified itself. Then pictures that have the net's size already, one after the other: what
is left of preprocessing, and the net. Browsers round times to 0.1 ms.

It needs Node, Chromium and the npm packages that `scripts/web` installs.
"""

from __future__ import annotations

import argparse
import base64
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

import harness
import report
from serving import free_port

from edgecifar.runtime import Bundle, EdgecifarError
from edgecifar.serve.page import write_page

ROOT = Path(__file__).parents[1]
MODULES = ROOT / "serve" / "web" / "node_modules"
SAMPLE = ROOT / "samples" / "cat.png"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder by `python -m http.server`; yield its address."""
    port = free_port()
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(folder), str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while server.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def visit(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return what page.mjs measured of the page in `folder`/page.

    Raises:
        EdgecifarError: Node, Chromium or an npm package is missing, or the page failed.
    """
    node = shutil.which("node")
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if not node or not chromium:
        raise EdgecifarError("The page is measured in Chromium, driven by Node: install both.")
    (folder / "start.html").write_text('<!doctype html><title>start</title><a href="page/index.html">the page</a>')
    with served(folder) as origin:
        given = {
            "modules": str(MODULES),
            "chromium": chromium,
            "origin": origin,
            "picture": base64.b64encode(SAMPLE.read_bytes()).decode(),
            "visits": options.visits + 1,
            "images": options.images,
        }
        script = Path(__file__).with_suffix(".mjs")
        done = subprocess.run([node, script, json.dumps(given)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise EdgecifarError(f"The page could not be measured: {done.stderr.strip()}")
    found = json.loads(done.stdout)
    for seen in found["visits"]:
        if "good" not in seen["badge"]:
            raise EdgecifarError("The page did not verify itself: look at it before you measure it.")
    return found


def row(what: str, milliseconds: Sequence[float]) -> dict[str, Any]:
    """Return median, quartiles and the longest of these times."""
    low, median, high = quantiles(milliseconds, n=4) if len(milliseconds) > 1 else [*milliseconds] * 3
    return {
        "what": what,
        "n": len(milliseconds),
        "median": median,
        "low": low,
        "high": high,
        "longest": max(milliseconds),
        "mean": sum(milliseconds) / len(milliseconds),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="by default the one installed")
    parser.add_argument("--variant", default="tiny")
    parser.add_argument("--visits", type=harness.positive(int), default=20)
    parser.add_argument("--images", type=harness.positive(int), default=500)
    report.add_save(parser, "page")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wasm = MODULES / "onnxruntime-web"
        if not wasm.is_dir():
            raise EdgecifarError("The npm packages are not there: run scripts/web once.")
        bundle = Bundle.open(options.bundle)
        write_page(bundle, folder / "page", wasm=wasm, variant=options.variant)
        found = visit(folder, options)
    warm = found["visits"][1:]
    rows = [
        row("click to verified", [seen["ready"] for seen in warm]),
        row("click to first answer", [seen["answered"] for seen in warm]),
        row("a picture", found["images"]),
    ]
    lines = [["ms", "n", "median", "quartiles", "longest", "mean"]]
    lines += [
        [
            one["what"],
            str(one["n"]),
            f"{one['median']:.1f}",
            f"{one['low']:.1f} to {one['high']:.1f}",
            f"{one['longest']:.1f}",
            f"{one['mean']:.2f}",
        ]
        for one in rows
    ]
    settings = {"variant": options.variant, "visits": options.visits, "images": options.images}
    settings |= {"models": report.digests([bundle.variant(options.variant)])}
    versions = {"chromium": found["version"]}
    first = found["visits"][0]["answered"]
    document = report.document("page", settings, rows, versions=versions, first_visit_ms=first)
    report.finish(document, report.table(lines), options.save)


if __name__ == "__main__":
    harness.main(main)
