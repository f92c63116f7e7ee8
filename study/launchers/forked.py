"""Local workers that begin in a moment: forked from one process that has imported everything."""

import ctypes
import errno
import json
import logging
import os
import select
import socket
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from typing import IO

from study.launchers.base import WorkerCommand

log = logging.getLogger(__name__)

START_S = 120.0  # from a worker's request to its start; the server imports for seconds
_SERVER = "study.cli.fork_server"  # started by its name: the command line owns the environment
_SET_SUBREAPER = 36  # of prctl, Linux
_REPLY_BYTES = 64


def fork_server(command: WorkerCommand, env: dict[str, str]) -> "ForkServer | None":
    """None where there is no such thing: only Linux gives a process its children's orphans."""
    try:
        return ForkServer(command, env)
    except OSError:
        return None


class ForkServer:
    """Starts workers as WorkerCommand.start does, without the seconds of their imports.

    Each is forked twice, so that its parent ends at once and it becomes this process's child: what
    happens to the server later is nothing to it. With the server gone, fresh interpreters start.
    """

    def __init__(self, command: WorkerCommand, env: dict[str, str]) -> None:
        """Begins the imports, and does not wait for them. Raises OSError where it can't be."""
        _check_pidfd()
        self._command = command
        self._env = env
        self._waiting: deque[ForkedWorker] = deque()  # for the server to start, in this order
        self._ended = False  # by this process, or with a warning
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            _set_subreaper(True)
            self._process = subprocess.Popen(
                # the arguments say in a list of processes what runs here
                [sys.executable, "-m", _SERVER, *command.arguments],
                cwd=command.cwd,
                env=env,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            self._socket.close()
            with suppress(OSError):
                _set_subreaper(False)
            raise
        finally:
            theirs.close()

    def start(self, *more: str, env: dict[str, str], output: IO[bytes]) -> "ForkedWorker":
        """A worker in a session of its own. env: the server's, with more or other values."""
        worker = ForkedWorker(self, more, env, output)
        differing = {key: value for key, value in env.items() if self._env.get(key) != value}
        request = {"arguments": self._command.worker(*more), "env": differing}
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode()], [output.fileno()])
        except OSError as error:
            if error.errno != errno.EMSGSIZE:  # arguments larger than a packet are no end
                self._say_ended("ended")
            worker.start_fresh(self._command)
        else:
            self._waiting.append(worker)
        return worker

    def collect(self, deadline: float) -> None:
        """Wait until then, by time.monotonic, for the server to start those that wait for it."""
        give_up_at = self._waiting[0].asked_at + START_S
        timeout_s = max(0.0, min(deadline, give_up_at) - time.monotonic())
        if not select.select([self._socket], [], [], timeout_s)[0]:
            if time.monotonic() >= give_up_at:
                self._say_ended(f"did not answer within {START_S:g} s")
                self.kill()
            return
        if reply := self._reply():
            self._waiting.popleft().begin(int(reply))
            return
        self._say_ended("ended")
        while self._waiting:
            self._waiting.popleft().start_fresh(self._command)

    def kill(self) -> None:
        """Nothing more is to be started."""
        self._ended = True
        self._process.kill()

    def close(self) -> None:
        self.kill()
        self._socket.close()
        self._process.wait()
        _set_subreaper(False)

    def _reply(self) -> bytes:
        """Empty if the server is gone and all that it said is heard."""
        try:
            return self._socket.recv(_REPLY_BYTES)
        except ConnectionResetError:  # it left requests unread: said once, before its replies
            return self._socket.recv(_REPLY_BYTES)

    def _say_ended(self, how: str) -> None:
        if not self._ended:
            log.warning("the process that workers are forked from %s: each imports anew", how)
        self._ended = True


class ForkedWorker:
    """A worker of a ForkServer, to its launcher what a Popen would be."""

    def __init__(
        self, server: ForkServer, more: tuple[str, ...], env: dict[str, str], output: IO[bytes]
    ) -> None:
        self.pid = 0  # until it is started
        self.asked_at = time.monotonic()
        self._server = server
        self._options = (more, env)
        self._output = os.dup(output.fileno())  # for a fresh interpreter
        self._pidfd: int | None = None
        self._fresh: subprocess.Popen[bytes] | None = None
        self._told: int | None = None  # a signal that came before it was started
        self._code: int | None = None

    def begin(self, pid: int) -> None:
        self.pid, self._pidfd = pid, os.pidfd_open(pid)
        os.close(self._output)
        if self._told is not None:
            os.kill(pid, self._told)

    def start_fresh(self, command: WorkerCommand) -> None:
        with os.fdopen(self._output, "ab") as output:
            if self._told is not None:
                self._code = -self._told
                return
            more, env = self._options
            self._fresh = command.start(*more, env=env, output=output, own_session=True)
        self.pid = self._fresh.pid

    def wait(self, timeout: float) -> int:
        """Its exit code, -9 behind SIGKILL. Raises subprocess.TimeoutExpired."""
        deadline = time.monotonic() + timeout
        while self.pid == 0 and self._code is None:
            self._server.collect(deadline)
            if time.monotonic() >= deadline:
                break
        left = max(0.0, deadline - time.monotonic())
        if self._fresh is not None:
            return self._fresh.wait(left)
        if self._pidfd is not None and select.select([self._pidfd], [], [], left)[0]:
            self._code = 0  # as Popen has it where another waited for it, or SIGCHLD is ignored
            with suppress(ChildProcessError):
                self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._pidfd)
            self._pidfd = None
        if self._code is None:
            raise subprocess.TimeoutExpired("a worker", timeout)
        return self._code

    def send_signal(self, number: int) -> None:
        if self._fresh is not None:
            self._fresh.send_signal(number)
        elif self._pidfd is not None:  # not waited for: the number is no other process's
            os.kill(self.pid, number)
        elif self._code is None:
            self._told = number
            self._server.kill()


def _check_pidfd() -> None:
    """Raises OSError where a process can't be waited for by a file: an old kernel, a sandbox."""
    if not hasattr(os, "pidfd_open"):
        raise OSError(errno.ENOSYS, "no pidfd_open")
    os.close(os.pidfd_open(os.getpid()))


def _set_subreaper(on: bool) -> None:
    """Whether children of children whose parent ended become this process's."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "prctl") or libc.prctl(_SET_SUBREAPER, int(on), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no subreaper")
