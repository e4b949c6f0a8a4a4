"""A real local Ray: its labels are those of one machine, a killed worker costs nothing, a second job goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecifar.runtime import Classifier
from edgecifar.runtime.bulk import Options, results
from edgecifar.runtime.errors import PictureError

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCRIPT = Path(__file__).parent.parent / "shared" / "ray_job.py"


@pytest.fixture
def job(tmp_path):
    """Run ray_job.py and return the rows that it wrote by path: `job(bundle, folder, marker)`."""
    if not os.environ.get("EDGECIFAR_RAY"):
        pytest.skip("EDGECIFAR_RAY is not set: a local Ray takes minutes on a busy machine")
    pytest.importorskip("ray", reason="ray[data] is not installed")
    import pyarrow.parquet as parquet

    def run(bundle: Path, folder: Path, *marker: Path) -> dict[str, dict]:
        settings = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        command = [sys.executable, SCRIPT, bundle, folder, tmp_path / "rows", *marker]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings})
        if "node timed out during startup" in done.stderr:
            pytest.skip("Ray does not start in the time that it gives itself: this machine is too busy")
        assert done.returncode == 0, done.stderr[-3000:]
        rows = parquet.read_table(tmp_path / "rows").to_pylist()
        assert len(rows) == len({row["path"] for row in rows})
        return {row["path"]: row for row in rows}

    return run


def agree(rows: dict[str, dict], bundle: Path, folder: Path) -> None:
    """Hold the rows against one machine's: the same pictures, labels and errors."""
    paths = sorted(str(path) for path in folder.iterdir())
    assert sorted(rows) == paths
    for path, result in results(Classifier(bundle), paths, Options()):
        if isinstance(result, PictureError):
            assert rows[path]["label"] is None
            assert str(result) == rows[path]["error"]
        else:
            assert rows[path]["error"] is None
            assert rows[path]["label"] == result.label
            assert rows[path]["probability"] == pytest.approx(result.probability, abs=1e-5)
            assert [entry["label"] for entry in rows[path]["top"]] == [label for label, _ in result.top]


@pytest.fixture
def folder(tmp_path) -> Path:
    """600 pictures, two of which cannot be read."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(600):
        colour = (number % 256, 255 - number % 256, 7 * number % 256)
        Image.new("RGB", (32, 32), colour).save(folder / f"{number:03}.png")
    (folder / "020.png").write_bytes(b"")
    (folder / "500.png").write_text("a text")
    return folder


def test_two_jobs_after_one_another(job, tiny, folder):
    agree(job(tiny, folder), tiny, folder)


def test_a_killed_worker_costs_nothing(job, tiny, folder, tmp_path):
    agree(job(tiny, folder, tmp_path / "killed"), tiny, folder)
    assert (tmp_path / "killed").exists()


@pytest.mark.cifar10
def test_all_test_images_of_cifar10(job, tmp_path):
    from edgecifar.runtime.bundle import DEFAULT
    from edgecifar.train.data import load

    folder = tmp_path / "cifar10"
    folder.mkdir()
    for number, image in enumerate(load(download=False).test_images):
        Image.fromarray(np.ascontiguousarray(image)).save(folder / f"{number:05}.png")
    agree(job(DEFAULT, folder), DEFAULT, folder)
