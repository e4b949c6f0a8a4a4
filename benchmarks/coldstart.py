"""How long a command takes from nothing: whole processes, in pairs, each against the shortest that does the same.

    python benchmarks/coldstart.py [PICTURE] [--bundle BUNDLE] [--variant NAME] [--pairs 30]

    edgecifar predict PICTURE   against   a script of ten lines with onnxruntime and Pillow (`SHORTEST` below)
    edgecifar --help            against   python -c "import typer"

The two processes of a pair run one after the other, and change places from pair to pair; a ratio is taken within each
pair. Wall time is from the start of a process to its end; memory is its peak of resident memory. Then the phases of
`edgecifar predict`, timed inside processes: what a device waits for before the first answer.

Every process finds the bytecode of its modules cached, as after a first start: it is kept in a temporary folder during
the benchmark, also if PYTHONDONTWRITEBYTECODE is set. The first pair, which writes it, is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import harness
import numpy as np
import report

from edgecifar.runtime import Bundle, EdgecifarError
from edgecifar.runtime.contract import Contract

SAMPLE = Path(__file__).parents[1] / "samples" / "cat.png"

SHORTEST = """\
import sys
import numpy as np
import onnxruntime
from PIL import Image

labels = {labels!r}
picture = Image.open(sys.argv[2]).convert("RGB").resize({size!r})
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
probabilities = session.run([{output!r}], {{{input!r}: np.asarray(picture)[None]}})[0][0]
for index in (-probabilities).argsort()[:3]:
    print(labels[index], f"{{100 * probabilities[index]:.1f}} %")
"""

# Starts the others. It is small, because a child's peak of memory is at least what its parent had when it forked.
# It reads a command a line, and answers its start, end, processor time, peak memory, exit code and outputs.
LAUNCHER = """\
import json, os, sys, tempfile, time

for line in sys.stdin:
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as prose:
        command = json.loads(line)
        outputs = [(os.POSIX_SPAWN_DUP2, output.fileno(), 1), (os.POSIX_SPAWN_DUP2, prose.fileno(), 2)]
        begin = time.perf_counter()
        child = os.posix_spawn(command[0], [part.replace("{begin}", repr(begin)) for part in command], os.environ,
                               file_actions=outputs)
        _, status, usage = os.wait4(child, 0)
        end = time.perf_counter()
        answer = [begin, end, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, os.waitstatus_to_exitcode(status)]
        for words in output, prose:
            words.seek(0)
            answer.append(words.read().decode(errors="replace"))
    print(json.dumps(answer), flush=True)
"""

# `edgecifar predict`, phase by phase: [name, when it ended] of each, after the time when the process was started.
PHASES = """\
import json, sys, time
ended = [("interpreter", time.perf_counter())]

def done(phase):
    ended.append((phase, time.perf_counter()))

import typer.main
done("import typer")
from edgecifar.cli.app import app
done("import edgecifar.cli")
group = typer.main.get_command(app)
options = group.commands["predict"].make_context("predict", sys.argv[2:]).params
done("command line")
import numpy
done("import numpy")
import onnxruntime
done("import onnxruntime")
import PIL.Image
done("import Pillow")
from edgecifar.runtime import Classifier
from edgecifar import load_picture
import edgecifar.cli.display
done("import edgecifar.runtime")
classifier = Classifier(options["bundle"], options["variant"], options["provider"], options["threads"])
done("bundle and session")
image = load_picture(options["images"][0], classifier.contract)[None]
done("decoding")
classifier.probabilities(image)
done("first inference")
classifier.probabilities(image)
done("second inference")
print(json.dumps([float(sys.argv[1]), ended]))
"""


def shortest_script(contract: Contract) -> str:
    """Return `SHORTEST` for a model of `contract`."""
    return SHORTEST.format(
        labels=contract.labels,
        size=(contract.size, contract.size),
        input=contract.input_name,
        output=contract.probabilities_name,
    )


@dataclass(frozen=True)
class Sample:
    """One process that ran: its start, end and processor time in seconds, its peak in MiB, its stdout."""

    begin: float
    end: float
    cpu: float
    mib: float
    output: str

    @property
    def seconds(self) -> float:
        """Wall time from its start to its end."""
        return self.end - self.begin


class Launcher:
    """Runs commands in processes of their own, started by a small process, and measures them."""

    def __init__(self, cache: Path) -> None:
        """Start the small process; `cache` is the folder for the bytecode of what it runs."""
        if not hasattr(os, "posix_spawn"):
            raise EdgecifarError(
                "Processes are measured with posix_spawn, which this system lacks: use Linux or macOS."
            )
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", LAUNCHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**kept, "PYTHONPYCACHEPREFIX": str(cache)},
        )
        if self._process.stdout is None:
            raise ValueError("a pipe was asked for")
        self._answers = self._process.stdout

    def __call__(self, command: Sequence[str]) -> Sample:
        """Run `command`; "{begin}" in it becomes the time at its start, by `time.perf_counter`.

        Raises:
            EdgecifarError: it fails.
        """
        print(json.dumps([*command]), file=self._process.stdin, flush=True)
        begin, end, cpu, peak, code, output, prose = json.loads(self._answers.readline())
        if code:
            shown, (*_, last) = " ".join(command)[:200], prose.splitlines() or ["it says nothing"]
            raise EdgecifarError(f"'{shown}' ends with the exit code {code} ({last}): run it by hand.")
        return Sample(begin, end, cpu, peak / (2**20 if sys.platform == "darwin" else 2**10), output)

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def in_pairs(
    run: Callable[[Sequence[str]], Sample], one: Sequence[str], other: Sequence[str], pairs: int
) -> tuple[list[Sample], list[Sample]]:
    """Run two commands alternately, `pairs` times and once more before; who begins changes from pair to pair."""
    samples: tuple[list[Sample], list[Sample]] = [], []
    for turn in range(pairs + 1):
        for place in (0, 1) if turn % 2 else (1, 0):
            sample = run((one, other)[place])
            if turn:
                samples[place].append(sample)
    return samples


def row(name: str, samples: Sequence[Sample], base: Sequence[Sample] | None = None) -> dict[str, Any]:
    """Return what the line of JSON says of a command, and of its pairs with `base`: medians and quartiles of ratios."""
    found = _figures(name, [sample.seconds for sample in samples])
    found["cpu_milliseconds"] = float(1000 * np.median([sample.cpu for sample in samples]))
    found["peak_mib"] = float(np.median([sample.mib for sample in samples]))
    measures: dict[str, Callable[[Sample], float]] = {
        "time": lambda sample: sample.seconds,
        "cpu": lambda sample: sample.cpu,
        "memory": lambda sample: sample.mib,
    }
    found["ratios"] = {
        measure: harness.ratio([np.array([of(s)]) for s in samples], [np.array([of(s)]) for s in base])
        for measure, of in measures.items()
        if base
    }
    return found


def phases(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return a row a phase, in their order, of processes that ran `PHASES`."""
    lasted: dict[str, list[float]] = {}
    for sample in samples:
        begin, ended = json.loads(sample.output.splitlines()[-1])
        for name, end in [*ended, ("exit", sample.end)]:
            lasted.setdefault(name, []).append(end - begin)
            begin = end
    return [_figures(name, seconds) for name, seconds in lasted.items()]


