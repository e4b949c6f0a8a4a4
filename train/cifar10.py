"""CIFAR-10's files: checked and read by torchvision, and before that extracted or downloaded where they are missing."""

from __future__ import annotations

import contextlib
import errno
import http.client
import logging
import os
import tempfile
from pathlib import Path

import numpy as np

from ..runtime.errors import DataError
from ..runtime.files import STAGING, explained, lock, make_folder, remove_leftovers

log = logging.getLogger("edgecifar")

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

_SUPPLY = (
    "copy cifar-10-python.tar.gz or its folder cifar-10-batches-py there, name another place (--data or "
    "$EDGECIFAR_DATA), or try the pipeline with 'synthetic' data (--data synthetic)"
)


def read(root: Path, download: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return images, uint8 [N, size, size, 3], and labels, int64 [N], for training and for testing.

    Args:
        root: the folder that holds CIFAR-10's own folder or archive, or is to.
        download: whether what is missing may be downloaded.

    Raises:
        DataError: files are missing and may not or cannot be downloaded, or one is corrupt.
        OutputError: they cannot be written.
    """
    from torchvision.datasets import CIFAR10 as TORCHVISION
    from torchvision.datasets.utils import check_integrity

    folder, archive = root / TORCHVISION.base_folder, root / TORCHVISION.filename
    files = dict((*TORCHVISION.train_list, *TORCHVISION.test_list))
    files[TORCHVISION.meta["filename"]] = TORCHVISION.meta["md5"]
    missing = [name for name in files if not (folder / name).exists()]
    corrupt = [name for name, md5 in files.items() if name not in missing and not check_integrity(folder / name, md5)]
    if corrupt:
        raise DataError(
            f"Corrupt in {folder}: {', '.join(corrupt)}; delete {'it' if len(corrupt) == 1 else 'them'} to have "
            "CIFAR-10 extracted or downloaded anew, or copy intact files there."
        )
    if missing:
        if archive.exists() and not check_integrity(archive, TORCHVISION.tgz_md5):
            raise DataError(
                f"{archive} is not the official CIFAR-10 archive (its MD5 should be {TORCHVISION.tgz_md5}): "
                "delete or replace it."
            )
        if len(missing) == len(files):
            lack = f"CIFAR-10 is not in {root}"
        else:
            lack = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not in {folder}"
        if not archive.exists() and not download:
            raise DataError(f"{lack}: {_SUPPLY}.")
        log.info("%s CIFAR-10 in %s …", "Extracting" if archive.exists() else "Downloading", root)
        found = root.exists()
        try:
            _supply(root, missing, lack)
        except DataError:
            if not found:  # the folder is not left behind
                with contextlib.suppress(OSError):
                    root.rmdir()
            raise
    train, test = TORCHVISION(str(root), train=True), TORCHVISION(str(root), train=False)
    return train.data, np.asarray(train.targets), test.data, np.asarray(test.targets)


def _supply(root: Path, missing: list[str], lack: str) -> None:
    """Put the `missing` files into the data folder, from the archive in `root` or, where it has none, the network.

    `lack` begins the sentence that says that the network failed.
    Everything is downloaded and extracted beside its place first, so that what is cut off leaves nothing.
    """
    from torchvision.datasets import CIFAR10 as TORCHVISION
    from torchvision.datasets.utils import download_url, extract_archive

    make_folder(root)
    remove_leftovers(root)
    folder, archive = root / TORCHVISION.base_folder, root / TORCHVISION.filename
    with explained(folder), contextlib.ExitStack() as stack:
        staging = stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{STAGING}{os.getpid()}-", dir=root))
        stack.callback(lock(Path(staging)))  # or another container takes it for a leftover
        if not archive.exists():
            archive = Path(staging, archive.name)
            try:
                download_url(TORCHVISION.url, staging, archive.name, TORCHVISION.tgz_md5)
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.errno in NO_SPACE:
                    raise
                reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
                raise DataError(f"{lack} and could not be downloaded ({reason}): {_SUPPLY}.") from error
        extract_archive(str(archive), staging)
        folder.mkdir(exist_ok=True)
        for name in missing:
            Path(staging, folder.name, name).replace(folder / name)
