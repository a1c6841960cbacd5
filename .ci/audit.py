"""Known vulnerabilities of all that is installed beside this Python, asked of an advisory service by pip-audit.

Exit code 1 where one is known. Where no service answers, that is said, and nothing is held to have been found or not:
pip-audit itself calls packages that a service does not know free of vulnerabilities.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from packaging.version import Version

#: A release with advisories in every service: one that tells of none is not there.
CANARY = "jinja2==2.4.1"
OWN = "customized-grpo"
#: Advisories that are passed over, each with the reason and with what would end it. None so far.
EXPLAINED: dict[str, str] = {}


def installed() -> list[str]:
    """NAME==VERSION of all packages but our own; +cpu and the like, which services do not know, left out."""
    found = {one.metadata["Name"]: Version(one.version).public for one in distributions()}
    return sorted(f"{name}=={version}" for name, version in found.items() if name != OWN)


def ask(service: list[str], requirements: list[str]) -> list[dict[str, Any]] | None:
    """What pip-audit says of each package; None where the service could not be asked."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "requirements.txt"
        listed.write_text("\n".join(requirements), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "pip_audit",
            *service,
            "--requirement",
            str(listed),
            "--no-deps",
            "--disable-pip",
        ]
        command += ["--format", "json", "--progress-spinner", "off", "--cache-dir", folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)  # noqa: S603 - our own interpreter
    try:
        answer: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return None
    return answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--osv-url", help="ask this OSV service alone")
    url = parser.parse_args().osv_url
    services = [["-s", "osv", "--osv-url", url]] if url else [["-s", "pypi"], ["-s", "osv"]]
    for service in services:
        canary = ask(service, [CANARY])
        if canary is None or not any(one.get("vulns") for one in canary):
            continue
        answer = ask(service, installed())
        if answer is not None:
            return told(answer)
    print("audit: skipped, no advisory service can be reached from here; nothing is known of the packages installed")
    return 0


def told(answer: list[dict[str, Any]]) -> int:
    """Prints what was found; the exit code."""
    unknown = [one["name"] for one in answer if "skip_reason" in one]
    found = [(one, advisory) for one in answer for advisory in one.get("vulns", [])]
    bad = [(one, advisory) for one, advisory in found if advisory["id"] not in EXPLAINED]
    for one, advisory in bad:
        fixed = ", ".join(advisory.get("fix_versions", [])) or "no release yet"
        print(f"audit: {one['name']} {one['version']}: {advisory['id']}; fixed in {fixed}")
    for identifier, reason in EXPLAINED.items():
        print(f"audit: {identifier} is passed over: {reason}")
    if unknown:
        print(f"audit: not known to the service: {', '.join(unknown)}")
    print(f"audit: {len(answer) - len(unknown)} packages, {len(bad)} known vulnerabilities")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
