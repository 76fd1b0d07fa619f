"""Asking a chat-completions server, or an engine in this process, so that every question ends.

A question ends in a `Reply`: a text, or a fault in one word (timeout, bad_response, server_error,
refused, too_long, truncated). What can be cured by waiting is waited for: 429 as long as the server
says, 5xx and broken connections with growing, random pauses. Whether a fault is the question's or the
server's is told by the others: while they are answered, the question gets a few tries and is given
up; while nobody is answered, all wait, for `patience_s` at most, and then an RftError ends the stage,
which keeps what is finished. An RftError also comes of a server that cannot be reached at the start,
refuses the key or the model, or gives no usable answer to ten questions in a row.

The number of questions on their way begins low, grows with each answer, and is halved when the server
is overrun (429, 503, timeout).
"""

import asyncio
import email.utils
import json
import random
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx

from rft.scorers._vllm import Engine
from rft.types import RftError

FIRST = 10
"""Questions in a row, of which one must be answered: else server or settings are not what they should."""
TRIES = {
    "server_error": 6,
    "busy": 20,
    "timeout": 3,
    "bad_response": 2,
    "refused": 1,
    "too_long": 1,
}
"""Tries that a question has while others are answered."""
PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
MOST_BYTES = 16 << 20
"""A longer answer is rubbish."""

