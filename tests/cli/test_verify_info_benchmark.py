"""`edgecifar verify`, `info` and `benchmark`: what they print for people and for programs, and what they refuse."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgecifar.cli.display import benchmark_table, check_table
from edgecifar.runtime.benchmark import Report, Row
from edgecifar.runtime.bundle import Bundle, Check
from edgecifar.runtime.contract import CIFAR10
from edgecifar.runtime.files import sha256
from edgecifar.runtime.folder import write_sums
from edgecifar.runtime.signing import Signer

TINY = Path(__file__).parents[1] / "fixtures" / "tiny_bundle"


class TestVerify:
    def test_an_intact_bundle(self, edgecifar, tiny_bundle):
        result = edgecifar("verify", tiny_bundle)
        assert result.exit_code == 0
        assert result.stderr == ""
        lines = result.stdout.splitlines()
        assert all(line.startswith("ok  ") for line in lines)
        assert {"manifest", "model.edge.onnx", "golden.npz", "README.md"} <= {line.split()[1] for line in lines}
        assert any("golden vectors of edge" in line for line in lines)

    def test_json(self, edgecifar, tiny_bundle):
        document = json.loads(edgecifar("verify", tiny_bundle, "--json").stdout)
        assert document["bundle"] == str(tiny_bundle)
        assert document["passed"] is True
        assert all(check["passed"] for check in document["checks"])

    def test_what_a_model_says_cannot_steer_a_terminal(self):
        """Its metadata and onnxruntime's reasons are a stranger's texts."""
        check = Check("golden vectors of edge", False, "x.onnx is damaged (its \x1b[31m is not JSON)")
        assert "(its \\x1b[31m is not JSON)" in check_table([check])

    @pytest.mark.parametrize("name", ["model.edge.onnx", "golden.npz", "parity.json", "README.md"])
    def test_a_changed_file_is_named(self, edgecifar, tiny_bundle, name):
        content = bytearray((tiny_bundle / name).read_bytes())
        content[len(content) // 2] ^= 1
        (tiny_bundle / name).write_bytes(content)
        result = edgecifar("verify", tiny_bundle)
        assert result.exit_code == 1
        assert any(line.startswith("FAIL") and line.split()[1] == name for line in result.stdout.splitlines())
        (sentence,) = result.stderr.splitlines()
        assert sentence.startswith(f"edgecifar: {tiny_bundle} failed ")
        assert name in sentence
        as_json = edgecifar("verify", tiny_bundle, "--json")
        assert as_json.exit_code == 1
        document = json.loads(as_json.stdout)
        assert document["passed"] is False
        assert name in {check["name"] for check in document["checks"] if not check["passed"]}

    @pytest.mark.parametrize("name", ["model.edge.onnx", "golden.npz"])
    def test_a_missing_file_is_named(self, edgecifar, tiny_bundle, name):
        (tiny_bundle / name).unlink()
        result = edgecifar("verify", tiny_bundle)
        assert result.exit_code == 1
        assert name in result.stderr

    def test_an_unknown_file_is_named(self, edgecifar, tiny_bundle):
        (tiny_bundle / "extra.so").write_bytes(b"x")
        result = edgecifar("verify", tiny_bundle)
        assert result.exit_code == 1
        assert "extra.so" in result.stderr

    def test_a_folder_that_is_no_bundle(self, refused, tmp_path):
        assert refused("verify", tmp_path).startswith(f"{tmp_path} is not a bundle (manifest.json is missing)")

    def test_a_damaged_manifest(self, refused, tiny_bundle):
        (tiny_bundle / "manifest.json").write_text("{")
        assert "manifest.json is damaged" in refused("verify", tiny_bundle)

    def test_a_variant_that_is_not_run_is_named(self, edgecifar, tiny_bundle):
        become_pt2(tiny_bundle, 1)
        result = edgecifar("verify", tiny_bundle)
        assert (result.exit_code, result.stderr) == (0, "")
        (line,) = (line for line in result.stdout.splitlines() if "golden vectors of edge" in line)
        assert line.startswith("skip  ")
        assert "needs torch" in line
        checks = json.loads(edgecifar("verify", tiny_bundle, "--json").stdout)["checks"]
        assert [check["name"] for check in checks if check["skipped"]] == ["golden vectors of edge"]

    def test_three_unicode_classes(self, edgecifar, three_classes):
        result = edgecifar("verify", three_classes)
        assert (result.exit_code, result.stderr) == (0, "")
        assert "golden vectors of edge" in result.stdout


def become_pt2(folder: Path, *indices: int) -> None:
    """Let variants of a bundle be in the format .pt2, of content that nobody can run."""
    values = json.loads((folder / "manifest.json").read_text())
    for index in indices:
        variant = values["variants"][index]
        file = folder / f"{variant['name']}.pt2"
        (folder / variant["file"]).rename(file)
        variant.update(format="pt2", file=file.name)
    (folder / "manifest.json").write_text(json.dumps(values))
    write_sums(folder)


class TestVerifySigned:
    @pytest.fixture
    def keys(self, tmp_path):
        """Two key pairs as openssl writes them: `ours.key` and `ours.pub`, `theirs.key` and `theirs.pub`."""
        pytest.importorskip("model_signing")
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed")
        for name in ("ours", "theirs"):
            key, pub = tmp_path / f"{name}.key", tmp_path / f"{name}.pub"
            make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key]
            subprocess.run(make, check=True, capture_output=True)
            take = ["openssl", "ec", "-in", key, "-pubout", "-out", pub]
            subprocess.run(take, check=True, capture_output=True)
        return tmp_path

    @pytest.fixture
    def unsigned(self, tmp_path) -> Path:
        return Path(shutil.copytree(TINY, tmp_path / "tiny"))

    @pytest.fixture
    def signed(self, unsigned, keys) -> Path:
        Signer(keys / "ours.key").sign(unsigned, "tiny")
        return unsigned

    def test_with_its_key(self, edgecifar, signed, keys):
        result = edgecifar("verify", signed, "--key", keys / "ours.pub")
        assert (result.exit_code, result.stderr) == (0, "")
        (line,) = (line for line in result.stdout.splitlines() if " model.sig " in line)
        assert line.startswith("ok  ")
        assert line.endswith(f"made with the private key of {keys / 'ours.pub'} over 11 files")
        assert "golden vectors of edge" in result.stdout

    def test_json(self, edgecifar, signed, keys):
        result = edgecifar("verify", signed, "--key", keys / "ours.pub", "--json")
        checks = json.loads(result.stdout)["checks"]
        assert "model.sig" in {check["name"] for check in checks}
        assert all(check["passed"] for check in checks)

    def test_without_a_key(self, edgecifar, signed):
        result = edgecifar("verify", signed)
        assert result.exit_code == 0
        assert any("signed, not checked: pass --key" in line for line in result.stdout.splitlines())

    def test_unsigned(self, refused, unsigned, keys):
        assert refused("verify", unsigned, "--key", keys / "ours.pub") == (
            f"{unsigned} is not signed (model.sig is missing): get a signed copy of it."
        )

    def test_by_another_key(self, refused, signed, keys):
        assert refused("verify", signed, "--key", keys / "theirs.pub") == (
            f"{signed / 'model.sig'} was not made with the private key of {keys / 'theirs.pub'}, or is damaged: get "
            "the bundle again from whoever signed it."
        )

    def test_altered_together_with_its_sums(self, refused, signed, keys):
        before = sha256(signed / "README.md")
        (signed / "README.md").write_text("altered")
        sums = signed / "SHA256SUMS"
        sums.write_text(sums.read_text().replace(before, sha256(signed / "README.md")))
        assert refused("verify", signed, "--key", keys / "ours.pub") == (
            f"{signed / 'model.sig'} does not match these files (README.md, SHA256SUMS): get the bundle "
            "again from whoever signed it."
        )

    @pytest.mark.parametrize("name", ["README.md", "model.onnx"])
    def test_altered(self, edgecifar, signed, keys, name):
        with (signed / name).open("ab") as file:
            file.write(b"x")
        result = edgecifar("verify", signed, "--key", keys / "ours.pub")
        assert result.exit_code == 1
        (sentence,) = result.stderr.splitlines()
        assert sentence.startswith(f"edgecifar: {signed} failed ")
        assert name in sentence

    def test_a_key_that_is_missing(self, refused, signed, tmp_path):
        path = tmp_path / "none.pub"
        assert refused("verify", signed, "--key", path) == (
            f"The key {path} cannot be read (No such file or directory): check the path and its permissions."
        )

    def test_the_key_is_refused_before_anything_is_exported(self, refused, keys):
        """Even before the run is looked for, which is not there."""
        sentence = refused("export", keys / "no-run", "--sign", keys / "ours.pub")
        assert sentence.startswith(f"{keys / 'ours.pub'} is not a private key of the curve P-256, P-384 or P-521")

    @pytest.mark.parametrize("arguments", [["verify", "--key"], ["export", "--sign"]])
    def test_without_the_extra(self, refused, keys, monkeypatch, arguments):
        monkeypatch.setitem(sys.modules, "model_signing", None)  # as if it was not installed
        assert refused(*arguments, keys / "ours.key") == (
            "A signature needs the package model-signing: pip install '.[sign]' in the folder of edgecifar's source."
        )


class TestInfo:
    def test_a_bundle(self, edgecifar, tiny):
        result = edgecifar("info", tiny)
        assert (result.exit_code, result.stderr) == (0, "")
        assert "trained on ten colours" in result.stdout
        assert ", ".join(CIFAR10.labels) in result.stdout
        assert "uint8 [batch, 32, 32, 3]" in result.stdout
        assert "made square by crop" in result.stdout
        for variant in Bundle.open(tiny).manifest.variants:
            (line,) = (line for line in result.stdout.splitlines() if line.startswith(f"{variant.name} "))
            assert variant.file in line
            assert f"{variant.bytes:,}" in line
            assert ("100.00 %" in line) == (variant.name == "fp32")  # the accuracy of the other is not known
            assert ("(default)" in line) == (variant.name == "fp32")
        assert "on cpu: " in result.stdout

    def test_a_bundle_as_json_is_its_manifest_and_what_is_chosen(self, edgecifar, tiny):
        document = json.loads(edgecifar("info", tiny, "--json").stdout)
        assert document.pop("bundle") == str(tiny)
        chosen = document.pop("chosen_here")
        assert {where: choice["variant"] for where, choice in chosen.items()} == {"cpu": "fp32", "cuda": "fp32"}
        assert document == json.loads((tiny / "manifest.json").read_text())

    def test_three_unicode_classes(self, edgecifar, three_classes, three_colours):
        out = edgecifar("info", three_classes).stdout
        assert ", ".join(three_colours) in out
        assert "uint8 [batch, 40, 40, 3]" in out
        assert "float32 [batch, 3]" in out
        assert "made square by pad" in out
        assert "CIFAR" not in out
        model = json.loads(edgecifar("info", three_classes / "model.onnx", "--json").stdout)
        assert model["contract"]["labels"] == list(three_colours)
        text = edgecifar("info", three_classes / "model.onnx").stdout
        for words in (", ".join(three_colours), "uint8 [batch, 40, 40, 3]", "by pad", "familiarity, float32 [batch]"):
            assert words in text

    def test_figures_that_are_none(self, edgecifar, tiny_bundle):
        """What a stranger's manifest says of parity and provenance has no known type."""
        values = json.loads((tiny_bundle / "manifest.json").read_text())
        values["variants"][0]["parity"] = {"agree": "all", "images": [1]}
        values["provenance"] = {"recipe": "mine"}
        (tiny_bundle / "manifest.json").write_text(json.dumps(values))
        write_sums(tiny_bundle)
        assert edgecifar("info", tiny_bundle).exit_code == 0

    def test_a_run(self, edgecifar, run):
        result = edgecifar("info", run.folder)
        assert result.exit_code == 0
        for layer in ("conv1", "conv6", "fc1", "recipe fast: 2 of 2 epochs"):
            assert layer in result.stdout
        assert f"test accuracy: {100 * run.record.test['accuracy']:.2f} % of 130 images" in result.stdout

    def test_a_run_as_json_is_its_record(self, edgecifar, run):
        assert json.loads(edgecifar("info", run.folder, "--json").stdout) == run.record.as_json()

    def test_an_unfinished_run(self, edgecifar, run, tmp_path):
        record = {
            key: value for key, value in run.record.as_json().items() if key not in ("test", "temperature", "finished")
        }
        (tmp_path / "run.json").write_text(json.dumps({**record, "status": "running"}))
        result = edgecifar("info", tmp_path)
        assert result.exit_code == 0
        assert "running" in result.stdout
        assert "test accuracy" not in result.stdout

    def test_an_onnx_file(self, edgecifar, tiny):
        path = tiny / "model.edge.onnx"
        document = json.loads(edgecifar("info", path, "--json").stdout)
        assert document["model"] == str(path)
        assert document["bytes"] == path.stat().st_size
        assert document["contract"] == CIFAR10.as_json()
        assert document["model_license"] == "MIT"
        assert "model_license: MIT" in edgecifar("info", path).stdout

    @pytest.mark.parametrize("name", ["none", "none.onnx", "none.pt"])
    def test_a_missing_path(self, refused, tmp_path, name):
        assert f"{tmp_path / name} is not there" in refused("info", tmp_path / name)

    @pytest.mark.parametrize("name", ["model.torchscript.pt", "model.pt2"])
    def test_torch_formats_are_described_by_their_bundle(self, refused, tmp_path, name):
        (tmp_path / name).touch()
        assert "name the bundle that it is in" in refused("info", tmp_path / name)

    def test_a_text_file_called_onnx(self, refused, tmp_path):
        (tmp_path / "m.onnx").write_text("a text")
        assert "is not a model that onnxruntime can load" in refused("info", tmp_path / "m.onnx")

    def test_a_damaged_record(self, refused, tmp_path):
        (tmp_path / "run.json").write_text("[]")
        sentence = refused("info", tmp_path)
        assert f"{tmp_path / 'run.json'} is damaged" in sentence
        assert "recipe" in sentence


