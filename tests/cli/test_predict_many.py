"""`edgecifar predict` of many pictures: lists, lines as they come, outputs that are gone on with, unknown pictures."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ctrl_c
import pytest
from PIL import Image

from edgecifar.cli.predicting import Unknown
from edgecifar.runtime import bulk


@pytest.fixture
def predict(edgecifar, tiny):
    return lambda *arguments, **options: edgecifar("predict", *arguments, "--bundle", tiny, **options)


@pytest.fixture
def many(tmp_path) -> list[Path]:
    """80 pictures, more than this process decodes alone and more than a batch."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(80):
        Image.new("RGB", (32, 32), (3 * number, 255 - number, 0)).save(folder / f"{number:02}.png")
    return sorted(folder.iterdir())


def test_json_lines_are_the_predictions_of_json(predict, pictures, tmp_path):
    missing = tmp_path / "none.png"
    result = predict(*pictures, missing, "--jsonl")
    assert result.exit_code == 1
    document = json.loads(predict(*pictures, missing, "--json").stdout)
    assert [json.loads(line) for line in result.stdout.splitlines()] == document["predictions"]


@pytest.mark.parametrize("form", ["text", "json", "jsonl", "csv"])
def test_several_jobs_print_what_one_prints(predict, many, form):
    options = [] if form == "text" else [f"--{form}"]
    one = predict(*many, *options, "--jobs", 1, "--threads", 1)
    assert one.exit_code == 0
    assert predict(*many, *options, "--jobs", 2).stdout == one.stdout


def test_few_pictures_import_nothing_of_processes(tiny, pictures):
    code = (
        "import sys; from edgecifar.cli.main import main\n"
        "try: main()\n"
        "finally: print([n for n in ('multiprocessing', 'concurrent.futures', 'rich', 'pyarrow') if n in sys.modules])"
    )
    command = [sys.executable, "-c", code, "predict", pictures[0], "--bundle", tiny, "--jobs", "2"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1] == "[]"


class TestList:
    @pytest.mark.parametrize("mark", ["\n", "\r\n", "\0"])
    @pytest.mark.parametrize("last", [True, False])
    def test_a_file_of_names(self, predict, pictures, tmp_path, mark, last):
        names = mark.join(map(str, pictures)) + (mark if last else "")
        (tmp_path / "names").write_bytes(names.encode())
        result = predict("--list", tmp_path / "names", "--csv")
        assert result.exit_code == 0
        assert result.stdout == predict(*pictures, "--csv").stdout

    def test_standard_input_after_the_arguments(self, predict, pictures):
        listed = "\n\n".join(map(str, pictures[1:]))
        assert predict(pictures[0], "--list", "-", "--csv", input=listed).stdout == predict(*pictures, "--csv").stdout

    def test_a_zero_separated_name_may_hold_anything(self, predict, pictures, tmp_path):
        odd = tmp_path / os.fsdecode(b"a\n\xff.png")
        pictures[0].rename(odd)
        result = predict("--list", "-", "--jsonl", input=os.fsencode(odd) + b"\0")
        assert result.exit_code == 0
        assert json.loads(result.stdout)["source"] == str(odd)

    def test_a_list_that_is_not_there_or_empty(self, refused, tiny, tmp_path):
        assert str(tmp_path / "none") in refused("predict", "--list", tmp_path / "none", "--bundle", tiny)
        (tmp_path / "empty").write_text("\n")
        assert "names no pictures" in refused("predict", "--list", tmp_path / "empty", "--bundle", tiny)
        assert "names no pictures" in refused("predict", "--list", "-", "--bundle", tiny, input="")


