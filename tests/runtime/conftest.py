"""What the tests of the runtime share: the tiny bundle, ways to change it, and pictures whose labels are known."""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgecifar.runtime.contract import CIFAR10
from edgecifar.runtime.providers import PROBE

CONTRACT = json.dumps(CIFAR10.as_json())
"""What the `Fake`'s models say of themselves."""

COLOURS = {
    "plane": (255, 255, 255),
    "car": (255, 0, 0),
    "bird": (0, 255, 255),
    "cat": (255, 128, 0),
    "deer": (0, 0, 0),
    "dog": (128, 128, 128),
    "frog": (0, 255, 0),
    "horse": (255, 0, 255),
    "ship": (0, 0, 255),
    "truck": (255, 255, 0),
}
"""The colour that the models of the tiny bundle take for each label, in label order."""


def seal(folder: Path) -> None:
    """Write SHA256SUMS anew over all files, as whoever makes a bundle would."""
    from edgecifar.runtime.folder import write_sums

    write_sums(folder)


@pytest.fixture
def never_read(monkeypatch) -> Callable[[Path], None]:
    """Make reading a file a failure: `never_read(path)`."""

    def forbid(path: Path) -> None:
        read = Path.read_bytes

        def guarded(wanted: Path) -> bytes:
            assert wanted != path
            return read(wanted)

        monkeypatch.setattr(Path, "read_bytes", guarded)

    return forbid


@pytest.fixture
def resealed(tiny_bundle) -> Callable[..., Path]:
    """Change files of the tiny bundle and make SHA256SUMS agree: `resealed(**{"README.md": b"..."})`.

    `manifest` is a function that changes the manifest's values in place.
    """

    def change(manifest: Callable[[dict], object] = lambda values: None, **contents: bytes) -> Path:
        path = tiny_bundle / "manifest.json"
        values = json.loads(path.read_text())
        manifest(values)
        path.write_text(json.dumps(values))
        for name, content in contents.items():
            (tiny_bundle / name).write_bytes(content)
        seal(tiny_bundle)
        return tiny_bundle

    return change


@pytest.fixture
def colours() -> dict[str, tuple[int, int, int]]:
    """Label: the colour, RGB, that the tiny bundle takes for it; in label order."""
    return COLOURS


@pytest.fixture
def images() -> np.ndarray:
    """uint8 [10, 32, 32, 3]: one picture a label, in label order, each of that label's colour."""
    return np.broadcast_to(np.array(list(COLOURS.values()), np.uint8)[:, None, None], (10, 32, 32, 3)).copy()


@pytest.fixture
def expected() -> np.ndarray:
    """float64 [10, 10]: the logits of `images`, by the definition: how far each colour is from all others, squared."""
    colour = np.array(list(COLOURS.values()), np.float64)  # [10, 3]
    return (2 * colour @ colour.T - (colour**2).sum(1)) / 4096


class Fake(types.SimpleNamespace):
    """An onnxruntime that has some providers, of which some fail to start, or start as others."""

    def __init__(
        self,
        available: list[str],
        fails: dict[str, Exception] | None = None,
        starts_as: str = "",
        probe_fails: bool = True,
        missing: str = "",
    ) -> None:
        self.tried: list[tuple[str, dict]] = []
        self.probed: list[str] = []
        self.runs: list[dict[str, str] | None] = []
        self.preloaded = 0
        self.options: list[Fake.SessionOptions] = []
        fails = fails or {}

        outer = self

        class InferenceSession:
            def __init__(self, model, options, providers, **others) -> None:
                assert len(providers) == 1
                (provider,) = providers
                name, settings = (provider, {}) if isinstance(provider, str) else provider
                if model == PROBE:
                    outer.probed.append(name)
                else:
                    outer.tried.append((name, {**others, **settings}))
                    outer.options.append(options)
                if name in fails and (probe_fails or model != PROBE):
                    raise fails[name]
                self.get_providers = lambda: [starts_as or name, "CPUExecutionProvider"]

            def run(self, names, given, options=None):
                outer.runs.append(options and options.entries)
                return [np.zeros((len(given["images"]), 10), np.float32) for _ in names]

            def get_inputs(self):
                return [types.SimpleNamespace(name="images", type="tensor(uint8)", shape=["batch", 32, 32, 3])]

            def get_modelmeta(self):
                return types.SimpleNamespace(custom_metadata_map={"io.github.edgecifar.contract": CONTRACT})

            def get_outputs(self):
                names = ("probabilities", "logits")
                return [types.SimpleNamespace(name=n, type="tensor(float)", shape=["batch", 10]) for n in names]

        def preload_dlls() -> None:
            self.preloaded += 1
            for library in missing.split():  # as onnxruntime's, on standard output
                print(f"Failed to load {library}: {library}: cannot open shared object file")  # noqa: T201

        super().__init__(
            InferenceSession=InferenceSession, get_available_providers=lambda: available, preload_dlls=preload_dlls
        )

    class SessionOptions:
        def __init__(self) -> None:
            self.entries: dict[str, str] = {}

        def add_run_config_entry(self, key: str, value: str) -> None:
            self.entries[key] = value

        def add_session_config_entry(self, key: str, value: str) -> None:
            self.entries[key] = value

    RunOptions = SessionOptions


@pytest.fixture
def fake(monkeypatch):
    """Put a `Fake` in onnxruntime's place: `fake(["CUDAExecutionProvider", "CPUExecutionProvider"], fails={...})`."""
    from edgecifar.runtime import bound, providers

    def install(*arguments, **options) -> Fake:
        made = Fake(*arguments, **options)
        for module in (providers, bound):
            monkeypatch.setattr(module, "import_onnxruntime", lambda: made)
        return made

    return install
