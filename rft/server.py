"""Asking an OpenAI-compatible server, so that every question ends.

A question ends in what the server said, or in a `Fault` of one kind (timeout, bad_response,
server_error, busy, refused, too_long). What can be cured by waiting is waited for: 429 as long as the
server says, 5xx and broken connections with growing, random pauses. Whether a fault is the question's
or the server's is told by the others: while they are answered, the question gets a few tries and is
given up; while nobody is answered, all wait, for `patience_s` at most, and then an RftError ends the
stage, which keeps what is finished. An RftError also comes of a server that cannot be reached at the
start, refuses the key or the model, or gives no usable answer to ten questions in a row.

The number of questions on their way begins low, grows with each answer, and is halved when the server
is overrun (429, 503, timeout). Where nobody listens any more, one question at a time knocks.
"""

import asyncio
import email.utils
import json
import os
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import httpx

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
AT_FIRST = 4
"""Questions on their way at the beginning."""
PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
MOST_BYTES = 64 << 20
"""A longer answer is rubbish."""

Body = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Fault:
    """Why a question has no answer."""

    kind: str
    """timeout, bad_response, server_error, busy, refused or too_long."""
    detail: str
    """The server's words, or what came instead of them."""
    status: int | None = None
    wait_s: float | None = None
    """How long the server asks to wait."""
    away: bool = False
    """Nobody listens at the address."""


def check_address(base_url: str, api_key_env: str | None) -> None:
    """Raises ValueError for a base_url that is none, and for a key that isn't there."""
    if not re.match(r"https?://\w", base_url):
        raise ValueError(f"base_url: {base_url!r} is no address; write http://localhost:8000/v1")
    if api_key_env and not os.environ.get(api_key_env):
        raise ValueError(f"api_key_env: the environment has no {api_key_env}")


def text_of(value: Any) -> str:
    """A text out of JSON, which may spell half a surrogate pair, and no file takes that.

    Raises TypeError for what is no text.
    """
    if not isinstance(value, str):
        raise TypeError(f"{value!r} where a text should be")
    return value.encode(errors="replace").decode()


def usage(whole: Any) -> tuple[int, int]:
    """(prompt tokens, completion tokens) as the server counts them; 0 where it doesn't."""
    counts = whole.get("usage") or {}
    return int(counts.get("prompt_tokens") or 0), int(counts.get("completion_tokens") or 0)