class TestOut:
    @pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows"])
    def test_rows_are_those_that_are_printed(self, predict, many, tmp_path, name):
        many[7].write_text("a text")
        out = tmp_path / name
        if name == "rows":
            pytest.importorskip("pyarrow")
        result = predict(many[0].parent, "--out", out)
        assert (result.exit_code, result.stdout) == (1, "")
        *_, summary, errors = result.stderr.splitlines()
        assert "80 pictures" in summary
        assert errors.startswith("1 of them")
        if name == "rows":
            import pyarrow.parquet as parquet

            rows = parquet.read_table(out).to_pylist()
            printed = [json.loads(line) for line in predict(*many, "--jsonl").stdout.splitlines()]
            assert [row["source"] for row in rows] == [row["source"] for row in printed]
            assert [row["label"] for row in rows] == [row.get("label") for row in printed]
            assert [row["error"] for row in rows] == [row.get("error") for row in printed]
            assert rows[0]["top"][1]["label"] == printed[0]["top"][1]["label"]
        else:
            assert out.read_text() == predict(*many, "--jsonl" if name.endswith("jsonl") else "--csv").stdout

    def test_a_clock_of_windows_costs_nothing(self, predict, pictures, tmp_path, monkeypatch):
        """The rate was a division by zero, after the last picture, where less than one of its ticks had gone by."""
        monkeypatch.setattr(time, "monotonic", lambda: 100.0)
        result = predict(*pictures, "--out", tmp_path / "rows.jsonl")
        assert (result.exit_code, "5 pictures" in result.stderr) == (0, True)

    def test_going_on(self, predict, refused, tiny, many, tmp_path):
        out = tmp_path / "rows.jsonl"
        many[7].rename(tmp_path / "seven.png")
        (tmp_path / "names").write_text("\n".join(map(str, many)))
        listed = ("--list", tmp_path / "names", "--out", out)
        assert predict(*many[:40], "--out", out).exit_code == 1
        assert "--resume" in refused("predict", *listed, "--bundle", tiny)
        result = predict(*listed, "--resume")
        assert result.exit_code == 0  # nothing went wrong this time
        assert "40 pictures" in result.stderr
        assert "40 were there already" in result.stderr
        (tmp_path / "seven.png").rename(many[7])
        assert "0 pictures" in predict(*listed, "--resume").stderr
        result = predict(*listed, "--resume", "--retry-errors")
        assert (result.exit_code, "1 picture" in result.stderr) == (0, True)
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert sorted(row["source"] for row in rows) == [str(path) for path in many]
        assert all(row.get("error") is None for row in rows)

    @pytest.mark.parametrize("change", ["--variant=edge", "--fit=pad"])
    def test_another_variant_or_fit_does_not_go_on(self, predict, refused, tiny, pictures, tmp_path, change):
        out = tmp_path / "rows.csv"
        predict(*pictures, "--out", out)
        before = out.read_bytes()
        assert "other settings" in refused("predict", *pictures, "--bundle", tiny, "--out", out, "--resume", change)
        assert out.read_bytes() == before

    def test_another_bundle_does_not_go_on(self, predict, refused, three_classes, pictures, tmp_path):
        predict(*pictures, "--out", tmp_path / "rows.csv")
        arguments = ("--out", tmp_path / "rows.csv", "--resume", "--bundle", three_classes)
        assert "bundle" in refused("predict", *pictures, *arguments)

    @pytest.mark.skipif(
        not hasattr(signal, "SIGINT") or sys.platform == "win32", reason="there is no Ctrl-C to send here"
    )
    def test_ctrl_c_leaves_whole_rows_and_says_how_to_go_on(self, tiny, many, tmp_path):
        out = tmp_path / "rows.jsonl"
        (tmp_path / "names").write_text("\n".join(map(str, many)) * 200)
        command = [sys.executable, "-m", "edgecifar.cli", "predict", "--bundle", tiny, "--out", out, "--list"]
        process = subprocess.Popen(
            [*command, tmp_path / "names"],
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=ctrl_c.heed,
        )
        while process.poll() is None and (not out.exists() or not out.stat().st_size):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
        assert process.returncode == 130, said
        assert "--resume" in said
        assert "Traceback" not in said
        assert all("source" in json.loads(line) for line in out.read_text().splitlines())
        text = out.read_text()
        assert not text or text.endswith("\n")  # the first rows may have been half written, and are then taken back


