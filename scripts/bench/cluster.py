"""What does Ray cost, and how many engines can one driver feed?

    python scripts/bench/cluster.py overhead
    python scripts/bench/cluster.py overhead --model models/SmolLM2-135M-Instruct --rounds 2
    python scripts/bench/cluster.py driver

overhead: output tokens per second of the same requests by four set-ups, on the same cores, each in a
process of its own, taking turns. Two engines with half of the cores each aren't one engine with all
of them: on a CPU the smaller batches and the fewer threads of each change the speed by themselves. So
two pairs tell what Ray costs: two engines in Ray actors against two in plain processes
(`engine.data_parallel`), and one engine in a Ray actor against one in the process itself. All four
are printed. Starts and a warm-up aren't counted.

driver: engines are replaced by a rate model (each finishes so many samples a second, of so many
tokens), all else is real: Ray, actors, messages, dispatch, request ids, Parquet parts. What the driver
spends is measured in CPU seconds, its main thread (which Python's lock makes the bottleneck) and the
whole process, and laid on messages and rows by runs with other numbers of them. Bookkeeping with 1,000
engines is measured without Ray, and `ray.wait` with 1,000 calls under way. From that follows what
1 to 1,000 engines would ask of it.
"""

import argparse
import dataclasses
import itertools
import json
import os
import pickle
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rft import cluster, hosts, rows
from rft.config import Chat, Model
from rft.config_decoding import Decoding, Engine
from rft.hosts import Host, Pool, Reply
from rft.samplers._dispatch import Engines, pack, unpack
from rft.types import Candidate, Finish, Request, Setup, digest

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "rft" / "embedded"


# What Ray costs ------------------------------------------------------------------------------------

VARIANTS = ("one", "processes", "ray", "ray_one")


