"""pyarrow has no types of its own: all of it is Any."""

from typing import Any, TypeAlias

from . import compute as compute
from . import fs as fs
from . import parquet as parquet

Schema: TypeAlias = Any
Table: TypeAlias = Any

def __getattr__(name: str) -> Any: ...
