"""What a judge asks: a chat-completions server, or an engine in this process.

Both answer a question with a `Reply`: a text, or a fault in one word.
"""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from rft.scorers._vllm import Engine
from rft.server import Body, Fault, Server, text_of, usage


@dataclass(frozen=True)
class Reply:
    """One answer, or why there is none."""

    text: str | None
    fault: str | None = None
    """The kind of a `Fault`, or `truncated`."""
    message: dict[str, Any] = field(default_factory=dict)
    """What the server sent, or its words about the fault."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Backend(Protocol):
    room: int
    """Questions that it can have on their way."""

    @property
    def retries(self) -> int: ...

    async def ask(self, body: Body) -> Reply: ...

    async def close(self) -> None: ...


def read(whole: Any) -> Reply:
    """A chat completion. Raises for what is none (rft/server.py)."""
    choice = whole["choices"][0]
    message, finish = choice["message"], choice.get("finish_reason")
    text = message.get("content")
    if text is None and finish == "length":
        text = ""  # all the tokens went into its reasoning
    kept = {k: v for k, v in message.items() if v not in (None, [], "") and k != "content"}
    cut = "truncated" if finish == "length" else None
    return Reply(text_of(text), cut, json.loads(json.dumps(kept)), *usage(whole))


class Remote:
    """A server."""

    def __init__(self, server: Server[Reply]):
        self._server, self.room = server, server.room

    @property
    def retries(self) -> int:
        return self._server.retries

    async def ask(self, body: Body) -> Reply:
        # Four characters are taken for a token until the server has counted.
        tokens = len(str(body["messages"])) // 4 + int(body.get("max_tokens") or 0)
        got = await self._server.ask("/chat/completions", body, tokens)
        return Reply(None, got.kind, {"error": got.detail}) if isinstance(got, Fault) else got

    async def close(self) -> None:
        await self._server.close()


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