class TestBenchmark:
    def test_json(self, edgecifar, tiny_bundle):
        result = edgecifar(
            "benchmark",
            *("--bundle", tiny_bundle, "--variant", "edge"),
            *("--batch", 1, "--batch", 3, "--threads", 1),
            *("--seconds", 0.1, "--json"),
        )
        assert result.exit_code == 0
        document = json.loads(result.stdout)
        assert [(row["variant"], row["batch"], row["threads"], row["provider"]) for row in document["rows"]] == [
            ("edge", 1, 1, "cpu"),
            ("edge", 3, 1, "cpu"),
        ]
        for row in document["rows"]:
            assert row["calls"] >= 5
            assert row["milliseconds"].keys() == {"p50", "p90", "p99"}
            assert row["milliseconds"]["p50"] > 0
            assert row["images_per_second"] > 0
        assert document["best"] == document["rows"][0]
        assert document["best_throughput"] == document["rows"][1]
        assert {"cpu", "usable_cpus", "versions"} <= document["machine"].keys()

    def test_table(self, edgecifar, tiny_bundle):
        result = edgecifar(
            "benchmark", "--bundle", tiny_bundle, "--variant", "edge", "--batch", 2, "--threads", 1, "--seconds", 0.1
        )
        assert result.exit_code == 0
        assert "onnxruntime" in result.stdout.splitlines()[0]
        (row,) = (line for line in result.stdout.splitlines() if line.startswith("edge "))
        assert row.split()[1:4] == ["cpu", "2", "1"]
        last = result.stdout.splitlines()[-1]
        assert last.startswith("Best on this machine: for latency --variant edge --threads 1 (p50 ")
        assert row.split()[4] in last  # p50
        assert row.split()[6] in last  # p99
        assert row.split()[7] in last  # images/s
        assert "Loading edge, 1 thread …\nMeasuring each for 0.1 s, in turns …" in result.stderr

    def test_some_variants(self, edgecifar, refused):
        few = ["--bundle", TINY, "--batch", 1, "--threads", 1, "--seconds", 0.1]
        for names in (["edge"], ["edge", "fp32"]):
            chosen = [part for name in names for part in ("--variant", name)]
            rows = json.loads(edgecifar("benchmark", *few, *chosen, "--json").stdout)["rows"]
            assert [row["variant"] for row in rows] == names
        sentence = refused("benchmark", *few, "--variant", "int4")
        assert "no variant called int4: choose one of fp32, edge" in sentence

    def test_an_unknown_provider(self, refused, tiny_bundle):
        assert "no provider called abacus" in refused("benchmark", "--bundle", tiny_bundle, "--provider", "abacus")

    def test_a_missing_bundle(self, refused, tmp_path):
        assert "is not a bundle" in refused("benchmark", "--bundle", tmp_path)

    def test_a_bundle_without_onnx(self, refused, tiny_bundle):
        become_pt2(tiny_bundle, 0, 1)
        assert "no ONNX variant" in refused("benchmark", "--bundle", tiny_bundle)

    def test_three_unicode_classes(self, edgecifar, three_classes):
        few = ["--batch", 1, "--threads", 1, "--seconds", 0.1, "--json"]
        rows = json.loads(edgecifar("benchmark", "--bundle", three_classes, *few).stdout)["rows"]
        assert [row["variant"] for row in rows] == ["fp32", "edge"]


@pytest.mark.parametrize("package", ["onnxruntime", "onnxruntime-gpu", "onnxruntime-directml"])
def test_the_table_says_which_onnxruntime_ran(package):
    """Of all packages but the first the version was a question mark."""
    machine = {
        "cpu": "Some CPU",
        "usable_cpus": 2,
        "cpu_features": [],
        "python": "3.11.2",
        "versions": {package: "1.2"},
    }
    row = Row("edge", "cpu", 1, 1, 100, {"p50": 1.0, "p90": 1.0, "p99": 1.0}, 1000.0)
    assert benchmark_table(Report(machine, (row,))).startswith(
        f"Some CPU, 2 usable cores; {package} 1.2, Python 3.11.2\n"
    )
