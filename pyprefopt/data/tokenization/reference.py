"""Transformers' renderer in a process of its own, which bounds the time and memory that a template may take."""

from __future__ import annotations

import atexit
import json
import os
import resource
import subprocess
import sys
from contextlib import suppress
from threading import Lock
from typing import Any

SECONDS = 3  # of processor time for a chat, besides as many for each of its MiB
MEMORY = 1 << 30  # bytes for a chat, besides what the program itself takes

_START = "import sys; sys.path[:] = {path!r}; from pyprefopt.data.tokenization.reference import serve; serve()"


class OutOfBoundsError(ValueError):
    """A template took more than it may."""


class Renderer:
    """A process that renders chats; it is started by the first one, and again after a template ended it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._owner = os.getpid()
        self._lock = Lock()

    def render(self, **request: Any) -> str:
        """The text of one chat.

        Raises ValueError in the template's words, and OutOfBoundsError where it took too much.
        """
        with self._lock:
            process = self._running()
            line = ""
            if process.stdin is not None and process.stdout is not None:  # pipes, as asked for
                with suppress(BrokenPipeError):
                    process.stdin.write(json.dumps(request) + "\n")
                    process.stdin.flush()
                    line = process.stdout.readline()
            if not line.endswith("\n"):
                self._process = None
                process.kill()
                process.wait()
                raise OutOfBoundsError(
                    "the template took more time than it may in transformers' renderer, or more than "
                    f"{MEMORY >> 20} MiB"
                )
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(answer["error"])
        return str(answer["text"])

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._owner != os.getpid():  # a fork's parent has it
            self._process = subprocess.Popen(  # noqa: S603  (our own module, of this very Python)
                [sys.executable, "-c", _START.format(path=sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
            self._owner = os.getpid()
            atexit.register(self._process.kill)
        return self._process


def serve() -> None:
    """Render what the standard input asks for, a JSON object a line."""
    from transformers.utils.chat_template_utils import render_jinja_template

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    with open("/proc/self/statm" if os.path.exists("/proc/self/statm") else os.devnull) as file:
        pages = file.read().split()
    if pages:
        data = int(pages[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (data + MEMORY, most))
    for line in sys.stdin:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        seconds = SECONDS * (1 + (len(line) >> 20))
        resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime) + seconds, most))
        request = json.loads(line)
        try:
            rendered, _ = render_jinja_template(
                [request["messages"]],
                chat_template=request["source"],
                tools=request["tools"],
                add_generation_prompt=request["add_generation_prompt"],
                **request["variables"],
            )
            answer = {"text": str(rendered[0])}
        except MemoryError:
            os._exit(1)
        except Exception as error:  # whatever goes wrong inside a template is the template's refusal
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
