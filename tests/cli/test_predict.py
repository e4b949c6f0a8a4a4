"""`edgecifar predict`: the same answer in every form of output; bad pictures are named, the rest classified."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecifar.runtime.bundle import Bundle
from edgecifar.runtime.contract import CIFAR10
from edgecifar.runtime.folder import write_sums
from edgecifar.runtime.pictures import load_picture

LABELS = CIFAR10.labels


@pytest.fixture
def expected(tiny, pictures):
    """The default variant's own probabilities of the five pictures."""
    bundle = Bundle.open(tiny)
    images = np.stack([load_picture(path, bundle.contract) for path in pictures])
    return bundle.load(bundle.variant(), "cpu").probabilities(images)


@pytest.fixture
def predict(edgecifar, tiny_bundle):
    return lambda *arguments, **options: edgecifar("predict", *arguments, "--bundle", tiny_bundle, **options)


def test_json(predict, pictures, expected, tiny_bundle):
    result = predict(*pictures, "--json", "--top-k", 2, "--threads", 1)
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    head = {key: value for key, value in document.items() if key != "predictions"}
    assert head == {
        "bundle": str(tiny_bundle),
        "dataset": "ten colours",
        "variant": "fp32",
        "provider": "cpu",
        "threads": 1,
    }
    assert [entry["source"] for entry in document["predictions"]] == [str(path) for path in pictures]
    for entry, row in zip(document["predictions"], expected, strict=True):
        assert entry["label"] == LABELS[row.argmax()]
        assert entry["known"] is entry["familiarity"] is None  # the bundle has no such score
        assert entry["probability"] == pytest.approx(row.max(), abs=1e-5)
        assert len(entry["top"]) == 2
        assert entry["top"][0] == {"label": entry["label"], "probability": entry["probability"]}
        assert entry["top"][1]["probability"] == pytest.approx(sorted(row)[-2], abs=1e-5)


def test_csv(predict, pictures, expected):
    result = predict(*pictures, "--csv", "--top-k", 3)
    assert result.exit_code == 0
    header, *rows = csv.reader(io.StringIO(result.stdout))
    numbered = [f"{what}_{rank}" for rank in (1, 2, 3) for what in ("label", "probability")]
    assert header == ["source", "error", *numbered, "known", "familiarity"]
    assert [row[:2] for row in rows] == [[str(path), ""] for path in pictures]
    for row, probabilities in zip(rows, expected, strict=True):
        assert row[2] == LABELS[probabilities.argmax()]
        assert [float(cell) for cell in row[3:-2:2]] == pytest.approx(sorted(probabilities)[:-4:-1], abs=1e-5)


def test_text(predict, pictures, expected):
    result = predict(*pictures)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line for line in lines if not line.startswith("  ")] == [str(path) for path in pictures]
    assert len(lines) == 5 * (1 + 3)
    for index, row in enumerate(expected):
        assert lines[4 * index + 1].split()[:3] == [LABELS[row.argmax()], f"{100 * row.max():.1f}", "%"]


def test_text_draws_bars_by_probability(predict, pictures):
    lines = [line for line in predict(pictures[0], "--top-k", 10).stdout.splitlines() if line.startswith("  ")]
    lengths = [len(line.partition("%")[2].strip()) for line in lines]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]


def test_drawn_training_pictures_are_named_on_stderr(predict, pictures, tiny_bundle):
    assert predict(pictures[0], "--json").stderr == ""
    path = tiny_bundle / "manifest.json"
    path.write_text(path.read_text().replace("ten colours", "synthetic"))
    write_sums(tiny_bundle)
    (line,) = predict(pictures[0], "--json").stderr.splitlines()
    assert "drawn shapes" in line


@pytest.mark.parametrize("top_k", ["0", "11"])
def test_more_classes_than_there_are_is_wrong_usage(predict, pictures, top_k):
    result = predict(pictures[0], "--top-k", top_k)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "--top-k" in result.stderr


