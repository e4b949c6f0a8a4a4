"""`scripts/audit.py` tells a vulnerability from a lost connection; a stand-in answers as pip-audit 2.10 does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[1] / "scripts" / "audit.py"
SOUND = {"name": "numpy", "version": "2.0", "vulns": []}
UNKNOWN = {"name": "edgecifar", "skip_reason": "Dependency not found on PyPI and could not be audited"}
FLAWED = {"name": "pillow", "version": "9.0.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["9.0.1"], "aliases": []}]}
OFFLINE = "Traceback (most recent call last):\nrequests.exceptions.ConnectionError: Failed to resolve 'index.example'"


@pytest.mark.parametrize(
    ("packages", "error", "exits", "code", "says"),
    [
        ([SOUND, UNKNOWN], "", 0, 0, "pip-audit: no known vulnerability in 1 packages; 1 not known"),
        ([SOUND, FLAWED], "Found 1 known vulnerability", 1, 1, "pillow 9.0.0 has PYSEC-1; mended in 9.0.1"),
        ([UNKNOWN], "", 0, 0, "pip-audit: skipped, the index that it asks knows none of 1 packages"),
        (None, OFFLINE, 1, 0, "pip-audit: skipped, its data cannot be reached (requests.exceptions.ConnectionError"),
        (None, "usage: pip-audit [-h]", 2, 1, "pip-audit failed:\nusage: pip-audit"),
        (None, "AttributeError: 'NoneType'", 1, 1, "pip-audit failed:\nAttributeError"),
        (None, "", 1, 1, "pip-audit failed"),
    ],
)
def test_what_comes_of_it(tmp_path, packages, error, exits, code, says):
    out = "" if packages is None else json.dumps({"dependencies": packages, "fixes": []})
    stand_in = f"import sys; print({out!r}); print({error!r}, file=sys.stderr); sys.exit({exits})"
    (tmp_path / "pip_audit.py").write_text(stand_in)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, AUDIT], capture_output=True, text=True, check=False, env=environment)
    assert says in done.stdout + done.stderr
    assert done.returncode == code
