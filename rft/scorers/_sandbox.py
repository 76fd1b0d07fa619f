"""Runs Python code that nobody trusts, thousands of times over, in bubblewrap.

A sandbox is two servers, each alone in namespaces of its own: one holds the tests, the other the
candidate. The verdict comes from the tests' side, where nothing of the candidate ever runs; output of
programs is compared here, outside of both. Inside there are Python's standard library, read-only, an
empty scratch folder of limited size, no other user's rights, no network, no environment, no /proc and
no device. A system-call filter allows no new process and no new program, so that limits on one
process (CPU time, memory, file size) are limits on the whole candidate.

bubblewrap is started by root without a user namespace, and the server becomes `nobody`: in a
namespace a candidate would be root to the kernel outside it, exempt from the limit on threads and the
owner of whatever file leaked in. Other users get a namespace.

Scorer, tests and candidate take turns, so they share a core: a hand-over to another core costs more
than most tests do (measured: a third of all time). Each sandbox takes a core that no other has.

A server is replaced when a candidate leaves a file in its scratch folder, or when it doesn't answer.
"""

import contextlib
import json
import os
import platform
import select
import shutil
import socket
import struct
import subprocess
import sys
import sysconfig
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rft.scorers import _sandbox_roles, _sandbox_server

START_S = 20
"""Seconds that a server has to start in."""
ANSWER_S = 2
"""Seconds that a server has to end a job in."""
HURRY_S = 0.03
"""Seconds that the tests behind a failed one may take together: the verdict stands by then."""
HURRY_PROGRAMS_S = 0.1
"""The same for programs, each of which costs a process."""
END_S = 0.1
"""Seconds that tests may take to notice that their candidate is gone."""
SCRATCH_MB = 64
FILE_MB = 32
_MOST = 64 << 20
_SPARE = 1 << 16
"""Bytes of output beyond twice the expected ones, after which an output is wrong anyway."""


class Unavailable(ValueError):
    """There is no sandbox on this machine; `fix` is what to install or set."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what}: {fix}")
        self.what, self.fix = what, fix


@dataclass
class Run:
    """What became of a function candidate: the results of its tests in order, None for a pass, or
    (whose fault, exception, words)."""

    results: list[tuple[str, str, str] | None]
    calls: int | None
    """Calls of the candidate's functions; None if the tests did not come to their end."""
    timed_out: bool
    signal: int | None
    """What killed the candidate's process, if a signal did."""


@dataclass
class Output:
    """What became of a program."""

    text: bytes
    timed_out: bool
    too_long: bool
    status: int | None
    """Exit status, or minus the signal that killed it; None if it was stopped."""
    fault: tuple[str, str] | None
    """Name and words of the exception it ended by, in its own words."""


def command(channel: int, info: int, what: str, limits: dict[str, list[int]]) -> list[str]:
    """The command line of a server that talks over the file descriptor `channel`.

    info: where bubblewrap writes the server's process id. what: `tests` or `candidate`. limits: of
    its processes.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise Unavailable(
            "model-written code runs only in bubblewrap, which is not installed",
            "apt-get install -y bubblewrap",
        )
    if sys.platform != "linux" or platform.machine() not in _sandbox_server.MACHINES:
        raise Unavailable(
            f"model-written code can't be run on {sys.platform} on {platform.machine()}",
            f"use Linux on {' or '.join(_sandbox_server.MACHINES)}",
        )
    python = os.path.realpath(sys.executable)
    found = {python, sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    # The interpreter's own shared libraries, and the system's.
    found |= {os.path.join(sys.base_prefix, "lib"), "/lib", "/lib64", "/usr/lib", "/usr/lib64"}
    args = [bwrap, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    args += ["--unshare-cgroup-try", "--die-with-parent", "--new-session", "--as-pid-1"]
    args += ["--clearenv", "--setenv", "PYTHONHASHSEED", "0", "--setenv", "PYTHONPATH", "/code"]
    # Symbols bound once and not in every fork; no 64 MB of address space for each thread's memory.
    args += ["--setenv", "LD_BIND_NOW", "1", "--setenv", "MALLOC_ARENA_MAX", "1"]
    args += ["--cap-drop", "ALL"]
    if os.geteuid() == 0:
        args += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        args += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    binds = {path: path for path in found | {os.path.realpath(p) for p in found}}
    binds |= {_inside(m): str(m.__file__) for m in (_sandbox_server, _sandbox_roles)}
    # Made first, since bubblewrap lets nobody but root into the folders it makes up.
    for folder in sorted({str(p) for path in binds for p in Path(path).parents} - {"/"}):
        args += ["--perms", "0755", "--dir", folder]
    for path, source in sorted(binds.items()):
        args += ["--ro-bind-try", source, path]
    args += ["--perms", "1777", "--size", str(SCRATCH_MB << 20), "--tmpfs", _sandbox_server.SCRATCH]
    args += ["--info-fd", str(info), "--remount-ro", "/", "--chdir", _sandbox_server.SCRATCH, "--"]
    args += [python, "-P", "-s", "-S", "-B", "-X", "utf8", _inside(_sandbox_server)]
    return [*args, str(channel), what, json.dumps(limits)]


def _inside(module: Any) -> str:
    return f"/code/{module.__name__.replace('.', '/')}.py"


def explained(words: str) -> Unavailable:
    """bubblewrap's last words, with what to do about them."""
    said = f"the sandbox does not start: {words.strip() or 'bwrap ended without a word'}"
    if "Unknown option" in words:
        return Unavailable(said, "install bubblewrap 0.7 or later")
    if not words.startswith("bwrap"):
        return Unavailable(said, "use a Python whose files every user may read")
    if os.geteuid() == 0:
        fix = (
            "allow the container namespaces: docker run --cap-add SYS_ADMIN "
            "--security-opt seccomp=unconfined --security-opt apparmor=unconfined"
        )
        return Unavailable(said, fix)
    fix = (
        "allow user namespaces, as root on the host: "
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu), "
        "kernel.unprivileged_userns_clone=1 (older Debian), user.max_user_namespaces=10000 (if 0)"
    )
    return Unavailable(said, fix)


