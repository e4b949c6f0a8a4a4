"""The files in a bundle's folder: listed, read with care, and summed."""

from __future__ import annotations

import io
import os
import re
import stat
from hashlib import sha256
from pathlib import Path

import numpy as np

from .errors import BundleError
from .files import sha256 as digest_of
from .files import write_file
from .manifest import MODELS, PLAIN_NAME, SUMS
from .signing import MAX_SIGNATURE_BYTES, SIGNATURE

MAX_MODEL_BYTES = 1 << 30
"""Bytes above which no model of a bundle is read."""

MAX_FILE_BYTES = 1 << 24
"""Bytes above which no other file of a bundle is read: the JSON in one can take 20 times its size in memory."""

MOUNTED = "..data"
"""The link by which Kubernetes mounts a ConfigMap: every file of the folder is a link through it."""


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS over all files of `folder`, a bundle in the making; the signature alone has no digest.

    Raises:
        OutputError: it cannot be written.
    """
    files = sorted(path for path in folder.iterdir() if path.name not in (SUMS, SIGNATURE))
    write_file(folder / SUMS, "".join(f"{digest_of(path)}  {path.name}\n" for path in files).encode())


def unpack(content: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file's content, at most `MAX_FILE_BYTES` bytes of them.

    Unlike `np.load`, this takes no memory on the word of an array's header, and never knows how to unpickle.
    """
    import zipfile  # not needed to classify

    arrays: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MAX_FILE_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_FILE_BYTES:,} bytes")
        for entry in archive.infolist():
            file = io.BytesIO(archive.read(entry))
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("its arrays are of an unknown version")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            arrays[entry.filename.removesuffix(".npy")] = np.frombuffer(file.read(), dtype).reshape(shape)
    return arrays


def sums(folder: Path, follow: bool = False) -> dict[str, str]:
    """Return the digest that SHA256SUMS has of each file, and its own."""
    content = read(folder, SUMS, follow)
    text = content.decode(errors="replace")
    found = {name: digest for digest, name in re.findall(f"([0-9a-f]{{64}})  ({PLAIN_NAME})\n", text)}
    written = "".join(f"{digest}  {name}\n" for name, digest in found.items())
    if written.encode() != content or found.keys() & {SUMS, SIGNATURE}:  # which cannot hold their own digests
        raise BundleError(f"{folder / SUMS} is damaged: copy the bundle again.")
    return {**found, SUMS: sha256(content).hexdigest()}


def listed(folder: Path) -> set[str]:
    """Return the names in a folder; of one that is mounted by links through `..data`, of the folder behind too."""
    names = set(os.listdir(folder))
    if MOUNTED in names and (folder / MOUNTED).is_symlink():
        behind = folder / os.readlink(folder / MOUNTED)  # noqa: PTH115 - a name, not yet a path
        if behind.parent == folder and behind.name.startswith("..") and behind.is_dir():
            names = names - {MOUNTED, behind.name} | set(os.listdir(behind))
    return names


def lies_in(folder: Path, name: str) -> bool:
    """Return whether a folder has a file of this name, or may not be looked into: to read it then says so."""
    try:
        (folder / name).lstat()
    except PermissionError:
        return True
    except (OSError, ValueError):  # a name with a zero byte
        return False
    return True


def read(folder: Path, name: str, follow: bool = False) -> bytes:
    """Return a file of a bundle; folders, devices and files that are too large are refused unopened.

    A link is followed where it stays in the folder, as in one that Kubernetes mounts, and with `follow` anywhere. Any
    other is refused: a bundle from elsewhere must not name files of this machine.

    Raises:
        BundleError: the file is missing, refused or cannot be read.
    """
    path = folder / name
    limit = MAX_MODEL_BYTES if name.endswith(tuple(MODELS.values())) else MAX_FILE_BYTES
    limit = MAX_SIGNATURE_BYTES if name == SIGNATURE else limit
    if not re.fullmatch(PLAIN_NAME, name):
        raise BundleError(f"{name!r} is not the name of a file in {folder}: copy the bundle again.")
    try:
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            if not follow and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
                raise BundleError(f"{path} is a link that leaves the bundle: copy the bundle again, whole.")
            found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise BundleError(f"{path} is not a file: copy the bundle again, whole.")
        if found.st_size > limit:
            raise BundleError(f"{path} is larger than {limit:,} bytes: this is no bundle of edgecifar.")
        return path.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{path} is missing: copy the bundle again, whole.") from None
    except PermissionError:
        raise BundleError(
            f"{path} cannot be read (Permission denied): change its permissions, or its folder's."
        ) from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}): copy the bundle again.") from None
