"""What scripts/arm runs: pictures, their logits on a processor, and whether those of several are the same.

draw PICTURES          write 500 pictures: CIFAR-10 test images where they are at hand, else drawn ones
run PICTURES LOGITS    verify the installed bundle, then write each ONNX variant's logits
compare LOGITS ...     hold the first file against each of the others
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

COUNT = 500

MOST = 1e-4
"""A logit may differ by so much. What is int8 has the same bits everywhere; a mean in float32 is summed in the order of
a processor's vectors."""


def draw(path: Path) -> None:
    """Write uint8 [500, size, size, 3]."""
    from edgecifar.runtime import Bundle

    contract = Bundle.open().contract
    try:
        from edgecifar.train.data import load

        images, kind = load(download=False).test_images[:COUNT], "CIFAR-10 test images"
    except Exception as error:  # no torch, no files: anything that keeps us from the real ones
        print(f"No CIFAR-10 here ({type(error).__name__}); pictures are drawn instead.")
        rng, grid = np.random.default_rng(0), np.linspace(0, 2 * np.pi, contract.size)
        waves, phases = rng.uniform(0.2, 3, (COUNT, 2, 3)), rng.uniform(0, 6, (COUNT, 1, 1, 3))
        slopes = waves[:, None, None, 0] * grid[:, None, None] + waves[:, None, None, 1] * grid[None, :, None]
        images = (127.5 + 100 * np.sin(slopes + phases) + rng.normal(0, 12, (COUNT, *contract.picture_shape))).round()
        images, kind = images.clip(0, 255).astype(np.uint8), "drawn pictures"
    np.save(path, images)
    print(f"{len(images)} {kind}")


def run(pictures: Path, out: Path) -> None:
    """Verify the installed bundle and write its logits.

    Raises:
        SystemExit: it is not intact, or answers differently here.
    """
    from edgecifar.runtime import Bundle, machine

    bundle, images = Bundle.open(), np.load(pictures)
    checks = bundle.verify()
    processor, flags = machine.cpu_info()
    features = ", ".join(flag for flag in machine.TELLING if flag in flags) or "none that we name"
    passed = sum(check.passed for check in checks)
    print(f"{processor} (features: {features}): verify {passed} of {len(checks)} checks")
    if passed < len(checks):
        raise SystemExit("\n".join(f"{check.name}: {check.detail}" for check in checks if not check.passed))
    variants = [variant for variant in bundle.manifest.variants if variant.format == "onnx"]
    logits = {variant.name: bundle.load(variant, "cpu").logits(images) for variant in variants}
    np.savez(out, **logits)  # pyright: ignore[reportArgumentType] - names of variants are no arguments of savez


def compare(reference: Path, others: list[Path]) -> None:
    """Print how many logits are the same bits, and fail unless all are the same up to rounding.

    Raises:
        SystemExit: a logit differs by more than `MOST`.
    """
    expected, different = np.load(reference), 0
    for path in others:
        found = np.load(path)
        for name in expected.files:
            one, other = expected[name], found[name]
            unequal = int((one.view(np.uint32) != other.view(np.uint32)).sum())
            different += int((~(np.abs(one - other) <= MOST)).sum())  # so that NaN counts
            print(
                f"{path.stem}, {name}: {one.size - unequal:,} of {one.size:,} logits bit for bit as in {reference.stem}"
                + (f"; the largest difference is {np.abs(one - other).max():.1e}" if unequal else "")
            )
    if different:
        raise SystemExit(f"{different:,} logits differ by more than {MOST:g}.")


if __name__ == "__main__":
    step, *paths = sys.argv[1], *map(Path, sys.argv[2:])
    match step:
        case "draw":
            draw(*paths)
        case "run":
            run(*paths)
        case "compare":
            compare(paths[0], paths[1:])
        case _:
            raise SystemExit(__doc__)
