"""Which files the page is made of, without a browser: the command, the policy, and what is refused."""

from __future__ import annotations

import base64
import gzip
import json
import re
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edgecifar.runtime.bundle import Bundle
from edgecifar.runtime.errors import BundleError, ProviderError, VariantError
from edgecifar.serve import page
from edgecifar.serve.page import page_files, single_file

FIXTURES = Path(__file__).parents[1] / "fixtures"
TINY = FIXTURES / "tiny_bundle"


@pytest.fixture
def wasm(tmp_path, monkeypatch):
    """A folder that passes for onnxruntime-web."""
    contents = {
        "ort.js": b"var a=1,b=2;export{a as env,b as default};\n//# sourceMappingURL=ort.map\n",
        "ort.wasm": b"\0asm" * 100,
    }
    files = {}
    for name, content in contents.items():
        path = tmp_path / "onnxruntime-web" / "dist" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        files[name] = f"dist/{name}", sha256(content).hexdigest()
    monkeypatch.setattr(page, "RUNTIME", files)
    return tmp_path / "onnxruntime-web"


def policy(html: str) -> dict[str, list[str]]:
    (found,) = re.findall('http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    return {rule.split()[0]: rule.split()[1:] for rule in found.split(";")}


def test_the_files_are_the_bundles_own(wasm):
    bundle = Bundle.open(TINY)
    files = page_files(bundle, wasm=wasm)
    chosen = bundle.variant()
    assert files[f"bundle/{chosen.file}"] == bundle.read(chosen)
    models = [name for name in files if name.endswith(".onnx")]
    assert models == [f"bundle/{chosen.file}"]
    golden = json.loads(files["bundle/golden.json"])
    assert {f"bundle/{picture['file']}" for picture in golden["pictures"]} < files.keys()
    assert b"sourceMappingURL" not in files["ort.js"]
    assert f'content="{chosen.name}"' in files["index.html"].decode()


def test_every_script_that_is_imported_is_there(wasm):
    files = page_files(Bundle.open(TINY), wasm=wasm)
    for name in page.MODULES:
        for imported in re.findall(r'(?:from|import\()\s*"\./([^"]*)"', files[name].decode()):
            assert imported in files


@pytest.mark.parametrize("single", [False, True])
def test_nothing_from_elsewhere(wasm, single):
    files = page_files(Bundle.open(TINY), wasm=wasm)
    html = (single_file(files) if single else files["index.html"]).decode()
    assert not re.search(r"\{[a-z]+\}", re.sub("<style>.*?</style>|<script.*?</script>", "", html, flags=re.DOTALL))
    rules = policy(html)
    assert rules["default-src"] == ["'none'"]
    assert rules["connect-src"] == ["'none'" if single else "'self'"]
    assert not {"'unsafe-inline'", "'unsafe-eval'", "*", "https:"} & {
        word for words in rules.values() for word in words
    }
    assert re.findall('(?:src|href)="([a-z]+:[^"]*)"', html) == ["data:,"]


def test_one_file_holds_all_and_its_policy_names_its_own_code(wasm):
    files = page_files(Bundle.open(TINY), wasm=wasm)
    html = single_file(files).decode()
    rules = policy(html)
    for tag, rule in (('<script type="module">(.*?)</script>', "script-src"), ("<style>(.*?)</style>", "style-src")):
        (code,) = re.findall(tag, html, re.DOTALL)
        assert f"'sha256-{base64.b64encode(sha256(code.encode()).digest()).decode()}'" in rules[rule]
    held = dict(re.findall('<script type="text/plain" id="file:([^"]*)">([^<]*)</script>', html))
    unpacked = {name: gzip.decompress(base64.b64decode(content)) for name, content in held.items()}
    assert unpacked == {name: files[name] for name in files if name.startswith("bundle/") or name == "ort.wasm"}
    assert not re.search("^(import|export) ", html, re.MULTILINE)
    assert single_file(files) == single_file(page_files(Bundle.open(TINY), wasm=wasm))  # the same bytes every time


class Hidden(HTMLParser):
    """Whether each live region, which screen readers say, lies in an element that is hidden."""

    def __init__(self):
        super().__init__()
        self.open, self.regions = [], {}

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if given.get("role") in ("status", "alert"):
            self.regions[given["id"]] = any(self.open)
        if tag not in ("meta", "link", "input", "img", "col"):
            self.open.append("hidden" in given)

    def handle_endtag(self, tag):
        self.open.pop()


def test_what_screen_readers_say_is_never_in_a_hidden_part():
    parser = Hidden()
    parser.feed((page.WEB / "index.html").read_text())
    assert parser.open == []
    assert parser.regions == {"badge": False, "error": False, "announced": False}


def test_the_focus_is_seen_in_every_browser_that_is_named():
    """Firefox has `:has()` since 121, and older ones drop a whole list of selectors that holds it."""
    css, html = ((page.WEB / name).read_text() for name in ("page.css", "index.html"))
    assert ":has(" not in css
    assert re.search(r"#file:focus-visible \+ \.button[^{]*\{ outline: 3px", css)
    assert re.search(r'<input id="file"[^>]*>\s*<label class="button" for="file">', html)


def test_without_onnxruntime_web():
    files = page_files(Bundle.open(TINY))
    assert not [name for name in files if name.startswith("ort.")]
    assert "index.html" in files


class TestRefused:
    def test_another_package(self, tmp_path):
        with pytest.raises(ProviderError, match=f"npm install onnxruntime-web@{page.VERSION}"):
            page_files(Bundle.open(TINY), wasm=tmp_path)

    def test_another_version(self, wasm):
        (wasm / "dist" / "ort.wasm").write_bytes(b"\0asm")
        with pytest.raises(ProviderError, match=page.VERSION):
            page_files(Bundle.open(TINY), wasm=wasm)

    def test_a_bundle_without_golden_pictures(self):
        with pytest.raises(BundleError, match="golden pictures"):
            page_files(Bundle.open(FIXTURES / "schema_1_bundle"))

    def test_an_unknown_variant(self):
        with pytest.raises(VariantError, match="nothing"):
            page_files(Bundle.open(TINY), variant="nothing")


class TestCommand:
    @pytest.mark.parametrize("single", [False, True])
    def test_it_writes_the_page(self, edgecifar, wasm, tmp_path, single):
        out = tmp_path / "made"
        options = ["--single-file"] if single else []
        result = edgecifar("page", TINY, "--out", out, "--wasm", wasm, *options)
        assert result.exit_code == 0
        assert str(out / "index.html") in result.stdout
        assert (len(list(out.rglob("*"))) == 1) == single

    def test_it_says_how_to_get_onnxruntime_web(self, refused, tmp_path, monkeypatch):
        monkeypatch.delenv("EDGECIFAR_WASM", raising=False)
        sentence = refused("page", TINY, "--out", tmp_path / "made")
        assert "npm install onnxruntime-web" in sentence
        assert "--wasm" in sentence
        assert not (tmp_path / "made").exists()

    def test_an_existing_folder_stays(self, edgecifar, refused, wasm, tmp_path):
        out = tmp_path / "made"
        out.mkdir()
        (out / "index.html").write_text("my page")
        command = "page", TINY, "--out", out, "--wasm", wasm
        assert "--force" in refused(*command)
        assert "only a page is replaced" in refused(*command, "--force")
        assert (out / "index.html").read_text() == "my page"

    @pytest.mark.parametrize("more", [(), ("--single-file",)])
    def test_a_page_is_replaced(self, edgecifar, refused, wasm, tmp_path, more):
        command = "page", TINY, "--out", tmp_path / "made", "--wasm", wasm
        assert edgecifar(*command, *more).exit_code == 0
        assert "--force" in refused(*command)
        assert edgecifar(*command, "--force").exit_code == 0
        assert (tmp_path / "made" / "page.js").exists()


def test_the_version_is_the_one_that_npm_installs():
    package = json.loads((page.WEB / "package.json").read_text())
    assert package["dependencies"] == {page.PACKAGE: page.VERSION}
