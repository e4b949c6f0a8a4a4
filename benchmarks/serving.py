"""`edgecifar serve` against other servers with the same model and the same client, in one run.

    python benchmarks/serving.py --seconds 8
    python benchmarks/serving.py --peer litserve --seconds 2

Each peer runs in an environment of its own, which is made under --cache the first time (it takes minutes and the
network): MLServer, LitServe and BentoML, in the versions of `PEERS`. Each serves the ONNX file of one variant through
onnxruntime with one thread, by the few lines of code that its documentation shows, once as it is and once with its
batching; the better of the two counts. Server and client are each pinned to a core of their own.

    JSON     the body of the protocol, a list of 3,072 numbers a picture: the same bytes for every server
    binary   `edgecifar serve` takes the protocol's binary tensors; the others base64 in JSON, as they know none

Every request has a picture of its own and every answer is held against the one computed in process: the last column
counts wrong answers. `edgecifar serve` alone is also asked with 64 pictures a request, for the share that it reaches of
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np
import report
from serving_load import Request, ask_binary, ask_json, drive, post, used

from edgecifar.runtime import Bundle, EdgecifarError

PEERS = {"mlserver": "mlserver==1.7.1", "litserve": "litserve==0.2.19", "bentoml": "bentoml==1.4.40"}

PICTURES = 64
"""Different pictures; each request has another than those under way beside it."""

MANY = "binary 64"
"""What the table calls requests of 64 pictures."""

COMMON = """\
import base64, json, os
import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.add_session_config_entry("session.force_spinning_stop", "1")

def load():
    session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"images": images})[0]

def read(tensor):
    if tensor["datatype"] == "BYTES":
        return np.frombuffer(base64.b64decode(tensor["data"][0]), np.uint8).reshape(1, 32, 32, 3)
    return np.array(tensor["data"], np.uint8).reshape(tensor["shape"])

BATCH = os.environ["BATCH"] == "1"
PORT = int(os.environ["PORT"])
"""

MLSERVER = """\
from common import *
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

class Model(MLModel):
    async def load(self):
        self.run = load()
        return True

    async def predict(self, request):
        given = request.inputs[0]
        if given.datatype == "BYTES":
            images = np.stack([read({"datatype": "BYTES", "data": [text]})[0] for text in given.data])
        else:
            images = NumpyCodec.decode_input(given)
        output = NumpyCodec.encode_output("probabilities", self.run(images))
        return InferenceResponse(model_name=self.name, outputs=[output])
"""

LITSERVE = """\
from common import *
import litserve
class Api(litserve.LitAPI):
    def setup(self, device):
        self.run = load()

    def decode_request(self, request):
        return read(request["inputs"][0])

    def batch(self, inputs):
        return np.concatenate(inputs)

    def predict(self, images):
        return self.run(images)

    def unbatch(self, output):
        return list(output[:, None])

    def encode_response(self, output):
        return {"outputs": [{"name": "probabilities", "data": output.ravel().tolist()}]}

if __name__ == "__main__":
    api = Api(max_batch_size=64, batch_timeout=0.001) if BATCH else Api()
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(port=PORT, log_level="error", generate_client_file=False)
"""

BENTOML = """\
from common import *
import bentoml
@bentoml.service(workers=1, http={"port": PORT}, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Service:
    def __init__(self):
        self.run = load()

    if BATCH:
        @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1000)
        def infer(self, inputs: list) -> list:
            rows = self.run(np.concatenate([read(tensor) for tensor in inputs]))
            return [{"name": "probabilities", "data": row.tolist()} for row in rows]
    else:
        @bentoml.api
        def infer(self, inputs: list) -> list:
            return [{"name": "probabilities", "data": self.run(read(tensor))[0].tolist()} for tensor in inputs]