def overhead(args: argparse.Namespace) -> None:
    rates: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for i in range(args.rounds):
        # Forth and back, so that a drift of the machine favours nobody.
        for variant in VARIANTS if i % 2 == 0 else VARIANTS[::-1]:
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--child", variant],
                capture_output=True,
                text=True,
                check=False,
            )
            found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            if not found:
                sys.exit(f"{variant} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
            got = json.loads(found[0].removeprefix("RESULT "))
            rates[variant].append(got["tokens"] / got["seconds"])
            print(f"  round {i + 1}, {variant}: {rates[variant][-1]:,.0f} tokens/s ({got})")
    cores = len(os.sched_getaffinity(0))
    names = {
        "one": f"1 engine in the process, {cores} cores",
        "ray_one": f"1 engine in a Ray actor, {cores} cores",
        "processes": f"{args.copies} engines in plain processes",
        "ray": f"{args.copies} engines in Ray actors",
    }
    print(f"{'':<40} {'median':>8}  each round, tokens/s")
    for variant, name in names.items():
        shown = " ".join(f"{rate:,.0f}" for rate in rates[variant])
        print(f"{name:<40} {statistics.median(rates[variant]):>8,.0f}  {shown}")
    for over, under in (("ray", "processes"), ("ray_one", "one"), ("ray", "one")):
        each = [a / b for a, b in zip(rates[over], rates[under], strict=True)]
        print(
            f"{over} / {under} = {statistics.median(each):.3f} "
            f"(rounds: {', '.join(f'{ratio:.3f}' for ratio in each)})"
        )


def measure(variant: str, args: argparse.Namespace) -> dict[str, float]:
    from rft.chat import Renderer
    from rft.samplers.ray import ray
    from rft.samplers.vllm import vllm

    copies = args.copies if variant in ("processes", "ray") else 1
    model = Model(base=str(args.model), max_len=args.max_len)
    engine = Engine(
        max_num_seqs=args.max_num_seqs // copies,
        kv_cache_gb=args.kv_cache_gb,
        data_parallel=copies if variant == "processes" else 1,
    )
    renderer = Renderer(model, Chat())
    setup = Setup(model=model, engine=engine, renderer=renderer, prompts={})
    lines = args.prompts.read_text().splitlines()[: args.limit]
    prompts = [renderer.prompt_ids(json.loads(line)["question"]) for line in lines]
    settings = Decoding(n=args.n, temperature=1.0, max_tokens=args.max_tokens)

    def requests(tag: str) -> Iterator[Request]:
        for i, ids in enumerate(prompts):
            for j in range(args.n):
                yield Request(f"{tag}{i}-{j}", f"{tag}{i}", j, ids, settings, 1000 * i + j)

    sampler: Any = ray(setup, engines=copies) if variant.startswith("ray") else vllm(setup)

    def until_all_are_up() -> Iterator[Request]:
        for i in itertools.count():
            yield from requests(f"warm{i}")
            if sampler.stats().get("engines", 1) == copies:
                return

    for _ in sampler.sample(until_all_are_up()):
        pass
    begun = time.monotonic()
    tokens = sum(len(c.token_ids) for c in sampler.sample(requests("timed")))
    seconds = time.monotonic() - begun
    sampler.close()
    return {"tokens": tokens, "seconds": round(seconds, 2)}


# How many engines a driver can feed ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of the samples that are simulated."""

    prompt: int
    tokens: int
    room: int


def rate_model(host: Host, rate: float, shape: Shape) -> None:
    """An engine's stand-in: finishes `rate` samples a second, in the order asked."""
    host.ready({"room": shape.room, "stats": {"tokens": 0}})
    chance = random.Random(0)
    many = [tuple(chance.randrange(50_000) for _ in range(shape.tokens)) for _ in range(64)]
    text = "word " * (shape.tokens * 4 // 5)
    begun, given = time.monotonic(), 0
    while True:
        while given < rate * (time.monotonic() - begun):
            r = host.take(block=False)
            if r is None:
                # An engine that has nothing to do doesn't catch up later.
                begun = time.monotonic() - given / rate
                break
            given += 1
            ids = many[given % len(many)]
            host.give(pack(made(r, text, ids)), {"tokens": given * shape.tokens})
        time.sleep(0.01)


def setup_of(shape: Shape) -> Setup:
    model = Model(base="none", max_len=shape.prompt + shape.tokens + 1)
    return Setup(model, Engine(), renderer=None, prompts={})  # type: ignore[arg-type]


def made_requests(shape: Shape, n: int = 32) -> Iterator[Request]:
    """Requests as the sample stage makes them, ids and seeds hashed."""
    decoding = Decoding(n=n, max_tokens=shape.tokens)
    for i in itertools.count():
        prompt_id, ids = digest("prompt", i), tuple(range(i % 1000, i % 1000 + shape.prompt))
        for index in range(n):
            key = digest("pool", prompt_id, index)
            seed = int(digest(key, "seed")[:16], 16) >> 1
            yield Request(key, prompt_id, index, ids, decoding, seed)


def made(r: Request, text: str, ids: tuple[int, ...]) -> Candidate:
    known = r.id, r.prompt_id, r.index, text, r.prompt_token_ids, ids
    return Candidate(*known, Finish.STOP, -1.0)


def cpu() -> tuple[float, float]:
    """CPU seconds so far of this thread, and of the process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return time.thread_time(), used.ru_utime + used.ru_stime


def driven(
    engines: int, rate: float, poll_s: float, shape: Shape, seconds: float
) -> dict[str, Any]:
    """The driver's CPU seconds over a run with so many stand-ins in Ray actors."""
    hosts.POLL_S = poll_s
    # So small a part of a CPU that any number of them finds room.
    transport = cluster.Actors(rate_model, (rate, shape), 0.1, 0, "--engines")
    messages = 0
    call = transport.call

    def counted(handle: Any, method: str, *given: Any) -> Any:
        nonlocal messages
        messages += method == "exchange"
        return call(handle, method, *given)

    transport.call = counted  # type: ignore[method-assign]
    sampler = Engines(Pool(transport, engines, "stand-in", ""), setup_of(shape))
    with tempfile.TemporaryDirectory() as folder:
        writer = rows.Writer(Path(folder), Candidate, seconds=5.0)
        count, begun = 0, time.monotonic()
        start = [0.0, 0.0, 0, 0]
        warm = 3.0
        for candidate in sampler.sample(made_requests(shape)):
            writer.add(candidate)
            count += 1
            at = time.monotonic() - begun
            if warm and at > warm:
                warm, start = 0.0, [*cpu(), messages, count]
                clock = time.monotonic()
            if at > 3.0 + seconds:
                break
        end = [*cpu(), messages, count]
        took = time.monotonic() - clock
    sampler.close()
    thread, process, sent, drawn = (b - a for a, b in zip(start, end))
    return {
        "engines": engines,
        "rows/s": drawn / took,
        "messages/s": sent / took,
        "thread": thread / took,
        "process": process / took,
    }


class Nobody:
    """Transport to engines that answer at once, in this process: what is left is the bookkeeping."""

    def __init__(self, shape: Shape, some: int):
        self.shape, self.some = shape, some
        self.count = itertools.count()
        self.held: dict[int, list[Request]] = {}
        self.calls: dict[int, tuple[int, str]] = {}

    def start(self, slot: int) -> int:
        self.held[slot] = []
        return slot

    def call(self, handle: int, method: str, *args: Any) -> int:
        if method == "exchange":
            self.held[handle] += args[0]
        token = next(self.count)
        self.calls[token] = handle, method
        return token

    def wait(self, tokens: Any, timeout_s: float) -> list[int]:
        return list(itertools.islice(tokens, 8))

    def result(self, token: int) -> Any:
        handle, method = self.calls.pop(token)
        if method != "exchange":
            return "" if method == "where" else Reply(report={"room": self.shape.room, "stats": {}})
        held = self.held[handle]
        done, self.held[handle] = held[: self.some], held[self.some :]
        return Reply([(r.id, "", b"", "stop", None, None) for r in done])

    def stop(self, handle: int) -> None:
        pass

    def no_room(self) -> str:
        return ""

    def close(self) -> None:
        pass


def bookkeeping(engines: int, shape: Shape, total: int) -> dict[str, float]:
    """CPU seconds a row of making requests and dispatching them, and GiB of memory at the peak."""
    sampler = Engines(Pool(Nobody(shape, some=16), engines, "nobody", ""), setup_of(shape))
    stream = sampler.sample(made_requests(shape))
    for _ in itertools.islice(stream, total):
        pass
    begun = time.thread_time()
    for _ in itertools.islice(stream, total):
        pass
    spent = (time.thread_time() - begun) / total
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    return {"engines": engines, "us a row": 1e6 * spent, "GiB": peak}


def waiting(calls: int) -> float:
    """CPU seconds of `ray.wait` over so many calls, one of which is answered."""
    import ray

    @ray.remote(num_cpus=0, max_concurrency=4)
    class Sleeper:
        def sleep(self, seconds: float) -> None:
            time.sleep(seconds)

    sleeper = Sleeper.remote()
    pending = [sleeper.sleep.remote(60) for _ in range(calls)]
    done = ray.put(None)
    ray.wait([*pending, done], num_returns=1)
    begun = time.thread_time()
    for _ in range(50):
        # As rft.cluster.Actors waits.
        ray.wait([*pending, done], num_returns=1, timeout=1)
        ray.wait([*pending, done], num_returns=calls + 1, timeout=0)
    spent = (time.thread_time() - begun) / 50
    ray.kill(sleeper)
    return spent


def fit(runs: list[dict[str, Any]], what: str) -> tuple[float, float]:
    """CPU seconds a row and a message: least squares without a constant, none below zero."""
    import numpy as np

    a = np.array([[run["rows/s"], run["messages/s"]] for run in runs])
    b = np.array([run[what] for run in runs])
    found, *_ = np.linalg.lstsq(a, b, rcond=None)
    if found.min() < 0:
        keep = int(found.argmax())
        found = np.zeros(2)
        found[keep] = (a[:, keep] @ b) / (a[:, keep] @ a[:, keep])
    return float(found[0]), float(found[1])


def parts(shape: Shape) -> tuple[int, int]:
    """Prints what each part of the driver's work on a row costs; returns the bytes that a candidate
    and its request are on their way."""
    count, some = 20_000, 40
    begun = time.thread_time()
    asked = list(itertools.islice(made_requests(shape), count))
    making = time.thread_time() - begun
    answers = [
        made(r, f"{r.id} " + "word " * (shape.tokens * 4 // 5), tuple(range(i, i + shape.tokens)))
        for i, r in enumerate(asked)
    ]
    sent = [pickle.dumps(asked[i : i + some]) for i in range(0, count, some)]
    came = [pickle.dumps([pack(c) for c in answers[i : i + some]]) for i in range(0, count, some)]
    begun = time.thread_time()
    for i, message in enumerate(came):
        for j, packed in enumerate(pickle.loads(message)):
            unpack(packed, asked[i * some + j])
    reading = time.thread_time() - begun
    with tempfile.TemporaryDirectory() as folder:
        begun = time.thread_time()
        with rows.Writer(Path(folder), Candidate) as writer:
            for answer in answers:
                writer.add(answer)
        writing = time.thread_time() - begun
    each = {"making requests": making, "reading candidates": reading, "writing parts": writing}
    size, size_out = (sum(map(len, messages)) // count for messages in (came, sent))
    print(f"a candidate of {shape.tokens} tokens: {size} bytes; its request: {size_out} bytes")
    print(", ".join(f"{name}: {1e6 * s / count:.1f} us a row" for name, s in each.items()))
    return size, size_out


def driver(args: argparse.Namespace) -> None:
    shape = Shape(args.prompt_tokens, args.tokens, room=3 * args.max_num_seqs)
    leave = cluster.connect(None)
    size, size_out = parts(shape)
    print("stand-ins in Ray actors, the driver's CPU seconds a second:")
    runs = []
    for engines, rate, poll_s in args.runs:
        run = driven(engines, rate, poll_s, shape, args.seconds)
        runs.append(run)
        print(
            f"  {engines} engines at {rate:g} rows/s, polled every {poll_s:g} s: "
            f"{run['rows/s']:,.0f} rows/s, {run['messages/s']:.0f} messages/s, main thread "
            f"{run['thread']:.3f}, process {run['process']:.3f}"
        )
    costs = {what: fit(runs, what) for what in ("thread", "process")}
    for what, (per_row, per_message) in costs.items():
        print(f"{what}: {1e6 * per_row:.0f} us a row, {1e6 * per_message:.0f} us a message")
    waits = {n: waiting(n) for n in (10, 100, 1000)}
    print("ray.wait:", ", ".join(f"{1e3 * s:.2f} ms with {n} calls" for n, s in waits.items()))
    leave()
    books = {n: bookkeeping(n, shape, args.rows) for n in (1, 10, 100, 1000)}
    for book in books.values():
        print(
            f"bookkeeping with {book['engines']:,} engines: {book['us a row']:.1f} us a row, "
            f"{book['GiB']:.2f} GiB at the peak"
        )
    table(args, size + size_out, costs, waits, books)


def table(
    args: argparse.Namespace,
    size: int,
    costs: dict[str, tuple[float, float]],
    waits: dict[int, float],
    books: dict[int, dict[str, float]],
) -> None:
    def at(n: int, known: dict[int, float]) -> float:
        import numpy as np

        return float(np.interp(n, list(known), list(known.values())))

    few = min(run_engines for run_engines, _, _ in args.runs)
    rows_us = {n: book["us a row"] for n, book in books.items()}

    def spent(n: int) -> tuple[float, ...]:
        """Rows and messages a second, CPU seconds a second of the main thread and the process."""
        rate = n * args.rate / args.tokens
        # As rft.hosts.Pool polls.
        messages = n / max(args.poll, n / hosts.MESSAGES_PER_S)
        # The runs were with few engines. More are more bookkeeping, and more calls to look through, at
        # worst for each message by itself.
        looks = min(messages, cluster.LOOKS_PER_S) if n > cluster.MANY else messages
        grown = rate * max(0.0, at(n, rows_us) - at(few, rows_us)) / 1e6
        grown += looks * max(0.0, at(n, waits) - at(few, waits))
        each = [rate * row + messages * message + grown for row, message in costs.values()]
        return rate, messages, *each

    print(
        f"engines of {args.rate:,} tokens/s, {args.tokens} tokens a sample: what a driver has to do\n"
        f"{'engines':>8} {'tokens/s':>11} {'rows/s':>8} {'MB/s':>7} {'messages/s':>10} "
        f"{'main thread':>11} {'process':>8}"
    )
    for n in (1, 3, 10, 30, 100, 200, 300, 500, 700, 1000):
        rate, messages, thread, process = spent(n)
        print(
            f"{n:>8,} {n * args.rate:>11,} {rate:>8,.0f} {rate * size / 1e6:>7.1f} {messages:>10,.0f} "
            f"{thread:>11.2f} {process:>8.2f}"
        )
    limit = next((n for n in range(1, 50_000) if spent(n)[2] >= 1), None)
    if limit is None:
        print("no limit below 50,000 engines")
        return
    rate, messages, *_ = spent(limit)
    print(
        f"limit: the main thread is full with {limit:,} engines: {limit * args.rate:,} tokens/s, "
        f"{rate:,.0f} rows/s, {rate * size / 1e6:.0f} MB/s, {messages:,.0f} messages/s"
    )


def runs(text: str) -> list[tuple[int, float, float]]:
    return [
        (int(a), float(b), float(c)) for a, b, c in (each.split(":") for each in text.split(","))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("overhead")
    one.add_argument("--model", type=Path, default=EMBEDDED / "model", help="folder of the model")
    one.add_argument("--prompts", type=Path, default=EMBEDDED / "train.jsonl")
    one.add_argument("--limit", type=int, default=400, help="prompts to take")
    one.add_argument("--n", type=int, default=16, help="samples per prompt")
    one.add_argument("--max-tokens", type=int, default=64)
    one.add_argument("--max-len", type=int, default=256)
    one.add_argument("--max-num-seqs", type=int, default=64, help="of all engines together")
    one.add_argument("--kv-cache-gb", type=float, default=0.25)
    one.add_argument("--copies", type=int, default=2)
    one.add_argument("--rounds", type=int, default=3)
    one.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    two = verbs.add_parser("driver")
    two.add_argument("--rate", type=int, default=2500, help="tokens per second of an engine")
    two.add_argument("--tokens", type=int, default=300, help="of a sample")
    two.add_argument("--prompt-tokens", type=int, default=150)
    two.add_argument("--max-num-seqs", type=int, default=256)
    two.add_argument("--seconds", type=float, default=12, help="of each run")
    two.add_argument("--rows", type=int, default=100_000, help="of each run without Ray")
    two.add_argument("--poll", type=float, default=hosts.POLL_S)
    two.add_argument(
        "--runs",
        type=runs,
        default=runs("2:50:0.2,4:200:0.2,4:400:0.2,2:1500:0.2,4:20:0.02,8:10:0.02,8:50:0.05"),
        help="engines:rows per second of each:seconds between two polls, ...",
    )
    args = parser.parse_args()
    if args.verb == "driver":
        driver(args)
    elif args.child:
        print("RESULT", json.dumps(measure(args.child, args)))
    else:
        overhead(args)


if __name__ == "__main__":
    main()
