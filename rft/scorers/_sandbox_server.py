"""The server that runs inside the sandbox, as its process 1 (rft/scorers/_sandbox.py starts it).

It is warm: for each job it forks, so a run costs a fork of a small interpreter instead of a start of
one. Process 1 of a pid namespace can't be killed from within, takes in every orphan, and its
`kill(-1)` ends all other processes at once, whatever sessions they fled to: so nothing outlives a
job. The forked child gives up all it could use against the server or the next job (`confine`), then
does its part (rft/scorers/_sandbox_roles.py).

Only the standard library is there, and this file's helper.
"""

import contextlib
import ctypes
import functools
import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rft.scorers import _sandbox_roles as roles

SCRATCH = "/tmp"
WARM = "bisect collections copy functools heapq itertools math operator re string typing"
"""Modules imported before the first fork, since candidates and tests import them again and again.
Each makes every fork dearer."""
NOBODY = 65534

# System calls that are refused: (name, number on x86_64, on aarch64). No new program, no namespace, no socket to the outside, no look into or change of another
# process, nothing that lasts beyond the process, and no rarely used corner of the kernel.
_REFUSED = """
execve 59 221, execveat 322 281, ptrace 101 117, process_vm_readv 310 270,
process_vm_writev 311 271, process_madvise 440 440, pidfd_getfd 438 438, kcmp 312 272,
unshare 272 97, setns 308 268, mount 165 40, umount2 166 39, move_mount 429 429, open_tree 428 428,
fsopen 430 430, fsconfig 431 431, fsmount 432 432, fspick 433 433, mount_setattr 442 442,
pivot_root 155 41, chroot 161 51, open_by_handle_at 304 265, bpf 321 280, perf_event_open 298 241,
userfaultfd 323 282, io_uring_setup 425 425, io_uring_enter 426 426, io_uring_register 427 427,
keyctl 250 219, add_key 248 217, request_key 249 218, shmget 29 194, semget 64 190, msgget 68 186,
mq_open 240 180, socket 41 198, bind 49 200, connect 42 203, listen 50 201, accept 43 202,
accept4 288 242, sched_setaffinity 203 122, sched_setparam 142 118, sched_setscheduler 144 119,
sched_setattr 314 274, setpriority 141 140, ioprio_set 251 30, move_pages 279 239,
migrate_pages 256 238, personality 135 92, mknod 133 -, mknodat 259 33, init_module 175 105,
finit_module 313 273, kexec_load 246 104, reboot 169 142, swapon 167 224, acct 163 89,
quotactl 179 60, syslog 103 116
"""
MACHINES = {"x86_64": (0xC000003E, 0, 56, 302), "aarch64": (0xC00000B7, 1, 220, 261)}
"""Audit number; column above; numbers of clone and prlimit64. clone3 is 435 on both."""
_THREAD, _NAMESPACES = 0x10000, 0x7E020080
_KILL, _ALLOW, _EPERM, _ENOSYS = 0x80000000, 0x7FFF0000, 0x00050001, 0x00050026
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38


_LOAD, _EQUAL, _ABOVE, _BITS, _DONE = 0x20, 0x15, 0x35, 0x45, 0x06


def filter_for_all() -> bytes:
    """The seccomp filter of every process inside, as classic BPF (linux/filter.h)."""
    audit, column, _, prlimit = MACHINES[os.uname().machine]
    refused = [line.split()[1 + column] for line in _REFUSED.split(",")]
    return _assembled(
        [
            (_LOAD, 0, 0, 4),
            (_EQUAL, 1, 0, audit),
            (_DONE, 0, 0, _KILL),
            (_LOAD, 0, 0, 0),
            (_ABOVE, "eperm", 0, 0x40000000),  # the x32 calls of x86_64
            *((_EQUAL, "eperm", 0, int(n)) for n in refused if n != "-"),
            (_EQUAL, 0, "allow", prlimit),
            (_LOAD, 0, 0, 16),
            (_EQUAL, "allow", "eperm", 0),  # only of itself, which is process 0
        ]
    )


def filter_for_candidates() -> bytes:
    """A second filter: no new process, only threads. Short, since each candidate installs it."""
    _, column, clone, _ = MACHINES[os.uname().machine]
    forks = [57, 58] if column == 0 else []  # fork and vfork; aarch64 has neither
    return _assembled(
        [
            (_LOAD, 0, 0, 0),
            *((_EQUAL, "eperm", 0, n) for n in forks),
            (_EQUAL, "enosys", 0, 435),  # clone3 hides its flags; libc falls back to clone
            (_EQUAL, 0, "allow", clone),
            (_LOAD, 0, 0, 16),
            (_BITS, 0, "eperm", _THREAD),
            (_BITS, "eperm", "allow", _NAMESPACES),
        ]
    )


