"""edgecifar: train an image classifier, prove its exports equal, and run it without torch.

    import edgecifar

    classifier = edgecifar.Classifier()  # the bundle in the wheel; or Classifier("bundle")
    print(classifier.predict("photo.jpg")[0].label)

What is named here is loaded when it is first used, so that `import edgecifar` and `edgecifar --help` are quick. The
folder is not called `edgecifar`, or a clone in the current folder would take the place of the installed package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .runtime import Bundle, Classifier, EdgecifarError, Prediction  # pyright: ignore[reportMissingImports]: another folder
    from .runtime.pictures import load_picture  # pyright: ignore[reportMissingImports]

    __version__: str

__all__ = ["Bundle", "Classifier", "EdgecifarError", "Prediction", "__version__", "load_picture"]

_HOMES = {
    "Bundle": "bundle",
    "Classifier": "classifier",
    "EdgecifarError": "errors",
    "Prediction": "classifier",
    "load_picture": "pictures",
}
"""The module of `edgecifar.runtime` that has each name."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        found: Any = version("edgecifar")
    elif name in _HOMES:
        from importlib import import_module

        found = getattr(import_module(f"{__name__}.runtime.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
