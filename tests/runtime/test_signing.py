"""A key that is asked for must have signed every byte; what is unsigned, altered or of another key is never run."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import sys
from pathlib import Path

import pytest

from edgecifar.runtime import Classifier, signing
from edgecifar.runtime import bundle as bundles
from edgecifar.runtime.bundle import Bundle
from edgecifar.runtime.errors import BundleError, EdgecifarError, OutputError, SigningError
from edgecifar.runtime.signing import MAX_SIGNATURE_BYTES, SIGNATURE, Signer

FROM_SIGNER = "get the bundle again from whoever signed it."
EXTRA = "A signature needs the package model-signing: pip install '.[sign]' in the folder of edgecifar's source."


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    """A folder with key pairs: `ours` and `theirs` on P-256, `p384`, `p521`, and a few that are of no use."""
    pytest.importorskip("model_signing")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    folder = tmp_path_factory.mktemp("keys")
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    open_, locked = serialization.NoEncryption(), serialization.BestAvailableEncryption(b"secret")
    pairs = {
        "ours": ec.generate_private_key(ec.SECP256R1()),
        "theirs": ec.generate_private_key(ec.SECP256R1()),
        "p384": ec.generate_private_key(ec.SECP384R1()),
        "p521": ec.generate_private_key(ec.SECP521R1()),
        "koblitz": ec.generate_private_key(ec.SECP256K1()),
        "edwards": ed25519.Ed25519PrivateKey.generate(),
        "rsa": rsa.generate_private_key(65537, 2048),
    }
    for name, key in pairs.items():
        (folder / f"{name}.key").write_bytes(key.private_bytes(pem, pkcs8, open_))
        (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(pem, spki))
    (folder / "locked.key").write_bytes(pairs["ours"].private_bytes(pem, pkcs8, locked))
    (folder / "text.key").write_text("a text")
    (folder / "empty.key").touch()
    (folder / "huge.key").write_bytes((folder / "ours.key").read_bytes() + b"\n" * (1 << 16))
    return folder


@pytest.fixture
def signed(tiny_bundle, keys) -> Path:
    """A copy of the tiny bundle, signed with our key."""
    Signer(keys / "ours.key").sign(tiny_bundle, "tiny")
    return tiny_bundle


def failed(folder: Path, key: Path | None = None) -> dict[str, str]:
    return {check.name: check.detail for check in Bundle.open(folder).verify(key) if not check.passed}


def refusal(folder: Path, key: Path) -> str:
    """Why a signature is refused: by `verify`, which stops before a model is loaded, and by `open` alike."""
    checks = Bundle.open(folder).verify(key)
    assert [check.name for check in checks] == ["manifest", "SHA256SUMS", SIGNATURE]
    assert [check.passed for check in checks] == [True, True, False]
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder, key)
    message = str(caught.value)
    assert message == checks[-1].detail
    assert "\n" not in message
    return message


class TestSigned:
    @pytest.mark.parametrize("name", ["ours", "p384", "p521"])
    def test_with_its_key(self, tiny_bundle, keys, name):
        files = len(os.listdir(tiny_bundle))
        Signer(keys / f"{name}.key").sign(tiny_bundle, "tiny")
        assert len(os.listdir(tiny_bundle)) == files + 1
        key = keys / f"{name}.pub"
        checks = {check.name: check for check in Bundle.open(tiny_bundle, key).verify(key)}
        assert all(check.passed for check in checks.values())
        assert checks[SIGNATURE].detail == f"made with the private key of {key} over {files} files"
        assert {"model.onnx", "golden vectors of fp32", "golden vectors of edge"} <= checks.keys()

    def test_another_tool_reads_it(self, signed, keys):
        """As `model_signing verify key` does, without a word about what to ignore."""
        from model_signing import verifying

        check = verifying.Config().use_elliptic_key_verifier(public_key=keys / "ours.pub")
        check.verify(signed, signed / SIGNATURE)
        (signed / "README.md").write_text("changed")
        with pytest.raises(ValueError, match=r"README\.md"):
            check.verify(signed, signed / SIGNATURE)

    def test_it_names_every_file_and_no_place(self, signed):
        statement = _statement(json.loads((signed / SIGNATURE).read_text()))
        assert statement["subject"][0]["name"] == "tiny"
        names = [resource["name"] for resource in statement["predicate"]["resources"]]
        assert sorted([*names, SIGNATURE]) == sorted(os.listdir(signed))
        assert str(signed.parent) not in json.dumps(statement)

    def test_without_a_key_it_is_said_and_not_checked(self, signed):
        checks = {check.name: check for check in Bundle.open(signed).verify()}
        assert all(check.passed for check in checks.values())
        assert checks[SIGNATURE].detail == "signed, not checked: pass --key"

    def test_an_unsigned_bundle_says_nothing_of_it(self, tiny):
        assert SIGNATURE not in {check.name for check in Bundle.open(tiny).verify()}

    def test_signing_again_replaces_the_signature(self, signed, keys):
        (signed / SIGNATURE).unlink()
        Signer(keys / "theirs.key").sign(signed, "tiny")
        assert failed(signed, keys / "theirs.pub") == {}

    def test_offline(self, tiny_bundle, keys, monkeypatch):
        def refuse(*arguments, **options):
            raise AssertionError("the network was asked for")

        monkeypatch.setattr(socket, "socket", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        Signer(keys / "ours.key").sign(tiny_bundle, "tiny")
        assert failed(tiny_bundle, keys / "ours.pub") == {}

    def test_a_disk_that_is_full(self, tiny_bundle, keys, monkeypatch):
        def full(path: Path, *arguments, **options):
            raise OSError(28, "No space left on device")

        signer = Signer(keys / "ours.key")
        before = sorted(os.listdir(tiny_bundle))
        monkeypatch.setattr(Path, "write_text", full)
        with pytest.raises(OutputError, match=r"Could not write model\.sig: the disk .* is full"):
            signer.sign(tiny_bundle, "tiny")
        assert sorted(os.listdir(tiny_bundle)) == before


def _statement(signature: dict) -> dict:
    return json.loads(base64.b64decode(signature["dsseEnvelope"]["payload"]))


class TestForged:
    def test_stripped(self, signed, keys):
        (signed / SIGNATURE).unlink()
        assert refusal(signed, keys / "ours.pub") == (
            f"{signed} is not signed (model.sig is missing): get a signed copy of it."
        )

    def test_by_another_key(self, tiny_bundle, keys):
        Signer(keys / "theirs.key").sign(tiny_bundle, "tiny")
        assert refusal(tiny_bundle, keys / "ours.pub") == (
            f"{tiny_bundle / SIGNATURE} was not made with the private key of {keys / 'ours.pub'}, or is damaged: "
            f"{FROM_SIGNER}"
        )

    def test_by_another_key_that_claims_to_be_ours(self, tiny_bundle, keys):
        def hint(name: str) -> str:
            Signer(keys / f"{name}.key").sign(tiny_bundle, "tiny")
            return json.loads((tiny_bundle / SIGNATURE).read_text())["verificationMaterial"]["publicKey"]["hint"]

        ours, theirs = hint("ours"), hint("theirs")
        path = tiny_bundle / SIGNATURE
        path.write_text(path.read_text().replace(theirs, ours))
        assert "was not made with the private key of" in refusal(tiny_bundle, keys / "ours.pub")

    @pytest.mark.parametrize("name", ["README.md", "golden.npz", "manifest.json", "parity.json", "model.onnx"])
    def test_altered_with_sums_that_agree(self, signed, keys, name):
        path = signed / name
        path.write_bytes(path.read_bytes() + b"\n")
        _seal(signed)
        assert refusal(signed, keys / "ours.pub") == (
            f"{signed / SIGNATURE} does not match these files ({', '.join(sorted([name, 'SHA256SUMS']))}): "
            f"{FROM_SIGNER}"
        )

    @pytest.mark.parametrize("name", ["README.md", "model.edge.onnx"])
    def test_altered_without_the_sums(self, signed, keys, name):
        path = signed / name
        content = bytearray(path.read_bytes())
        content[50] ^= 1
        path.write_bytes(content)
        assert name in failed(signed, keys / "ours.pub")

    def test_a_file_more_with_sums_that_agree(self, signed, keys):
        (signed / "extra.so").write_bytes(b"x")
        _seal(signed)
        assert "(SHA256SUMS, extra.so)" in refusal(signed, keys / "ours.pub")

    def test_a_file_less_with_sums_that_agree(self, signed, keys):
        (signed / "parity.json").unlink()
        _seal(signed)
        assert "(SHA256SUMS, parity.json)" in refusal(signed, keys / "ours.pub")

    @pytest.mark.parametrize("name", ["extra.so", ".gitignore", ".gitattributes", ".git", "model.sig.bak", "MODEL.SIG"])
    def test_a_file_dropped_in(self, signed, keys, name):
        """Nothing is ignored, not even what model-signing leaves out by default."""
        (signed / name).write_bytes(b"x")
        assert list(failed(signed, keys / "ours.pub")) == [name]

    @pytest.mark.parametrize("name", [".git", ".github", "folder"])
    def test_a_folder_dropped_in(self, signed, keys, name):
        (signed / name).mkdir()
        (signed / name / "config").write_bytes(b"x")
        assert list(failed(signed, keys / "ours.pub")) == [name]

    def test_sums_that_name_the_signature(self, signed, keys):
        with (signed / "SHA256SUMS").open("a") as file:
            file.write(f"{'0' * 64}  {SIGNATURE}\n")
        with pytest.raises(BundleError, match="SHA256SUMS is damaged"):
            Bundle.open(signed)

    def test_the_signature_of_another_bundle(self, signed, keys, tmp_path):
        other = Path(shutil.copytree(signed, tmp_path / "other", ignore=lambda *_: [SIGNATURE]))
        (other / "README.md").write_text("another")
        _seal(other)
        Signer(keys / "ours.key").sign(other, "other")
        assert failed(other, keys / "ours.pub") == {}
        shutil.copy(other / SIGNATURE, signed / SIGNATURE)
        assert "(README.md, SHA256SUMS)" in refusal(signed, keys / "ours.pub")


class TestOurKeyOverSomethingElse:
    """Signatures by our own key with other settings of model-signing: only one over every SHA-256 counts."""

    def sign(self, folder: Path, keys: Path, hashing: object) -> None:
        from model_signing import signing as upstream

        config = upstream.Config().use_elliptic_key_signer(private_key=keys / "ours.key").set_hashing_config(hashing)
        config.sign(folder, folder / SIGNATURE)

    def test_every_file(self, tiny_bundle, keys):
        from model_signing import hashing

        self.sign(tiny_bundle, keys, hashing.Config().set_ignored_paths(paths=[SIGNATURE]))
        assert failed(tiny_bundle, keys / "ours.pub") == {}

    @pytest.mark.parametrize("name", ["README.md", "model.onnx", "SHA256SUMS"])
    def test_fewer_files(self, tiny_bundle, keys, name):
        from model_signing import hashing

        self.sign(tiny_bundle, keys, hashing.Config().set_ignored_paths(paths=[SIGNATURE, name]))
        assert f"({name})" in refusal(tiny_bundle, keys / "ours.pub")

    def test_another_digest(self, tiny_bundle, keys):
        from model_signing import hashing

        self.sign(tiny_bundle, keys, hashing.Config().use_file_serialization(hashing_algorithm="blake2"))
        assert "does not match these files" in refusal(tiny_bundle, keys / "ours.pub")

    def test_pieces_of_files(self, tiny_bundle, keys):
        from model_signing import hashing

        self.sign(tiny_bundle, keys, hashing.Config().use_shard_serialization(shard_size=1000))
        assert "does not match these files" in refusal(tiny_bundle, keys / "ours.pub")


def _without_hint(signature: dict) -> None:
    del signature["verificationMaterial"]["publicKey"]["hint"]


def _other_resources(signature: dict) -> None:
    statement = _statement(signature)
    statement["predicate"]["resources"][0]["digest"] = "0" * 64
    signature["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()


DAMAGE = {
    "no hint": _without_hint,
    "an empty hint": lambda values: values["verificationMaterial"]["publicKey"].update(hint=""),
    "another payload": _other_resources,
    "another payload type": lambda values: values["dsseEnvelope"].update(payloadType="text/plain"),
    "another media type": lambda values: values.update(mediaType="application/json"),
    "no signatures": lambda values: values["dsseEnvelope"].update(signatures=[]),
    "an empty signature": lambda values: values["dsseEnvelope"]["signatures"][0].update(sig=""),
    "no envelope": lambda values: values.pop("dsseEnvelope"),
    "a message instead": lambda values: values.update(
        messageSignature={"messageDigest": {"algorithm": "SHA2_256", "digest": ""}, "signature": ""}
    ),
}


class TestDamaged:
    @pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
    def test_fields(self, signed, keys, damage, capsys):
        path = signed / SIGNATURE
        values = json.loads(path.read_text())
        damage(values)
        path.write_text(json.dumps(values))
        assert "was not made with the private key of" in refusal(signed, keys / "ours.pub")
        assert capsys.readouterr() == ("", "")  # model-signing prints warnings where a program reads JSON

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 500_000, b'{"verificationMaterial": 1}', b"1" * 10_000],
        ids=lambda content: ascii(content[:20]),
    )
    def test_no_signature_at_all(self, signed, keys, content):
        (signed / SIGNATURE).write_bytes(content)
        assert "was not made with the private key of" in refusal(signed, keys / "ours.pub")

    def test_a_link(self, signed, keys, tmp_path):
        path = signed / SIGNATURE
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        assert "is a link that leaves the bundle" in refusal(signed, keys / "ours.pub")
        assert list(failed(signed)) == [SIGNATURE]

    def test_a_link_to_nothing(self, signed, keys):
        (signed / SIGNATURE).unlink()
        (signed / SIGNATURE).symlink_to("nowhere")
        assert list(failed(signed)) == [SIGNATURE]

    def test_a_folder(self, signed, keys):
        (signed / SIGNATURE).unlink()
        (signed / SIGNATURE).mkdir()
        assert f"{signed / SIGNATURE} is not a file" in refusal(signed, keys / "ours.pub")

    def test_oversize_is_refused_unread(self, signed, keys, never_read):
        path = signed / SIGNATURE
        with path.open("ab") as file:
            file.truncate(MAX_SIGNATURE_BYTES + 1)
        never_read(path)
        reason = f"{path} is larger than 1,048,576 bytes: this is no bundle of edgecifar."
        assert refusal(signed, keys / "ours.pub") == reason
        assert failed(signed) == {SIGNATURE: reason}


def _seal(folder: Path) -> None:
    """Make SHA256SUMS agree with the files, as a forger would."""
    names = sorted(set(os.listdir(folder)) - {"SHA256SUMS", SIGNATURE})
    lines = [f"{bundles.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_bytes("".join(lines).encode())


def _poison(folder: Path) -> None:
    """Swap the two models, with manifest and sums that agree: a bundle that is intact, and not the signed one."""
    one, other = (folder / name for name in ("model.onnx", "model.edge.onnx"))
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])
    manifest = json.loads((folder / "manifest.json").read_text())
    first, second = manifest["variants"]
    first["sha256"], second["sha256"] = second["sha256"], first["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    _seal(folder)


class TestWhatWasCheckedIsWhatIsUsed:
    def test_swapped_after_it_was_opened_with_the_key(self, signed, keys):
        bundle = Bundle.open(signed, keys / "ours.pub")
        assert Classifier(bundle).variant.name == "fp32"
        _poison(signed)
        Bundle.open(signed).load(Bundle.open(signed).variant())  # it could be run
        with pytest.raises(BundleError, match=r"model\.onnx is not what SHA256SUMS names"):
            Classifier(bundle)

    def test_swapped_after_it_was_verified(self, signed, keys):
        bundle = Bundle.open(signed)
        assert all(check.passed for check in bundle.verify(keys / "ours.pub"))
        _poison(signed)
        with pytest.raises(BundleError, match=r"model\.onnx is not what SHA256SUMS names"):
            Classifier(bundle)

    def test_swapped_before_it_was_opened_and_back_before_it_is_verified(self, signed, keys, tmp_path):
        kept = Path(shutil.copytree(signed, tmp_path / "kept"))
        _poison(signed)
        bundle = Bundle.open(signed)
        shutil.copytree(kept, signed, dirs_exist_ok=True)
        (check,) = (check for check in bundle.verify(keys / "ours.pub") if not check.passed)
        assert check.name == "SHA256SUMS"
        assert check.detail.endswith("has changed since the bundle was opened: open it again.")
        with pytest.raises(BundleError, match=r"model\.onnx is not what SHA256SUMS names"):
            Classifier(bundle)

    def test_no_model_is_loaded_of_a_bundle_that_is_not_signed_as_asked(self, signed, keys, monkeypatch):
        def load(*arguments, **options):
            raise AssertionError("a model was loaded")

        monkeypatch.setattr(bundles, "Session", load)
        refusal(signed, keys / "theirs.pub")
        with pytest.raises(AssertionError):  # or the above would show nothing
            Bundle.open(signed).verify(keys / "ours.pub")


class TestKeys:
    CURVES = "of the curve P-256, P-384 or P-521 in PEM"
    MAKE = "make one with 'openssl ecparam -name prime256v1 -genkey -noout -out KEY'."
    TAKE = "take what 'openssl ec -in KEY -pubout -out PUB' writes of the key that signed."

    def refused(self, kind: type, path: Path | str) -> str:
        with pytest.raises(SigningError) as caught:
            kind(path)
        assert isinstance(caught.value, EdgecifarError)
        return str(caught.value)

    @pytest.mark.parametrize("name", ["ours.pub", "koblitz.key", "edwards.key", "rsa.key", "text.key", "empty.key"])
    def test_no_private_key_that_signs(self, keys, name):
        path = keys / name
        assert self.refused(Signer, path) == f"{path} is not a private key {self.CURVES}: {self.MAKE}"

    @pytest.mark.parametrize("name", ["ours.key", "koblitz.pub", "edwards.pub", "rsa.pub", "text.key", "empty.key"])
    def test_no_public_key_that_verifies(self, keys, name):
        path = keys / name
        assert self.refused(signing.Verifier, path) == f"{path} is not a public key {self.CURVES}: {self.TAKE}"

    def test_a_password(self, keys):
        path = keys / "locked.key"
        assert self.refused(Signer, path) == (
            f"{path} is protected by a password, and edgecifar asks for none: sign with a copy that 'openssl ec -in "
            "KEY -out COPY' writes, and keep it safe."
        )

    @pytest.mark.parametrize("kind", [Signer, signing.Verifier])
    @pytest.mark.parametrize(("name", "reason"), [("none.key", "No such file or directory"), (".", "Is a directory")])
    def test_no_file(self, keys, kind, name, reason):
        path = keys / name
        assert self.refused(kind, path) == (
            f"The key {path} cannot be read ({reason}): check the path and its permissions."
        )

    @pytest.mark.parametrize("kind", [Signer, signing.Verifier])
    @pytest.mark.parametrize("path", ["huge.key", "/dev/zero", "a\0b"])
    def test_what_can_be_no_key_is_not_read(self, keys, kind, path, monkeypatch):
        monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it was read"))
        assert self.CURVES in self.refused(kind, keys / path)

    def test_a_key_that_cannot_be_used_is_raised_not_listed(self, signed, keys):
        for call in (Bundle.open(signed).verify, lambda key: Bundle.open(signed, key)):
            with pytest.raises(SigningError):
                call(keys / "none.pub")


class TestWithoutTheExtra:
    @pytest.fixture(autouse=True)
    def missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "model_signing", None)

    def test_a_key_says_what_to_install(self, tiny_bundle, tmp_path):
        for call in (Signer, signing.Verifier, Bundle.open(tiny_bundle).verify):
            with pytest.raises(SigningError) as caught:
                call(tmp_path / "key")
            assert str(caught.value) == EXTRA

    def test_no_key_needs_nothing(self, tiny_bundle):
        assert failed(tiny_bundle) == {}
        (tiny_bundle / SIGNATURE).write_text("whatever it holds")
        assert failed(tiny_bundle) == {}
