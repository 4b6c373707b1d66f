"""Whether other processes of the same server answer on the same port.

Each takes a lock on a file of its own, in a directory named by user, parent process and port; a file whose lock is
free was left by a process that has ended, however it ended.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from stat import S_ISDIR
from typing import IO

from .asgi import Scope

try:
    import fcntl
except ImportError:  # pragma: no cover - not on Windows
    fcntl = None  # type: ignore[assignment]

_LOOK_EVERY_S = 1.0


class Siblings:
    """Finds them at most once a second; none, where files cannot be locked."""

    def __init__(self, directory: Path | None = None) -> None:
        self._root = directory or Path(tempfile.gettempdir())
        self._own: IO[bytes] | None = None
        self._place: Path | None = None
        self._pid = 0
        self._looked_at = 0.0
        self._others = False

    def found(self, scope: Scope) -> bool:
        """Whether there are others on the port that this request came to."""
        server = scope.get("server")
        if fcntl is None or not server or server[1] is None:
            return False
        now = time.monotonic()
        if self._own is None or self._pid != os.getpid() or now - self._looked_at > _LOOK_EVERY_S:
            self._looked_at = now
            with suppress(OSError):
                self._others = self._look(int(server[1]))
        return self._others

    def close(self) -> None:
        """This process answers no more."""
        if self._own is not None and self._place is not None:
            with suppress(OSError):
                (self._place / str(self._pid)).unlink()
                self._place.rmdir()
            self._own.close()
            self._own = None

    def _look(self, port: int) -> bool:
        if self._own is None or self._pid != os.getpid():
            self._pid = os.getpid()
            home = self._root / f"mlbalance-{os.getuid()}"
            home.mkdir(mode=0o700, exist_ok=True)
            _check_ours(home)
            self._place = home / f"{os.getppid()}-{port}"
            self._place.mkdir(mode=0o700, exist_ok=True)
            self._own = _locked(self._place / str(self._pid))
        assert self._place is not None
        others = False
        for path in self._place.iterdir():
            if path.name != str(self._pid):
                others |= _held(path)
        return others


def _check_ours(home: Path) -> None:
    """The directory's parent may be anybody's: what others own, or could write to, is not used. Raises OSError."""
    found = home.lstat()
    if not S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{home} is not ours alone")


def _locked(path: Path) -> IO[bytes]:
    while True:
        file = path.open("wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass
        except OSError:
            file.close()
            raise
        file.close()  # another found it before it was locked, and took it away


def _held(path: Path) -> bool:
    """Whether a living process holds the file; if not, it is taken away."""
    with suppress(OSError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        path.unlink()
    return False
