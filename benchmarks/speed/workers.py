"""Processes that answer questions: one line of JSON in, one line of JSON out."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Answer = dict[str, Any]

_WORDS = 2000
"""Bytes of a worker's last words that an error quotes."""


def python() -> str:
    """This interpreter."""
    return sys.executable


class Worker:
    """A process that serves questions until it is closed.

    Args:
        command: Starts it.
        environment: Added to that of this process.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )
        try:
            self.receive()  # it says when it is ready
        except BaseException:
            self.close()
            raise

    def call(self, **question: object) -> Answer:
        """Ask, and wait for the answer."""
        self.send(**question)
        return self.receive()

    def send(self, **question: object) -> None:
        """Ask."""
        if self._process.stdin is None:
            raise RuntimeError("the worker has no input")
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()

    def receive(self) -> Answer:
        """Wait for an answer.

        Raises:
            RuntimeError: The worker failed, or ended.
        """
        line = "" if self._process.stdout is None else self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with status {self._process.wait()}:\n{self._last_words()}")
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"a worker failed: {answer['error']}\n{self._last_words()}")
        return answer

    def _last_words(self) -> str:
        """End of what it wrote to the error output, where its own printing goes too."""
        self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, self._said.tell() - _WORDS))
        return self._said.read().decode(errors="replace")

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            if stream is not None:
                # What was not read any more does not matter.
                with contextlib.suppress(OSError):
                    stream.close()


def serve(answer: Callable[[Answer], Answer]) -> None:
    """In the worker: answer questions until the input ends. What the work prints goes to the error output."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    out.write(json.dumps({"ready": True}) + "\n")
    out.flush()
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Exception as error:  # noqa: BLE001 - whatever went wrong is told to the one who asked
            reply = {"error": f"{type(error).__name__}: {error}"}
        out.write(json.dumps(reply) + "\n")
        out.flush()
