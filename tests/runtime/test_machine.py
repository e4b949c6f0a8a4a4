"""How many threads to use: the affinity mask cut to the control group's quota, both versions."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from edgecifar.runtime import machine
from edgecifar.runtime.machine import cpu_info, cpu_quota, describe, usable_cpus, versions


@pytest.fixture
def quota(tmp_path):
    """Lay out a control group tree and a membership file, and return the quota found in them."""

    def find(membership: str, **limits: str) -> float | None:
        for name, text in limits.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "membership").write_text(membership)
        return cpu_quota(tmp_path / "cgroup", tmp_path / "membership")

    return find


class TestVersion2:
    @pytest.mark.parametrize(
        ("limit", "cpus"),
        [
            ("200000 100000\n", 2.0),
            ("150000 100000\n", 1.5),
            ("5000 10000", 0.5),
            ("max 100000\n", None),
            ("max\n", None),
            ("", None),
            ("much too\n", None),
            ("1000 0\n", None),
        ],
    )
    def test_own_group(self, quota, limit, cpus):
        assert quota("0::/\n", **{"cpu.max": limit}) == cpus

    def test_the_smallest_of_all_groups_above(self, quota):
        limits = {
            "cpu.max": "max 100000",
            "a/cpu.max": "300000 100000",
            "a/b/cpu.max": "100000 50000",
            "a/b/c/cpu.max": "800000 100000",
            "a/other/cpu.max": "1000 100000",
        }
        assert quota("0::/a/b/c\n", **limits) == 2.0

    def test_a_container_that_sees_its_own_group_as_the_root(self, quota):
        assert quota("0::/docker/0123456789abcdef\n", **{"cpu.max": "50000 100000"}) == 0.5

    def test_a_group_above_the_root(self, quota):
        assert quota("0::/../../user.slice\n", **{"cpu.max": "50000 100000"}) == 0.5

    def test_no_limit_anywhere(self, quota):
        assert quota("0::/a/b\n") is None


class TestVersion1:
    @pytest.mark.parametrize(
        ("time", "period", "cpus"),
        [
            ("400000", "100000", 4.0),
            ("25000", "50000", 0.5),
            ("-1", "100000", None),
            ("", "100000", None),
            ("1000", "0", None),
        ],
    )
    @pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
    def test_own_group(self, quota, folder, time, period, cpus):
        limits = {f"{folder}/a/cpu.cfs_quota_us": time, f"{folder}/a/cpu.cfs_period_us": period}
        assert quota("7:cpuset:/a\n3:cpu,cpuacct:/a\n1:name=systemd:/a\n", **limits) == cpus

    def test_the_smallest_of_all_groups_above(self, quota):
        limits = {}
        for group, time in {"": "-1", "/a": "150000", "/a/b": "300000"}.items():
            limits |= {f"cpu{group}/cpu.cfs_quota_us": time, f"cpu{group}/cpu.cfs_period_us": "100000"}
        assert quota("3:cpu:/a/b\n", **limits) == 1.5

    def test_both_versions_at_once(self, quota):
        limits = {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"}
        assert quota("3:cpu,cpuacct:/a\n0::/a\n", **limits) == 3.0
        assert quota("3:cpu,cpuacct:/a\n0::/a\n", **{"a/cpu.max": "200000 100000"}) == 2.0

    def test_other_controllers_do_not_count(self, quota):
        limits = {"cpuset/cpu.cfs_quota_us": "1000", "cpuset/cpu.cfs_period_us": "100000"}
        assert quota("3:cpuset:/\n4:cpuacct:/\n", **limits) is None


@pytest.mark.parametrize("membership", ["", "\n", "nonsense\n", "0:\n", "::", ":::::\n"])
def test_a_membership_that_says_nothing(quota, membership):
    assert quota(membership) is None


def test_no_control_groups(tmp_path):
    assert cpu_quota(tmp_path, tmp_path / "missing") is None


class TestUsable:
    @pytest.mark.parametrize(
        ("cpus", "limit", "threads"),
        [(8, None, 8), (8, 2.0, 2), (8, 1.5, 2), (8, 0.1, 1), (2, 16.0, 2), (1, None, 1)],
    )
    def test_affinity_cut_to_the_quota(self, monkeypatch, cpus, limit, threads):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)), raising=False)
        monkeypatch.setattr(machine, "cpu_quota", lambda: limit)
        assert usable_cpus() == threads

    @pytest.mark.parametrize(("count", "threads"), [(6, 6), (None, 1)])
    def test_without_affinity(self, monkeypatch, count, threads):
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: count)
        monkeypatch.setattr(machine, "cpu_quota", lambda: None)
        assert usable_cpus() == threads

    @pytest.mark.skipif(not shutil.which("taskset"), reason="taskset is not installed")
    def test_one_core_of_many(self):
        core = str(min(os.sched_getaffinity(0)))
        code = "from edgecifar.runtime.machine import usable_cpus; print(usable_cpus())"
        command = ["taskset", "--cpu-list", core, sys.executable, "-c", code]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1\n"


class TestProcessor:
    @pytest.fixture
    def answer(self, tmp_path, monkeypatch):
        """What `cpu_info` says where Linux shows these files, and Python knows no more than the architecture."""
        monkeypatch.setattr(machine.platform, "processor", lambda: "")
        monkeypatch.setattr(machine.platform, "machine", lambda: "arm64")

        def answer(**files: bytes) -> tuple[str, frozenset[str]]:
            for name, content in files.items():
                path = tmp_path / name.replace("_", "/").replace("/tree", "-tree")
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
            return cpu_info(tmp_path)

        return answer

    def test_x86(self, answer):
        text = (
            b"processor\t: 0\nmodel name\t: Some CPU: 3 GHz\nflags\t\t: fpu avx2 avx512_vnni\n\nmodel name\t: Another\n"
        )
        assert answer(cpuinfo=text) == ("Some CPU: 3 GHz", {"fpu", "avx2", "avx512_vnni"})

    CORES = b"processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd asimddp\n\nprocessor\t: 1\nFeatures\t: fp\n\n"

    def test_raspberry_pi(self, answer):
        text = self.CORES + b"Hardware\t: BCM2835\nModel\t\t: Raspberry Pi 4 Model B Rev 1.1\n"
        assert answer(cpuinfo=text) == ("Raspberry Pi 4 Model B Rev 1.1", {"fp", "asimd", "asimddp"})

    def test_another_board(self, answer):
        found = answer(cpuinfo=self.CORES, device_tree_model=b"Radxa ROCK 5B\0")
        assert found == ("Radxa ROCK 5B", {"fp", "asimd", "asimddp"})

    def test_arm_that_names_nothing(self, answer):
        assert answer(cpuinfo=self.CORES) == ("arm64", {"fp", "asimd", "asimddp"})

    def test_bytes_that_are_no_text(self, answer):
        name, flags = answer(cpuinfo=b"model name\t: B\xf6se \x1b[31mCPU\xff\nflags\t: avx2\n")
        assert name.startswith("B")
        assert name.isprintable()
        assert flags == {"avx2"}

    def test_not_linux(self, answer):
        assert answer() == ("arm64", frozenset())


def test_versions_names_what_is_installed(monkeypatch):
    installed = {"numpy": "1.2", "onnxruntime-gpu": "3.4"}

    def version(package: str) -> str:
        if package not in installed:
            raise importlib.metadata.PackageNotFoundError
        return installed[package]

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert versions() == installed


BOTH = {"numpy": "1.2", "onnxruntime": "1.31.0", "onnxruntime-gpu": "1.31.1"}


@pytest.mark.parametrize(
    ("info", "wanted"),
    [
        (("onnxruntime-gpu", "1.31.1"), {"numpy": "1.2", "onnxruntime-gpu": "1.31.1"}),
        (("onnxruntime", "1.30.0"), {"numpy": "1.2", "onnxruntime": "1.30.0"}),
        (None, BOTH),
    ],
)
def test_of_two_onnxruntimes_the_imported_one_is_named(monkeypatch, info, wanted):
    """Its version is the module's, too: what is installed may be hidden by what is found first."""

    def version(package: str) -> str:
        if package not in BOTH:
            raise importlib.metadata.PackageNotFoundError
        return BOTH[package]

    name = "onnxruntime.capi.build_and_package_info"
    module = info and SimpleNamespace(package_name=info[0], __version__=info[1])
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setitem(sys.modules, name, module)  # None: importing it fails
    assert versions() == wanted


def test_describe(monkeypatch):
    monkeypatch.setattr(machine, "cpu_info", lambda: ("Some CPU", frozenset({"fpu", "avx512_vnni", "avx2"})))
    monkeypatch.setattr(machine, "cpu_quota", lambda: 1.5)
    monkeypatch.setattr(machine, "versions", lambda: {"numpy": "1.2"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    assert describe() == {
        "cpu": "Some CPU",
        "cpu_features": ["avx2", "avx512_vnni"],
        "usable_cpus": 2,
        "cpu_quota": 1.5,
        "system": machine.platform.platform(terse=True),
        "python": ".".join(map(str, sys.version_info[:3])),
        "versions": {"numpy": "1.2"},
    }
