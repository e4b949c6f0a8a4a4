"""`edgecifar serve` against other servers with the same model and the same client, in one run.

    python benchmarks/serving.py --seconds 8
    python benchmarks/serving.py --peer litserve --seconds 2

Each peer runs in an environment of its own, which is made under --cache the first time (it takes minutes and the
network): MLServer, LitServe and BentoML, in the versions of `PEERS`. Each serves the ONNX file of one variant through
onnxruntime with one thread, by the few lines of code that its documentation shows, once as it is and once with its
batching; the better of the two counts. Server and client are each pinned to a core of their own.

    JSON     the body of the protocol, a list of 3,072 numbers a picture: the same bytes for every server
    binary   `edgecifar serve` takes the protocol's binary tensors; the others base64 in JSON, as they know none

The servers take turns: --rounds times each is started, asked a little and then measured, in an order drawn anew, so
that a machine that slows down does so for all alike. Ratios are medians of the rounds' ratios, with quartiles.

Every request has a picture of its own and every answer is held against the one computed in process: the last column
counts wrong answers. Two servers without a model, which know their answers beforehand, show what uvicorn and Starlette
cost alone. `edgecifar serve` alone is also asked with 64 pictures a request, for the share that it reaches of
what the same core does in process.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import harness
import numpy as np
import report
from serving_load import Outcome, Request, ask_binary, ask_json, drive, merged, post, probabilities, used
from serving_peers import PEERS, Contender, contenders, environment, floors

from edgecifar.runtime import Bundle, EdgecifarError

PICTURES = 64
"""Different pictures; each request has another than those under way beside it."""

MANY = "binary 64"
"""What the table calls requests of 64 pictures."""

ALONE = "in process"
"""What takes its turn without a server."""

T = TypeVar("T")


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def pinned(client: int, server: int) -> Iterator[None]:
    """Keep this process on the core `client` within the block; `started` keeps servers on `server`.

    Raises:
        EdgecifarError: this system cannot, or one of them is no core that this process may use.
    """
    if not hasattr(os, "sched_setaffinity") or not shutil.which("taskset"):
        raise EdgecifarError("Server and client are kept on cores by taskset, which is not here: use Linux.")
    usable = os.sched_getaffinity(0)
    if absent := sorted({client, server} - usable):
        among = ", ".join(map(str, sorted(usable)))
        raise EdgecifarError(
            f"Core {absent[0]} is none of those that may be used here: choose --client-core and --server-core among "
            f"{among}."
        )
    os.sched_setaffinity(0, {client})
    try:
        yield
    finally:
        os.sched_setaffinity(0, usable)  # the machine is described later, with all of them


@contextlib.contextmanager
def started(contender: Contender, core: int, log: Path, first: Request) -> Iterator[tuple[int, int, float]]:
    """Run a server on `core`; yield its port, its process, and the seconds until it answered `first` with 200."""
    port = free_port()
    variables = {name: value.format(port=port) for name, value in contender.environment.items()}
    command = [part.format(port=port) for part in contender.command]
    began = time.perf_counter()
    with log.open("wb") as output:
        server = subprocess.Popen(
            [shutil.which("taskset") or "taskset", "-c", str(core), *command],
            env={**os.environ, **variables, "PORT": str(port), "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while not _answers(port, first):
            if server.poll() is not None or time.perf_counter() - began > 120:
                lines = log.read_text(errors="replace").splitlines()
                raise EdgecifarError(f"{contender.name} does not answer: {lines[-1] if lines else 'it says nothing'}.")
            time.sleep(0.02)
        yield port, server.pid, time.perf_counter() - began
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _answers(port: int, first: Request) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(first.data)
            return connection.recv(65536).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def requests_of(contender: Contender, images: np.ndarray, expected: np.ndarray) -> dict[str, list[Request]]:
    """Return the requests for `images`, uint8 [N, size, size, 3], one a picture, in JSON and binary."""
    made: dict[str, list[Request]] = {"JSON": [], "binary": []}
    for image, row in zip(images[:, None], expected, strict=True):
        made["JSON"].append(Request(ask_json(contender.path, image), row))
        if contender.binary:
            made["binary"].append(Request(ask_binary(contender.path, image), row))
            continue
        tensor = {"name": "images", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(image).decode()]}
        body = json.dumps({"inputs": [tensor]}).encode()
        made["binary"].append(Request(post(contender.path, body, "Content-Type: application/json"), row))
    return made


def read_list(_: bytes, body: bytes) -> np.ndarray:
    """Return the probabilities of an answer that is the list of outputs alone."""
    return np.array(json.loads(body)[0]["data"], np.float32).ravel()


@dataclass
class Load:
    """One load of a server.

    Attributes:
        outcome: what it saw.
        cpu: the server's processor seconds meanwhile.
        memory: of the server after it, MB.
        ready: seconds from the server's start to its first answer.
    """

    outcome: Outcome
    cpu: float
    memory: float
    ready: float


def take_turn(contender: Contender, requests: dict[str, list[Request]], options: Any, log: Path) -> dict[str, Load]:
    """Start a server, and return what a load of each kind of request saw, which took its part of --seconds."""
    found, seconds = {}, options.seconds / options.rounds
    read = read_list if contender.listed else probabilities
    with started(contender, options.server_core, log, next(iter(requests.values()))[0]) as (port, pid, ready):
        for kind, made in requests.items():
            drive(port, made, min(1.0, seconds), options.connections, read)
            before, _ = used(pid)
            outcome = drive(port, made, seconds, options.connections, read)
            after, memory = used(pid)
            found[kind] = Load(outcome, after - before, memory, ready)
    return found


def in_turns(calls: Mapping[str, Callable[[], T]], rounds: int, optional: Collection[str] = ()) -> dict[str, list[T]]:
    """Call each of `calls` once a round, in an order drawn anew, and return what it gave.

    Raises:
        EdgecifarError: one failed that is not `optional`. Such a one is said, and left out from then on.
    """
    rng, found = np.random.default_rng(0), {name: [] for name in calls}
    for number in range(rounds):
        harness.say(f"Round {number + 1} of {rounds} …")
        for name in rng.permutation(list(found)).tolist():
            try:
                found[name].append(calls[name]())
            except EdgecifarError as error:
                if name not in optional:
                    raise
                harness.say(str(error))
                del found[name]
    return found


def row_of(server: str, kind: str, loads: Sequence[Load]) -> dict[str, Any]:
    """Return the row of a server and a kind of request: all its loads as one, and what each round gave."""
    whole = merged([load.outcome for load in loads])
    each = [load.outcome.figures() for load in loads]
    return {
        "server": server,
        "kind": kind,
        "ready_seconds": float(np.median([load.ready for load in loads])),
        "memory_mb": max(load.memory for load in loads),
        "cpu_microseconds": 1e6 * sum(load.cpu for load in loads) / max(1, len(whole.latencies)),
        **whole.figures(),
        "rounds": [{"requests_per_second": one["requests_per_second"], **one["milliseconds"]} for one in each],
    }


def ratio(ours: Mapping[str, Any], other: Mapping[str, Any], key: str) -> dict[str, float]:
    """Return one row's figure relative to another's: median and quartiles of the rounds' ratios."""
    return harness.quartiles([mine[key] / its[key] for mine, its in zip(ours["rounds"], other["rounds"], strict=True)])


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    shown = {name: f"{value:.2f}" for name, value in row["milliseconds"].items()}
    wrong = row["wrong"] + row["broken"] + sum(row["other_statuses"].values())
    return (
        f"{row['server']:<28} {row['kind']:<9} {row['requests_per_second']:>8,.0f} {shown.get('p50', ''):>8} "
        f"{shown.get('p99', ''):>8} {row['cpu_microseconds']:>8,.0f} {row['ready_seconds']:>7.2f} "
        f"{row['memory_mb']:>7.0f} {wrong:>6}"
    )


