"""The bundle behind HTTP, by the Open Inference Protocol, version 2, and the page for browsers. Imports `runtime` only.

What the server needs beyond the base install is imported when it is asked for: the page needs none of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import App
    from .models import Registry, Source, load_registry
    from .settings import Settings

__all__ = ["App", "Registry", "Settings", "Source", "load_registry"]

_HOMES = {"App": "app", "Registry": "models", "Settings": "settings", "Source": "models", "load_registry": "models"}


def __getattr__(name: str) -> Any:
    """Import the public name `name` from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
