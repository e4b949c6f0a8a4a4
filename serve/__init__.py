"""The bundle behind HTTP: the Open Inference Protocol, version 2, and `POST /classify`. Imports `runtime` only."""

from .app import App
from .models import Registry, load_registry
from .settings import Settings

__all__ = ["App", "Registry", "Settings", "load_registry"]
