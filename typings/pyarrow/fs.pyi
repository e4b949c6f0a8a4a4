"""As the package: all of it is Any."""

from typing import Any

class FileSystem:
    @staticmethod
    def from_uri(uri: str) -> tuple[Any, str]: ...
    def __getattr__(self, name: str) -> Any: ...

def __getattr__(name: str) -> Any: ...
