"""`make audit` against an advisory service on this machine: what is known fails, and silence is no clean bill."""

from __future__ import annotations

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from servers import Scripted, reply

SCRIPT = Path(__file__).parents[1] / ".ci" / "audit.py"
pytest.importorskip("pip_audit")


def advisories(*vulnerable: str) -> Scripted:
    """An OSV service by which these packages are vulnerable."""

    def answer(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        found = {"id": "PYSEC-0000-1", "details": "made up", "affected": []}
        known = json.loads(body)["package"]["name"] in vulnerable
        reply(handler, 200, json.dumps({"vulns": [found]} if known else {}))

    return Scripted(answer)


def audit(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, "--osv-url", url], capture_output=True, text=True, timeout=300)


def test_a_known_vulnerability_fails() -> None:
    with advisories("jinja2", "pillow") as service:
        done = audit(f"{service.url}/v1/query")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "audit: pillow " in done.stdout and "PYSEC-0000-1; fixed in" in done.stdout
    assert "2 known vulnerabilities" in done.stdout, "jinja2 and pillow are installed"


def test_a_service_that_knows_nothing_or_is_not_there_is_no_clean_bill() -> None:
    with advisories() as service:
        for address in (service.url, "http://127.0.0.1:9"):
            done = audit(f"{address}/v1/query")
            assert done.returncode == 0
            assert done.stdout.startswith("audit: skipped, no advisory service can be reached")
