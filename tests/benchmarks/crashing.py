"""What stands for an attention call that ends its process, as an illegal access does."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection

from benchmarks.gpu.attention import Call


def crash(sender: Connection, call: Call, device: str) -> None:
    sender.send({"status": "failed in the backward pass", "complete": False})
    if call.backend == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    sender.send({"status": "ok", "complete": True})
