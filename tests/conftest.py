"""What the tests of several packages share: a small data set, a run that no training made, its bundle."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

# The nets are small and the tests run in two processes: torch's threads, here and in what tests start, would only wait
# for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """Put the browser's tests first: with `--dist worksteal` one process then runs them all, and starts one browser.

    What another process takes over comes from the end of a process's share.
    """
    items.sort(key=lambda item: item.get_closest_marker("browser") is None)


@pytest.fixture(scope="session")
def small():
    """A synthetic data set that a net classifies in a second: 300 training images, 130 test images."""
    from edgecifar.train.data import synthetic

    return synthetic(train=300, test=130)


@pytest.fixture(scope="session")
def net():
    """A narrow Net that separates the small data set somewhat, made without training.

    The weights are random with the variance kept from layer to layer, batch norm has statistics, scales and shifts of
    its own, and the last layer is fitted in closed form, so that arg-maxes are decided by more than rounding.
    """
    import torch
    from narrow_net import NarrowNet
    from torch import nn

    from edgecifar.train.augment import normalise
    from edgecifar.train.data import synthetic

    drawn = synthetic(train=300, test=10)
    x = normalise(torch.from_numpy(drawn.train_images))
    targets = nn.functional.one_hot(torch.from_numpy(drawn.train_labels), drawn.contract.classes).float()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(7)
        net = NarrowNet(drawn.contract.classes, dropout=0.0)
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.normal_(module.bias, std=0.1)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
        net.train()
        for start in range(0, 192, 64):
            net(x[start : start + 64])
        net.eval()
        hidden = torch.cat([net.fc2(net.fc1(net.features(part)).relu()).relu() for part in x.split(100)])
        hidden = torch.cat([hidden, torch.ones(len(hidden), 1)], 1).double()
        ridge = hidden.T @ hidden + 30 * hidden.pow(2).mean() * torch.eye(hidden.shape[1], dtype=torch.float64)
        solved = 12 * torch.linalg.solve(ridge, hidden.T @ targets.double()).T.float()
        net.fc3.weight.copy_(solved[:, :-1])
        net.fc3.bias.copy_(solved[:, -1])
    return net.requires_grad_(False)


@pytest.fixture(scope="session")
def record(net, small):
    """What `train.loop.train` records of a finished run on the small data set; to be copied with changes."""
    from edgecifar.runtime import machine
    from edgecifar.runtime.metrics import evaluate
    from edgecifar.train.inference import classify_with
    from edgecifar.train.recipes import FAST
    from edgecifar.train.record import FINISHED, Conditions, DatasetRecord, RunRecord

    recipe, labels = replace(FAST, epochs=2, held_out=0.4, net="narrow"), small.contract.labels
    return RunRecord(
        recipe=recipe,
        contract=small.contract,
        seed=7,
        conditions=Conditions("cpu", "a processor", "float32", processes=1, threads=1),
        machine=machine.describe(),
        dataset=DatasetRecord(small.name, small.digest, len(small.hold_out(recipe.held_out)[0])),
        started="2026-01-02T03:04:05+00:00",
        status=FINISHED,
        epochs_done=2,
        training_seconds=1.5,
        finished="2026-01-02T03:05:05+00:00",
        temperature=1.7,
        test=evaluate(classify_with(net, 1.7), small.test_images, small.test_labels, labels).as_json(),
    )


@pytest.fixture(scope="session")
def run(net, record, tmp_path_factory):
    """A finished run, as if trained on the small data set, with the temperature 1.7."""
    from edgecifar.train.run import Run

    made = Run(tmp_path_factory.mktemp("trained"))
    made.finish(net, record, [{"epoch": 1, "loss": 2.0, "held_out_accuracy": 0.2}])
    yield made
    shutil.rmtree(made.folder)


@pytest.fixture(scope="session")
def export_everything(run, small):
    """Export `run` into a folder: every format, every variant. Returns the bundle and what the gate found."""
    from edgecifar.export import build, familiarity
    from edgecifar.export.compress import search
    from edgecifar.export.options import ExportOptions

    options = ExportOptions(formats=("onnx", "torchscript", "pt2"), variants=("fp32", "edge"), budget=200)

    def call(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(search, "CALIBRATORS", ("MinMax",))  # the others take long
            patch.setattr(familiarity, "STEPS", 60)
            patch.setattr(familiarity, "OUTLIERS", 100)
            return build.export(run, folder, small, options)

    return call


@pytest.fixture(scope="session")
def exported(export_everything, tmp_path_factory):
    """The bundle of `run` with every format and variant, and what the gate found."""
    folder = tmp_path_factory.mktemp("bundles") / "all"
    yield export_everything(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def bundle(exported):
    """The bundle of `run`. It is shared: copy it before changing anything."""
    return exported[0]


@pytest.fixture(scope="session")
def plain_onnx(bundle):
    """An ONNX model of the bundle as it is before the familiarity is added: `plain_onnx("model.onnx")`."""
    import json

    import onnx

    from edgecifar.runtime.contract import METADATA_PREFIX

    def load(file: str) -> onnx.ModelProto:
        model = onnx.load(bundle.folder / file)
        added = model.graph.output[2].name
        for part in (model.graph.node, model.graph.initializer, model.graph.output):
            for entry in [entry for entry in part if entry.name.startswith(added)]:
                part.remove(entry)
        contract = replace(bundle.contract, familiarity_name=None)
        described = {entry.key: entry.value for entry in model.metadata_props}
        described[METADATA_PREFIX + "contract"] = json.dumps(contract.as_json())
        onnx.helper.set_model_props(model, described)
        return model

    return load


@pytest.fixture
def quick_onnx(plain_onnx, monkeypatch):
    """Let the ONNX exporter, which takes seconds, give what it wrote of the same net before."""
    from edgecifar.export.formats import onnx as onnx_format

    def write(model, path, contract, provenance):
        onnx_format.save(plain_onnx("model.onnx"), path, contract, provenance)

    monkeypatch.setattr(onnx_format, "write", write)


@pytest.fixture
def own_bundle(bundle, tmp_path) -> Path:
    """A copy of the bundle's small part, its edge variant alone in the manifest, to break at will."""
    return _reduce(bundle.folder, tmp_path / "own")