def _assembled(code: list[tuple[Any, ...]]) -> bytes:
    at = {"allow": len(code), "eperm": len(code) + 1, "enosys": len(code) + 2}
    ends = [(_DONE, 0, 0, value) for value in (_ALLOW, _EPERM, _ENOSYS)]
    lines = []
    for i, (what, yes, no, value) in enumerate([*code, *ends]):
        jumps = [at[j] - i - 1 if isinstance(j, str) else j for j in (yes, no)]
        lines.append(struct.pack("<HBBI", what, *jumps, value))
    return b"".join(lines)


class _Filter(ctypes.Structure):
    _fields_ = [("count", ctypes.c_ushort), ("code", ctypes.POINTER(ctypes.c_char))]


LIBC = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, *values: Any) -> None:
    if LIBC.prctl(option, *(*values, 0, 0, 0, 0)[:4]) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def installing(instructions: bytes) -> Callable[[], None]:
    """What installs a filter, with all the work done that can be done before."""
    program = _Filter(len(instructions) // 8, ctypes.create_string_buffer(instructions))
    return functools.partial(prctl, PR_SET_SECCOMP, 2, ctypes.byref(program))


def limit(limits: dict[str, list[int]]) -> None:
    for name, (soft, hard) in limits.items():
        resource.setrlimit(getattr(resource, name), (soft, hard))


def requests(control: socket.socket) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Each job with its ends of the pipes, until the scorer hangs up."""
    while True:
        head, fds, _, _ = socket.recv_fds(control, 4, 4)
        if len(head) < 4:
            return
        (size,) = struct.unpack("<I", head)
        if size:  # else it ends a job that had ended by itself
            yield json.loads(control.recv(size, socket.MSG_WAITALL)), fds


def serve_tests(control: socket.socket) -> None:
    """Runs tests one after the other in this process: they are the data set's, not a model's."""
    import random

    sys.stdin, sys.stdout, sys.stderr = roles.EMPTY, roles.NOWHERE, roles.NOWHERE
    for job, fds in requests(control):
        random.seed(0)
        roles.tests(job, *fds)
        for fd in fds:
            os.close(fd)


def serve_candidates(control: socket.socket, confine: Callable[[], None]) -> None:
    """Runs each candidate in a process of its own; nothing of it is left when the answer goes out."""
    for job, fds in requests(control):
        pid = os.fork()
        if pid == 0:
            try:
                control.close()
                candidate(job, fds, confine)
            finally:
                os._exit(0)
        for fd in fds:
            os.close(fd)
        ended = os.pidfd_open(pid)
        waiting: list[Any] = [control, ended]
        select.select(waiting, [], [])
        os.close(ended)
        done, status = os.waitpid(pid, os.WNOHANG)
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        answer = {"status": status if done else None, "clean": not os.listdir(SCRATCH)}
        roles.send(control.fileno(), answer)


def candidate(job: dict[str, Any], fds: list[int], confine: Callable[[], None]) -> None:
    os.closerange(0, 3)  # the server's
    limit(job["limits"])
    confine()
    {"functions": roles.functions, "program": roles.program}[job["do"]](job, *fds)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if os.getuid() == 0:
        # Started by root: become nobody before anything foreign is here.
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    os.environ.clear()
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # again: a change of user takes it back
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_DUMPABLE, 0)  # no ptrace, no /proc/1/mem
    # Else `random` seeds itself after every fork, which takes as long as half the fork. Candidates
    # all begin at one seed, so that a verdict is the same each time.
    register, os.register_at_fork = os.register_at_fork, lambda **hooks: None
    import random

    os.register_at_fork = register
    random.seed(0)
    for name in WARM.split():
        __import__(name)
    gc.collect()
    gc.freeze()
    limit(json.loads(sys.argv[3]))
    installing(filter_for_all())()
    roles.send(control.fileno(), {"ready": os.getpid(), "uid": os.getuid()})
    confine = installing(filter_for_candidates())
    if sys.argv[2] == "tests":
        confine()
        serve_tests(control)
    else:
        serve_candidates(control, confine)


if __name__ == "__main__":
    main()
