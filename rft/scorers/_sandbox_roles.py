"""What a process in the sandbox does: holds a candidate's functions, runs a program, runs tests.

Tests and candidate never share a process or a sandbox. They talk through two pipes in JSON, with tags
for Python's other plain types, so that what a test compares is always a plain value that it decoded
itself: never an object whose `__eq__` the candidate wrote. Of the tests, the candidate's process
sees the arguments of calls, and nothing else.

Only the standard library is there (rft/scorers/_sandbox.py). Modules that not every process needs are
imported late, since each makes every fork dearer.
"""

import atexit
import builtins
import contextlib
import io
import json
import opcode
import os
import struct
import sys
import types
from collections.abc import Callable
from functools import lru_cache
from typing import Any

LONGEST = 32 << 20
"""Bytes of one message; a longer one counts as a fault of whoever sent it."""

# Messages ------------------------------------------------------------------------------------------


def send(fd: int, message: Any) -> None:
    body = json.dumps(message).encode()
    data = memoryview(struct.pack("<I", len(body)) + body)
    while data:
        data = data[os.write(fd, data) :]


def receive(fd: int) -> Any:
    """The next message. Raises EOFError where there is none, and ValueError where it is none."""
    (size,) = struct.unpack("<I", _bytes(fd, 4))
    if size > LONGEST:
        raise ValueError(f"a message of {size:,} bytes")
    return json.loads(_bytes(fd, size))


def _bytes(fd: int, count: int) -> bytes:
    got = os.read(fd, count)
    while len(got) < count:
        more = os.read(fd, min(count - len(got), 1 << 20))
        if not more:
            raise EOFError
        got += more
    return got


def encode(value: Any, keep: Callable[[Any], Any]) -> Any:
    """A plain value as JSON with tags. keep: what stands for an object that is none."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        value = int(value)
        return value if -(1 << 53) < value < 1 << 53 else {"int": hex(value)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list):
        return [encode(v, keep) for v in value]
    for name, kind in (("tuple", tuple), ("set", set), ("frozenset", frozenset)):
        if isinstance(value, kind):
            return {name: [encode(v, keep) for v in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(k, keep), encode(v, keep)] for k, v in value.items()]}
    if isinstance(value, bytes | bytearray):
        return {"bytes" if isinstance(value, bytes) else "bytearray": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if type(value) is range:
        return {"range": [encode(v, keep) for v in (value.start, value.stop, value.step)]}
    # Neither module is imported where nobody uses it.
    if type(value) is getattr(sys.modules.get("fractions"), "Fraction", ()):
        return {"fraction": [hex(value.numerator), hex(value.denominator)]}
    if type(value) is getattr(sys.modules.get("decimal"), "Decimal", ()):
        return {"decimal": str(value)}
    return {"object": keep(value)}


def decode(value: Any, find: Callable[[int], Any]) -> Any:
    """What `encode` was given. find: the object that a number stands for."""
    if isinstance(value, list):
        return [decode(v, find) for v in value]
    if not isinstance(value, dict):
        return value
    ((tag, inner),) = value.items()
    if tag == "tuple":
        return tuple([decode(v, find) for v in inner])
    if tag == "dict":
        return {decode(k, find): decode(v, find) for k, v in inner}
    if tag == "int":
        return int(inner, 16)
    if tag in ("set", "frozenset"):
        return (set if tag == "set" else frozenset)([decode(v, find) for v in inner])
    if tag in ("bytes", "bytearray"):
        return (bytes if tag == "bytes" else bytearray).fromhex(inner)
    if tag == "complex":
        return complex(*inner)
    if tag == "range":
        return range(*[decode(v, find) for v in inner])
    if tag == "fraction":
        from fractions import Fraction

        return Fraction(*[int(v, 16) for v in inner])
    if tag == "decimal":
        from decimal import Decimal

        return Decimal(inner)
    if tag == "object":
        return find(inner)
    raise ValueError(f"a message with {tag!r:.40}")


def told(fault: BaseException) -> list[str]:
    """The name and the words of an exception."""
    try:
        words = str(fault)[:200]
    except BaseException:
        words = ""
    return [type(fault).__name__[:60], words]


# The candidate's side ------------------------------------------------------------------------------


def code_of(blocks: list[str], question: str, names: list[str]) -> types.CodeType:
    """The candidate's code: the last block that defines a wanted name, else the last.

    question: the prompt's own code, or "". It goes in front, since solutions use its imports and
    helpers, and since one that defines no wanted name is the body of its last function.
    """
    for block in reversed(blocks):
        if block[:1].isspace() and question:
            continue  # a body
        with contextlib.suppress(SyntaxError, ValueError):
            code = compile(block, "<candidate>", "exec")
            if any(_binds(code, name) for name in names):
                return compile(f"{question}\n{block}", "<candidate>", "exec") if question else code
    block = blocks[-1]
    if question:
        # Chat models strip or forget the indentation of a body.
        indented = ["    " + block.lstrip(), "\n".join("    " + x for x in block.split("\n"))]
        for body in (block, *indented):
            with contextlib.suppress(SyntaxError):
                return compile(f"{question}\n{body}", "<candidate>", "exec")
    return compile(block, "<candidate>", "exec")


def _binds(code: types.CodeType, name: str) -> bool:
    """Whether a module gives a value to a name. Its syntax tree would say so at ten times the cost."""
    if name not in code.co_names:
        return False
    number, extended = code.co_names.index(name), 0
    for operation, argument in zip(code.co_code[::2], code.co_code[1::2]):
        argument |= extended << 8
        extended = argument if operation == _EXTENDED else 0
        if operation == _STORE and argument == number:
            return True
    return False


_STORE, _EXTENDED = opcode.opmap["STORE_NAME"], opcode.opmap["EXTENDED_ARG"]


def load(job: dict[str, Any], name: str) -> dict[str, Any]:
    """Runs the candidate's code as a module of that name; returns its names."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(code_of(job["blocks"], job["question"], job["names"]), module.__dict__)
    return module.__dict__