class TestUnknown:
    @pytest.fixture
    def strange(self, edgecifar, three_classes, three_colours, tmp_path):
        """Predict a picture that the bundle of three classes knows and one that it does not."""
        Image.new("RGB", (40, 40), next(iter(three_colours.values()))).save(tmp_path / "known.png")
        Image.new("RGB", (40, 40), (255, 255, 255)).save(tmp_path / "strange.png")
        paths = tmp_path / "known.png", tmp_path / "strange.png"
        return lambda *arguments: edgecifar("predict", *paths, "--bundle", three_classes, *arguments)

    def test_text_shows_it_in_brackets(self, strange):
        lines = strange().stdout.splitlines()
        assert lines[0].endswith("known.png")
        assert lines[4].endswith("strange.png: unlike the training pictures")
        assert [line.strip().startswith("[") for line in lines] == [False] * 5 + [True] * 3

    def test_csv_and_json_lines_say_so(self, strange):
        _, *rows = csv.reader(io.StringIO(strange("--csv").stdout))
        assert [row[-2] for row in rows] == ["true", "false"]
        assert [json.loads(line)["known"] for line in strange("--jsonl").stdout.splitlines()] == [True, False]

    def test_skip_and_error(self, strange):
        result = strange("--unknown", "skip", "--csv")
        assert (result.exit_code, len(result.stdout.splitlines())) == (0, 2)
        assert "1 picture left out" in result.stderr
        result = strange("--unknown", "error", "--csv")
        assert (result.exit_code, len(result.stdout.splitlines())) == (1, 3)
        assert "strange.png is unlike the training pictures" in result.stderr

    def test_a_bundle_that_cannot_tell_says_so(self, edgecifar, tiny, pictures):
        result = edgecifar("predict", *pictures, "--bundle", tiny, "--unknown", "skip", "--csv")
        assert (result.exit_code, len(result.stdout.splitlines())) == (0, 1 + len(pictures))
        assert "cannot tell" in result.stderr
        assert "cannot tell" not in edgecifar("predict", *pictures, "--bundle", tiny).stderr

    def test_the_choices_are_the_librarys(self):
        assert [choice.value for choice in Unknown] == list(bulk.UNKNOWN)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("a.png", "--json", "--jsonl"),
        ("a.png", "--out", "rows.csv", "--csv"),
        ("a.png", "--resume"),
        ("a.png", "--out", "rows.csv", "--retry-errors"),
        ("a.png", "--out", "rows.csv", "--unknown", "skip"),
        ("a.png", "--jobs", "0"),
        ("-", "--list", "-"),
        ("-", "-"),
    ],
)
def test_wrong_usage(predict, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = predict(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert list(tmp_path.iterdir()) == []


def test_another_kind_of_output_is_refused(refused, tiny, pictures, tmp_path):
    assert "FILE.jsonl" in refused("predict", *pictures, "--bundle", tiny, "--out", tmp_path / "rows.txt")


class TestProgress:
    @pytest.fixture
    def clock(self, monkeypatch):
        from edgecifar.cli import progress

        now = [100.0]
        monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
        return now

    def test_a_line_now_and_then_where_stderr_is_a_file(self, clock, capsys):
        from edgecifar.cli.progress import LINE_AFTER, LINE_EVERY, Progress

        with Progress(10_000) as progress:
            progress.update(10)
            assert capsys.readouterr().err == ""
            clock[0] += LINE_AFTER
            progress.update(2_000, passed_over=1_000, errors=1)
            assert capsys.readouterr().err == "3,000 of 10,000 pictures, 200/s, 35 s left, 1 error\n"
            progress.update(2_100)
            assert capsys.readouterr().err == ""
            clock[0] += LINE_EVERY
            progress.update(4_000)
            assert capsys.readouterr().err.startswith("4,000 of 10,000 pictures, 100/s, 1 min 00 s left")

    def test_without_a_total_there_is_no_time_left(self, clock, capsys):
        from edgecifar.cli.progress import Progress

        with Progress(None) as progress:
            clock[0] += 100
            progress.update(1_000)
        assert capsys.readouterr().err == "1,000 pictures, 10/s\n"

    def test_a_bar_on_a_terminal_and_nothing_is_left_of_it(self, tiny, many, tmp_path):
        pty = pytest.importorskip("pty", reason="there are no terminals here")
        code = "from edgecifar.cli import progress; progress.BAR_AFTER = 0\nfrom edgecifar.cli.main import main; main()"
        terminal, process_end = pty.openpty()
        command = [sys.executable, "-c", code, "predict", *many, "--bundle", tiny, "--jobs", "1", "--out", "rows.csv"]
        with os.fdopen(terminal, "rb", buffering=0) as reader:
            process = subprocess.Popen(command, stderr=process_end, cwd=tmp_path, env={**os.environ, "TERM": "xterm"})
            os.close(process_end)
            shown = b""
            try:
                while block := reader.read(65536):
                    shown += block
            except OSError:  # Linux's end of a terminal
                pass
            assert process.wait() == 0
        assert b"/80" in shown
        assert b" left" in shown
        assert shown.rstrip().endswith(b".")