class Server(Generic[T]):
    """A server at `base_url`. `reach` comes first.

    read: makes an answer of the parsed JSON of one. What isn't an answer is a ValueError, LookupError,
    TypeError or AttributeError.
    at: what stands before an argument's name in messages. instead: what to do where there is no server.
    tries: tries of a question by kind of fault, while others are answered.
    """

    def __init__(
        self,
        base_url: str,
        api_key_env: str | None,
        read: Callable[[Any], T],
        *,
        at: str,
        instead: str,
        max_concurrency: int,
        timeout_s: float,
        patience_s: float,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        tries: Mapping[str, int] = TRIES,
    ):
        check_address(base_url, api_key_env)
        self.base_url, self.room, self.retries = base_url.rstrip("/"), max_concurrency, 0
        self._read, self._at, self._instead, self._tries = read, at, instead, tries
        self._timeout_s, self._patience_s = timeout_s, patience_s
        self._served: list[str] = []
        self._limit = _Limit(max_concurrency)
        # The first answer is waited for by a few, lest all the others find the same fault.
        self._gate = asyncio.Semaphore(AT_FIRST)
        self._requests, self._tokens = _Pacer(requests_per_minute), _Pacer(tokens_per_minute)
        self._good, self._failed, self._last_good = 0, 0, 0.0
        self._silent_from: float | None = None
        near = urlsplit(base_url).hostname in ("localhost", "127.0.0.1", "::1")
        key = os.environ[api_key_env] if api_key_env else None
        self._settings: dict[str, Any] = {
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "timeout": httpx.Timeout(timeout_s, connect=min(10.0, timeout_s), pool=None),
            "trust_env": not near,  # a proxy is not on the way to this machine
            # One for all, since certificates take a while to load.
            "verify": httpx.create_ssl_context(base_url.startswith("https")),
        }
        self._idle: list[httpx.AsyncClient] = []

    @property
    def width(self) -> int:
        """Questions that may be on their way at this moment."""
        return self._limit.now

    def widen(self) -> None:
        """All questions at once, from the first: for a server that queues what it has no room for."""
        self._limit.widen()
        self._gate = asyncio.Semaphore(self.room)

    @contextmanager
    def _client(self) -> Iterator[httpx.AsyncClient]:
        """One connection. A pool of all of them looks at each for every question, which takes 10 ms
        where there are 256."""
        client = self._idle.pop() if self._idle else httpx.AsyncClient(**self._settings)
        try:
            yield client
        finally:
            self._idle.append(client)

    async def reach(self) -> list[Body]:
        """The models that it lists. Raises RftError if there is no server, or it refuses the key."""
        for again in (0.5, 1.5, None):
            try:
                response = await self._models()
                break
            except (httpx.HTTPError, TimeoutError) as fault:
                if again is None:
                    raise RftError(
                        f"{self._at}base_url: no server answers at {self.base_url} (GET /models, "
                        f"three times: {type(fault).__name__}: {fault}). Start one, for instance "
                        "`vllm serve MODEL --port 8000` with base_url: http://localhost:8000/v1, or "
                        f"{self._instead}"
                    ) from fault
                await asyncio.sleep(again)
        if response.status_code in (401, 403):
            raise self._denied(response.status_code, response.text)
        try:
            models = [dict(model) for model in response.json()["data"]]
            self._served = [str(model["id"]) for model in models]
        except (ValueError, LookupError, TypeError):
            return []  # not every server lists its models
        return models

    async def _models(self) -> httpx.Response:
        with self._client() as client:
            async with asyncio.timeout(min(30.0, self._timeout_s)):
                return await client.get(f"{self.base_url}/models")

    async def ask(self, path: str, body: Body, tokens: int) -> T | Fault:
        """The answer to a POST, or why there is none.

        tokens: how many the question and its answer may be, until the server has counted.
        """
        async with self._gate:
            if not self._good:
                return await self._ask(path, body, tokens)
        return await self._ask(path, body, tokens)

    async def post(self, path: str, body: Body) -> tuple[int, str]:
        """Status and text of one POST, without a second try; status 0 if there is no answer."""
        try:
            with self._client() as client:
                async with asyncio.timeout(self._timeout_s):
                    response = await client.post(f"{self.base_url}{path}", json=body)
        except (httpx.HTTPError, TimeoutError) as fault:
            return 0, f"{type(fault).__name__}: {fault}"
        return response.status_code, response.text[:500]

    async def _ask(self, path: str, body: Body, tokens: int) -> T | Fault:
        last = 0.0  # when it failed
        tries, pause = 0, PAUSE_S
        while True:
            await self._requests.wait(1)
            await self._tokens.wait(tokens)
            async with self._limit.place():
                got = await self._post(path, body)
                if not isinstance(got, Fault):
                    answer, counted = got
                    self._tokens.correct(counted - tokens)
                    self._answered()
                    return answer
                self.retries += 1
                # While nobody is answered, it may be the server, and no try counts.
                tries += got.kind not in ("server_error", "busy") or self._last_good > last
                last = time.monotonic()
                if self._silent_from is None:
                    self._silent_from = last
                wait = got.wait_s if got.wait_s is not None else pause * random.uniform(0.5, 1.5)
                silent_s = last + wait - self._silent_from
                if tries >= self._tries[got.kind]:
                    return self._given_up(got)
                if silent_s > self._patience_s:
                    if not await self._fault_is_its_own(got):
                        raise self._gone(got, wait)
                    return self._given_up(got)
                if got.kind == "server_error":
                    self._tokens.correct(-tokens)  # it cost nothing
                if got.away:
                    # It keeps its place, so that the others wait for it to be let in.
                    self._limit.shut()
                    await asyncio.sleep(wait)
                    continue
                pause = min(2 * pause, LONGEST_PAUSE_S)
            await asyncio.sleep(wait)

    async def _fault_is_its_own(self, fault: Fault) -> bool:
        """Whether a server that fails on this question is there all the same."""
        if fault.kind == "busy":
            return False
        try:
            return (await self._models()).status_code < 500
        except (httpx.HTTPError, TimeoutError):
            return False

    async def _post(self, path: str, body: Body) -> tuple[T, int] | Fault:
        data = bytearray()
        url = f"{self.base_url}{path}"
        try:
            # Not httpx's own time-out, which a server that sends a byte now and then never meets.
            with self._client() as client:
                async with (
                    asyncio.timeout(self._timeout_s),
                    client.stream("POST", url, json=body) as response,
                ):
                    async for part in response.aiter_bytes():
                        data += part
                        if len(data) > MOST_BYTES:
                            return Fault("bad_response", f"an answer of over {MOST_BYTES} bytes")
        except (TimeoutError, httpx.ReadTimeout, httpx.WriteTimeout):
            self._limit.brake()
            return Fault("timeout", f"no answer within timeout_s ({self._timeout_s:g} s)")
        except httpx.DecodingError as fault:
            return Fault("bad_response", str(fault))
        except (httpx.HTTPError, httpx.InvalidURL) as fault:
            away = isinstance(fault, httpx.ConnectError | httpx.ConnectTimeout)
            return Fault("server_error", f"{type(fault).__name__}: {fault}", away=away)
        if not 200 <= response.status_code < 300:
            return self._status(path, response, data.decode(errors="replace")[:500])
        try:
            whole = json.loads(data)
            return self._read(whole), sum(usage(whole))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as fault:
            seen = data[:300].decode(errors="replace")
            return Fault("bad_response", f"{type(fault).__name__}: {fault}: {seen!r}")

    def _status(self, path: str, response: httpx.Response, text: str) -> Fault:
        code = response.status_code
        detail = f"HTTP {code}: {text}"
        if code in (429, 503):
            self._limit.brake()
            kind = "busy" if code == 429 else "server_error"
            return Fault(kind, detail, code, _retry_after(response))
        if code >= 500 or code in (408, 409, 425):
            return Fault("server_error", detail, code, _retry_after(response))
        if code in (401, 402) or (code == 403 and not self._good):
            raise self._denied(code, text)
        if code in (404, 405) and not self._good:
            names = ", ".join(self._served[:20])
            raise RftError(
                f"{self._at}base_url: {self.base_url}{path} says HTTP {code}: {text} Check base_url "
                f"(it mostly ends in /v1) and model{f'; it serves {names}' if names else ''}"
            )
        low = text.lower()
        long = "context length" in low or "maximum context" in low or "too long" in low
        return Fault("too_long" if long else "refused", detail, code)

    def _answered(self) -> None:
        self._good, self._failed = self._good + 1, 0
        self._last_good, self._silent_from = time.monotonic(), None
        self._limit.grow()

    def _given_up(self, fault: Fault) -> Fault:
        # A text may be refused for what it is, once the settings are known to be good.
        self._failed += not (self._good and fault.kind in ("refused", "too_long"))
        if self._failed >= FIRST:
            raise RftError(
                f"{self._at}base_url: none of {FIRST} questions to {self.base_url} was answered; the "
                f"last one: {fault.kind}: {fault.detail[:300]}. Check that base_url is an "
                "OpenAI-compatible server, and that the model takes these settings (`extra` changes "
                "them), or raise timeout_s"
            )
        return fault

    def _denied(self, code: int, text: str) -> RftError:
        return RftError(
            f"{self._at}api_key_env: {self.base_url} refuses the key (HTTP {code}: {text[:200]}): set "
            "api_key_env to the name of an environment variable that holds a good one"
        )

    def _gone(self, fault: Fault, wait: float) -> RftError:
        if fault.kind == "busy":
            fix = f"it asks to wait {wait:.0f} s more. Lower requests_per_minute or max_concurrency"
        else:
            fix = "start it again"
        return RftError(
            f"{self._at}base_url: {self.base_url} has answered nothing for patience_s "
            f"({self._patience_s:g} s): {fault.detail[:300]}: {fix}, and give the same command again: "
            "finished answers are kept and not asked for again"
        )

    async def close(self) -> None:
        for client in self._idle:
            await client.aclose()


class _Limit:
    """How many questions may be on their way: grows with answers, is halved by trouble.

    It grows by one with each answer, so it doubles in the time of one, up to where there was trouble;
    from there by one in the time of an answer.
    """

    def __init__(self, most: int):
        self._most, self._now = float(most), float(min(AT_FIRST, most))
        self._calm, self._braked = self._most, 0.0
        self._active = 0
        self._free = asyncio.Condition()

    @property
    def now(self) -> int:
        return int(self._now)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        async with self._free:
            await self._free.wait_for(lambda: self._active < self.now)
            self._active += 1
        try:
            yield
        finally:
            self._active -= 1
            async with self._free:
                self._free.notify(2)  # its own place, and one that its answer may have added

    def widen(self) -> None:
        self._now = self._most

    def grow(self) -> None:
        step = 1 if self._now < self._calm else 1 / self._now
        self._now = min(self._most, self._now + step)

    def brake(self) -> None:
        # Once a second: the questions of one overrun all come back with the same news.
        if time.monotonic() - self._braked > 1:
            self._now = self._calm = max(1.0, self._now / 2)
            self._braked = time.monotonic()

    def shut(self) -> None:
        """For a server that is away: what it could take before, it can when it is back."""
        self._now = 1.0


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