@pytest.mark.parametrize("form", ["text", "json", "csv"])
def test_three_unicode_classes(edgecifar, three_classes, three_colours, tmp_path, form):
    """Fewer classes than are listed by default, another size, and the bundle's own fit."""
    for label, colour in three_colours.items():
        Image.new("RGB", (60, 60), colour).save(tmp_path / f"{label}.png")
    paths = [tmp_path / f"{label}.png" for label in three_colours]
    options = [] if form == "text" else [f"--{form}"]
    result = edgecifar("predict", *paths, "--bundle", three_classes, *options)
    assert (result.exit_code, result.stderr) == (0, "")
    if form == "json":
        entries = json.loads(result.stdout)["predictions"]
        assert [entry["label"] for entry in entries] == list(three_colours)
        assert {len(entry["top"]) for entry in entries} == {3}
        assert [entry["known"] for entry in entries] == [True] * 3
    elif form == "csv":
        header, *rows = csv.reader(io.StringIO(result.stdout))
        assert header[-2:] == ["known", "familiarity"]
        assert [row[-2] for row in rows] == ["true"] * 3
        assert [row[2] for row in rows] == list(three_colours)
    else:
        lines = result.stdout.splitlines()
        assert lines[::4] == [str(path) for path in paths]
        assert all(line.strip().startswith(label) for line, label in zip(lines[1::4], three_colours, strict=True))
    assert edgecifar("predict", *paths, "--bundle", three_classes, "--top-k", 4).exit_code == 2


def test_order_is_that_of_the_arguments(predict, pictures):
    wanted = [pictures[3], pictures[0], pictures[3], pictures[1]]
    document = json.loads(predict(*wanted, "--json").stdout)
    assert [entry["source"] for entry in document["predictions"]] == [str(path) for path in wanted]
    assert document["predictions"][0] == document["predictions"][2]


def test_a_folder_and_a_glob_are_the_same_pictures(predict, pictures):
    folder = pictures[0].parent
    (folder / "notes.txt").write_text("no picture")
    by_folder = json.loads(predict(folder, "--json").stdout)["predictions"]
    by_glob = json.loads(predict(folder / "*.png", "--json").stdout)["predictions"]
    assert by_folder == by_glob == json.loads(predict(*pictures, "--json").stdout)["predictions"]


def test_standard_input(predict, pictures):
    result = predict("-", "--json", input=pictures[2].read_bytes())
    (entry,) = json.loads(result.stdout)["predictions"]
    (file,) = json.loads(predict(pictures[2], "--json").stdout)["predictions"]
    assert entry == {**file, "source": "-"}


