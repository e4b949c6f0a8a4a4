#!/usr/bin/env python3
"""Bring a bundle of schema 1 to schema 2; its models stay as they are, byte for byte.

    python scripts/upgrade_bundle.py BUNDLE [--out FOLDER]

Without --out the bundle is replaced, in one step. New are the manifest's form and the golden pictures. A signature was
made over other files and is left out: sign the new bundle again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from edgecifar import Bundle, EdgecifarError
from edgecifar.runtime import golden
from edgecifar.runtime.files import new_folder, write_file
from edgecifar.runtime.folder import write_sums
from edgecifar.runtime.manifest import MANIFEST, ONNX, SUMS


def intact(source: Path) -> Bundle:
    """Return the bundle in `source`.

    Raises:
        EdgecifarError: it is damaged.
    """
    bundle = Bundle.open(source)
    if failed := [check for check in bundle.verify() if not check.passed]:
        raise EdgecifarError(f"{source} is not intact ({failed[0].name}: {failed[0].detail}): nothing was changed.")
    return bundle


def make(script: str, rewrite: Callable[[], Bundle]) -> None:
    """Make a bundle and say how large it is; a failure that a person can understand ends the script in one sentence."""
    try:
        made = rewrite()
    except EdgecifarError as error:
        sys.exit(f"{script}: {error}")
    size = sum(path.stat().st_size for path in made.folder.iterdir())
    print(f"{made.folder} has schema {made.manifest.schema}, {len(made.sums)} files, {size:,} bytes.")


def upgrade(source: Path, out: Path) -> Bundle:
    """Write the bundle in `source` to `out` in the newest schema and return it; `out` may be `source`.

    Raises:
        EdgecifarError: the bundle is damaged, or it cannot be written.
    """
    bundle = intact(source)
    sessions = {v.name: bundle.load(v, "cpu") for v in bundle.manifest.variants if v.format == ONNX}
    models = {name: session.probabilities for name, session in sessions.items()}
    scores = {
        name: lambda images, session=session: session.outputs(images)[2]
        for name, session in sessions.items()
        if session.contract.familiarity_name
    }
    with new_folder(out, replace=out.resolve() == source.resolve()) as folder:
        for name in bundle.sums.keys() - {MANIFEST, SUMS}:
            write_file(folder / name, (source / name).read_bytes())
        golden.write(folder, bundle.contract, models, scores)
        write_file(folder / MANIFEST, bundle.manifest.as_json().encode())
        write_sums(folder)
    return Bundle.open(out)


def main() -> None:
    """Parse the arguments, upgrade, and say what was made."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, help="the bundle to upgrade")
    parser.add_argument("--out", type=Path, help="the folder to make; by default the bundle is replaced")
    arguments = parser.parse_args()
    make("upgrade_bundle", lambda: upgrade(arguments.bundle, arguments.out or arguments.bundle))


if __name__ == "__main__":
    main()