def functions(job: dict[str, Any], read: int, write: int) -> None:
    """Loads a candidate and answers calls until the tests hang up."""
    sys.stdin, sys.stdout, sys.stderr = EMPTY, NOWHERE, NOWHERE
    objects: list[Any] = []

    def keep(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    try:
        space = load(job, "candidate")
        send(write, {"names": {n: encode(space[n], keep) for n in job["names"] if n in space}})
    except BaseException as fault:
        send(write, {"fault": told(fault)})
        return
    while True:
        try:
            what, *args = decode(receive(read), objects.__getitem__)
        except EOFError:
            return
        try:
            value = _OPERATIONS[what](*args)
            message: dict[str, Any] = {"value": encode(value, keep)}
            if value is None and what == "call":
                message["changed"] = [encode(a, keep) for a in args[1] if type(a) in _MUTABLE]
        except StopIteration:
            message = {"stop": True}
        except BaseException as fault:
            message = {"fault": told(fault)}
        send(write, message)


_MUTABLE = (list, dict, set, bytearray)
# No comparisons: what a candidate is compared with would be known to it.
_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, args, kwargs: target(*args, **kwargs),
    "get": getattr,
    "item": lambda target, key: target[key],
    "len": len,
    "bool": bool,
    "str": str,
    "repr": repr,
    "iter": iter,
    "next": next,
}


class _Nowhere(io.RawIOBase):
    """What a candidate under test prints goes nowhere, and costs nothing."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)


NOWHERE = io.TextIOWrapper(io.BufferedWriter(_Nowhere()), "utf-8", write_through=True)
EMPTY = io.TextIOWrapper(io.BytesIO(), "utf-8")


def program(job: dict[str, Any], output: int, note: int) -> None:
    """Runs a candidate as a program: stdin from the job, stdout into the pipe."""
    given = os.memfd_create("input")
    with open(given, "wb", closefd=False) as stdin:
        stdin.write(job["input"].encode(errors="replace"))
    os.lseek(given, 0, os.SEEK_SET)
    os.dup2(given, 0)
    os.dup2(output, 1)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = out = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = NOWHERE
    status = 0
    try:
        load(job, "__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as fault:
        status = 1
        os.write(note, json.dumps(told(fault)).encode())
    # As an interpreter ends: programs print from threads and at exit.
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for file in (sys.stdout, out):
        file.flush()
    os._exit(status & 255)


# The tests' side -----------------------------------------------------------------------------------


class CandidateError(Exception):
    """A candidate raised what isn't one of Python's own exceptions, or broke the connection."""


class Opaque(Exception):
    """A test wants what can't be decided without trusting the candidate."""