@pytest.mark.parametrize("form", ["text", "csv"])
def test_a_name_cannot_steer_a_terminal(tiny_bundle, pictures, form):
    pty = pytest.importorskip("pty", reason="there are no terminals here")
    picture = pictures[0].rename(pictures[0].with_name("red\x1b[31m.png"))
    options = ["--csv"] if form == "csv" else []
    terminal, process_end = pty.openpty()
    with os.fdopen(terminal, "rb", buffering=0) as reader:
        subprocess.run(
            [sys.executable, "-m", "edgecifar.cli", "predict", picture, "--bundle", tiny_bundle, *options],
            stdout=process_end,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        os.close(process_end)
        shown = b""
        with contextlib.suppress(OSError):  # Linux's end of a terminal, which gives what was written piece by piece
            while block := reader.read(65536):
                shown += block
    assert b"\x1b" not in shown
    assert b"red\\x1b[31m.png" in shown


def test_the_name_of_a_folder_cannot_steer_a_terminal(refused, tmp_path):
    (tmp_path / "red\x1b[31m").mkdir()
    assert "red\\x1b[31m: it is empty" in refused("predict", tmp_path / "red\x1b[31m")


def test_more_pictures_than_a_batch(predict, pictures):
    result = predict(*pictures * 14, "--csv", "--top-k", 1)
    rows = result.stdout.splitlines()[1:]
    assert len(rows) == 70
    assert rows == rows[:5] * 14


def test_fit(predict, tmp_path):
    picture = Image.new("RGB", (96, 32), (220, 80, 50))
    picture.paste((50, 90, 220), (32, 0, 64, 32))
    picture.save(tmp_path / "wide.png")
    answers = {fit: predict(tmp_path / "wide.png", "--fit", fit, "--csv").stdout for fit in ("crop", "squash", "pad")}
    assert len(set(answers.values())) == 3
    result = predict(tmp_path / "wide.png", "--csv")
    assert (result.stdout, result.stderr) == (answers["crop"], "")
    assert "'pad'" in predict(tmp_path / "wide.png", "--csv", "--fit", "pad").stderr


def test_verbose_says_what_runs(predict, pictures, tiny_bundle):
    result = predict(pictures[0], "--verbose", "--threads", 1, "--csv")
    said = result.stderr.splitlines()
    assert said[0] == f"{tiny_bundle}: variant fp32 (fp32) on cpu, 1 thread"
    assert "default" in said[1]
    asked = predict(pictures[0], "--verbose", "--threads", 2, "--variant", "edge", "--csv").stderr.splitlines()
    assert asked[0].endswith(" on cpu, 2 threads")
    assert "asked for" in asked[1]
    assert "variant" not in result.stdout


BAD = {
    "text": (b"hello\n", "is not a PNG"),
    "empty": (b"", "is empty"),
    "missing": (None, "no such file"),
    "damaged": (b"\x89PNG\r\n\x1a\n" + bytes(50), "damaged or incomplete"),
}


@pytest.fixture(params=BAD)
def bad(request, tmp_path):
    """A bad picture's path, and a part of the reason."""
    content, reason = BAD[request.param]
    path = tmp_path / "bad.png"
    if content is not None:
        path.write_bytes(content)
    return path, reason


@pytest.mark.parametrize("form", ["text", "json", "csv"])
def test_a_bad_picture_among_good_ones(predict, pictures, bad, form):
    path, reason = bad
    arguments = [] if form == "text" else [f"--{form}"]
    result = predict(pictures[0], path, pictures[1], *arguments)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"edgecifar: Could not read {path}: ")
    assert reason in line
    assert "Traceback" not in result.stderr
    alone = predict(pictures[0], pictures[1], *arguments)
    if form == "json":
        before, entry, after = json.loads(result.stdout)["predictions"]
        assert [before, after] == json.loads(alone.stdout)["predictions"]
        assert entry == {"source": str(path), "error": line.removeprefix("edgecifar: ")}
    elif form == "csv":
        header, before, row, after = result.stdout.splitlines()
        assert [header, before, after] == alone.stdout.splitlines()
        assert row.startswith(f"{path},")
        assert row.endswith(",,,,,,")
    else:
        assert result.stdout == alone.stdout


def test_only_a_bad_picture(refused, tiny_bundle, bad):
    path, reason = bad
    assert reason in refused("predict", path, "--bundle", tiny_bundle)


def test_a_truncated_jpeg(refused, tiny_bundle, pictures, tmp_path):
    path = tmp_path / "cut.jpg"
    Image.open(pictures[0]).resize((300, 300)).save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert "JPEG data is damaged or incomplete" in refused("predict", path, "--bundle", tiny_bundle)


def test_a_folder_without_pictures(refused, tiny_bundle, tmp_path):
    (tmp_path / "empty").mkdir()
    sentence = refused("predict", tmp_path / "empty", "--bundle", tiny_bundle)
    assert sentence.startswith(f"There are no pictures in {tmp_path / 'empty'}: ")


def test_a_glob_without_matches(refused, tiny_bundle, tmp_path):
    assert "no file matches it" in refused("predict", tmp_path / "*.png", "--bundle", tiny_bundle)


def test_empty_standard_input(refused, tiny_bundle):
    assert refused("predict", "-", "--bundle", tiny_bundle, input=b"").startswith("Could not read standard input: ")


