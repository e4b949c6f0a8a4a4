"""Bundles: the folder that is copied to a device, its manifest, and the checks that make it trustworthy."""

from __future__ import annotations

import io
import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from . import machine
from .contract import INPUT_NAME, LABELS, LOGITS, PROBABILITIES, SIDE
from .errors import BundleError, EdgecifarError, VariantError
from .session import Session, check_images
from .signing import LARGEST as LARGEST_SIGNATURE
from .signing import SIGNATURE, Verifier

SCHEMA = 1
"""Version of the manifest's layout; a reader refuses those it does not know."""

MANIFEST, GOLDEN, PARITY, CARD, SUMS = "manifest.json", "golden.npz", "parity.json", "README.md", "SHA256SUMS"
BOM = "bom.cdx.json"
"""The bill of materials. A bundle may lack it: the runtime reads it for its digest alone."""

MODELS = {"onnx": ".onnx", "torchscript": ".torchscript.pt", "pt2": ".pt2"}
"""Formats that a variant can have, and how its file's name ends."""

LARGEST_MODEL = 1 << 30
"""Bytes above which no model of a bundle is read."""

LARGEST = 1 << 24
"""Bytes above which no other file of a bundle is read: the JSON in one can take 20 times its size in memory."""

DEEPEST = 32
"""How deeply a manifest may be nested: whatever walks through it must not run out of stack."""

PLAIN = "[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}"
"""Regular expression of the names that files and variants may have: safe on every disk, terminal and command line."""

DEFAULT = Path(__file__).parent / "default_bundle"
"""The bundle that is installed with the package."""

CONTRACT: dict[str, Any] = {
    "input": {
        "name": INPUT_NAME,
        "dtype": "uint8",
        "shape": ["batch", SIDE, SIDE, 3],
        "layout": "NHWC",
        "colour": "RGB",
        "range": [0, 255],
    },
    "outputs": [
        {"name": PROBABILITIES, "dtype": "float32", "shape": ["batch", len(LABELS)]},
        {"name": LOGITS, "dtype": "float32", "shape": ["batch", len(LABELS)]},
    ],
}


@dataclass(frozen=True)
class Variant:
    """One model file of a bundle.

    Attributes:
        name: what it is asked for by, such as "fp32".
        file: its name in the bundle's folder.
        format: "onnx", "torchscript" or "pt2".
        precision: of its weights and arithmetic, such as "fp32" or "int8".
        bytes: the file's size.
        sha256: the file's digest.
        accuracy: share of the test images classified correctly, 0 to 1; None where they were not at hand.
        parity: how it agrees with the net it was made from: arg-maxes, largest differences, on what.
        made_by: how it was made, in a sentence.
        needs: the features of a processor, as Linux names them, of which it needs one to give these results, such as
            "avx_vnni|avx512_vnni|asimddp"; "any" where every processor does.
        golden_tolerance: largest difference of a probability from golden.npz that `verify` accepts.
    """

    name: str
    file: str
    format: str
    precision: str
    bytes: int
    sha256: str
    accuracy: float | None
    parity: dict[str, Any]
    made_by: str
    needs: str = "any"
    golden_tolerance: float = 1e-4

    def lacks(self) -> str:
        """Return what it needs and this processor lacks, or cannot be known to have, in words; "" where nothing."""
        if self.needs == "any":
            return ""
        wanted, (_, features) = self.needs.split("|"), machine.cpu_info()
        if not features.isdisjoint(wanted):
            return ""
        return f"{' or '.join(wanted)}, which {'this processor lacks' if features else 'this system does not tell of'}"


@dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json.

    Attributes:
        labels: the classes in the order of the outputs.
        variants: the models, the most exact first.
        default_variant: the name of the one to use unless told otherwise.
        dataset: what the net was trained on; anything but "CIFAR-10" is said wherever results are shown.
        provenance: recipe, seed, versions, the checkpoint's digest, dates.
        contract: names, dtypes, shapes and order of the inputs and outputs.
        schema: version of this layout.
    """

    labels: tuple[str, ...]
    variants: tuple[Variant, ...]
    default_variant: str
    dataset: str
    provenance: dict[str, Any]
    contract: dict[str, Any] = field(default_factory=lambda: CONTRACT)
    schema: int = SCHEMA

    def as_json(self) -> str:
        """Return the text of manifest.json."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def parse(cls, text: str, source: Path) -> Manifest:
        """Read manifest.json's text, strictly.

        Raises:
            BundleError: it is not JSON, of an unknown schema, or a field is missing, unknown or of another type.
        """
        try:
            values = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
            if not isinstance(values, dict) or not isinstance(values.get("schema"), int):
                raise ValueError("it names no schema")
            if values["schema"] != SCHEMA:
                raise BundleError(
                    f"{source} has schema {values['schema']}, this version of edgecifar reads {SCHEMA}: export the "
                    "bundle again, or install the version of edgecifar that made it."
                )
            shown = json.dumps(values, ensure_ascii=False)
            if not shown.isprintable() or "\\u00" in shown:  # what is printed must not steer a terminal
                raise ValueError("it holds characters that cannot be shown")
            if _depth(values) > DEEPEST:
                raise ValueError(f"it is nested more than {DEEPEST} deep")
            for name in ("labels", "variants"):
                if not isinstance(values.get(name), list):
                    raise ValueError(f"{name!r} is missing or not a list")
            variants = tuple(_build(Variant, entry) for entry in values["variants"])
            manifest = _build(cls, {**values, "labels": tuple(values["labels"]), "variants": variants})
            _check(manifest)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{source} is damaged ({error}): copy the bundle again.") from None
        return manifest


