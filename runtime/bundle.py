"""Bundles: the folder that is copied to a device, and the checks that make it trustworthy."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .contract import Contract
from .errors import BundleError, EdgecifarError, VariantError, shown
from .folder import lies_in, listed, read, sums, unpack
from .manifest import CARD, GOLDEN, GOLDEN_PICTURES, MANIFEST, PARITY, SUMS, Manifest, Variant
from .session import Session
from .signing import SIGNATURE, Verifier

if TYPE_CHECKING:
    from .golden import GoldenPicture

DEFAULT = Path(__file__).parent / "default_bundle"
"""The bundle that is installed with the package."""


FAMILIARITY_TOLERANCE = 20
"""So many times a variant's golden tolerance may a familiarity differ: it is in the unit of logits, not 0 to 1."""


@dataclass(frozen=True)
class Check:
    """One line of `Bundle.verify`.

    Attributes:
        name: what was checked.
        passed: whether it holds, or was not checked.
        detail: the figure or the reason.
        skipped: whether it was not checked.
    """

    name: str
    passed: bool
    detail: str
    skipped: bool = False


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

    def __repr__(self) -> str:
        variants = ", ".join(variant.name for variant in self.manifest.variants)
        return f"<Bundle {str(self.folder)!r}: {self.manifest.dataset}, {self.contract.classes} classes, {variants}>"

    @property
    def contract(self) -> Contract:
        """Labels, input, outputs, and how a picture becomes the input."""
        return self.manifest.contract

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
        if not lies_in(path, MANIFEST):
            raise BundleError(
                "No bundle is installed with edgecifar: name one that 'edgecifar export' made."
                if folder is None
                else f"{path} is not a bundle ({MANIFEST} is missing): name a folder that 'edgecifar export' made."
            )
        follow = _is_installed(path)
        content = read(path, MANIFEST, follow)
        try:
            text = content.decode()
        except UnicodeDecodeError:
            raise BundleError(f"{path / MANIFEST} is damaged (not UTF-8): copy the bundle again.") from None
        bundle = cls(path, Manifest.parse(text, path / MANIFEST), sums(path, follow))
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
        content = self._match(variant.file, self._read(variant.file))
        if len(content) != variant.bytes or self.sums[variant.file] != variant.sha256:
            raise BundleError(f"{self.folder / variant.file} is not what {MANIFEST} names: copy the bundle again.")
        return content

    def file(self, name: str) -> bytes:
        """Return the content of a file of the bundle, its digest checked.

        Raises:
            BundleError: it is missing, or not what was exported.
        """
        return self._match(name, self._read(name))

    def load(self, variant: Variant, provider: str = "auto", threads: int | None = None) -> Session:
        """Return a session of `variant`, an ONNX one; see `Session` for the arguments and what is raised.

        Raises:
            VariantError: its format needs torch.
        """
        if not variant.is_onnx:
            raise VariantError(
                f"The variant {variant.name} is {variant.format}, which needs torch: choose an ONNX one, or run "
                f"'edgecifar evaluate {self.folder / variant.file}' where torch is installed."
            )
        return Session(
            self.read(variant),
            contract=self.contract,
            provider=provider,
            threads=threads,
            name=str(self.folder / variant.file),
        )

    def golden(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the golden images, uint8 [N, size, size, 3], and each variant's probabilities, float32 [N, classes].

        Raises:
            BundleError: golden.npz is missing or damaged.
        """
        images, probabilities, _ = self._golden()
        return images, probabilities

    def golden_familiarity(self) -> dict[str, np.ndarray]:
        """Return each variant's familiarity of the golden images, float32 [N], where golden.npz has them.

        Raises:
            BundleError: golden.npz is missing or damaged.
        """
        return self._golden()[2]

    def _golden(self) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
        content = self._match(GOLDEN, self._read(GOLDEN))
        try:
            arrays = unpack(content)
            images = arrays.pop(self.contract.input_name)
            self.contract.check_images(images)
            prefix = f"{self.contract.familiarity_name}/"
            scores = {key.removeprefix(prefix): arrays.pop(key) for key in [*arrays] if key.startswith(prefix)}
            expected = np.float32, (len(images) or 1, self.contract.classes)
            if any((array.dtype, array.shape) != expected for array in arrays.values()) or any(
                (array.dtype, array.shape) != (np.float32, (len(images) or 1,)) for array in scores.values()
            ):
                raise ValueError("its arrays are not those of images and what the models say of them")
        except Exception as error:  # zipfile, zlib and numpy meet hostile bytes with nearly every built-in exception
            raise BundleError(f"{self.folder / GOLDEN} is damaged ({error}): copy the bundle again.") from None
        return images, arrays, scores

    def golden_pictures(self) -> tuple[GoldenPicture, ...]:
        """Return what golden.json says of the golden pictures, none in a bundle of schema 1.

        Raises:
            BundleError: golden.json is missing or damaged.
        """
        from . import golden  # not needed to classify

        if self.manifest.schema == 1:
            return ()
        content = self._match(GOLDEN_PICTURES, self._read(GOLDEN_PICTURES))
        try:
            return golden.parse(content.decode(), self.contract)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
            raise BundleError(f"{self.folder / GOLDEN_PICTURES} is damaged ({error}): copy the bundle again.") from None

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
        files |= {GOLDEN_PICTURES} if self.manifest.schema > 1 else set()

        def measure(name: str) -> str:
            file = self.read(models[name]) if name in models else self._match(name, self._read(name))
            return f"{len(file):,} bytes"

        for name in sorted(files):
            checks.append(_attempt(name, lambda name=name: measure(name)))
        for name in sorted(listed(self.folder) - files - {SUMS, SIGNATURE}):
            checks.append(Check(shown(name), False, f"is in the folder but not in {SUMS}: remove it"))
        return checks + self._golden_checks()

    def _golden_checks(self) -> list[Check]:
        """Check that pictures are read here as where the bundle was made, and that the models say the same."""
        checks: list[Check] = []
        try:
            pictures = self.golden_pictures()
        except EdgecifarError as error:
            pictures = ()
            checks.append(Check("golden pictures", False, str(error)))
        for picture in pictures:
            checks.append(_attempt(f"preprocessing of {picture.file}", lambda p=picture: self._reread(p)))
        for variant in self.manifest.variants:
            name = f"golden vectors of {variant.name}"
            if variant.is_onnx:
                checks.append(_attempt(name, lambda v=variant: self._reproduce(v, pictures)))
            else:
                why = (
                    f"not run: {variant.format} needs torch; 'edgecifar evaluate {self.folder / variant.file}' runs it"
                )
                checks.append(Check(name, True, why, skipped=True))
        return checks

    def _reread(self, picture: GoldenPicture) -> str:
        """Read a golden picture as any other, and hold the array against the one in golden.json."""
        from .pictures import load_picture

        content = self._match(picture.file, self._read(picture.file))
        array = load_picture(content, self.contract, name=picture.file)
        difference = int(np.abs(array.astype(int) - picture.array).max())
        if difference > picture.tolerance:
            raise BundleError(
                f"is decoded differently here: values differ by up to {difference} of 255, more than "
                f"{picture.tolerance}; install the versions that edgecifar's constraints.txt names"
            )
        return f"largest difference {difference} of 255"

    def _reproduce(self, variant: Variant, pictures: tuple[GoldenPicture, ...]) -> str:
        images, expected, stored = self._golden()
        if variant.name not in expected or any(variant.name not in picture.probabilities for picture in pictures):
            raise BundleError(f"{GOLDEN} or {GOLDEN_PICTURES} holds nothing for it")
        images = np.concatenate([images, *(picture.array[None] for picture in pictures)])
        rows = [expected[variant.name], *(picture.probabilities[variant.name][None] for picture in pictures)]
        read_by = [picture.familiarity for picture in pictures]
        wanted = [
            *stored.get(variant.name, np.empty(0, np.float32)),
            *(scores[variant.name] for scores in read_by if variant.name in scores),
        ]
        found, scores = self.load(variant, "cpu").scores(images)
        difference = np.abs(found - np.concatenate(rows)).max()
        if not difference <= variant.golden_tolerance:  # not: nan fails too
            worse = f"more than {variant.golden_tolerance:.0e}"
            raise BundleError(f"differ by {difference:.2e}, {worse} on this machine")
        said = f"{len(images)} images, largest difference {difference:.1e}"
        if scores is None:
            return said
        if not wanted:
            return f"{said}; of the familiarity nothing is stored, and it was not checked"
        if len(wanted) != len(scores):
            raise BundleError(f"lack familiarities: {GOLDEN} and {GOLDEN_PICTURES} hold {len(wanted)} of {len(scores)}")
        difference = np.abs(scores - wanted).max()
        tolerance = FAMILIARITY_TOLERANCE * variant.golden_tolerance
        if not difference <= tolerance:
            raise BundleError(f"have familiarities that differ by {difference:.2e}, more than {tolerance:.0e}")
        return f"{said}; of the familiarity {difference:.1e}"

    def _unchanged(self) -> str:
        if sums(self.folder, _is_installed(self.folder)) != self.sums:
            raise BundleError(f"{self.folder / SUMS} has changed since the bundle was opened: open it again.")
        return f"{len(self.sums) - 1} files"

    def _signature(self, verifier: Verifier | None) -> str:
        """Hold the signature against `sums`, and say of whom it is; without a verifier, that it is there."""
        path = self.folder / SIGNATURE
        if not os.path.lexists(path):
            raise BundleError(f"{self.folder} is not signed ({SIGNATURE} is missing): get a signed copy of it.")
        self._read(SIGNATURE)  # refuses links and what is too large
        if verifier is None:
            return "signed, not checked: pass --key"
        verifier.check(path, self.sums)
        return f"made with the private key of {verifier.key} over {len(self.sums)} files"

    def _read(self, name: str) -> bytes:
        return read(self.folder, name, _is_installed(self.folder))

    def _match(self, name: str, content: bytes) -> bytes:
        """Return `content` if it is what SHA256SUMS says of `name`."""
        digest = self.sums.get(name)
        if digest != sha256(content).hexdigest():
            reason = f"is not what {SUMS} names" if digest else f"is not named in {SUMS}"
            raise BundleError(f"{self.folder / name} {reason}: copy the bundle again.")
        return content


def _is_installed(folder: Path) -> bool:
    """Whether `folder` is the installed bundle: who can put a link there, as installers do, can change the program."""
    return os.path.realpath(folder) == os.path.realpath(DEFAULT)


def _attempt(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except EdgecifarError as error:
        return Check(name, False, str(error))
