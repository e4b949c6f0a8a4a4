"""The models in service: every ONNX variant of each bundle, verified before it answers anything."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..runtime import choice
from ..runtime.bundle import Bundle
from ..runtime.errors import BundleError, EdgecifarError, InputError, ProviderError, VariantError
from ..runtime.session import check_threads
from . import protocol
from .batching import Batcher
from .errors import RequestError
from .metrics import Metrics, ModelMetrics
from .page import page_files
from .settings import Settings

if TYPE_CHECKING:
    from ..runtime.contract import Contract
    from ..runtime.manifest import Variant
    from ..runtime.session import Session

log = logging.getLogger("edgecifar.serve")

NAME = "[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}"
"""Regular expression of a bundle's name: it stands in URLs as it is."""

DEFAULT_NAME = "edgecifar"
"""The name of the bundle that is installed with the package."""

GPU_TOLERANCE = 0.05
"""Largest difference of a probability from the golden vectors on other providers than the CPU, for which they were
not made."""


@dataclass(frozen=True)
class Source:
    """Where the models come from.

    Attributes:
        bundles: the folder of each bundle by its name; None is the bundle that is installed with the package.
        variants: the names of those that are served; empty: every ONNX variant.
        provider: as `Classifier` takes it.
        threads: of one run on the CPU, as `Classifier` takes them.
        key: a public key; every bundle must be signed with its private key.
        wasm: the unpacked npm package with which the page for browsers is shown, see `page.page_files`; None: no page.
    """

    bundles: Mapping[str, Path | None]
    variants: tuple[str, ...] = ()
    provider: str = "auto"
    threads: int | None = None
    key: Path | None = None
    wasm: Path | None = None

    @classmethod
    def parse(cls, bundles: Sequence[str]) -> dict[str, Path | None]:
        """Return the bundles that `NAME=FOLDER` or `FOLDER` name; without a name it is the folder's.

        Raises:
            InputError: a name is not plain, comes twice, or has no folder.
        """
        found: dict[str, Path | None] = {}
        for text in bundles:
            name, equals, folder = text.partition("=")
            path = Path(folder if equals else text)
            name = name if equals else path.resolve().name
            if equals and not folder:  # as where a variable is unset; Path("") is the current folder
                raise InputError(f"The bundle {name} has no folder: name one with NAME=FOLDER.")
            if not re.fullmatch(NAME, name):
                raise InputError(
                    f"{name!r} cannot be the name of a model in a URL, which has letters, digits and . _ + - only: "
                    "name the bundle with NAME=FOLDER."
                )
            if name in found:
                raise InputError(f"Two bundles are called {name}: name them with NAME=FOLDER.")
            found[name] = path
        return found or {DEFAULT_NAME: None}


class Model:
    """One variant of a bundle, loaded, with the thread that runs it.

    Attributes:
        name: the bundle's name, a hyphen, and the variant's.
        bundle_name: of the bundle.
        version: the first digits of the SHA-256 of the bundle's manifest, which holds the digest of every model: it
            changes if and only if the bundle does.
        batcher: takes its requests once `start` was called.
        max_body: bytes that the body of a request of `infer` may have; likewise.
        reader: reads its requests; likewise.
    """

    batcher: Batcher
    max_body: int
    reader: protocol.Reader

    def __init__(self, bundle_name: str, bundle: Bundle, variant: Variant, session: Session) -> None:
        self.name, self.bundle_name = f"{bundle_name}-{variant.name}", bundle_name
        self.bundle, self.variant, self.session = bundle, variant, session
        self.contract: Contract = bundle.contract
        self.version = bundle.sums["manifest.json"][:12]
        self._leases = 0
        self._free = asyncio.Event()

    @property
    def threshold(self) -> float | None:
        """The familiarity below which a picture is unknown; None where the model cannot tell."""
        known = self.contract.familiarity_name is not None and self.variant.familiarity is not None
        return self.variant.familiarity.threshold if known and self.variant.familiarity else None

    def check(self) -> str:
        """Run the golden vectors, which also warms the model up; return what differs too much, "" where nothing does.

        Raises:
            BundleError: the golden vectors are damaged or have none of this variant.
        """
        images, expected = self.bundle.golden()
        if self.variant.name not in expected:
            raise BundleError(f"The golden vectors of {self.bundle.folder} have none of {self.variant.name}.")
        exact = self.session.provider == "cpu"
        tolerance = self.variant.golden_tolerance if exact else max(self.variant.golden_tolerance, GPU_TOLERANCE)
        difference = float(np.abs(self.session.outputs(images)[0] - expected[self.variant.name]).max(initial=0.0))
        return "" if difference <= tolerance else f"{difference:.1e}, more than {tolerance:.1e}"  # nan is refused too

    def start(self, metrics: Metrics, settings: Settings) -> None:
        """Start the thread; on the event loop."""
        counts = ModelMetrics(metrics, self.name, self.contract.labels, settings).know(self.threshold)
        self.max_body = min(settings.max_body, protocol.max_body(self.contract, settings.max_images))
        self.reader = protocol.Reader(self.contract, settings.max_images)
        # Nothing of this object is handed over: Python would have to look for that circle, which it seldom does, before
        # the memory of a model that was replaced is free.
        self.batcher = Batcher(self.session.outputs, self.name, settings, counts)

    @contextmanager
    def lease(self) -> Iterator[Model]:
        """Keep the model in service within the block, even when another takes its name meanwhile."""
        self.hold()
        try:
            yield self
        finally:
            self.release()

    def hold(self) -> None:
        """Keep the model in service until `release` is called as often."""
        self._leases += 1
        self._free.clear()

    def release(self) -> None:
        """End one `hold`."""
        self._leases -= 1
        if not self._leases:
            self._free.set()

    async def retire(self) -> None:
        """End the thread, if it was started, when the last lease has ended and all is answered."""
        while self._leases:
            await self._free.wait()
        if hasattr(self, "batcher"):
            await self.batcher.close()