class _Server:
    """One bubblewrap with a warm Python in it."""

    def __init__(self, what: str, limits: dict[str, list[int]], cores: set[int]) -> None:
        ours, theirs = socket.socketpair()
        told, telling = os.pipe()
        try:
            # No /dev/null: nothing of the host's is to be held inside, not even that.
            self.process = subprocess.Popen(
                command(theirs.fileno(), telling, what, limits),
                pass_fds=[theirs.fileno(), telling],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except BaseException:
            ours.close()
            os.close(told)
            raise
        finally:
            theirs.close()
            os.close(telling)
        self.control = ours
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.close = weakref.finalize(self, _end, self.process, ours)
        try:
            hello = self.answer(START_S)
            assert hello["ready"] == 1 and hello["uid"] != 0
            info = json.loads(_read(told, time.monotonic() + 1, 1 << 16)[0])
            os.sched_setaffinity(info["child-pid"], cores)
        except (OSError, ValueError, EOFError, KeyError):
            self.process.kill()
            words = self.process.stdout.read().decode(errors="replace").strip()
            self.close()
            raise explained(words.rpartition("\n")[2]) from None
        finally:
            os.close(told)

    def send(self, job: dict[str, Any], fds: list[int]) -> None:
        """Hands over a job with its ends of the pipes, which are then closed here."""
        try:
            body = json.dumps(job).encode()
            self.control.settimeout(ANSWER_S)
            socket.send_fds(self.control, [struct.pack("<I", len(body))], fds)
            self.control.sendall(body)
        finally:
            for fd in fds:
                os.close(fd)

    def end(self) -> dict[str, Any]:
        """Ends the job and all its processes. Raises OSError, ValueError or EOFError if it can't."""
        self.control.sendall(struct.pack("<I", 0))
        return self.answer(ANSWER_S)

    def answer(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        got = b""
        while len(got) < 4 or len(got) < 4 + struct.unpack("<I", got[:4])[0]:
            self.control.settimeout(max(deadline - time.monotonic(), 0.001))
            more = self.control.recv(4096)
            if not more:
                raise EOFError
            got += more
        answer: dict[str, Any] = json.loads(got[4:])
        return answer


def _end(process: "subprocess.Popen[bytes]", control: socket.socket) -> None:
    control.close()
    process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()


def _core() -> tuple[socket.socket | None, set[int]]:
    """A core that no other sandbox has, with what holds it; all cores where each is taken.

    The name of a socket is the lease: it ends with the process, however that ends.
    """
    cores = os.sched_getaffinity(0)
    for core in sorted(cores):
        lease = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lease.bind(f"\0rft-sandbox-core-{core}")
            return lease, {core}
        except OSError:
            lease.close()
    return None, cores


class Sandbox:
    """The two servers, started anew where they must be. Raises Unavailable when it is made."""

    def __init__(self, memory_mb: int, cpu_s: int) -> None:
        size = memory_mb << 20
        self.limits = {
            "RLIMIT_AS": [size, size],
            "RLIMIT_FSIZE": [FILE_MB << 20, FILE_MB << 20],
            "RLIMIT_NOFILE": [64, 64],
            "RLIMIT_CORE": [0, 0],
        }
        # The count of threads is the user's, so the servers have no limit on it: a candidate that
        # uses it up must not keep another sandbox's server from forking.
        self.job_limits = {"RLIMIT_CPU": [cpu_s, cpu_s + 1], "RLIMIT_NPROC": [256, 256]}
        self.lease, self.cores = _core()
        self.servers: dict[str, _Server] = {}
        for name in ("tests", "candidate"):
            self.server(name)

    def server(self, name: str) -> _Server:
        if name not in self.servers:
            self.servers[name] = _Server(name, self.limits, self.cores)
        return self.servers[name]

    def drop(self, name: str) -> None:
        self.servers.pop(name).close()

    def close(self) -> None:
        for name in list(self.servers):
            self.drop(name)

    def release(self) -> None:
        self.close()
        if self.lease:
            self.lease.close()

    def finished(self, name: str, answer: dict[str, Any]) -> int | None:
        """The wait status of a job's process; None where it was still running."""
        if not answer["clean"]:
            self.drop(name)
        status: int | None = answer["status"]
        return status

    @contextlib.contextmanager
    def job(self) -> Iterator["_Pipes"]:
        """Pipes for a job. Whatever goes wrong in it, the next one has new servers."""
        pipes = _Pipes()
        free = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.cores)
        try:
            yield pipes
        except BaseException:
            self.close()
            raise
        finally:
            os.sched_setaffinity(0, free)
            pipes.close()

    def functions(self, candidate: dict[str, Any], tests: dict[str, Any], deadline: float) -> Run:
        """Tests a candidate's functions. deadline: of time.monotonic(). Raises OSError, ValueError
        or EOFError if a server fails.

        candidate: `blocks`, `question`, `names`; tests: `tests`, `helpers`, `names`, as
        rft/scorers/_sandbox_roles.py takes them.
        """
        with self.job() as pipes:
            servers = self.server("candidate"), self.server("tests")
            (asked, asking), (told, telling), (results, result) = (pipes.new() for _ in range(3))
            job = {"do": "functions", "limits": self.job_limits, **candidate}
            servers[0].send(job, pipes.hand(asked, telling))
            servers[1].send(tests, pipes.hand(told, asking, result))
            text, timed_out, _ = _read(results, deadline, _MOST, lambda part: b"[" in part)
            status = self.finished("candidate", servers[0].end())
            # Without its candidate, a test that waited for it comes to its end.
            rest, stuck, _ = _read(results, time.monotonic() + END_S, _MOST)
            if stuck or not (text + rest).endswith(b"}\n"):
                self.drop("tests")
        lines = [json.loads(line) for line in text.split(b"\n")[:-1]]
        calls = lines.pop()["calls"] if lines and isinstance(lines[-1], dict) else None
        killed = os.WTERMSIG(status) if status and os.WIFSIGNALED(status) else None
        return Run([x and tuple(x) for x in lines], calls, timed_out, killed)

    def program(
        self, candidate: dict[str, Any], stdin: str, expected: int, deadline: float
    ) -> Output:
        """Runs a candidate as a program on one input. expected: how many bytes it should print."""
        with self.job() as pipes:
            server = self.server("candidate")
            (out, output), (noted, note) = pipes.new(), pipes.new()
            job = {"do": "program", "limits": self.job_limits, "input": stdin, **candidate}
            server.send(job, pipes.hand(output, note))
            text, timed_out, too_long = _read(out, deadline, 2 * expected + _SPARE)
            answer = None
            if not timed_out and not too_long:
                try:
                    answer = server.answer(deadline - time.monotonic())
                except TimeoutError:
                    timed_out = True
            status = self.finished("candidate", answer or server.end())
            words, _, _ = _read(noted, deadline, 4096)
        fault = None
        with contextlib.suppress(ValueError):
            name, said = json.loads(words)
            fault = str(name), str(said)
        code = None if status is None else os.waitstatus_to_exitcode(status)
        return Output(text, timed_out, too_long, code, fault)


class _Pipes:
    """Pipes whose ends are closed here, unless they were handed over."""

    def __init__(self) -> None:
        self.open: set[int] = set()

    def new(self) -> tuple[int, int]:
        pair = os.pipe()
        self.open |= set(pair)
        return pair

    def hand(self, *fds: int) -> list[int]:
        self.open -= set(fds)
        return list(fds)

    def close(self) -> None:
        for fd in self.open:
            os.close(fd)


def _read(
    fd: int, deadline: float, most: int, hurry: Callable[[bytes], bool] = lambda part: False
) -> tuple[bytes, bool, bool]:
    """All that comes; whether the deadline cut it, and whether it was more than `most` bytes.

    hurry: whether a part of it makes the rest uninteresting.
    """
    parts: list[bytes] = []
    size = 0
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while True:
        if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
            return b"".join(parts), True, False
        part = os.read(fd, 1 << 16)
        if not part:
            return b"".join(parts), False, False
        parts.append(part)
        size += len(part)
        if size > most:
            return b"".join(parts), False, True
        if hurry(part):
            deadline = min(deadline, time.monotonic() + HURRY_S)


def fault() -> Unavailable | None:
    """Why code can't be run here, tried out; None if it can."""
    try:
        sandbox = Sandbox(memory_mb=512, cpu_s=5)
    except Unavailable as reason:
        return reason
    try:
        candidate = {"blocks": ["def f(x): return x + 1"], "question": "", "names": ["f"]}
        tests = {"tests": "assert f(1) == 2", "helpers": "", "names": ["f"]}
        run = sandbox.functions(candidate, tests, time.monotonic() + 5)
        assert run.results == [None], run
        return None
    except (OSError, ValueError, EOFError, AssertionError) as reason:
        return Unavailable(f"the sandbox does not work: {reason!r}", "try it on another machine")
    finally:
        sandbox.release()
