"""The page that classifies pictures in the browser: which files it is made of, as a folder or as one file."""

from __future__ import annotations

import base64
import gzip
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from ..runtime.bundle import Bundle
from ..runtime.errors import BundleError, OutputError, ProviderError, VariantError
from ..runtime.files import new_folder, refuse_existing
from ..runtime.manifest import GOLDEN, GOLDEN_PICTURES, MANIFEST, ONNX, Variant

WEB = Path(__file__).parent / "web"
"""The page's own sources."""

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"
"""The npm package that runs the model in the browser, and its version, as web/package.json pins it."""

RUNTIME = {
    "ort.js": (
        "dist/ort.wasm.bundle.min.mjs",
        "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    ),
    "ort.wasm": (
        "dist/ort-wasm-simd-threaded.wasm",
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    ),
}
"""The files of the page that come from the npm package: their path in it, and their SHA-256."""

HOW_TO_GET = f"run 'npm install {PACKAGE}@{VERSION}' and name the folder node_modules/{PACKAGE} with --wasm"

MODULES = ("png.js", "pixels.js", "npz.js", "decode.js", "bundle.js", "files.js", "page.js")
"""The page's scripts, each before those that import it."""

VARIANT = b'name="edgecifar-variant"'
"""A page's index.html holds this, by which it is known."""

_POLICY = (
    "default-src 'none'; script-src {script} 'wasm-unsafe-eval'; style-src {style}; img-src blob: data:; "
    "media-src blob:; connect-src {connect}; base-uri 'none'; form-action 'none'"
)


def page_files(bundle: Bundle, *, wasm: str | Path | None = None, variant: str | None = None) -> dict[str, bytes]:
    """Return the files of the page for `bundle`, by their paths relative to the page; index.html is the page.

    Args:
        bundle: of schema 2, with golden pictures.
        wasm: an unpacked npm package onnxruntime-web of version `VERSION`. None: its files are left out, and the page
            says that they are missing.
        variant: which of the bundle's models, an ONNX one; by default the bundle's own choice.

    Raises:
        BundleError: a file of the bundle is missing or damaged, or it has no golden pictures.
        VariantError: there is no such variant, or it is not ONNX.
        ProviderError: `wasm` is not that package.
    """
    chosen = _onnx_variant(bundle, variant)
    pictures = bundle.golden_pictures()
    if not pictures:
        raise BundleError(f"{bundle.folder} has no golden pictures, by which the page checks itself: export it again.")
    names = [MANIFEST, GOLDEN, GOLDEN_PICTURES, *(picture.file for picture in pictures)]
    files = {name: (WEB / name).read_bytes() for name in ("page.css", *MODULES)}
    files |= {f"bundle/{name}": bundle.file(name) for name in names}
    files[f"bundle/{chosen.file}"] = bundle.read(chosen)
    if wasm is not None:
        files |= _runtime(Path(wasm))
    files["index.html"] = _fill(
        variant=chosen.name,
        policy=_POLICY.format(script="'self'", style="'self'", connect="'self'"),
        style='<link rel="stylesheet" href="page.css">',
        script='<script type="module" src="page.js"></script>',
    )
    return files


def single_file(files: Mapping[str, bytes]) -> bytes:
    """Return a page that needs no other file, and so opens from the disk too.

    Args:
        files: what `page_files` returned, onnxruntime-web among them.
    """
    modules = [_without_imports(files[name].decode()) for name in MODULES if name != "files.js"]
    embedded = _without_imports((WEB / "embedded.js").read_text(encoding="utf-8"))
    script = "\n".join([_as_value("ort", files["ort.js"].decode()), embedded, *modules])
    if re.search("</script|<!--", script, re.IGNORECASE):
        raise ValueError("a script holds what would end it inside a page")
    style = files["page.css"].decode()
    held = {name: content for name, content in files.items() if name.startswith("bundle/") or name == "ort.wasm"}
    holders = "".join(
        f'<script type="text/plain" id="file:{name}">{base64.b64encode(gzip.compress(content, mtime=0)).decode()}'
        "</script>\n"
        for name, content in held.items()
    )
    page = files["index.html"].decode()
    found = re.search('name="edgecifar-variant" content="([^"]*)"', page)
    return _fill(
        variant=found[1] if found else "",
        policy=_POLICY.format(script=_hash(script), style=_hash(style), connect="'none'"),
        style=f"<style>{style}</style>",
        script=f'{holders}<script type="module">{script}</script>',
    )


def write_page(
    bundle: Bundle,
    folder: Path,
    *,
    wasm: str | Path,
    variant: str | None = None,
    single: bool = False,
    replace: bool = False,
) -> list[Path]:
    """Write the page into a new folder, whole or not at all.

    Args:
        bundle: as `page_files` says, as of `wasm` and `variant`.
        folder: where to.
        wasm: the unpacked npm package.
        variant: which model.
        single: write one file instead of many.
        replace: whether an existing folder may be replaced, one with such a page.

    Returns:
        The files that were written.

    Raises:
        OutputError: `folder` exists, and is not such a page or not to be replaced; or it cannot be written.
    """
    refuse_existing(folder, replace, _refuse_other)
    files = page_files(bundle, wasm=wasm, variant=variant)
    if single:
        files = {"index.html": single_file(files)}
    with new_folder(folder, replace, _refuse_other) as staged:
        for name, content in files.items():
            path = staged / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    return [folder / name for name in files]


def _refuse_other(folder: Path) -> None:
    """Raise an OutputError unless `write_page` made a folder."""
    index = folder / "index.html"
    if not index.is_file() or VARIANT not in index.read_bytes():
        raise OutputError(f"{folder} is not a page of a bundle, and only a page is replaced: choose another folder.")


def _onnx_variant(bundle: Bundle, name: str | None) -> Variant:
    chosen = bundle.variant(name)
    if chosen.format == ONNX:
        return chosen
    others = [variant.name for variant in bundle.manifest.variants if variant.format == ONNX]
    raise VariantError(f"The variant {chosen.name} is {chosen.format}: a browser runs ONNX; choose one of {others}.")


def _runtime(package: Path) -> dict[str, bytes]:
    """Read onnxruntime-web's files and hold them against their digests."""
    files = {}
    for name, (path, digest) in RUNTIME.items():
        try:
            files[name] = (package / path).read_bytes()
        except OSError:
            raise ProviderError(f"{package} is not {PACKAGE} ({path} is missing): {HOW_TO_GET}.") from None
        if sha256(files[name]).hexdigest() != digest:
            raise ProviderError(f"{package / path} is not that of {PACKAGE} {VERSION}: {HOW_TO_GET}.")
    files["ort.js"] = re.sub(rb"\n//# sourceMappingURL=.*", b"", files["ort.js"])  # browsers would look for it
    return files


def _fill(**parts: str) -> bytes:
    page = (WEB / "index.html").read_text(encoding="utf-8")
    for name, text in parts.items():
        page = page.replace(f"{{{name}}}", text)
    return page.encode()


def _without_imports(source: str) -> str:
    """Return a module as a part of a longer script; the page's modules import whole lines from each other only."""
    return re.sub(r"(?m)^import .*\n|^export ", "", source)


def _as_value(name: str, module: str) -> str:
    """Return a minified module, whose exports stand at its end, as a constant that holds them."""
    body, exports = re.fullmatch(r"(.*)export\{([^}]*)\};?\s*", module, re.DOTALL).groups()  # pyright: ignore[reportOptionalMemberAccess]
    pairs = [entry.split(" as ") for entry in exports.split(",")]
    values = ",".join(f"{public}:{local}" for local, public in pairs)
    return f"const {name} = (() => {{\n{body}\nreturn {{{values}}};\n}})();"


def _hash(text: str) -> str:
    """Return the source expression by which a policy lets inline content through."""
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"
