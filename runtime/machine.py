"""Facts about the machine: processor, its features, the cores this process may use, versions."""

from __future__ import annotations

import importlib
import math
import os
import platform
from pathlib import Path

ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
"""Packages that all hold the module `onnxruntime`."""

PACKAGES = (
    "edgecifar",
    "numpy",
    "pillow",
    *ONNXRUNTIMES,
    "onnx",
    "torch",
    "torchvision",
)

TELLING = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
"""Feature flags of x86 and of Arm that tell how fast a model can run."""


def cpu_info(proc: Path = Path("/proc")) -> tuple[str, frozenset[str]]:
    """Return the processor's name, or else the board's, and its feature flags, such as `avx512_vnni`.

    Linux names x86 processors in `cpuinfo`. Of Arm it names the board alone: Raspberry Pi's in `cpuinfo`, on the line
    `Model`, others' in the device tree. Where Linux is not, there are no flags.

    Args:
        proc: where Linux tells of itself.
    """
    keys: dict[str, str] = {}
    for line in _text(proc / "cpuinfo").splitlines():
        key, _, value = line.partition(":")
        keys.setdefault(key.strip(), value.strip())  # of several processors, the first
    board = keys.get("Model") or _text(proc / "device-tree" / "model")
    name = keys.get("model name") or board or platform.processor() or platform.machine()
    return name, frozenset((keys.get("flags") or keys.get("Features") or "").split())


def _text(path: Path) -> str:
    """Return a file's text, "" if it is unreadable, without what cannot be shown: a device tree's ends with a zero."""
    try:
        text = path.read_bytes().decode(errors="replace")
    except OSError:
        return ""
    return "".join(character for character in text if character.isprintable() or character in "\n\t").strip()


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return how many processors' worth of time the control group grants, or None where there is no limit.

    Reads `cpu.max` (version 2) of this process's group and of all above it, or `cpu.cfs_quota_us` and
    `cpu.cfs_period_us` (version 1), and takes the smallest.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    quotas: list[float | None] = []
    for line in lines:
        controllers, _, group = line.partition(":")[2].partition(":")
        if controllers == "":
            base, read = root, _quota_v2
        elif "cpu" in controllers.split(","):
            base, read = root / "cpu", _quota_v1
            if not base.is_dir():
                base = root / controllers
        else:
            continue
        folder = base / group.strip("/")
        for place in (folder, *folder.parents):
            quotas.append(read(place))
            if place == base:
                break
    return min((quota for quota in quotas if quota), default=None)


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return None if quota < 0 else quota / period
    except (OSError, ValueError, ZeroDivisionError):
        return None


def usable_cpus() -> int:
    """Return how many threads can run at once: the affinity mask, cut to the control group's quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cpus if quota is None else max(1, min(cpus, math.ceil(quota)))


def describe() -> dict[str, object]:
    """Return what a measurement must be reported with: processor, features, cores, system, versions."""
    name, flags = cpu_info()
    return {
        "cpu": name,
        "cpu_features": [flag for flag in TELLING if flag in flags],
        "usable_cpus": usable_cpus(),
        "cpu_quota": cpu_quota(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the installed version of each package that results depend on.

    Of several packages that hold onnxruntime it names the one that is imported: the others' files may be there too, and
    are not what runs.
    """
    from importlib import metadata  # slow to import, and a classifier only asks for the cores

    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if len(found.keys() & ONNXRUNTIMES) > 1:
        try:
            info = importlib.import_module("onnxruntime.capi.build_and_package_info")
            imported = {str(info.package_name): str(info.__version__)}
        except Exception:  # half of two packages raises whatever it leads to: then both are named
            return found
        found = {name: version for name, version in found.items() if name not in ONNXRUNTIMES} | imported
    return found
