"""Signatures over bundles by a key pair, made and checked by OpenSSF's model-signing: offline, no authority, no log.

The package belongs to the extra `sign` and is imported where a key is named: who asks for no signature needs neither
it nor the second that its import takes. The format is a Sigstore bundle with an in-toto statement that names each file
and its SHA-256; `model_signing verify key` reads it too.
"""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from .errors import BundleError, SigningError, shown
from .files import sha256, write_file

SIGNATURE = "model.sig"
"""The signature's name in a bundle. It is made over all digests, so it is the one file that has none itself."""

MAX_SIGNATURE_BYTES = 1 << 20
"""Bytes above which no signature is read; one over ten files has 4,000."""

MAX_KEY_BYTES = 1 << 16
"""Bytes above which no file is taken for a key."""

CURVES = "P-256, P-384 or P-521"

_Used = TypeVar("_Used")


class Signer:
    """A private key that signs bundles."""

    def __init__(self, key: str | Path) -> None:
        """Read the private key: PEM, of an elliptic curve, without a password.

        Raises:
            SigningError: it cannot be used, or model-signing is not installed.
        """
        signing = _package().signing
        self._config = _use(
            Path(key),
            lambda path: signing.Config().use_elliptic_key_signer(private_key=path),
            f"a private key of the curve {CURVES} in PEM: make one with 'openssl ecparam -name prime256v1 -genkey "
            "-noout -out KEY'",
        )

    def sign(self, folder: Path, name: str) -> None:
        """Sign every file in `folder`, a complete bundle that will be called `name`, and put the signature beside them.

        Raises:
            OutputError: it cannot be written.
        """
        digests = {path.name: sha256(path) for path in folder.iterdir()}
        config = self._config.set_hashing_config(_Digests(digests, name))
        write_file(folder / SIGNATURE, lambda path: config.sign(folder, path))


class Verifier:
    """A public key that tells whether its private key signed a bundle."""

    def __init__(self, key: str | Path) -> None:
        """Read the public key, PEM, of an elliptic curve.

        Raises:
            SigningError: it cannot be used, or model-signing is not installed.
        """
        verifying = _package().verifying
        self.key = Path(key)
        self._config = _use(
            self.key,
            lambda path: verifying.Config().use_elliptic_key_verifier(public_key=path),
            f"a public key of the curve {CURVES} in PEM: take what 'openssl ec -in KEY -pubout -out PUB' writes of the "
            "key that signed",
        )

    def check(self, signature: Path, digests: dict[str, str]) -> None:
        """Make sure that the file `signature` was made with the key, over exactly these files.

        What is held against it are `digests`, SHA-256 in hexadecimal by name: whoever then uses only bytes with these
        digests uses what was signed, whatever happens to the folder meanwhile. No file may be missing or left over,
        whatever the signature says should be ignored.

        Raises:
            BundleError: the signature is damaged, of another key, or over other files.
        """
        asked = _Digests(digests)
        signed: dict[str, str] = {}
        try:
            document = json.loads(signature.read_bytes())
            if not document["verificationMaterial"]["publicKey"]["hint"]:
                raise ValueError("it does not say which key made it")  # model-signing would print a warning, and go on
            statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
            signed = {str(entry["name"]): str(entry["digest"]) for entry in statement["predicate"]["resources"]}
            self._config.set_hashing_config(asked).verify(signature.parent, signature)
        except Exception:  # its parsers meet hostile bytes with nearly every kind
            if not asked.used:
                raise BundleError(
                    f"{signature} was not made with the private key of {self.key}, or is damaged: get the bundle again "
                    "from whoever signed it."
                ) from None
            different = sorted(name for name in signed.keys() | digests if signed.get(name) != digests.get(name))
            raise BundleError(
                f"{signature} does not match these files ({', '.join(map(shown, different))}): get the bundle again "
                "from whoever signed it."
            ) from None


class _Digests:
    """Digests that are known already, for model-signing in place of its `hashing.Config`, which hashes a folder.

    So it is what a bundle says of its files that is signed and checked, not what a second look at the disk finds.
    Ignore lists inside a signature are disregarded. It is no subclass: what is not here must fail, not fall back.
    """

    def __init__(self, digests: dict[str, str], name: str = "") -> None:
        self.digests, self.name, self.used = digests, name, False

    def hash(self, _folder: Path, *, files_to_hash: None = None) -> Any:  # noqa: ARG002
        """Return the digests as model-signing's manifest; it is asked for once the signature fits the key."""
        manifest = _package().manifest
        self.used = True
        how = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [SIGNATURE]}
        kind = manifest.SerializationType.from_args(how)
        items = [
            kind.new_item(name, manifest.hashing.Digest("sha256", bytes.fromhex(digest)))
            for name, digest in self.digests.items()
        ]
        return manifest.Manifest(self.name, items, kind)

    def add_ignored_paths(self, *, model_path: Path, paths: Iterable[str]) -> None:
        """Ignore nothing: a signature may not say which files it leaves out."""


def _package() -> Any:
    try:
        import model_signing
    except ImportError:
        raise SigningError(
            "A signature needs the package model-signing: pip install '.[sign]' in the folder of edgecifar's source."
        ) from None
    return model_signing


def _use(key: Path, read: Callable[[Path], _Used], wanted: str) -> _Used:
    """Return what `read` makes of a key's file, or say that it is not what is `wanted`."""
    try:
        found = key.stat()
        if found.st_size > MAX_KEY_BYTES or stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
            raise ValueError("it is too large, or may never end")
        return read(key)
    except OSError as error:
        raise SigningError(
            f"The key {key} cannot be read ({error.strerror}): check the path and its permissions."
        ) from None
    except TypeError:  # how cryptography says that a password is missing
        raise SigningError(
            f"{key} is protected by a password, and edgecifar asks for none: sign with a copy that 'openssl ec -in KEY "
            "-out COPY' writes, and keep it safe."
        ) from None
    except Exception:  # as many kinds as there are files that are no such key
        raise SigningError(f"{key} is not {wanted}.") from None
