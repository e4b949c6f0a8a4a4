"""Soak test: classifies for long in one process; memory must stay flat, and threads must change no bit of an answer.

    python tests/stress/soak.py --calls 200000

Most calls are `Classifier.probabilities` of one image; every 200 calls pictures are read from the disk and predicted,
one of them damaged. After a tenth of the calls, which fill caches and pools, the memory in use is sampled; a straight
line through the samples gives its growth. Then eight threads ask one classifier what one thread had asked. The exit
code is 1 if memory grows by more than `--allowed` MiB over the run, or if an answer differs in a bit.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
from pathlib import Path

import formatter
import numpy as np
from PIL import Image

from edgecifar.runtime import Classifier

SAMPLES = 100
"""How many times memory is sampled, the first tenth included."""
FILES_EVERY = 200
"""Calls between two predictions of pictures from the disk."""
THREADS = 8


def memory() -> int:
    """Return the bytes of memory that this process has in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def pictures(folder: Path) -> list[Path]:
    """Draw pictures in several formats into `folder`, the last one damaged; return their paths."""
    noise = np.random.default_rng(1).integers(0, 256, (60, 80, 3), np.uint8)
    paths = [folder / f"noise.{suffix}" for suffix in ("png", "jpg", "webp", "tiff", "gif", "bmp")]
    for path in paths:
        Image.fromarray(noise).save(path)
    damaged = folder / "damaged.png"
    damaged.write_bytes(paths[0].read_bytes()[:500])
    return [*paths, damaged]


def run_long(classifier: Classifier, images: np.ndarray, calls: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Classify `calls` times.

    Returns:
        calls done at each sample, int64 [samples]; memory in use then in bytes, int64 [samples]; how many answers
        differed from the first.
    """
    expected = [classifier.probabilities(image[None]).tobytes() for image in images]
    done, used, wrong = [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        paths = pictures(Path(folder))
        first = [str(result) for result in classifier.stream(paths)]
        for call in range(1, calls + 1):
            index = call % len(images)
            wrong += classifier.probabilities(images[index : index + 1]).tobytes() != expected[index]
            if call % FILES_EVERY == 0:
                wrong += [str(result) for result in classifier.stream(paths)] != first
            if call % (calls // SAMPLES) == 0:
                done.append(call)
                used.append(memory())
                formatter.say(f"{call:,} of {calls:,} calls, {used[-1] / 2**20:.2f} MiB")
    return np.array(done), np.array(used), wrong


def run_together(classifier: Classifier, images: np.ndarray, rounds: int) -> int:
    """Let `THREADS` threads classify `images` at once, each in an order of its own; return how many answers differ."""
    expected = [classifier.probabilities(image[None]).tobytes() for image in images]
    differ = [0] * THREADS
    start = threading.Barrier(THREADS)

    def work(number: int) -> None:
        start.wait()
        for index in np.random.default_rng(number).integers(0, len(images), rounds * len(images)):
            differ[number] += classifier.probabilities(images[index : index + 1]).tobytes() != expected[index]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(differ)


def main(arguments: list[str] | None = None) -> int:
    """Run both, print the table and the line of JSON, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--bundle", type=Path, help="Default: the one installed with edgecifar.")
    parser.add_argument("--threads", type=int, default=1, help="threads of one call")
    parser.add_argument("--allowed", type=float, default=4.0, help="growth of memory that is allowed, in MiB")
    options = parser.parse_args(arguments)
    if options.calls < SAMPLES:
        parser.error(f"--calls must be {SAMPLES} or more")
    classifier = Classifier(options.bundle, provider="cpu", threads=options.threads)
    images = np.random.default_rng(0).integers(0, 256, (32, *classifier.contract.picture_shape), np.uint8)
    done, used, wrong = run_long(classifier, images, options.calls)
    settled = done > options.calls // 10
    slope = float(np.polyfit(done[settled], used[settled] / 2**20, 1)[0])
    growth = slope * (options.calls - options.calls // 10)
    rounds = max(1, options.calls // 20 // (THREADS * len(images)))
    differ = run_together(classifier, images, rounds)
    least, most = used[settled].min() / 2**20, used[settled].max() / 2**20
    row = {
        "variant": classifier.variant.name,
        "calls": options.calls,
        "pictures_from_disk": options.calls // FILES_EVERY * 7,
        "samples": int(settled.sum()),
        "memory_mib": {"least": least, "most": most},
        "growth_mib": growth,
        "bytes_a_call": slope * 2**20,
        "wrong_answers": int(wrong),
        "eight_threads": {"calls": rounds * THREADS * len(images), "wrong_answers": int(differ)},
    }
    lines = [
        ["calls", f"{options.calls:,}"],
        ["memory after a tenth, MiB", f"{least:.2f} to {most:.2f}"],
        [f"growth by the line, MiB ({options.allowed:g} allowed)", f"{growth:.3f}"],
        ["answers that differ", f"{wrong:,}"],
        ["calls of eight threads", f"{row['eight_threads']['calls']:,}"],
        ["answers of eight threads that differ", f"{differ:,}"],
    ]
    settings = {"threads_a_call": classifier.threads, "growth_allowed_mib": options.allowed}
    formatter.finish(formatter.document("soak", settings, [row]), formatter.table(lines))
    return int(growth > options.allowed or most - least > 4 * options.allowed or wrong > 0 or differ > 0)


if __name__ == "__main__":
    formatter.main(main)
