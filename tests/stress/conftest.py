"""The scripts here and the formatter of the benchmarks find one another, as where a person runs them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