class Remote:
    """An object that stays on the candidate's side: a function, an instance of its own class.

    It can be called, read and gone through. It equals only itself: its own `__eq__` isn't asked.
    """

    __slots__ = ("_link", "_number")

    def __init__(self, link: "Link", number: int) -> None:
        self._link, self._number = link, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._link.ask("call", self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._link.ask("get", self, name)

    def __getitem__(self, key: Any) -> Any:
        return self._link.ask("item", self, key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and other._number == self._number

    def __hash__(self) -> int:
        return hash(self._number)

    def __len__(self) -> int:
        return self._link.ask("len", self)

    def __bool__(self) -> bool:
        return self._link.ask("bool", self) is True

    def __str__(self) -> str:
        return self._link.ask("str", self)

    def __repr__(self) -> str:
        return self._link.ask("repr", self)

    def __iter__(self) -> Any:
        return self._link.ask("iter", self)

    def __next__(self) -> Any:
        return self._link.ask("next", self)


class Link:
    """The tests' end of the pipes to a candidate."""

    def __init__(self, read: int, write: int) -> None:
        self.read, self.write, self.calls = read, write, 0

    def find(self, number: Any) -> Remote:
        if type(number) is not int:
            raise ValueError("an object without a number")
        return Remote(self, number)

    def keep(self, value: Any) -> int:
        if isinstance(value, Remote):
            return value._number
        raise Opaque(f"a test passes a {type(value).__name__} to the candidate")

    def ask(self, what: str, *args: Any) -> Any:
        self.calls += what == "call"
        if what == "call":
            request = [what, encode(args[0], self.keep), encode(list(args[1]), self.keep)]
            request.append(encode(args[2], self.keep))
        else:
            request = [what, *(encode(a, self.keep) for a in args)]
        reply = self.talk(request)
        try:
            if "value" in reply:
                value = decode(reply["value"], self.find)
                if "changed" in reply and value is None:
                    # Changes of arguments count only for functions that return nothing, such as a
                    # sort in place: else a candidate could empty the list that its result is
                    # compared with.
                    self._change(args[1], decode(reply["changed"], self.find))
                return value
            if reply.get("stop") and what == "next":
                stop = True
            else:
                stop = False
                name, words = reply["fault"]
        except Exception as fault:
            raise _remote(CandidateError(f"a bad message: {fault!r:.100}")) from None
        if stop:
            raise StopIteration
        kind = getattr(builtins, str(name), None)
        # StopIteration would end a loop of the test early, and with it the test.
        if (
            isinstance(kind, type)
            and issubclass(kind, Exception)
            and not issubclass(kind, StopIteration | StopAsyncIteration)
        ):
            try:
                raised = kind(words)
            except TypeError:
                raised = CandidateError(f"{name}: {words}")
        else:
            raised = CandidateError(f"{name}: {words}")
        raise _remote(raised, str(words))

    def talk(self, request: Any) -> Any:
        try:
            if request is not None:
                send(self.write, request)
            reply = receive(self.read)
        except (EOFError, OSError):
            raise _remote(CandidateError("exited")) from None
        except (ValueError, RecursionError) as fault:
            raise _remote(CandidateError(f"a bad message: {fault!r:.100}")) from None
        if not isinstance(reply, dict):
            raise _remote(CandidateError("a bad message"))
        return reply

    def _change(self, args: Any, changed: list[Any]) -> None:
        for old, new in zip([a for a in args if isinstance(a, _MUTABLE)], changed, strict=True):
            if not isinstance(old, type(new)):
                raise ValueError("an argument of another type")
            if isinstance(old, list | bytearray):
                old[:] = new
            else:
                old.clear()
                old.update(new)


def _remote(fault: Exception, words: str = "") -> Exception:
    """Marks an exception as the candidate's, with its words as the candidate gave them."""
    fault.from_candidate = words or str(fault)  # type: ignore[attr-defined]
    return fault


def _each(body: list[Any]) -> None:
    """Puts each assert into `with __recorder__:`, so that one that fails doesn't hide the others.

    Not inside `try`, where an assert may be meant to be caught.
    """
    import ast

    for i, node in enumerate(body):
        if isinstance(node, ast.Assert):
            name = ast.copy_location(ast.Name("__recorder__", ast.Load()), node)
            body[i] = ast.copy_location(ast.With([ast.withitem(name)], [node]), node)
        elif not isinstance(node, ast.Try | ast.TryStar):
            _each(getattr(node, "body", []))
            _each(getattr(node, "orelse", []))


@lru_cache(256)
def compiled(text: str) -> types.CodeType:
    import ast

    tree = ast.parse(text)
    _each(tree.body)
    return compile(tree, "<tests>", "exec")


class Recorder:
    """Writes the result of each test: null, or [whose fault, exception, words]."""

    def __init__(self, write: int) -> None:
        self.write, self.count = write, 0

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, kind: Any, fault: BaseException | None, trace: Any) -> bool:
        if fault is not None and not isinstance(fault, Exception):
            return False
        if fault is None:
            os.write(self.write, b"null\n")
        else:
            self.say(self.of(fault))
        return True

    def of(self, fault: BaseException) -> list[str]:
        words = getattr(fault, "from_candidate", None)
        return ["tests", *told(fault)] if words is None else ["candidate", told(fault)[0], words]

    def say(self, result: Any) -> None:
        os.write(self.write, json.dumps(result).encode() + b"\n")


def tests(job: dict[str, Any], read: int, write: int, results: int) -> None:
    """Runs the tests against the candidate at the other end; results as lines of JSON."""
    link, recorder = Link(read, write), Recorder(results)
    module = sys.modules["tests"] = types.ModuleType("tests")
    space = module.__dict__
    space["__recorder__"] = recorder
    try:
        exec(compiled(job["helpers"]), space)
        loaded = link.talk(None)
        if "fault" in loaded:
            name, words = loaded["fault"]
            recorder.say(["load", str(name), str(words)])
        else:
            names = loaded["names"]
            space |= {n: decode(names[n], link.find) for n in job["names"] if n in names}
            exec(compiled(job["tests"]), space)
            if recorder.count == 0 and link.calls > 0:
                recorder.say(None)  # tests without an assert: they ran to their end
    except BaseException as fault:
        recorder.say(recorder.of(fault))
    recorder.say({"calls": link.calls})