Body = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """One answer, or why there is none."""

    text: str | None
    fault: str | None = None
    message: dict[str, Any] = field(default_factory=dict)
    """What the server sent, or its words about the fault."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Backend(Protocol):
    room: int
    """Questions that it can have on their way."""
    retries: int

    async def ask(self, body: Body) -> Reply: ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class _Fault:
    kind: str
    detail: str
    wait_s: float | None = None


class Server:
    """A server at `base_url`. `reach` comes first."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        *,
        max_concurrency: int,
        timeout_s: float,
        patience_s: float,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
    ):
        self._base_url, self._timeout_s, self._patience_s = base_url, timeout_s, patience_s
        self.room, self.retries = max_concurrency, 0
        self._served: list[str] = []
        self._limit = _Limit(max_concurrency)
        # The first answer is waited for by a few, lest all the others find the same fault.
        self._gate = asyncio.Semaphore(4)
        self._requests, self._tokens = _Pacer(requests_per_minute), _Pacer(tokens_per_minute)
        self._good, self._failed, self._last_good = 0, 0, 0.0
        near = urlsplit(base_url).hostname in ("localhost", "127.0.0.1", "::1")
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_s, connect=min(10.0, timeout_s), pool=None),
            limits=httpx.Limits(max_connections=max_concurrency + 1),
            trust_env=not near,  # a proxy is not on the way to this machine
            verify=base_url.startswith("https"),  # certificates take a while to load
        )

    async def reach(self) -> None:
        """Raises RftError if there is no server, or it refuses the key."""
        for again in (0.5, 1.5, None):
            try:
                async with asyncio.timeout(min(30.0, self._timeout_s)):
                    response = await self._client.get(f"{self._base_url}/models")
                break
            except (httpx.HTTPError, TimeoutError) as fault:
                if again is None:
                    raise RftError(
                        f"judge: base_url: no server answers at {self._base_url} (GET /models, three "
                        f"times: {type(fault).__name__}: {fault}). Start one, for instance `vllm "
                        "serve MODEL --port 8000` with base_url: http://localhost:8000/v1, or set "
                        "base_url: null to run the model in this process"
                    ) from fault
                await asyncio.sleep(again)
        if response.status_code in (401, 403):
            raise self._denied(response.status_code, response.text)
        try:
            self._served = [str(model["id"]) for model in response.json()["data"]]
        except (ValueError, LookupError, TypeError):
            pass  # not every server lists its models

    async def ask(self, body: Body) -> Reply:
        async with self._gate:
            if not self._good:
                return await self._ask(body)
        return await self._ask(body)

    async def _ask(self, body: Body) -> Reply:
        first = last = 0.0  # when it failed
        tries, pause = 0, PAUSE_S
        while True:
            await self._requests.wait(1)
            # Four characters are taken for a token until the server has counted.
            guess = len(str(body["messages"])) // 4 + int(body.get("max_tokens") or 0)
            await self._tokens.wait(guess)
            async with self._limit.place():
                got = await self._post(body)
                if isinstance(got, Reply):
                    self._tokens.correct(got.prompt_tokens + got.completion_tokens - guess)
                    return self._count(got)
                self.retries += 1
                # While nobody is answered, it may be the server, and no try counts.
                tries += got.kind not in ("server_error", "busy") or self._last_good > last
                last = time.monotonic()
                first = first or last
                wait = got.wait_s if got.wait_s is not None else pause * random.uniform(0.5, 1.5)
                pause = min(2 * pause, LONGEST_PAUSE_S)
                silent_s = last + wait - max(first, self._last_good)
                patient = tries < TRIES[got.kind] and silent_s <= self._patience_s
                if not patient:
                    if tries < TRIES[got.kind] and not await self._fault_is_its_own(got):
                        raise self._gone(got, wait)
                    return self._count(Reply(None, got.kind, {"error": got.detail}))
            await asyncio.sleep(wait)

    async def _fault_is_its_own(self, fault: _Fault) -> bool:
        """Whether a server that fails on this question is there all the same."""
        if fault.kind == "busy":
            return False
        try:
            async with asyncio.timeout(min(30.0, self._timeout_s)):
                return (await self._client.get(f"{self._base_url}/models")).status_code < 500
        except (httpx.HTTPError, TimeoutError):
            return False

    async def _post(self, body: Body) -> Reply | _Fault:
        data = bytearray()
        url = f"{self._base_url}/chat/completions"
        try:
            # Not httpx's own time-out, which a server that sends a byte now and then never meets.
            async with asyncio.timeout(self._timeout_s):
                async with self._client.stream("POST", url, json=body) as response:
                    async for part in response.aiter_bytes():
                        data += part
                        if len(data) > MOST_BYTES:
                            return _Fault("bad_response", f"an answer of over {MOST_BYTES} bytes")
        except (TimeoutError, httpx.ReadTimeout, httpx.WriteTimeout):
            self._limit.brake()
            return _Fault("timeout", f"no answer within timeout_s ({self._timeout_s:g} s)")
        except httpx.DecodingError as fault:
            return _Fault("bad_response", str(fault))
        except (httpx.HTTPError, httpx.InvalidURL) as fault:
            return _Fault("server_error", f"{type(fault).__name__}: {fault}")
        if 200 <= response.status_code < 300:
            return _read(bytes(data))
        return self._status(response, data.decode(errors="replace")[:500])

    def _status(self, response: httpx.Response, text: str) -> _Fault:
        code = response.status_code
        detail = f"HTTP {code}: {text}"
        if code in (429, 503):
            self._limit.brake()
            return _Fault("busy" if code == 429 else "server_error", detail, _retry_after(response))
        if code >= 500 or code in (408, 409, 425):
            return _Fault("server_error", detail, _retry_after(response))
        if code in (401, 402) or (code == 403 and not self._good):
            raise self._denied(code, text)
        if code in (404, 405) and not self._good:
            names = ", ".join(self._served[:20])
            raise RftError(
                f"judge: {self._base_url}/chat/completions says HTTP {code}: {text} Check base_url "
                f"(it mostly ends in /v1) and model{f'; it serves {names}' if names else ''}"
            )
        low = text.lower()
        long = "context length" in low or "maximum context" in low or "too long" in low
        return _Fault("too_long" if long else "refused", detail)

    def _count(self, reply: Reply) -> Reply:
        if reply.fault in (None, "truncated"):
            self._good, self._failed = self._good + 1, 0
            self._last_good = time.monotonic()
            self._limit.grow()
            return reply
        # A text may be refused for what it is, once the settings are known to be good.
        self._failed += not (self._good and reply.fault in ("refused", "too_long"))
        if self._failed >= FIRST:
            raise RftError(
                f"judge: none of {FIRST} questions to {self._base_url} was answered; the last one: "
                f"{reply.fault}: {str(reply.message)[:300]}. Check that base_url is an "
                "OpenAI-compatible server, and that the model takes these settings (`extra` changes "
                "them), or raise timeout_s"
            )
        return reply

    def _denied(self, code: int, text: str) -> RftError:
        return RftError(
            f"judge: {self._base_url} refuses the key (HTTP {code}: {text[:200]}): set api_key_env to "
            "the name of an environment variable that holds a good one"
        )

    def _gone(self, fault: _Fault, wait: float) -> RftError:
        if fault.kind == "busy":
            fix = f"it asks to wait {wait:.0f} s more. Lower requests_per_minute or max_concurrency"
        else:
            fix = "start it again"
        return RftError(
            f"judge: {self._base_url} has answered nothing for patience_s ({self._patience_s:g} s): "
            f"{fault.detail[:300]}: {fix}, and give the same command again: finished answers are "
            "kept and not asked for again"
        )

    async def close(self) -> None:
        await self._client.aclose()


