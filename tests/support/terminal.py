"""A command in a terminal of its own: what it draws, and keys that are pressed."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tests.support.runs import Folder

CTRL_C = b"\x03"
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """The project's command, started in folder; killed when the block ends."""

    def __init__(self, folder: Folder, *arguments: str, columns: int = 120) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self._drawn = bytearray()
        self.process = subprocess.Popen(
            # the terminal is the command's own, so that Ctrl-C is a signal to it
            ["setsid", "--ctty", *folder.command(*arguments)],
            cwd=folder.path,
            env=_environment(folder),
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(10)
        os.close(self._master)

    @property
    def text(self) -> str:
        """All that was drawn, one picture behind the other, without colours and movements."""
        return _CODES.sub("", self._drawn.decode(errors="replace"))

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def wait_for(self, condition: Callable[[str], object], timeout_s: float = 200) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition(self.text):
            assert time.monotonic() < deadline, f"waited in vain: {self.text[-2000:]}"
            time.sleep(0.05)

    def end(self, timeout_s: float = 300) -> int:
        """The exit code, once it has ended and all of it was read."""
        code = self.process.wait(timeout_s)
        self._reader.join(10)
        return code

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # EIO: nobody has the other side any more
                return
            if not data:
                return
            self._drawn += data


def _environment(folder: Folder) -> dict[str, str]:
    """The window's size rules, not what another terminal exported."""
    kept = {key: value for key, value in folder.env.items() if key not in ("COLUMNS", "LINES")}
    return kept | {"TERM": "xterm-256color"}
