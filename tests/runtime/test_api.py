"""What is exported, what is imported, and that nothing goes over the network; each in a fresh interpreter."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import os
import subprocess
import sys

import pytest

import edgecifar.runtime
from edgecifar.runtime import errors

HEAVY = (
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "matplotlib",
    "scipy",
    "typer",
    "model_signing",
    "cryptography",
    "cyclonedx",
    "edgecifar.train",
    "edgecifar.export",
)


def interpret(code: str, *arguments, **environment: str) -> dict:
    """Run `code` in a fresh interpreter, its warnings errors, and return the JSON that it prints."""
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    inherited = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**inherited, **environment})
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_all_is_what_is_exported():
    exported = sorted(name for name in vars(edgecifar.runtime) if not name.startswith("_"))
    classes = [name for name in exported if not inspect.ismodule(getattr(edgecifar.runtime, name))]
    assert sorted(edgecifar.runtime.__all__) == classes == ["Bundle", "Classifier", "EdgecifarError", "Prediction"]


def test_the_face_has_the_public_names():
    code = """
import json, sys
import edgecifar
early = sorted(sys.modules)
names = {name: getattr(edgecifar, name) for name in edgecifar.__all__}
listed = dir(edgecifar)
from edgecifar import Bundle, Classifier, EdgecifarError, Prediction, load_picture
import edgecifar.runtime
same = [names[name] is getattr(edgecifar.runtime, name) for name in edgecifar.runtime.__all__]
missing = hasattr(edgecifar, "nothing")
print(json.dumps([sorted(names), early, sorted(set(names) - set(listed)), same, missing, names["__version__"]]))
"""
    names, early, unlisted, same, missing, version = interpret(code)
    assert names == ["Bundle", "Classifier", "EdgecifarError", "Prediction", "__version__", "load_picture"]
    assert [name for name in ("numpy", "onnxruntime", "PIL", "importlib.metadata") if name in early] == []
    assert unlisted == []
    assert all(same)
    assert missing is False
    assert version == importlib.metadata.version("edgecifar")


def test_everything_exported_is_documented():
    for name in edgecifar.runtime.__all__:
        thing = getattr(edgecifar.runtime, name)
        assert inspect.cleandoc(thing.__doc__ or "").split("\n")[0].endswith("."), name
        for method, function in inspect.getmembers(thing, inspect.isroutine):
            if not method.startswith("_") and "edgecifar" in (getattr(function, "__module__", "") or ""):
                assert inspect.getdoc(function), f"{name}.{method}"


def test_every_failure_is_of_one_tree_and_in_its_picture():
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    assert all(issubclass(kind, errors.EdgecifarError) for kind in kinds)
    for kind in kinds:
        assert kind.__name__ in (errors.__doc__ or "")


PREDICT = """
import json, sys
import edgecifar.runtime
early = sorted(sys.modules)
classifier = edgecifar.runtime.Classifier(sys.argv[1])
(prediction,) = classifier.predict([sys.argv[2]])
late = sorted(sys.modules)
passed = all(check.passed for check in classifier.bundle.verify())
print(json.dumps({"early": early, "late": late, "label": prediction.label, "passed": passed}))
"""


@pytest.fixture
def picture(tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 50), (0, 250, 5)).save(tmp_path / "frog.png")
    return tmp_path / "frog.png"


def test_nothing_heavy_is_imported(tiny, picture):
    found = interpret(PREDICT, tiny, picture)
    assert (found["label"], found["passed"]) == ("frog", True)
    assert [name for name in HEAVY if name in found["late"]] == []
    assert [name for name in ("onnxruntime", "PIL") if name in found["early"]] == []  # only where they are used
    assert [name for name in ("onnxruntime", "PIL") if name in found["late"]] == ["onnxruntime", "PIL"]


def test_the_heavy_ones_may_be_missing(tiny, picture):
    """As on a device: to import one fails."""
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({HEAVY!r}))\n"
    found = interpret(blocked + PREDICT, tiny, picture)
    assert (found["label"], found["passed"]) == ("frog", True)


CUT = """
import socket, sys

def cut(event, arguments):
    if event.startswith("socket."):
        attempts.append(event)
        raise OSError("the network is cut")

attempts = []
sys.addaudithook(cut)
try:
    socket.create_connection(("127.0.0.1", 9))
except OSError as error:
    assert str(error) == "the network is cut"
else:
    raise SystemExit("the network is not cut")
attempts.clear()
"""


def test_no_network(tiny, picture):
    """Python's sockets refuse, and none is tried."""
    found = interpret(
        CUT + PREDICT.replace('"passed": passed', '"passed": passed, "attempts": attempts'), tiny, picture
    )
    assert (found["label"], found["passed"], found["attempts"]) == ("frog", True, [])


@pytest.fixture(scope="module")
def no_interfaces() -> list[str]:
    """The command that runs another in a network namespace of its own, where nothing can be reached."""
    command = ["unshare", "--user", "--map-root-user", "--net"]
    try:
        done = subprocess.run([*command, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if done.returncode:
        pytest.skip("network namespaces are not allowed here")
    return command


def test_no_network_in_a_namespace_of_its_own(tiny, picture, no_interfaces):
    """Native code too has nothing that it could reach."""
    command = [*no_interfaces, sys.executable, "-c", PREDICT, tiny, picture]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["label"] == "frog"


TELEMETRY = """
import builtins, json, os, sys
seen = []

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "onnxruntime":
            seen.append(os.environ.get("ORT_DISABLE_TELEMETRY"))

sys.meta_path.insert(0, Watch())
import edgecifar.runtime
edgecifar.runtime.Classifier(sys.argv[1])
print(json.dumps(sorted(set(seen))))
"""


@pytest.mark.parametrize("setting", [{}, {"ORT_DISABLE_TELEMETRY": "1"}])
def test_telemetry_is_off_before_onnxruntime_is_imported(tiny, setting):
    assert interpret(TELEMETRY, tiny, **setting) == ["1"]


def test_importing_changes_nothing():
    code = """
import json, os, sys, warnings
import numpy  # it has settings of its own
before = dict(os.environ), os.getcwd(), list(warnings.filters), list(sys.path)
import edgecifar.runtime
print(json.dumps(before == (dict(os.environ), os.getcwd(), list(warnings.filters), list(sys.path))))
"""
    assert interpret(code) is True