class PageFile:
    """A file of the page.

    Attributes:
        content: of the file.
        tag: changes if and only if the content does.
    """

    def __init__(self, content: bytes) -> None:
        self.content, self.tag = content, f'"{sha256(content).hexdigest()[:16]}"'


class Registry:
    """The models in service by name.

    Attributes:
        models: each once, in order of the bundles and their manifests.
        default: the model that `POST /classify` uses: of the first bundle the variant that suits this machine.
        page: the files of the page that runs the default model in the browser, by their paths; empty: there is none.
    """

    def __init__(
        self, models: Sequence[Model], chosen: Mapping[str, Model], page: Mapping[str, bytes] | None = None
    ) -> None:
        """Hold `models`; `chosen` is the one of each bundle that answers to the bundle's own name.

        Raises:
            InputError: two models have the same name.
        """
        self.models = list(models)
        self.default = next(iter(chosen.values()))
        self.page = {name: PageFile(content) for name, content in (page or {}).items()}
        self._by_name = {model.name: model for model in models}
        if len(self._by_name) != len(self.models) or self._by_name.keys() & chosen.keys():
            raise InputError("Two models have the same name: name the bundles with NAME=FOLDER so that all differ.")
        self._by_name |= chosen

    @property
    def names(self) -> list[str]:
        """Every name that a model answers to."""
        return list(self._by_name)

    def find(self, name: str, version: str | None = None) -> Model:
        """Return the model called `name`.

        Raises:
            RequestError: 404, there is none, or none of that version.
        """
        model = self._by_name.get(name)
        if model is None:
            raise RequestError(404, f"There is no model called {name[:100]!r}: choose one of {', '.join(self.names)}.")
        if version not in (None, "", model.version):
            raise RequestError(
                404, f"The model {name} has no version {str(version)[:100]!r}: its version is {model.version}."
            )
        return model

    def start(self, metrics: Metrics, settings: Settings) -> None:
        """Start every model's thread; on the event loop."""
        for model in self.models:
            model.start(metrics, settings)

    async def retire(self) -> None:
        """End every model's thread once what was accepted is answered."""
        await asyncio.gather(*(model.retire() for model in self.models))


def load_registry(source: Source) -> Registry:
    """Load and verify all models of `source`; what is returned can serve.

    A bundle's digests, its signature where there is a key, and the golden vectors of each variant are checked. A
    variant that the provider cannot run is left out with a warning, unless it was asked for or no other is left.

    Raises:
        EdgecifarError: a bundle or a variant cannot be served, no bundle has a variant of that name, or there are too
            many threads; the message says why.
    """
    check_threads(source.threads)
    bundles = {name: Bundle.open(folder, key=source.key) for name, folder in source.bundles.items()}
    _check_variants(source, bundles.values())
    models: list[Model] = []
    chosen: dict[str, Model] = {}
    for name, bundle in bundles.items():
        found = [model for variant in _wanted(bundle, source) if (model := _load(name, bundle, variant, source))]
        if not found:
            raise ProviderError(
                f"No variant of {bundle.folder} runs on the provider {source.provider}: choose another with --provider."
            )
        best = choice.choose(bundle, found[0].session.provider)[0].name
        chosen[name] = next((model for model in found if model.variant.name == best), found[0])
        models += found
    shown = next(iter(chosen.values()))
    page = page_files(shown.bundle, wasm=source.wasm, variant=shown.variant.name) if source.wasm else None
    return Registry(models, chosen, page)


def _check_variants(source: Source, bundles: Iterable[Bundle]) -> None:
    """Refuse a variant that no bundle has; one that is lacking in some of them is served from the others."""
    has = dict.fromkeys(variant.name for bundle in bundles for variant in _servable(bundle))
    missing = [name for name in source.variants if name not in has]
    if missing:
        raise VariantError(
            f"No bundle has an ONNX variant called {missing[0]!r} to serve: choose from {', '.join(has) or 'none'}."
        )


def _servable(bundle: Bundle) -> list[Variant]:
    return [variant for variant in bundle.manifest.variants if variant.is_onnx]


def _wanted(bundle: Bundle, source: Source) -> list[Variant]:
    variants = _servable(bundle)
    wanted = [variant for variant in variants if not source.variants or variant.name in source.variants]
    if not wanted:
        has = ", ".join(variant.name for variant in variants) or "none"
        raise VariantError(f"{bundle.folder} has no such ONNX variant to serve: it has {has}.")
    return wanted


def _load(name: str, bundle: Bundle, variant: Variant, source: Source) -> Model | None:
    try:
        session = bundle.load(variant, provider=source.provider, threads=source.threads)
    except ProviderError as error:
        if source.variants:
            raise
        log.warning("%s", error, extra={"event": "left_out", "model": f"{name}-{variant.name}"})
        return None
    model = Model(name, bundle, variant, session)
    if wrong := model.check():
        raise BundleError(
            f"The golden vectors of {variant.name} in {bundle.folder} differ on this machine by {wrong}: run "
            f"'edgecifar verify {bundle.folder}', or leave it out by naming the others with --variant."
        )
    return model


__all__ = ["EdgecifarError", "Model", "Registry", "Source", "load_registry"]
