"""The page at `/`: for browsers, of the model in service, and no way to other files."""

from __future__ import annotations

from hashlib import sha256

import pytest

from edgecifar.serve import page

HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture
def wasm(tmp_path, monkeypatch):
    """A folder that passes for onnxruntime-web."""
    contents = {"ort.js": b"export{};", "ort.wasm": b"\0asm"}
    monkeypatch.setattr(page, "RUNTIME", {name: (name, sha256(data).hexdigest()) for name, data in contents.items()})
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_a_browser_gets_the_page_and_a_program_gets_json(open_client, wasm):
    client = open_client(wasm=wasm)
    shown = client.get("/", headers=HTML)
    assert shown.headers["content-type"].startswith("text/html")
    assert "Classify pictures" in shown.text
    assert client.get("/").json()["name"] == "edgecifar"


def test_every_file_of_the_page(open_client, wasm, tiny):
    client = open_client(wasm=wasm)
    model = client.app.registry.default
    for name, content in page.page_files(model.bundle, wasm=wasm, variant=model.variant.name).items():
        found = client.get(f"/{name}")
        assert (found.status_code, found.content) == (200, content)
        assert found.headers["x-content-type-options"] == "nosniff"
    assert client.get("/ort.js").headers["content-type"].startswith("text/javascript")
    assert client.get("/ort.wasm").headers["content-type"] == "application/wasm"


def test_what_the_browser_has_is_not_sent_again(open_client, wasm):
    client = open_client(wasm=wasm)
    tag = client.get("/ort.wasm").headers["etag"]
    for sent in (tag, f"W/{tag}", f'"older", W/{tag}'):  # a proxy that compresses makes a tag weak
        again = client.get("/ort.wasm", headers={"if-none-match": sent})
        assert (again.status_code, again.content) == (304, b"")
    assert client.get("/ort.wasm", headers={"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize("path", ["/nothing", "/bundle/", "/bundle/SHA256SUMS", "/bundle/page.css", "/serve/page.py"])
def test_no_other_file(open_client, wasm, path):
    assert open_client(wasm=wasm).get(path).status_code == 404


def test_other_methods_find_nothing(open_client, wasm):
    assert open_client(wasm=wasm).post("/page.css").status_code == 404


def test_without_it_there_is_no_page(client):
    assert client.get("/", headers=HTML).json()["name"] == "edgecifar"
    assert client.get("/page.css").status_code == 404


def test_behind_the_key(open_client, wasm, tmp_path):
    from edgecifar.serve.settings import ApiKeys

    keys = tmp_path / "keys"
    keys.write_text("0123456789abcdef0123\n")
    keys.chmod(0o600)
    client = open_client(wasm=wasm, keys=ApiKeys(keys))
    assert client.get("/", headers=HTML).status_code == 401
    assert client.get("/bundle/manifest.json").status_code == 401