def _reduce(source: Path, folder: Path) -> Path:
    import json

    from edgecifar.runtime.bundle import CARD, GOLDEN, MANIFEST, PARITY, SUMS
    from edgecifar.runtime.files import sha256

    folder.mkdir()
    for name in ("model.edge.onnx", GOLDEN, PARITY, CARD):
        shutil.copy(source / name, folder)
    manifest = json.loads((source / MANIFEST).read_text())
    manifest["variants"] = [variant for variant in manifest["variants"] if variant["name"] == "edge"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    sums = "".join(f"{sha256(path)}  {path.name}\n" for path in sorted(folder.iterdir()))
    (folder / SUMS).write_text(sums)
    return folder


@pytest.fixture
def synthetic_is_small(monkeypatch, small):
    """Make `--data synthetic` the small data set, inside this process."""
    from edgecifar.export import build
    from edgecifar.train import data

    def synthetic(train: int = 300, test: int = 130, seed: int = 0):
        return small if (train, test, seed) == (300, 130, 0) else drawn(train, test, seed)

    drawn = data.synthetic
    monkeypatch.setattr(data, "synthetic", synthetic)
    monkeypatch.setattr(build, "synthetic", synthetic)


@pytest.fixture
def edgecifar():
    """Run the command line in this process: `edgecifar("export", run, input=b"")`; the result has its outputs."""
    from typer.testing import CliRunner

    from edgecifar.cli.app import app

    def call(*arguments, **options):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], **options)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def refused(edgecifar):
    """Run the command line, make sure that it refuses as promised, and return its sentence."""

    def call(*arguments, **options) -> str:
        result = edgecifar(*arguments, **options)
        assert result.exit_code == 1
        assert result.stdout == ""
        *_, sentence = result.stderr.splitlines()
        assert sentence.startswith("edgecifar: ")
        assert sentence.endswith(".")
        assert "Traceback" not in result.stderr
        return sentence.removeprefix("edgecifar: ")

    return call


@pytest.fixture
def pictures(small, tmp_path) -> list[Path]:
    """Five pictures of the small data set's test images as PNG files, in the order of the images."""
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    paths = [folder / f"{index}.png" for index in range(5)]
    for path, image in zip(paths, small.test_images, strict=False):
        Image.fromarray(np.ascontiguousarray(image)).save(path)
    return paths


@pytest.fixture
def tiny() -> Path:
    """The committed bundle of ten colours, `tests/fixtures/tiny_bundle`; nobody writes into it."""
    return Path(__file__).parent / "fixtures" / "tiny_bundle"


@pytest.fixture
def tiny_bundle(tiny, tmp_path) -> Path:
    """A copy of the tiny bundle, to break at will."""
    return Path(shutil.copytree(tiny, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def make_tiny_bundle():
    """The script that makes the tiny bundle, as a module: its `make` takes a contract and colours."""
    import importlib.util

    pytest.importorskip("onnx")
    path = Path(__file__).parent / "fixtures" / "make_tiny_bundle.py"
    spec = importlib.util.spec_from_file_location("make_tiny_bundle", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def three_colours() -> dict[str, tuple[int, int, int]]:
    """Label: the colour, RGB, that the bundle `three_classes` takes for it."""
    return {"röd": (200, 20, 20), "grün 🌲": (20, 200, 20), "青": (20, 20, 200)}


@pytest.fixture(scope="session")
def three_classes(make_tiny_bundle, three_colours, tmp_path_factory) -> Path:
    """A bundle of three classes, unicode labels, 40 pixels, the fit "pad" and a familiarity score; do not change it."""
    from edgecifar.runtime.contract import Contract, Preprocessing

    folder = tmp_path_factory.mktemp("three") / "bundle"
    contract = Contract(tuple(three_colours), 40, Preprocessing(fit="pad"), familiarity_name="familiarity")
    make_tiny_bundle.make(folder, contract, three_colours, "three colours")
    return folder
