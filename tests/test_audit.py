"""`make audit` against an advisory service on this machine: what is known fails, and silence is no clean bill."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "audit.py"
pytest.importorskip("pip_audit")


@contextmanager
def advisories(vulnerable: set[str]) -> Iterator[str]:
    """An OSV service by which these packages are vulnerable."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requested = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found = {"id": "PYSEC-0000-1", "details": "made up", "affected": []}
            body = json.dumps({"vulns": [found]} if requested["package"]["name"] in vulnerable else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/query"
    server.shutdown()


def audit(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, "--osv-url", url], capture_output=True, text=True, timeout=300)


def test_a_known_vulnerability_fails() -> None:
    with advisories({"jinja2", "pillow"}) as url:
        done = audit(url)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "audit: pillow " in done.stdout and "PYSEC-0000-1; fixed in" in done.stdout
    assert "2 known vulnerabilities" in done.stdout, "jinja2 and pillow are installed"


def test_a_service_that_knows_nothing_or_is_not_there_is_no_clean_bill() -> None:
    with advisories(set()) as url:
        for address in (url, "http://127.0.0.1:9/v1/query"):
            done = audit(address)
            assert done.returncode == 0
            assert done.stdout.startswith("audit: skipped, no advisory service can be reached")
