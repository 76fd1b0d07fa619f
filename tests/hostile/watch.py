"""What must be the same after hostile candidates as before: processes, files, sockets, secrets."""

import hashlib
import os
import socket
import time
from pathlib import Path

import psutil
import pytest

from tests.hostile.case import MARK, SLEEP

_TOUCHED = ("/", "/tmp", "/var/tmp", "/dev/shm", "/root", "/etc", "/usr", "/run")
_SYSV_KEY = 0x98754321 & 0x7FFFFFFF
SECRET = "rft-hostile-secret-5d41402a"


class Watch:
    """A private home, working and temporary folder, and all that is compared afterwards."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.real_home = Path.home()
        self.home, self.work, self.temporary = root / "home", root / "work", root / "tmp"
        for folder in (self.home, self.work, self.temporary):
            folder.mkdir()
        self.canary = self.home / "canary.txt"
        self.canary.write_text(f"unchanged {SECRET}")
        monkeypatch.setenv("HOME", str(self.home))
        monkeypatch.setenv("TMPDIR", str(self.temporary))
        monkeypatch.setenv("RFT_HOSTILE_SECRET", SECRET)
        monkeypatch.setattr("tempfile.tempdir", None)
        monkeypatch.chdir(self.work)
        self.tcp = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.tcp.getsockname()[1]
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", self.port))
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(f"\0rft-hostile-{self.port}")
        self.unix.listen(64)
        self.started = time.time()
        self.children = self._children()
        self.files = self._files()
        self.places = self._marks()

    @property
    def where(self) -> dict[str, str]:
        """What the marks in a candidate's text stand for."""
        return {
            "port": str(self.port),
            "canary": str(self.canary),
            "home": str(self.home),
            "pid": str(os.getpid()),
        }

    def check(self) -> None:
        """Raises AssertionError that names what is left or has changed."""
        # Killed processes take a moment to go.
        until = time.monotonic() + 3
        while (left := self._left()) and time.monotonic() < until:
            time.sleep(0.1)
        assert not left, f"processes are left: {left}"
        assert self._files() == self.files
        assert self._marks() == self.places
        assert self.canary.read_text() == f"unchanged {SECRET}"
        for name, server in (("TCP", self.tcp), ("UDP", self.udp), ("Unix", self.unix)):
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.recv(100) if name == "UDP" else server.accept()
        segments = Path("/proc/sysvipc/shm")
        keys = [line.split()[0] for line in segments.read_text().splitlines()[1:]]
        assert str(_SYSV_KEY) not in keys, "a System V segment is left"

    def close(self) -> None:
        for server in (self.tcp, self.udp, self.unix):
            server.close()

    def _children(self) -> set[int]:
        return {p.pid for p in psutil.Process().children(recursive=True)}

    def _left(self) -> list[str]:
        """Processes that this test has started, directly or not, and that go on."""
        found = []
        mine = self._children() - self.children
        for process in psutil.process_iter():
            try:
                line = " ".join(process.cmdline())
                if process.pid == os.getpid() or "resource_tracker" in line:
                    continue
                fled = process.create_time() > self.started - 1 and (
                    SLEEP in line or process.environ().get("RFT_HOSTILE_SECRET") == SECRET
                )
                if process.pid in mine or fled:
                    found.append(f"{process.pid} {process.status()} {line[:200]}")
            except psutil.Error:
                continue
        return found

    def _files(self) -> dict[str, tuple[int, str]]:
        """Path -> (time of change, content) of all in the private folders."""
        found = {}
        for top in (self.home, self.work, self.temporary):
            for folder, folders, names in os.walk(top):
                for name in [*folders, *names]:
                    path = Path(folder, name)
                    told = path.lstat()
                    content = ""
                    if path.is_file() and told.st_size < 1 << 20:
                        content = hashlib.sha256(path.read_bytes()).hexdigest()
                    found[str(path)] = (told.st_mtime_ns, content)
        return found

    def _marks(self) -> set[str]:
        """Files that a candidate has left in any of the usual places."""
        places = {*map(Path, _TOUCHED), self.real_home, Path(__file__).parents[2], *self._above()}
        return {
            str(place / name)
            for place in places
            if place.is_dir()
            for name in os.listdir(place)
            if MARK in name or name in ("usercustomize.py", "sitecustomize.py")
        }

    def _above(self) -> set[Path]:
        import site

        return {self.work.parent, self.work.parent.parent, *map(Path, site.getsitepackages())}