class _Limit:
    """How many questions may be on their way: grows with answers, is halved by trouble."""

    def __init__(self, most: int):
        self._most, self._now, self._braked = most, float(min(4, most)), 0.0
        self._active = 0
        self._free = asyncio.Condition()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        async with self._free:
            await self._free.wait_for(lambda: self._active < int(self._now))
            self._active += 1
        try:
            yield
        finally:
            self._active -= 1
            async with self._free:
                self._free.notify_all()

    def grow(self) -> None:
        self._now = min(self._most, self._now + (1 / self._now if self._braked else 1))

    def brake(self) -> None:
        # Once a second: the questions of one overrun all come back with the same news.
        if time.monotonic() - self._braked > 1:
            self._now, self._braked = max(1.0, self._now / 2), time.monotonic()


class _Pacer:
    """Spaces amounts evenly, so that no minute has more than `per_minute`."""

    def __init__(self, per_minute: float | None):
        self._each_s = 60 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def wait(self, amount: float) -> None:
        now = time.monotonic()
        begin = max(now, self._next)
        self._next = begin + amount * self._each_s
        if begin > now:
            await asyncio.sleep(begin - now)

    def correct(self, amount: float) -> None:
        self._next += amount * self._each_s


def _read(data: bytes) -> Reply | _Fault:
    """A chat completion; whatever else it is, is a bad response."""
    try:
        whole = json.loads(data)
        choice = whole["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text = message.get("content")
        if text is None and finish == "length":
            text = ""  # all the tokens went into its reasoning
        if not isinstance(text, str):
            raise TypeError("no text in choices[0].message.content")
        usage = whole.get("usage") or {}
        counts = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as fault:
        seen = data[:300].decode(errors="replace")
        return _Fault("bad_response", f"{type(fault).__name__}: {fault}: {seen!r}")
    # JSON may spell half a surrogate pair, which no file takes.
    text = text.encode(errors="replace").decode()
    kept = {k: v for k, v in message.items() if v not in (None, [], "") and k != "content"}
    cut = "truncated" if finish == "length" else None
    return Reply(text, cut, json.loads(json.dumps(kept)), *counts)


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait (RFC 9110, 10.2.3: a number or a date)."""
    value = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        then = email.utils.parsedate_to_datetime(value)
        return max(0.0, then.timestamp() - time.time())
    except ValueError:
        return None


class Local:
    """An engine in this process. One thread owns it, since engines and threads don't mix."""

    retries = 0

    def __init__(self, engine: Engine, tokenizer: Any, max_len: int, thread: ThreadPoolExecutor):
        self._engine, self._tokenizer, self._max_len = engine, tokenizer, max_len
        self._thread, self.room = thread, engine.room
        self._new: list[tuple[str, list[int], Body]] = []
        self._open: dict[str, asyncio.Future[Reply]] = {}
        self._asked = 0
        self._pump: asyncio.Task[None] | None = None

    async def ask(self, body: Body) -> Reply:
        text = self._tokenizer.apply_chat_template(
            body["messages"], tokenize=False, add_generation_prompt=True
        )
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) + (body.get("max_tokens") or 0) > self._max_len:
            return Reply(None, "too_long")
        key, self._asked = str(self._asked), self._asked + 1
        self._open[key] = asyncio.get_running_loop().create_future()
        self._new.append((key, ids, body))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run())
        return await self._open[key]

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._open:
                new, self._new = self._new, []
                for reply in await loop.run_in_executor(self._thread, self._step, new):
                    key, text, finish, *counts = reply
                    cut = "truncated" if finish == "length" else None
                    future = self._open.pop(key)
                    if not future.done():
                        future.set_result(Reply(text, cut, {}, *counts))
        except Exception as fault:
            for future in self._open.values():
                if not future.done():
                    future.set_exception(fault)
            self._open.clear()

    def _step(self, new: list[tuple[str, list[int], Body]]) -> list[Any]:
        for key, ids, body in new:
            self._engine.add(key, ids, body)
        return self._engine.step()

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.close)
        self._thread.shutdown()