def test_what_a_folder_holds_besides_is_counted_on_stderr(predict, pictures):
    folder = pictures[0].parent
    (folder / "notes.txt").touch()
    result = predict(folder)
    assert result.exit_code == 0
    assert "1 file left out: 1 .txt." in result.stderr.splitlines()
    (folder / "drawing.svg").touch()
    result = predict(folder, "--json")
    assert result.exit_code == 1  # it looks like a picture
    assert "2 files left out: 1 .svg (not read, convert to PNG), 1 .txt." in result.stderr.splitlines()
    assert len(json.loads(result.stdout)["predictions"]) == 5


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii", "latin-1"])
def test_json_is_one_valid_document_in_every_encoding(pictures, tiny_bundle, tmp_path, encoding):
    names = ["é.png", "😀.png", "“a”.png", os.fsdecode(b"\xff.png")]
    for name in names:
        try:
            shutil.copy(pictures[0], tmp_path / name)
        except OSError:  # a file system that takes no such name
            names = names[:3]
    command = [sys.executable, "-m", "edgecifar.cli", "predict", "--json", "--bundle", str(tiny_bundle)]
    result = subprocess.run(
        [*command, *(str(tmp_path / name) for name in names)],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        check=True,
    )
    document = json.loads(result.stdout.decode(encoding))
    assert [Path(entry["source"]).name for entry in document["predictions"]] == names


def test_an_unknown_variant(refused, tiny_bundle, pictures):
    sentence = refused("predict", pictures[0], "--bundle", tiny_bundle, "--variant", "tiny")
    assert "no variant called tiny: choose one of fp32, edge" in sentence


def test_a_variant_that_needs_torch(refused, tiny_bundle, pictures):
    values = json.loads((tiny_bundle / "manifest.json").read_text())
    values["variants"][1].update(format="pt2", file="model.pt2")
    (tiny_bundle / "manifest.json").write_text(json.dumps(values))
    write_sums(tiny_bundle)
    sentence = refused("predict", pictures[0], "--bundle", tiny_bundle, "--variant", "edge")
    assert "pt2, which needs torch" in sentence


def test_an_unknown_provider(refused, tiny_bundle, pictures):
    sentence = refused("predict", pictures[0], "--bundle", tiny_bundle, "--provider", "abacus")
    assert sentence.startswith("There is no provider called abacus: choose auto, cpu, cuda, ")


def test_a_provider_that_is_not_there(refused, tiny_bundle, pictures):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CoreMLExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("CoreML is there")
    sentence = refused("predict", pictures[0], "--bundle", tiny_bundle, "--provider", "coreml")
    assert sentence.startswith("The provider coreml is not in the onnxruntime installed here")


def test_a_missing_bundle(refused, pictures, tmp_path):
    sentence = refused("predict", pictures[0], "--bundle", tmp_path / "none")
    assert sentence.startswith(f"{tmp_path / 'none'} is not a bundle (manifest.json is missing)")


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx"])
def test_a_changed_bundle(refused, tiny_bundle, pictures, name):
    content = (tiny_bundle / name).read_bytes()
    (tiny_bundle / name).write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    assert "copy the bundle again" in refused("predict", pictures[0], "--bundle", tiny_bundle)


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "SHA256SUMS"])
def test_an_incomplete_bundle(refused, tiny_bundle, pictures, name):
    (tiny_bundle / name).unlink()
    assert name in refused("predict", pictures[0], "--bundle", tiny_bundle)


def test_json_and_csv_together_are_wrong_usage(predict, pictures):
    result = predict(pictures[0], "--json", "--csv")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "choose one of --json and --csv" in result.stderr


def test_the_bundle_is_not_written_to(predict, pictures, tiny_bundle):
    before = {path: path.stat().st_mtime_ns for path in (tiny_bundle, *tiny_bundle.iterdir())}
    predict(*pictures)
    assert {path: path.stat().st_mtime_ns for path in (tiny_bundle, *tiny_bundle.iterdir())} == before


def test_a_copy_elsewhere_answers_the_same(edgecifar, predict, pictures, tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / "device")
    moved = edgecifar("predict", *pictures, "--csv", "--bundle", tmp_path / "device")
    assert moved.stdout == predict(*pictures, "--csv").stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_behind_stdout(tiny_bundle, pictures):
    command = [sys.executable, "-m", "edgecifar.cli", "predict", *map(str, pictures), "--bundle", str(tiny_bundle)]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("edgecifar: the output cannot be written, the disk is full")
    assert "Traceback" not in result.stderr
