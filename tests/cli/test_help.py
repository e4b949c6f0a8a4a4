"""What the command line imports, and that values it cannot use are wrong usage."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import pytest

from edgecifar.cli.app import SUBCOMMANDS

TORCH = ("torch", "torchvision", "onnx", "onnxscript", "matplotlib", "safetensors", "torchinfo")
HEAVY = (*TORCH, "onnxruntime", "numpy", "PIL")

# Runs the command line in a fresh interpreter and ends with one line on stderr: the top-level modules it imported.
PROBE = """
import json, sys
from edgecifar.cli.main import main
code = 0
try:
    main()
except SystemExit as exit:
    code = exit.code or 0
print(json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]), file=sys.stderr)
"""


def imported(*arguments, **options) -> tuple[str, str, set[str]]:
    command = [sys.executable, "-c", PROBE, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8", **options)
    *prose, last = result.stderr.splitlines()
    code, modules = json.loads(last)
    assert code == 0, result.stderr
    return result.stdout, "\n".join(prose), set(modules)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["-h"], ["predict", "--help"], ["train", "--help"], ["export", "--help"], ["evaluate", "--help"]],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(arguments):
    out, prose, modules = imported(*arguments)
    assert "Usage: edgecifar" in out
    assert prose == ""
    assert not modules & set(HEAVY)


def test_help_lists_every_command():
    out, _, _ = imported("--help")
    for name, (_, short_help) in SUBCOMMANDS.items():
        assert f" {name} " in out
        assert f" {short_help}\n" in out + "\n"


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_a_commands_help_begins_with_its_line_in_the_list_and_ends_with_examples(edgecifar, name):
    usage, _, first, *lines = edgecifar(name, "--help").stdout.rstrip().splitlines()
    assert f" {name} " in usage
    assert first.strip().startswith(SUBCOMMANDS[name][1])
    examples = lines[[line.strip() for line in lines].index("Examples:") + 1 :]
    assert sum(f"edgecifar {name}" in example for example in examples) >= 2


def test_help_names_the_multipliers_of_residual_nets(edgecifar):
    from edgecifar.export.compress.lossy import EDGE, NANO, TINY

    text = " ".join(edgecifar("export", "--help").stdout.split())
    assert EDGE.residual_budget == TINY.residual_budget
    assert f"edge and tiny {TINY.residual_budget}, nano {NANO.residual_budget} times" in text
    epochs = ((variant.name, variant.residual_multiplier) for variant in (EDGE, TINY, NANO))
    assert ", ".join(f"{name} {times}" for name, times in epochs) in text


def test_version_imports_nothing_heavy():
    out, prose, modules = imported("--version")
    assert out == f"edgecifar {importlib.metadata.version('edgecifar')}\n"
    assert prose == ""
    assert not modules & set(HEAVY)


def test_predict_imports_nothing_of_torch(tiny_bundle, pictures):
    out, _, modules = imported("predict", *pictures, "--bundle", tiny_bundle, "--json")
    assert len(json.loads(out)["predictions"]) == 5
    assert {"numpy", "PIL", "onnxruntime"} <= modules  # or this would show nothing
    assert not modules & set(TORCH)


@pytest.mark.parametrize("command", ["verify", "info"])
def test_neither_do_verify_and_info(tiny_bundle, command):
    _, _, modules = imported(command, tiny_bundle)
    assert not modules & set(TORCH)


@pytest.mark.parametrize("name", ["edgecifar", "edgecifar.cli"])
def test_python_m_is_the_command(name):
    command = [sys.executable, "-m", name, "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("edgecifar ")


@pytest.mark.parametrize("module", ["typer", "edgecifar.cli.streams", "edgecifar.cli.app"])
def test_ctrl_c_before_the_command_is_imported(module):
    code = (
        "import sys, types\n"
        "def find(name, *_):\n"
        f"    if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, types.SimpleNamespace(find_spec=find))\n"
        "from edgecifar.cli.main import run\n"
        "run()"
    )
    result = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "Stopped.\n")


def test_a_profiler_sees_the_end():
    """The command ends its process at once, but not where something waits for the end."""
    command = [sys.executable, "-m", "cProfile", "-m", "edgecifar", "--version"]
    assert "function calls" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_missing_package_is_named_with_its_extra(run, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if torch was not installed
    monkeypatch.delitem(sys.modules, "edgecifar.export.models", raising=False)
    sentence = refused("evaluate", run.folder)
    assert "torch" in sentence
    assert f"{sys.executable} -m pip install '.[train]'" in sentence


def test_wrong_usage_is_exit_code_2(edgecifar):
    for arguments in (["predict"], ["predict", "x.png", "--top-k", "0"], ["nonsense"], ["export", "--format", "h5"]):
        result = edgecifar(*arguments)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert "Usage" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--lr", "nan"),
        ("train", "--lr", "inf"),
        ("train", "--momentum", "1"),
        ("train", "--held-out", "nan"),
        ("export", "--budget", "nan"),
        ("benchmark", "--seconds", "nan"),
        ("serve", "--max-pixels", "nan"),
    ],
    ids=" ".join,
)
def test_a_number_that_is_none_is_wrong_usage(edgecifar, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = edgecifar(*arguments)
    assert result.exit_code == 2
    assert arguments[-1] in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("origin", ["https://a.example/", "https://A.example", "a.example"])
def test_an_origin_that_no_browser_sends_is_wrong_usage(edgecifar, origin):
    result = edgecifar("serve", "--allow-origin", origin)
    assert result.exit_code == 2
    assert origin in result.stderr


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (("train", "--data", ""), "(--data)"),
        (("train", "--data", "synthetic", "--out="), "(--out)"),
        (("evaluate", "model.onnx", "--data", ""), "(--data)"),
        (("predict", "a.png", ""), ""),
        (("inspect", ""), ""),
        (("export", "", "--force"), ""),
    ],
)
def test_an_empty_argument_is_an_unset_variable_and_no_path(refused, tmp_path, monkeypatch, arguments, flag):
    monkeypatch.chdir(tmp_path)
    sentence = refused(*arguments)
    assert "empty" in sentence
    assert sentence.endswith(f"{flag}.")
    assert not list(tmp_path.iterdir())