def _figures(name: str, seconds: Sequence[float]) -> dict[str, Any]:
    found = harness.figures(np.array(seconds), images=1)
    return {"what": name, "n": found["n"], "milliseconds": found["milliseconds"]}


def same_answer(ours: str, shortest: str) -> None:
    """Require that both outputs put the same class first; otherwise the two did not do the same."""
    first, answer = ours.splitlines()[1].split()[0].strip("[]"), shortest.split()[0]  # in brackets: unknown
    if first != answer:
        raise EdgecifarError(f"edgecifar says {first}, the shortest script {answer}: they cannot be compared.")


def table(rows: Sequence[dict[str, Any]], parts: Sequence[dict[str, Any]]) -> str:
    """Return the rows of whole processes and of phases as lines of text."""
    measures = ("time", "cpu", "memory")
    lines = [["process", "p50 ms", "p90 ms", "CPU ms", "MiB", *(f"ratio of {name}" for name in measures)]]
    for entry in rows:
        high = entry["milliseconds"]["p90"]
        figures = [entry["milliseconds"]["p50"], entry["cpu_milliseconds"], entry["peak_mib"]]
        p50, cpu, mib = (f"{value:.1f}" for value in figures)
        ratios = [report.shown(entry["ratios"].get(name), 2) for name in measures]
        lines.append([entry["what"], p50, "" if high is None else f"{high:.1f}", cpu, mib, *ratios])
    phases = [["phase of predict", "p50 ms"], *([p["what"], f"{p['milliseconds']['p50']:.1f}"] for p in parts)]
    note = f"{rows[0]['n']} pairs. Ratios are the median and the quartiles of the pairs."
    return f"{report.table(lines)}\n\n{report.table(phases)}\n\n{note}"


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("picture", type=Path, nargs="?", default=SAMPLE, help="by default one of samples/")
    parser.add_argument("--bundle", type=Path, help="by default the one that is installed")
    parser.add_argument("--variant", help="by default the bundle's own choice")
    parser.add_argument("--pairs", type=int, default=30, help="of processes, of each comparison (default: 30)")
    report.add_save(parser, "coldstart")
    given = parser.parse_args()
    if given.pairs < 2:
        parser.error("--pairs must be at least 2")
    bundle = Bundle.open(given.bundle)
    variant = bundle.variant(given.variant)
    command = Path(sysconfig.get_path("scripts"), "edgecifar")
    if not command.exists():
        raise EdgecifarError(f"{command} is not there: install edgecifar for {sys.executable}.")
    arguments = [str(given.picture), "--bundle", str(bundle.folder), "--variant", variant.name, "--provider", "cpu"]
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "shortest.py")
        script.write_text(shortest_script(bundle.contract), encoding="utf-8")
        launcher = Launcher(Path(folder, "bytecode"))
        try:
            ours = [str(command), "predict", *arguments]
            shortest = [sys.executable, str(script), str(bundle.folder / variant.file), str(given.picture)]
            harness.say(f"edgecifar predict, {given.pairs} pairs …")
            predicted, base = in_pairs(launcher, ours, shortest, given.pairs)
            same_answer(predicted[0].output, base[0].output)
            harness.say(f"edgecifar --help, {given.pairs} pairs …")
            helped, imported = in_pairs(
                launcher, [str(command), "--help"], [sys.executable, "-c", "import typer"], given.pairs
            )
            harness.say("The phases of edgecifar predict …")
            inside = [launcher([sys.executable, "-c", PHASES, "{begin}", *arguments]) for _ in range(given.pairs)]
        finally:
            launcher.close()
    rows = [
        row("edgecifar predict", predicted, base),
        row("shortest script", base),
        row("edgecifar --help", helped, imported),
        row("import typer", imported),
    ]
    parts = phases(inside)
    settings = {"bundle": bundle.folder.name, "variant": variant.name, "pairs": given.pairs}
    settings |= {"models": report.digests([variant])}
    versions = {"typer": metadata.version("typer")}
    found = report.document("coldstart", settings, rows, versions=versions, phases=parts)
    report.finish(found, table(rows, parts), given.save)


if __name__ == "__main__":
    harness.main(main)
