#!/usr/bin/env python3
"""Copy a finished run with its weights in half precision: what taught the shipped students is kept so, in few bytes.

    python scripts/halve_run.py RUN OUT

OUT is a run like any other, for `--teacher`, `evaluate` or `export`. Its weights are computed with in float32, after
rounding to half precision; its digest is another, so that what learns from it is not what learnt from RUN to the bit.
The test figures in its record are those of RUN.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from edgecifar.runtime import EdgecifarError
from edgecifar.runtime.errors import RunError
from edgecifar.train.run import Run


def halve(run: Run, out: Path) -> Run:
    """Return the copy of `run` in the new folder `out`.

    Raises:
        RunError: `run` is not finished or damaged, a weight is too large for half precision, or `out` is taken.
        OutputError: `out` cannot be written.
    """
    record, net = run.record, run.net()
    if not record.is_finished:
        raise RunError(f"{run.folder} is not finished: resume it first.")
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point() and not tensor.half().isfinite().all():
            raise RunError(f"{name} of {run.folder} has values that half precision cannot hold: keep it as it is.")
    copy = Run.create(out, record)
    copy.finish(net, record, run.metrics, torch.float16)
    return copy


def main() -> int:
    """Halve what is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    given = parser.parse_args()
    try:
        copy = halve(Run(given.run), given.out)
    except EdgecifarError as error:
        sys.exit(f"halve_run.py: {error}")
    size = sum(path.stat().st_size for path in copy.folder.iterdir())
    print(f"{copy.folder}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
