"""The servers that serving.py compares with: their environments, and the few lines of code that each is given."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import harness
import numpy as np

from edgecifar.runtime import EdgecifarError

PEERS = {"mlserver": "mlserver==1.7.1", "litserve": "litserve==0.2.19", "bentoml": "bentoml==1.4.40"}

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
        return np.frombuffer(base64.b64decode(tensor["data"][0]), np.uint8).reshape(SHAPE)
    return np.array(tensor["data"], np.uint8).reshape(tensor["shape"])

BATCH = os.environ["BATCH"] == "1"
SHAPE = [1, *map(int, os.environ["SHAPE"].split())]
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


FLOORS = {
    "uvicorn": """\
from answers import answers

async def app(scope, receive, send):
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    answer = answers[body]
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
""",
    "Starlette": """\
from answers import answers
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

async def infer(request):
    return Response(answers[await request.body()], media_type="application/json")

app = Starlette(routes=[Route("/infer", infer, methods=["POST"])])
""",
}
"""Servers without a model: they know the answer to each body beforehand. No server on uvicorn is quicker."""

ANSWERS = """\
import base64, json, os

with open(os.environ["ANSWERS"]) as file:
    answers = {base64.b64decode(body): answer.encode() for body, answer in json.load(file).items()}
"""


@dataclass
class Contender:
    """A server to be measured.

    Attributes:
        name: what the table calls it.
        command: starts it; `{port}` is where it must listen.
        path: of the requests.
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
    packages = [PEERS[peer], f"onnxruntime=={metadata.version('onnxruntime')}"]
    if not done.exists() or done.read_text() != " ".join(packages):
        harness.say(f"Making an environment for {PEERS[peer]} in {folder} …")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        made = subprocess.run([programs / "python", "-m", "pip", "install", "-q", *packages], check=False)
        if made.returncode:
            raise EdgecifarError(f"{PEERS[peer]} cannot be installed: leave it out by naming the others with --peer.")
        done.write_text(" ".join(packages))
    return programs


def floors(folder: Path, path: str, bodies: Sequence[bytes], expected: np.ndarray) -> Iterator[Contender]:
    """Yield what a request costs on uvicorn without a model, whose code is written into `folder`.

    Args:
        folder: for the code and the answers.
        path: of the requests.
        bodies: of the requests: those of all pictures in their order, once for each kind of request.
        expected: probabilities of the pictures, float32 [pictures, classes].
    """
    (folder / "answers.py").write_text(ANSWERS)
    known = {}
    for number, body in enumerate(bodies):
        row = expected[number % len(expected)]
        answer = {"outputs": [{"name": "probabilities", "shape": [1, len(row)], "data": row.tolist()}]}
        known[base64.b64encode(body).decode()] = json.dumps(answer)
    (folder / "answers.json").write_text(json.dumps(known))
    for name, code in FLOORS.items():
        own = folder / name
        own.mkdir()
        (own / "floor.py").write_text(code.replace("/infer", path))
        command = [sys.executable, "-m", "uvicorn", "floor:app", "--port", "{port}", "--log-level", "warning"]
        command += ["--no-access-log", "--lifespan", "off"]
        places = {"PYTHONPATH": f"{folder}{os.pathsep}{own}", "ANSWERS": str(folder / "answers.json")}
        yield Contender(f"{name}, no model", command, path, places, binary=True)


def contenders(peers: Sequence[str], folder: Path, cache: Path, variables: dict[str, str]) -> Iterator[Contender]:
    """Yield each peer without and with batching; their code is written into `folder`, and is given `variables`."""
    given = variables
    (folder / "common.py").write_text(COMMON)
    for peer in peers:
        programs = environment(peer, cache)
        for batch in (False, True):
            name = f"{PEERS[peer]}{', batching' if batch else ''}"
            own = folder / f"{peer}{batch:d}"
            own.mkdir()
            paths = os.pathsep.join((str(programs), os.environ.get("PATH", "")))
            variables = {**given, "BATCH": f"{batch:d}", "PYTHONPATH": f"{folder}", "PATH": paths}
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
