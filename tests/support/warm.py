"""Children that need not import torch: each is a fork of a process that has.

Most of what an audit of a small program takes is the import of torch, once per child. A test that
is about something else puts :func:`command` in the place of
:data:`nnaudit.processes.child.COMMAND`: what is started is a client, which hands its files,
environment and words to the server and ends as the fork does. The fork is in a session of its own,
as a child is; killing the client kills it.

    python -P warm.py serve SOCKET [MODULE...]      the server, which ends when its input does
    python -P -S warm.py call SOCKET FD FILE PARENT     the client
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

_FILES = 4
"""Standard input, output and error, and the pipe for events."""


@contextmanager
def command(folder: Path) -> Iterator[tuple[str, ...]]:
    """Serve for the time of a block; yield the command of the client."""
    place = folder / "warm"
    words = [sys.executable, "-P", __file__, "serve", str(place)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        try:
            yield (sys.executable, "-P", "-S", __file__, "call", str(place))
        finally:
            # Its input ends only when no other fork of this process, as a loader's worker, has it.
            server.terminate()


# --- the client -----------------------------------------------------------------------------------


def call(place: str, events: str, *words: str) -> NoReturn:
    """Have the server fork, and end as the fork does."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(place)
        asked = {"cwd": str(Path.cwd()), "environment": dict(os.environ), "words": words}
        socket.send_fds(server, [b"!"], [0, 1, 2, int(events)])
        server.sendall(json.dumps(asked).encode() + b"\n")
        signal.signal(signal.SIGTERM, lambda *_: server.sendall(b"T"))
        code = int(server.makefile().readline() or -signal.SIGKILL)
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)


# --- the server -----------------------------------------------------------------------------------


def serve(place: str) -> None:
    """Fork for each client, until standard input ends."""
    import gc

    _import_ahead()
    gc.freeze()  # else the first collection in a fork would copy every page
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(place)
        listening.listen()
        print("ready", flush=True)
        while True:
            ready = select.select([sys.stdin, listening], [], [])[0]
            if sys.stdin in ready:
                return
            client, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _end_as(_serve, client)
            client.close()


def _import_ahead() -> None:
    import torch._dynamo

    from nnaudit.checks.registry import Registry
    from nnaudit.engine import session
    from nnaudit.loop.script import run_script
    from nnaudit.processes import sandbox

    Registry.load()
    assert callable(run_script) and sandbox and session and torch._dynamo


def _serve(client: socket.socket) -> None:
    """Fork the child, tell it to end when the client says so, and say how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, files, _, _ = socket.recv_fds(client, 1, _FILES)
    asked = json.loads(client.makefile().readline())
    child = os.fork()
    if child == 0:
        client.close()
        _end_as(_become, files, **asked)
    for number in files:
        os.close(number)
    ended = os.pidfd_open(child)
    while ended not in (ready := select.select([client, ended], [], [])[0]):
        if client.recv(1) == b"T":
            os.kill(child, signal.SIGTERM)
        elif client in ready:  # it was killed
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            return
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(OSError):
        client.sendall(f"{code}\n".encode())


def _become(files: list[int], cwd: str, environment: dict[str, str], words: list[str]) -> None:
    """Do what a child does that was started with these files and words."""
    import tempfile

    from nnaudit.processes import sandbox

    os.setsid()
    *standard, events = files
    for number, file in enumerate(standard):
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    file, _ = words
    sys.argv = [sandbox.__file__, str(events), file, str(os.getppid())]
    sandbox.main()


def _end_as(act: Callable[..., Any], *words: Any, **named: Any) -> NoReturn:
    """Do ``act`` and end the process."""
    try:
        act(*words, **named)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    {"serve": serve, "call": call}[sys.argv[1]](*sys.argv[2:])
