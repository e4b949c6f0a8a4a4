"""The layout that Triton reads, parsed by Triton's own protobuf."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest


def parse(text: str):
    """Parse config.pbtxt as Triton does."""
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="pip install tritonclient grpcio")
    from google.protobuf import text_format

    return text_format.Parse(text, schema.ModelConfig()), schema


def test_the_command_makes_a_repository_of_every_variant(edgecifar, tiny, tmp_path, labels):
    out = tmp_path / "my models"
    result = edgecifar("export", tiny, "--layout", "triton", "--out", out)
    assert result.exit_code == 0
    assert shlex.split(result.stderr.split("Next: ")[1]) == ["tritonserver", "--model-repository", str(out)]
    assert {path.name for path in out.iterdir()} == {"tiny_bundle-fp32", "tiny_bundle-edge"}
    for folder in out.iterdir():
        file = "model.onnx" if folder.name.endswith("fp32") else "model.edge.onnx"
        assert (folder / "1" / "model.onnx").read_bytes() == (tiny / file).read_bytes()
        assert (folder / "labels.txt").read_text().splitlines() == labels
        config, schema = parse((folder / "config.pbtxt").read_text())
        assert (config.name, config.platform) == (folder.name, "onnxruntime_onnx")
        assert config.max_batch_size > 1
        assert config.HasField("dynamic_batching")
        (given,) = config.input
        assert (given.name, given.data_type, list(given.dims)) == ("images", schema.TYPE_UINT8, [32, 32, 3])
        assert [output.name for output in config.output] == ["probabilities", "logits"]
        for output in config.output:
            assert (output.data_type, list(output.dims)) == (schema.TYPE_FP32, [10])
            assert output.label_filename == "labels.txt"
        (warm,) = config.model_warmup
        assert list(warm.inputs["images"].dims) == [32, 32, 3]
        assert warm.inputs["images"].zero_data


def test_another_contract(tiny):
    from edgecifar.runtime.contract import Contract
    from edgecifar.runtime.triton import configuration

    contract = Contract(('a "quoted" one', "b", "ü"), 48, familiarity_name="familiarity", input_name='in"put')
    config, _ = parse(configuration("m", contract))
    assert config.input[0].name == 'in"put'
    assert list(config.input[0].dims) == [48, 48, 3]
    assert [list(output.dims) for output in config.output] == [[3], [3], [1]]
    assert config.output[2].HasField("reshape")
    assert list(config.output[2].reshape.shape) == []
    assert not config.output[2].label_filename


def test_the_installed_bundle_is_the_default(edgecifar, tmp_path):
    assert edgecifar("export", "--layout", "triton", "--out", tmp_path / "m").exit_code == 0
    assert all(path.name.startswith("edgecifar-") for path in (tmp_path / "m").iterdir())


def test_what_cannot_be_laid_out(edgecifar, refused, tiny, own_tiny, tmp_path):
    assert edgecifar("export", tiny, "--layout", "triton").exit_code == 2
    (tmp_path / "there").mkdir()
    assert "--force" in refused("export", tiny, "--layout", "triton", "--out", tmp_path / "there")
    (own_tiny / "model.edge.onnx").write_bytes(b"other")
    out = tmp_path / "models"
    assert "model.edge.onnx" in refused("export", own_tiny, "--layout", "triton", "--out", out)
    assert not out.exists()


def test_only_its_own_models_are_replaced(edgecifar, refused, tiny, tmp_path):
    out = tmp_path / "models"
    command = "export", tiny, "--layout", "triton", "--out", out, "--force"
    (out / "theirs" / "1").mkdir(parents=True)
    (out / "theirs" / "1" / "model.plan").write_text("theirs")
    assert edgecifar(*command).exit_code == 0
    config = out / "tiny_bundle-fp32" / "config.pbtxt"
    made = config.read_text()
    config.write_text("old")
    assert edgecifar(*command).exit_code == 0
    assert config.read_text() == made
    assert (out / "theirs" / "1" / "model.plan").read_text() == "theirs"
    assert {path.name for path in out.iterdir()} == {"theirs", "tiny_bundle-fp32", "tiny_bundle-edge"}
    (out / "tiny_bundle-edge" / "2").mkdir()
    assert "not of a model" in refused(*command)
    assert (out / "tiny_bundle-edge" / "2").is_dir()


def test_a_variant_that_the_bundle_no_longer_has_goes(tiny, tmp_path):
    from edgecifar.runtime import Bundle
    from edgecifar.runtime.triton import CONFIGURATION, write_repository

    bundle, out = Bundle.open(tiny), tmp_path / "models"
    assert write_repository(bundle, out, name="birds") == (["birds-fp32", "birds-edge"], [])
    write_repository(bundle, out, name="birds-2", replace=True)  # another bundle, whose name begins alike
    kept = {path.name for path in out.iterdir()} - {"birds-edge"}
    for name in ("birds-post", "birds-more"):  # a person's own: not as written here, or with more in it
        shutil.copytree(out / "birds-edge", out / name)
    (out / "birds-post" / CONFIGURATION).write_text('name: "birds-post"')
    (out / "birds-more" / "2").mkdir()

    fewer = tuple(variant for variant in bundle.manifest.variants if variant.name == "fp32")
    bundle = replace(bundle, manifest=replace(bundle.manifest, variants=fewer))
    assert write_repository(bundle, out, name="birds", replace=True) == (["birds-fp32"], ["birds-edge"])
    assert {path.name for path in out.iterdir()} == kept | {"birds-post", "birds-more"}


@pytest.mark.parametrize("option", [("--budget", "0.2"), ("--device", "auto"), ("--corrupted", "0"), ("--sign", "key")])
def test_options_of_an_export_are_refused(edgecifar, tiny, tmp_path, option):
    result = edgecifar("export", tiny, "--layout", "triton", "--out", tmp_path / "models", *option)
    assert result.exit_code == 2
    assert "--layout" in result.stderr
    assert not (tmp_path / "models").exists()


def test_a_bundle_without_onnx_is_refused(tiny, tmp_path):
    from edgecifar.runtime import Bundle
    from edgecifar.runtime.errors import VariantError
    from edgecifar.runtime.triton import write_repository

    bundle = Bundle.open(tiny)
    others = tuple(replace(variant, format="pt2") for variant in bundle.manifest.variants)
    bundle = replace(bundle, manifest=replace(bundle.manifest, variants=others))
    with pytest.raises(VariantError, match="ONNX"):
        write_repository(bundle, tmp_path / "models", name="m")
    assert not (tmp_path / "models").exists()


def test_neither_torch_nor_onnxruntime_is_imported(tiny, tmp_path):
    code = (
        "import sys\nfrom edgecifar.cli.app import app\nimport edgecifar.cli.main\n"
        "try:\n    app(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(json.dumps(sorted({'torch', 'onnxruntime', 'onnx'} & set(sys.modules))))"
    )
    arguments = ["export", tiny, "--layout", "triton", "--out", tmp_path / "models"]
    command = [sys.executable, "-c", f"import json\n{code}", *map(str, arguments)]
    assert json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) == []
    assert Path(tmp_path / "models").is_dir()
