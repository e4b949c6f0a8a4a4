"""The models in service: their names, how they are verified, and how new bundles take their place."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import shutil
import threading
import weakref
from pathlib import Path

import pytest

from edgecifar.runtime.errors import EdgecifarError, InputError, ProviderError, VariantError
from edgecifar.serve import App, load_registry
from edgecifar.serve.models import Source


def seal(folder: Path) -> None:
    from edgecifar.runtime.files import sha256

    files = sorted(path for path in folder.iterdir() if path.name != "SHA256SUMS")
    (folder / "SHA256SUMS").write_bytes("".join(f"{sha256(path)}  {path.name}\n" for path in files).encode())


def change_manifest(folder: Path, change) -> None:
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    seal(folder)


def source(bundles: dict, **more) -> Source:
    return Source(bundles, **{"provider": "cpu", "threads": 1, **more})


async def retired(app: App) -> None:
    """Wait until no registry is left whose place another took."""
    await asyncio.wait_for(asyncio.gather(*app._retiring), 30)


def test_bundles_are_named_by_their_folders_or_by_hand(tmp_path):
    parsed = Source.parse([str(tmp_path / "one"), f"two={tmp_path}"])
    assert parsed == {"one": tmp_path / "one", "two": tmp_path}
    assert Source.parse([]) == {"edgecifar": None}
    with pytest.raises(InputError, match="NAME=FOLDER"):
        Source.parse(["a b"])
    with pytest.raises(InputError, match="NAME=FOLDER"):
        Source.parse(["=x"])
    with pytest.raises(InputError, match="The bundle birds has no folder"):
        Source.parse(["birds="])  # an unset variable: the current folder was served
    with pytest.raises(InputError, match="one"):
        Source.parse(["one", "one=x"])


def test_every_variant_of_every_bundle_has_a_name(tiny):
    registry = load_registry(source({"a": tiny, "b": tiny}))
    assert set(registry.names) == {"a", "a-fp32", "a-edge", "b", "b-fp32", "b-edge"}
    assert registry.find("a") is registry.default
    assert registry.find("a").variant.name == registry.find("a").bundle.manifest.default_variant
    with pytest.raises(InputError, match="same name"):
        load_registry(source({"a": tiny, "a-edge": tiny}))


def test_variants_can_be_chosen(tiny):
    registry = load_registry(source({"a": tiny}, variants=("fp32",)))
    assert registry.names == ["a-fp32", "a"]
    with pytest.raises(VariantError, match="edge"):
        load_registry(source({"a": tiny}, variants=("nano",)))
    with pytest.raises(VariantError, match="'typo'"):
        load_registry(source({"a": tiny}, variants=("fp32", "typo")))


def test_a_variant_that_one_bundle_has_is_enough(tiny, own_tiny):
    def without_edge(values):
        values["variants"] = [entry for entry in values["variants"] if entry["name"] != "edge"]
        values["default_variant"] = "fp32"

    change_manifest(own_tiny, without_edge)
    registry = load_registry(source({"a": own_tiny, "b": tiny}, variants=("fp32", "edge")))
    assert {model.name for model in registry.models} == {"a-fp32", "b-fp32", "b-edge"}


def test_too_many_threads_are_called_that(tiny):
    with pytest.raises(ProviderError, match="1000 threads"):
        load_registry(source({"a": tiny}, threads=1000))


def test_the_version_is_the_bundles_content(tiny, own_tiny):
    before = load_registry(source({"a": own_tiny})).default.version
    assert before == load_registry(source({"b": tiny})).default.version
    change_manifest(own_tiny, lambda values: values["provenance"].update(note="another"))
    assert load_registry(source({"a": own_tiny})).default.version != before


def test_a_damaged_bundle_is_refused(own_tiny):
    (own_tiny / "model.edge.onnx").write_bytes(b"other")
    with pytest.raises(EdgecifarError, match=re.escape("model.edge.onnx")):
        load_registry(source({"a": own_tiny}))


def test_a_bundle_whose_answers_differ_here_is_refused(own_tiny):
    import numpy as np

    arrays = dict(np.load(own_tiny / "golden.npz"))
    arrays["edge"] = arrays["edge"][::-1].copy()
    np.savez(own_tiny / "golden.npz", **arrays)
    seal(own_tiny)
    with pytest.raises(EdgecifarError, match="golden vectors of edge"):
        load_registry(source({"a": own_tiny}))


def test_a_bundle_without_the_signature_that_is_asked_for_is_refused(tiny, tmp_path):
    pytest.importorskip("model_signing", reason="model-signing is not installed: pip install '.[sign]'")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "key.pub").write_bytes(public.public_bytes(serialization.Encoding.PEM, kind))
    with pytest.raises(EdgecifarError, match="signed"):
        load_registry(source({"a": tiny}, key=tmp_path / "key.pub"))


def test_a_provider_that_is_not_here_is_refused(tiny):
    with pytest.raises(ProviderError):
        load_registry(source({"a": tiny}, variants=("edge",), provider="cuda"))
    with pytest.raises(ProviderError, match="cuda"):
        load_registry(source({"a": tiny}, provider="cuda"))


def test_a_new_registry_takes_over_and_the_old_answers_what_it_has(tiny, own_tiny, images):
    async def scenario():
        app = App(load_registry(source({"a": tiny})))
        async with app._lifespan(None):
            old = app.registry.default
            with old.lease() as leased:
                change_manifest(own_tiny, lambda values: values["provenance"].update(note="another"))
                app.replace(load_registry(source({"a": own_tiny})))
                new = app.registry.default
                assert new is not old
                assert new.version != old.version
                await asyncio.sleep(0.1)
                rows = await leased.batcher.submit(images, 5)
                assert rows[0].argmax(1).tolist() == list(range(10))
                assert old.batcher.healthy
            await retired(app)
            assert not old.batcher.healthy
            assert app.ready
            assert (await new.batcher.submit(images, 5))[0].argmax(1).tolist() == list(range(10))
        assert not new.batcher.healthy

    asyncio.run(scenario())


def test_a_new_registry_whose_threads_cannot_be_started_changes_nothing(tiny, monkeypatch):
    from edgecifar.serve import server

    others, most = set(threading.enumerate()), 0

    def inference() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name.startswith("inference") and t not in others]

    class NoMore(threading.Thread):
        def start(self) -> None:
            if len(inference()) == most:
                raise RuntimeError("can't start new thread")
            super().start()

    async def scenario():
        app = App(load_registry(source({"a": tiny})))
        async with app._lifespan(None):
            old, models = app.registry, len(app.registry.models)
            life = server._Life(server.make_server(app), source({"a": tiny}), None, [])
            nonlocal most
            most = 2 * models - 1
            monkeypatch.setattr("edgecifar.serve.batching.threading.Thread", NoMore)
            await life._take_up()
            assert app.registry is old
            assert app.ready
            assert app.metrics.updates.labels("failed")._value.get() == 1
            await retired(app)
            assert len(inference()) == models

    asyncio.run(scenario())


@pytest.mark.skipif(os.name != "posix", reason="files have no such permissions")
@pytest.mark.parametrize(("mode", "said"), [(0o600, 0), (0o644, 1)])
def test_an_update_says_if_others_can_read_the_keys(tiny, tmp_path, caplog, mode, said):
    from edgecifar.serve import server

    keys = tmp_path / "keys"
    keys.write_text("0123456789abcdef0123\n")
    keys.chmod(mode)

    async def scenario():
        edge = source({"a": tiny}, variants=("edge",))
        app = App(load_registry(edge))
        async with app._lifespan(None):
            await server._Life(server.make_server(app), edge, keys, [])._take_up()
        assert app.keys is not None

    with caplog.at_level("WARNING", "edgecifar.serve"):
        asyncio.run(scenario())
    assert [getattr(record, "event", "") for record in caplog.records].count("exposed_keys") == said


def test_a_model_that_was_replaced_is_let_go_of_at_once(tiny, images):
    async def scenario():
        app = App(load_registry(source({"a": tiny}, variants=("edge",))))
        async with app._lifespan(None):
            await app.registry.default.batcher.submit(images, 5)
            old = weakref.ref(app.registry.default.session)
            app.replace(load_registry(source({"a": tiny}, variants=("edge",))))
            await retired(app)
            await asyncio.sleep(0)
            return old()

    gc.disable()
    try:
        assert asyncio.run(scenario()) is None
    finally:
        gc.enable()


def test_a_dead_thread_is_not_ready(open_client):
    client = open_client()
    model = client.app.registry.find("tiny-fp32")
    model.batcher._handed_over.put(None)
    model.batcher._thread.join(5)
    assert client.get("/v2/health/ready").status_code == 503
    assert client.get("/v2/models/tiny-fp32/ready").status_code == 503
    assert client.get("/v2/models/tiny-edge/ready").status_code == 200


def test_a_lone_link_to_the_bundle_is_followed(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "v1")
    (tmp_path / "current").symlink_to("v1")
    assert load_registry(source({"a": tmp_path / "current"})).names


def test_an_alert_sees_the_first_update_that_fails(tiny):
    # Prometheus counts an increase from one sample of a series to the next: it needs the 0 before the first 1.
    app = App(load_registry(source({"a": tiny})))
    text = app.metrics.expose([]).decode()
    for result in ("done", "failed"):
        assert f'edgecifar_bundle_updates_total{{result="{result}"}} 0.0' in text
