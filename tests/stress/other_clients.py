"""Clients that are not ours against a running server: the kserve SDK, and schemathesis on the OpenAPI document.

    python tests/stress/other_clients.py --examples 30

They want other versions of common packages than the project does, so that they have an environment of their own, which
is made under --cache the first time. (tritonclient is tested by tests/serve/test_process.py.) The exit code is 1 if an
answer of the SDK is not what the classifier gives in process, or schemathesis finds something.

Of schemathesis' checks one is left out, that every request of the right form is accepted: no schema can say which bytes
are a picture, or that two sizes agree.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from hostile_requests import TINY, start

from edgecifar.runtime import Classifier

PACKAGES = ("kserve==0.21.0", "schemathesis==4.32.5")

KSERVE = """\
import asyncio, sys
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

async def main(base, file):
    given = np.load(file)
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=30))
    assert await client.is_server_live(base)
    assert await client.is_server_ready(base)
    assert await client.is_model_ready(base, "tiny-edge")
    for binary in (False, True):
        tensor = InferInput("images", list(given["images"].shape), "UINT8")
        tensor.set_data_from_numpy(given["images"], binary_data=binary)
        request = InferRequest("tiny-edge", [tensor], request_id="42")
        answer = await client.infer(base, request, model_name="tiny-edge")
        assert (answer.id, answer.model_name) == ("42", "tiny-edge")
        found = {output.name: output.as_numpy() for output in answer.outputs}
        assert set(found) == {"probabilities", "logits"}
        assert np.array_equal(np.float32(found["probabilities"]), given["probabilities"]), binary
    await client.close()
    print("kserve: health, and infer in JSON and binary, as in process")

asyncio.run(main(*sys.argv[1:]))
"""


def environment(cache: Path) -> Path:
    """Return the folder of the programs of the clients' environment, made if it is not there."""
    folder, wanted = cache / "clients", "\n".join(PACKAGES)
    done = folder / "installed"
    if not done.exists() or done.read_text() != wanted:
        print(f"Making an environment for {', '.join(PACKAGES)} in {folder} …", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", *PACKAGES], check=True)
        done.write_text(wanted)
    return folder / "bin"


def main() -> int:
    """Run the clients; return the exit code."""
    parser = argparse.ArgumentParser(description="Other clients against edgecifar serve.")
    parser.add_argument("--examples", type=int, default=30, help="of each operation, for schemathesis")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "edgecifar" / "peers")
    options = parser.parse_args()
    programs = environment(options.cache)
    process, events, port = start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
            probabilities = Classifier(TINY, "edge", "cpu", 1).probabilities(images)
            np.savez(Path(folder) / "given.npz", images=images, probabilities=probabilities)
            command = [programs / "python", "-c", KSERVE, f"http://127.0.0.1:{port}", f"{folder}/given.npz"]
            codes = [subprocess.run(command, check=False).returncode]
            command = [programs / "schemathesis", "run", f"http://127.0.0.1:{port}/openapi.json", "--no-color"]
            command += ["--max-examples", str(options.examples), "--seed", "1"]
            command += ["--exclude-checks", "positive_data_acceptance"]
            codes.append(subprocess.run(command, check=False, cwd=folder).returncode)
    finally:
        process.terminate()
        codes.append(process.wait(30))
    failures = [event for event in events if "traceback" in event]
    for event in failures:
        print(event, file=sys.stderr)
    return bool(any(codes) or failures)


if __name__ == "__main__":
    sys.exit(main())