HEADER = (
    f"{'server':<28} {'requests':<9} {'req/s':>8} {'p50 ms':>8} {'p99 ms':>8} {'CPU µs':>8} {'ready s':>7} {'MB':>7} "
    f"{'wrong':>6}"
)


def in_process(bundle: Bundle, variant: str, core: int, seconds: float) -> float:
    """Return images/s of batches of 64 on `core` in a process of its own, one thread."""
    code = (
        "import sys, time, numpy as np; from edgecifar.runtime import Classifier\n"
        "classifier = Classifier(sys.argv[1], sys.argv[2], 'cpu', 1); run = classifier.probabilities\n"
        "shape = (64, *classifier.contract.picture_shape)\n"
        "images = np.random.default_rng(0).integers(0, 256, shape, np.uint8); run(images)\n"
        "began, calls = time.perf_counter(), 0\n"
        "while time.perf_counter() - began < float(sys.argv[3]): run(images); calls += 1\n"
        "print(64 * calls / (time.perf_counter() - began))"
    )
    command = ["taskset", "-c", str(core), sys.executable, "-c", code, str(bundle.folder), variant, str(seconds)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def tell(rows: list[dict[str, Any]], alone: Sequence[float], settings: dict[str, Any], save: Path | None) -> None:
    """Print the table, how many times as many requests as each peer, and one line of JSON.

    Args:
        rows: of every server and kind of request.
        alone: images/s in process, of each round.
        settings: what was asked for.
        save: where to keep the JSON, too.
    """
    found = report.document("serving", settings, rows, in_process_images_per_second=float(np.median(alone)))
    lines = [HEADER, *map(line, rows), ""]
    for kind in ("JSON", "binary"):
        ours = next(row for row in rows if row["kind"] == kind)
        for peer, version in PEERS.items():
            others = [row for row in rows if row["kind"] == kind and row["server"].startswith(version)]
            best = max(others, key=lambda row: row["requests_per_second"], default=None)
            if best and all("p99" in one for one in [*ours["rounds"], *best["rounds"]]):
                times, p99 = ratio(ours, best, "requests_per_second"), ratio(ours, best, "p99")
                found[f"{peer}_{kind}"] = {"requests_ratio": times, "p99_ratio": p99}
                figures = f"{report.shown(times, 2)} times the requests/s of {best['server']}"
                lines.append(f"{kind}: {figures}, {report.shown(p99, 2)} times its p99")
    many = next(row for row in rows if row["kind"] == MANY)
    shares = [PICTURES * one["requests_per_second"] / its for one, its in zip(many["rounds"], alone, strict=True)]
    share = found["share_of_in_process"] = harness.quartiles(shares)
    whole = f"{found['in_process_images_per_second']:,.0f} images/s in process"
    lines.append(f"64 pictures a request: {report.shown(share, 2)} of the {whole}")
    report.finish(found, "\n".join(lines), save)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="edgecifar serve against other servers.")
    parser.add_argument("--bundle", type=Path, help="by default the one installed")
    parser.add_argument("--variant", default="tiny")
    parser.add_argument("--peer", action="append", choices=[*PEERS, "none"], help="may be repeated; default: all")
    parser.add_argument("--seconds", type=harness.positive(float), default=8.0, help="of each row, in all rounds")
    parser.add_argument("--rounds", type=harness.positive(int), default=5, help="turns of each server")
    parser.add_argument("--connections", type=harness.positive(int), default=16)
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--client-core", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "edgecifar" / "peers")
    report.add_save(parser, "serving")
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    variant = bundle.variant(options.variant)
    model = (bundle.folder / variant.file).resolve()
    images = harness.random_images(PICTURES, bundle.contract)
    expected = bundle.load(variant, provider="cpu", threads=1).probabilities(images)
    own = [sys.executable, "-m", "edgecifar.cli", "serve", "--port", "{port}", "--threads", "1", "--provider", "cpu"]
    own += ["--bundle", f"bench={bundle.folder}", "--variant", options.variant, "--drain", "0"]
    ours = Contender("edgecifar serve", own, f"/v2/models/bench-{options.variant}/infer", {}, binary=True)
    peers = [peer for peer in options.peer or PEERS if peer != "none"]
    for peer in peers:
        environment(peer, options.cache)  # one that cannot be installed is said before anything is measured
    with pinned(options.client_core, options.server_core), tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made = requests_of(ours, images, expected)
        bodies = [request.data.partition(b"\r\n\r\n")[2] for kind in made.values() for request in kind]
        asked = {ours.name: (ours, {**made, MANY: [Request(ask_binary(ours.path, images), expected)]})}
        asked |= {floor.name: (floor, made) for floor in floors(folder, ours.path, bodies, expected)}
        variables = {"MODEL": str(model), "SHAPE": " ".join(map(str, bundle.contract.picture_shape))}
        others = list(contenders(peers, folder, options.cache, variables))
        asked |= {one.name: (one, requests_of(one, images, expected)) for one in others}
        calls: dict[str, Callable[[], Any]] = {
            name: partial(take_turn, *pair, options, folder / "log") for name, pair in asked.items()
        }
        seconds = options.seconds / options.rounds
        calls[ALONE] = partial(in_process, bundle, options.variant, options.server_core, seconds)
        turns = in_turns(calls, options.rounds, optional=[one.name for one in others])
    alone = turns.pop(ALONE)
    rows = [row_of(name, kind, [turn[kind] for turn in given]) for name, given in turns.items() for kind in given[0]]
    settings: dict[str, Any] = {
        name: str(value) for name, value in vars(options).items() if name not in ("save", "cache", "bundle")
    }
    settings["bundle"] = bundle.folder.name
    tell(rows, alone, settings | {"models": report.digests([variant])}, options.save)


if __name__ == "__main__":
    harness.main(main)
