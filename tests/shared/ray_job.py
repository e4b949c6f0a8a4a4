"""A job of Ray Data as docs/bulk.md has it, in a process of its own: the test reads what it wrote.

python ray_job.py BUNDLE PICTURES OUT          two jobs into OUT: the second does what the first has not done
python ray_job.py BUNDLE PICTURES OUT MARKER   one job, of which a worker is killed once; MARKER says that it was
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import ray

from edgecifar.runtime.bulk import Classify, PackedBundle, finished


class Killed(Classify):
    """A worker that is killed at its third batch, the first time that one gets there."""

    def __init__(self, *arguments, marker: str, **options) -> None:
        super().__init__(*arguments, **options)
        self._marker, self._batches = Path(marker), 0

    def __call__(self, batch):
        self._batches += 1
        if self._batches == 3 and not self._marker.exists():
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)


def job(pictures: ray.data.Dataset, bundle: PackedBundle, out: str, marker: str | None = None) -> None:
    rows = pictures.map_batches(
        Killed if marker else Classify,
        fn_constructor_kwargs={"bundle": bundle} | ({"marker": marker} if marker else {}),
        batch_format="pyarrow",
        batch_size=64,
        num_cpus=1,
        concurrency=1,
    )
    rows.write_parquet(out)


def main(bundle: str, folder: str, out: str, marker: str | None = None) -> None:
    own = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": 2, "include_dashboard": False}
    ray.init(log_to_driver=False, **own)
    packed = PackedBundle.of(bundle)
    if marker:
        job(ray.data.read_binary_files(folder, include_paths=True), packed, out, marker)
        return
    paths = sorted(str(path) for path in Path(folder).iterdir())
    job(ray.data.from_items([{"path": path} for path in paths[: len(paths) // 2]]), packed, out)
    done = finished(out)
    job(ray.data.read_binary_files([path for path in paths if path not in done], include_paths=True), packed, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