def _depth(value: Any) -> int:
    """Return how deeply lists and objects are nested in a JSON value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make the dictionary of a JSON object in which no name comes twice: readers differ in which one they take."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name comes twice in an object")
    return values


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "dict[str, Any]": (dict,),
    "tuple[str, ...]": (tuple,),
    "tuple[Variant, ...]": (tuple,),
}


def _build(kind: Any, values: Any) -> Any:
    """Make the dataclass `kind` of a JSON object that has exactly its fields, each of its type."""
    if not isinstance(values, dict):
        raise ValueError(f"an object was expected for {kind.__name__.lower()}")
    known = {entry.name: entry for entry in fields(kind)}
    if different := known.keys() ^ values.keys():
        raise ValueError(f"{sorted(different)[0]!r} is {'unknown' if sorted(different)[0] in values else 'missing'}")
    for name, value in values.items():
        if not isinstance(value, _TYPES[str(known[name].type)]) or isinstance(value, bool):
            raise ValueError(f"{name!r} is a {type(value).__name__}")
    return kind(**values)


def _check(manifest: Manifest) -> None:
    if manifest.labels != LABELS or manifest.contract != CONTRACT:
        raise ValueError("its labels or its input contract are not those of this project")
    names = [variant.name for variant in manifest.variants]
    models = {variant.file for variant in manifest.variants}
    if not len(set(names)) == len(models) == len(names) or manifest.default_variant not in names:
        raise ValueError("its variants' names or files are not unique, or the default is not among them")
    for variant in manifest.variants:
        for name in (variant.name, variant.file):
            if not re.fullmatch(PLAIN, name):
                raise ValueError(f"{name!r} is not a plain name")
        if variant.format not in MODELS or not variant.file.endswith(MODELS[variant.format]):
            raise ValueError(f"variant {variant.name!r} has an unknown format")
        if not 0 <= (variant.accuracy or 0) <= 1 or not 0 < variant.golden_tolerance < 1:  # also fails for nan
            raise ValueError(f"variant {variant.name!r} has an accuracy or a tolerance that is not between 0 and 1")
        if not re.fullmatch(r"[a-z0-9_]+(\|[a-z0-9_]+)*", variant.needs):
            raise ValueError(f"variant {variant.name!r} needs what no processor has")


@dataclass(frozen=True)
class Check:
    """One line of `Bundle.verify`: what was checked, whether it holds, and the figure or the reason."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Bundle:
    """A bundle on the disk, its manifest read and checked; the models are checked when they are read.

    Attributes:
        folder: where it is.
        manifest: what manifest.json says.
        sums: the SHA-256 of each of its files, SHA256SUMS included, as it was when the bundle was opened; nothing else
            is taken for one of them later. The signature alone, where there is one, has none.
    """

    folder: Path
    manifest: Manifest
    sums: dict[str, str]

    @classmethod
    def open(cls, folder: str | Path | None = None, key: str | Path | None = None) -> Bundle:
        """Open the bundle in `folder`, by default the one that is installed with the package.

        Args:
            folder: the bundle's.
            key: a public key, PEM; the bundle must be signed with its private key. All that is read of the bundle from
                then on is held against what was signed.

        Raises:
            BundleError: it is missing, damaged, of an unknown schema, its manifest is not the one that was written, or
                it is not signed with that key.
            SigningError: the key cannot be used, or what checks signatures is not installed.
        """
        verifier = None if key is None else Verifier(key)
        path = DEFAULT if folder is None else Path(folder)
        if not os.path.lexists(path / MANIFEST):
            raise BundleError(
                "No bundle is installed with edgecifar: name one that 'edgecifar export' made."
                if folder is None
                else f"{path} is not a bundle ({MANIFEST} is missing): name a folder that 'edgecifar export' made."
            )
        content = _read(path, MANIFEST)
        try:
            text = content.decode()
        except UnicodeDecodeError:
            raise BundleError(f"{path / MANIFEST} is damaged (not UTF-8): copy the bundle again.") from None
        bundle = cls(path, Manifest.parse(text, path / MANIFEST), _sums(path))
        bundle._match(MANIFEST, content)
        if verifier:
            bundle._signature(verifier)
        return bundle

    def variant(self, name: str | None = None) -> Variant:
        """Return the variant called `name`, by default the bundle's own choice.

        Raises:
            VariantError: there is none of that name.
        """
        wanted = name or self.manifest.default_variant
        for variant in self.manifest.variants:
            if variant.name == wanted:
                return variant
        names = ", ".join(variant.name for variant in self.manifest.variants)
        raise VariantError(f"{self.folder} has no variant called {wanted}: choose one of {names}.")

    def read(self, variant: Variant) -> bytes:
        """Return the model file of `variant`, its digest checked against the manifest and SHA256SUMS.

        Raises:
            BundleError: it is missing, or not what was exported.
        """
        content = self._match(variant.file, _read(self.folder, variant.file))
        if len(content) != variant.bytes or self.sums[variant.file] != variant.sha256:
            raise BundleError(f"{self.folder / variant.file} is not what {MANIFEST} names: copy the bundle again.")
        return content

    def load(self, variant: Variant, provider: str = "auto", threads: int | None = None) -> Session:
        """Return a session of `variant`, an ONNX one; see `Session` for the arguments and what is raised.

        Raises:
            VariantError: its format needs torch.
        """
        if variant.format != "onnx":
            raise VariantError(
                f"The variant {variant.name} is {variant.format}, which needs torch: choose an ONNX one, or run "
                f"'edgecifar evaluate {self.folder / variant.file}' where torch is installed."
            )
        return Session(self.read(variant), provider, threads, name=str(self.folder / variant.file))

    def golden(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the golden images, uint8 [N, 32, 32, 3], and each variant's probabilities, float32 [N, 10].

        Raises:
            BundleError: golden.npz is missing or damaged.
        """
        content = self._match(GOLDEN, _read(self.folder, GOLDEN))
        try:
            arrays = _unpack(content)
            images = arrays.pop(INPUT_NAME)
            check_images(images)
            expected = np.float32, (len(images) or 1, len(LABELS))
            if any((array.dtype, array.shape) != expected for array in arrays.values()):
                raise ValueError("its arrays are not those of images and their probabilities")
        except Exception as error:  # zipfile, zlib and numpy meet hostile bytes with nearly every built-in exception
            raise BundleError(f"{self.folder / GOLDEN} is damaged ({error}): copy the bundle again.") from None
        return images, arrays

    def verify(self, key: str | Path | None = None) -> list[Check]:
        """Check every file's digest, that no file is unknown, and that each variant gives its golden vectors here.

        Args:
            key: a public key, PEM; that the bundle is signed with its private key is checked before any model is run.

        Returns:
            One `Check` a promise; all of them hold in an intact bundle. Damage is never raised.

        Raises:
            SigningError: the key cannot be used, or what checks signatures is not installed.
        """
        verifier = None if key is None else Verifier(key)
        checks = [
            _attempt("manifest", lambda: f"schema {Bundle.open(self.folder).manifest.schema}"),
            _attempt(SUMS, self._unchanged),
        ]
        if not checks[-1].passed:
            return checks  # no file can be held against it
        if verifier or os.path.lexists(self.folder / SIGNATURE):
            checks.append(_attempt(SIGNATURE, lambda: self._signature(verifier)))
            if verifier and not checks[-1].passed:
                return checks  # the files are of who knows whom: none is used
        models = {variant.file: variant for variant in self.manifest.variants}
        files = {MANIFEST, GOLDEN, PARITY, CARD, *models, *self.sums} - {SUMS}

        def measure(name: str) -> str:
            file = self.read(models[name]) if name in models else self._match(name, _read(self.folder, name))
            return f"{len(file):,} bytes"

        for name in sorted(files):
            checks.append(_attempt(name, lambda name=name: measure(name)))
        for name in sorted(set(os.listdir(self.folder)) - files - {SUMS, SIGNATURE}):
            shown = name if name.isprintable() else ascii(name)
            checks.append(Check(shown, False, f"is in the folder but not in {SUMS}: remove it"))
        for variant in self.manifest.variants:
            if variant.format == "onnx":
                checks.append(_attempt(f"golden vectors of {variant.name}", lambda v=variant: self._reproduce(v)))
        return checks

    def _reproduce(self, variant: Variant) -> str:
        images, expected = self.golden()
        if variant.name not in expected:
            raise BundleError(f"{GOLDEN} holds nothing for it")
        difference = np.abs(self.load(variant, "cpu").probabilities(images) - expected[variant.name]).max()
        lacking = variant.lacks()
        note = f"; it needs {lacking}" if lacking else ""
        if not difference <= variant.golden_tolerance:  # not: nan fails too
            worse = f"more than {variant.golden_tolerance:.0e}"
            raise BundleError(f"differ by {difference:.2e}, {worse} on this machine{note}")
        return f"{len(images)} images, largest difference {difference:.1e}{note}"

    def _unchanged(self) -> str:
        if _sums(self.folder) != self.sums:
            raise BundleError(f"{self.folder / SUMS} has changed since the bundle was opened: open it again.")
        return f"{len(self.sums) - 1} files"

    def _signature(self, verifier: Verifier | None) -> str:
        """Hold the signature against `sums`, and say of whom it is; without a verifier, that it is there."""
        path = self.folder / SIGNATURE
        if not os.path.lexists(path):
            raise BundleError(f"{self.folder} is not signed ({SIGNATURE} is missing): get it from whoever signed it.")
        _read(self.folder, SIGNATURE)  # refuses links and what is too large
        if verifier is None:
            return "signed, not checked: pass --key"
        verifier.check(path, self.sums)
        return f"made with the private key of {verifier.key} over {len(self.sums)} files"

    def _match(self, name: str, content: bytes) -> bytes:
        """Return `content` if it is what SHA256SUMS says of `name`."""
        digest = self.sums.get(name)
        if digest != sha256(content).hexdigest():
            reason = f"is not what {SUMS} names" if digest else f"is not named in {SUMS}"
            raise BundleError(f"{self.folder / name} {reason}: copy the bundle again.")
        return content


def _attempt(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except EdgecifarError as error:
        return Check(name, False, str(error))


def _unpack(content: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file's content, at most `LARGEST` bytes of them.

    Unlike `np.load`, this takes no memory on the word of an array's header, and never knows how to unpickle.
    """
    import zipfile  # not needed to classify

    arrays = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
            raise ValueError(f"it unpacks to more than {LARGEST:,} bytes")
        for entry in archive.infolist():
            file = io.BytesIO(archive.read(entry))
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("its arrays are of an unknown version")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            arrays[entry.filename.removesuffix(".npy")] = np.frombuffer(file.read(), dtype).reshape(shape)
    return arrays


def _sums(folder: Path) -> dict[str, str]:
    """Return the digest that SHA256SUMS has of each file, and its own."""
    content = _read(folder, SUMS)
    text = content.decode(errors="replace")
    sums = {name: digest for digest, name in re.findall(f"([0-9a-f]{{64}})  ({PLAIN})\n", text)}
    written = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    if written.encode() != content or sums.keys() & {SUMS, SIGNATURE}:  # which cannot hold their own digests
        raise BundleError(f"{folder / SUMS} is damaged: copy the bundle again.")
    return {**sums, SUMS: sha256(content).hexdigest()}


def _read(folder: Path, name: str) -> bytes:
    """Return a file of a bundle; links, folders, devices and files that are too large are refused unopened."""
    path = folder / name
    limit = LARGEST_MODEL if name.endswith(tuple(MODELS.values())) else LARGEST
    limit = LARGEST_SIGNATURE if name == SIGNATURE else limit
    if not re.fullmatch(PLAIN, name):
        raise BundleError(f"{name!r} is not the name of a file in {folder}: copy the bundle again.")
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            kind = "a link" if stat.S_ISLNK(found.st_mode) else "not a file"
            raise BundleError(f"{path} is {kind}: copy the bundle again, whole.")
        if found.st_size > limit:
            raise BundleError(f"{path} is larger than {limit:,} bytes: this is no bundle of edgecifar.")
        return path.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{path} is missing: copy the bundle again, whole.") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}): copy the bundle again.") from None