"""


@dataclass
class Contender:
    """A server to be measured.

    Attributes:
        name: what the table calls it.
        command: starts it; `{port}` is where it must listen.
        paths: path of the requests.
        environment: variables of its process.
        binary: whether it takes binary tensors; else base64.
        listed: whether its answers are the list of outputs alone.
    """

    name: str
    command: list[str]
    path: str
    environment: dict[str, str]
    binary: bool = False
    listed: bool = False


def environment(peer: str, cache: Path) -> Path:
    """Return the folder of the programs of `peer`'s environment, made if it is not there.

    Raises:
        EdgecifarError: it cannot be installed.
    """
    folder = cache / peer
    programs = folder / "bin"
    done = folder / "installed"
    if not done.exists() or done.read_text() != PEERS[peer]:
        harness.say(f"Making an environment for {PEERS[peer]} in {folder} …")
        import onnxruntime

        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        packages = [PEERS[peer], f"onnxruntime=={onnxruntime.__version__}"]
        made = subprocess.run([programs / "python", "-m", "pip", "install", "-q", *packages], check=False)
        if made.returncode:
            raise EdgecifarError(f"{PEERS[peer]} cannot be installed: leave it out by naming the others with --peer.")
        done.write_text(PEERS[peer])
    return programs


def contenders(peers: Sequence[str], folder: Path, cache: Path, model: Path) -> Iterator[Contender]:
    """Yield each peer without and with batching; their code is written into `folder`."""
    (folder / "common.py").write_text(COMMON)
    for peer in peers:
        programs = environment(peer, cache)
        for batch in (False, True):
            name = f"{PEERS[peer]}{', batching' if batch else ''}"
            own = folder / f"{peer}{batch:d}"
            own.mkdir()
            paths = os.pathsep.join((str(programs), os.environ.get("PATH", "")))
            variables = {"MODEL": str(model), "BATCH": f"{batch:d}", "PYTHONPATH": f"{folder}", "PATH": paths}
            variables |= {"BENTOML_HOME": str(folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
            if peer == "mlserver":
                (own / "peer.py").write_text(MLSERVER)
                settings = {"name": "model", "implementation": "peer.Model"}
                settings |= {"max_batch_size": 64, "max_batch_time": 0.001} if batch else {}
                (own / "model-settings.json").write_text(json.dumps(settings))
                variables |= {"MLSERVER_PARALLEL_WORKERS": "0", "MLSERVER_DEBUG": "false"}
                variables |= {
                    "MLSERVER_METRICS_ENDPOINT": "",
                    "MLSERVER_HTTP_PORT": "{port}",
                    "MLSERVER_GRPC_PORT": "0",
                }
                variables["PYTHONPATH"] = f"{folder}{os.pathsep}{own}"
                yield Contender(name, [f"{programs}/mlserver", "start", str(own)], "/v2/models/model/infer", variables)
            elif peer == "litserve":
                (own / "peer.py").write_text(LITSERVE)
                yield Contender(name, [f"{programs}/python", f"{own}/peer.py"], "/predict", variables)
            else:
                (own / "peer.py").write_text(BENTOML)
                command = [f"{programs}/bentoml", "serve", "peer:Service", "--working-dir", str(own), "-p", "{port}"]
                yield Contender(name, command, "/infer", variables, listed=True)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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
    """Return the requests for `images`, uint8 [N, 32, 32, 3], one a picture, in JSON and binary."""
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


def measure(contender: Contender, requests: dict[str, list[Request]], options: Any, log: Path) -> list[dict[str, Any]]:
    """Return a row for each kind of request."""
    rows = []
    reader = {"read": read_list} if contender.listed else {}
    with started(contender, options.server_core, log, next(iter(requests.values()))[0]) as (port, pid, ready):
        for kind, made in requests.items():
            drive(port, made, min(1.0, options.seconds), options.connections, **reader)
            before, _ = used(pid)
            outcome = drive(port, made, options.seconds, options.connections, **reader)
            after, memory = used(pid)
            rows.append({"server": contender.name, "kind": kind, "ready_seconds": ready, "memory_mb": memory})
            rows[-1] |= {"cpu_microseconds": 1e6 * (after - before) / max(1, len(outcome.latencies))}
            rows[-1] |= outcome.figures()
            harness.say(line(rows[-1]))
    return rows


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    ms = row["milliseconds"]
    wrong = row["wrong"] + row["broken"] + sum(row["other_statuses"].values())
    return (
        f"{row['server']:<28} {row['kind']:<9} {row['requests_per_second']:>8,.0f} {ms.get('p50', 0):>8.2f} "
        f"{ms.get('p99', 0):>8.2f} {row['cpu_microseconds']:>8,.0f} {row['ready_seconds']:>7.2f} "
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
        "run = Classifier(sys.argv[1], sys.argv[2], 'cpu', 1).probabilities\n"
        "images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8); run(images)\n"
        "began, calls = time.perf_counter(), 0\n"
        "while time.perf_counter() - began < float(sys.argv[3]): run(images); calls += 1\n"
        "print(64 * calls / (time.perf_counter() - began))"
    )
    command = ["taskset", "-c", str(core), sys.executable, "-c", code, str(bundle.folder), variant, str(seconds)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def tell(rows: list[dict[str, Any]], alone: float, settings: dict[str, Any], save: Path | None) -> None:
    """Print the table, how many times as many requests as each peer, and one line of JSON; `alone`: images/s."""
    found = report.document("serving", settings, rows, in_process_images_per_second=alone)
    lines = [HEADER, *map(line, rows), ""]
    for kind in ("JSON", "binary"):
        ours = next(row for row in rows if row["kind"] == kind)
        for peer, version in PEERS.items():
            others = [row for row in rows if row["kind"] == kind and row["server"].startswith(version)]
            best = max(others, key=lambda row: row["requests_per_second"], default=None)
            if best and best["requests"]:
                times = ours["requests_per_second"] / best["requests_per_second"]
                p99 = ours["milliseconds"]["p99"] / best["milliseconds"]["p99"]
                found[f"{peer}_{kind}"] = {"requests_ratio": times, "p99_ratio": p99}
                lines.append(f"{kind}: {times:.2f} times the requests/s of {best['server']}, {p99:.2f} times its p99")
    many = next(row for row in rows if row["kind"] == MANY)
    share = PICTURES * many["requests_per_second"] / alone
    found["share_of_in_process"] = share
    lines.append(f"64 pictures a request: {100 * share:.0f} % of the {alone:,.0f} images/s in process")
    report.finish(found, "\n".join(lines), save)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="edgecifar serve against other servers.")
    parser.add_argument("--bundle", type=Path, help="by default the one installed")
    parser.add_argument("--variant", default="edge")
    parser.add_argument("--peer", action="append", choices=[*PEERS, "none"], help="may be repeated; default: all")
    parser.add_argument("--seconds", type=harness.positive(float), default=8.0, help="of each load")
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
    os.sched_setaffinity(0, {options.client_core})
    own = [sys.executable, "-m", "edgecifar.cli", "serve", "--port", "{port}", "--threads", "1", "--provider", "cpu"]
    own += ["--bundle", f"bench={bundle.folder}", "--variant", options.variant, "--drain", "0"]
    ours = Contender("edgecifar serve", own, f"/v2/models/bench-{options.variant}/infer", {}, binary=True)
    peers = [peer for peer in options.peer or PEERS if peer != "none"]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        harness.say(HEADER)
        rows += measure(ours, requests_of(ours, images, expected), options, folder / "log")
        many = [Request(ask_binary(ours.path, images), expected)]
        rows += measure(ours, {MANY: many}, options, folder / "log")
        for contender in contenders(peers, folder, options.cache, model):
            try:
                rows += measure(contender, requests_of(contender, images, expected), options, folder / "log")
            except EdgecifarError as error:
                harness.say(str(error))
    alone = in_process(bundle, options.variant, options.server_core, options.seconds)
    settings = {name: str(value) for name, value in vars(options).items()}
    tell(rows, alone, settings, options.save)


if __name__ == "__main__":
    harness.main(main)
