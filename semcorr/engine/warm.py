"""Stages that start at once: during `semcorr run` they are forked from a process that has imported PyTorch already.

A stage is a process of its own, `python -m semcorr <stage> <cell>`, whichever engine starts it, and most of the time of
a short one is the import of libraries. In a run it finds a socket named in its environment. It hands over its
arguments, folder, environment and open files, and waits for the exit code of a fork that has the libraries. semcorr's
own modules are imported by each fork, so a stage runs the code that lies on the disk. Without an answer it runs by
itself.
"""

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "SEMCORR_WARM"  # the socket's path, in the environment of a run
LIBRARIES = ("pandas", "pyarrow.parquet", "h5py", "torch", "timm", "safetensors.torch", "matplotlib.figure")
STREAMS = (0, 1, 2)  # stdin, stdout, stderr
PATIENCE = 2.0  # seconds in which a stage that was interrupted may end by itself


@contextlib.contextmanager
def kept() -> Iterator[dict[str, str]]:
    """Keep such a process while the block runs; what jobs need in their environment to find it.

    Until it has imported everything, stages run by themselves.
    """
    if sys.platform != "linux":  # elsewhere a fork may not use what was imported before it
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="semcorr-") as folder:
        path = str(Path(folder) / "warm")
        # Its stdin ends with this process, however that ends, and then it ends too.
        server = subprocess.Popen([sys.executable, "-m", __name__, path], stdin=subprocess.PIPE)
        try:
            yield {VARIABLE: path}
        finally:
            server.terminate()
            server.communicate()


def hand_over(arguments: list[str]) -> int | None:
    """Have a fork run `semcorr` with these arguments; its exit code, or None if there is nobody to ask."""
    if (path := os.environ.get(VARIABLE)) is None:
        return None
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    message = json.dumps({"arguments": arguments, "folder": str(Path.cwd()), "environment": environment}).encode()
    with socket.socket(socket.AF_UNIX) as asked:
        try:
            asked.connect(path)
            socket.send_fds(asked, [len(message).to_bytes(4, "little")], STREAMS)
            asked.sendall(message)
        except OSError:  # it has ended, or is not there yet
            return None
        code = b""
        with contextlib.suppress(ConnectionResetError, TimeoutError):  # killed before it had read everything, or stuck
            try:
                code = asked.recv(1)
            except KeyboardInterrupt:  # Ctrl+C in a terminal reaches the fork as well
                asked.settimeout(PATIENCE)
                code = asked.recv(1)
    if not code:
        sys.stderr.write("semcorr: its process was killed, perhaps for want of memory\n")
    return code[0] if code else 128 + signal.SIGKILL


def serve(path: str) -> None:
    """Import the libraries, then fork a stage for every connection until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the stages stop, this process waits for the end of the run
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # each fork says itself how it ended
    for name in LIBRARIES:
        importlib.import_module(name)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(64)
        while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
            asked, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _stage(asked)
            asked.close()


def _stage(asked: socket.socket) -> None:
    """Become the process that asks, run its command, and tell it the exit code."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        size, streams, _, _ = socket.recv_fds(asked, 4, len(STREAMS))
        content = b""
        while len(content) < int.from_bytes(size, "little"):
            content += asked.recv(1 << 16)
        message = json.loads(content)
        for number, stream in zip(STREAMS, streams, strict=True):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(message["folder"])
        os.environ.clear()
        os.environ.update(message["environment"])
        sys.argv[1:], sys.path[0] = message["arguments"], message["folder"]
        threading.Thread(target=_end_with, args=[asked], daemon=True).start()
        code = _run()
    finally:
        with contextlib.suppress(OSError):
            asked.sendall(bytes([code]))
        os._exit(code)


def _run() -> int:
    """Run `python -m semcorr`; its exit code."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "semcorr"]:
        del sys.modules[name]
    code = 1
    try:
        runpy.run_module("semcorr", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code & 255


def _end_with(asked: socket.socket) -> None:
    """End as soon as the process that asked has ended: an engine that stops a stage stops that one."""
    with contextlib.suppress(OSError):
        asked.recv(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    serve(sys.argv[1])
