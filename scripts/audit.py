"""Asks `pip-audit` whether an installed package has a known vulnerability; `scripts/check` calls it.

Exit code 1 where there is one, or where pip-audit fails in an unknown way. Where its data cannot be reached it says so
and exits with 0: pip-audit itself exits with 1 for a finding and for a lost connection alike, and with 0 where the
index that it asked knows none of the packages.
"""

from __future__ import annotations

import json
import subprocess
import sys

UNREACHABLE = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "HTTPError", "ServiceError", "Could not connect")


def main() -> int:
    """Audit the environment of this interpreter, print a line or the findings, and return the exit code."""
    command = [sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--progress-spinner", "off"]
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, LookupError, TypeError):
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        if done.returncode == 1 and any(word in done.stderr for word in UNREACHABLE):
            print(f"pip-audit: skipped, its data cannot be reached ({last[:150]})")
            return 0
        print(f"pip-audit failed:\n{done.stderr}", file=sys.stderr)
        return 1
    audited = [package for package in packages if "skip_reason" not in package]
    found = [package for package in audited if package["vulns"]]
    for package in found:
        for flaw in package["vulns"]:
            mended = ", ".join(flaw["fix_versions"]) or "no version yet"
            print(f"pip-audit: {package['name']} {package['version']} has {flaw['id']}; mended in {mended}")
    if found:
        return 1
    if not audited:
        print(f"pip-audit: skipped, the index that it asks knows none of {len(packages)} packages")
    else:
        print(f"pip-audit: no known vulnerability in {len(audited)} packages; {len(packages) - len(audited)} not known")
    return 0


if __name__ == "__main__":
    sys.exit(main())
