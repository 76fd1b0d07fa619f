"""Samples from an OpenAI-compatible server: many requests at once, each answered once.

`api: completions` asks by token ids and has token ids back where the server can give them (vLLM can),
so that a candidate is the same row as the sampler `vllm` makes: same ids, text, seed and end. Other
servers, and `api: chat`, give text. It is tokenised with model.base's tokenizer, with an EOS token
where the server says that the answer ended by itself. What is then not exact: the ids may be others
than those that were sampled, though they spell the same text; where a stop string ended the answer,
it counts as ended by EOS; a log-probability is the server's sum over its own tokens, whatever it
means by that, or None; and the server, not rft/chat.py, puts a chat into the model's template.
An answer that a content filter cut off counts as truncated.

A request that fails is asked again under its own id and seed (rft/server.py says when), so nothing
is drawn twice and nothing is lost; one that can't be answered ends the sampling with one message,
after the others that are under way. A seed holds as far as the server honours it; vLLM does, as in
rft/samplers/vllm.py.

The server's work is not this process's: settings of `engine` mean nothing here, and what the server
was started with (format of its weights, `--logprobs-mode`) is up to whoever started it. On a CPU
vLLM 0.32 answers wrongly where requests with and without a LoRA adapter share a batch.
"""

import asyncio
import functools
import os
import queue
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from rft.samplers._beam import Peekable
from rft.samplers._common import budget, check_adapter
from rft.samplers._openai import NEUTRAL, Answer, fields, read_chat, read_completion
from rft.samplers._openai_names import Given, adapter_name, base_name
from rft.samplers._openai_rows import Rows
from rft.server import Body, Fault, Server, check_address
from rft.types import Candidate, Request, RftError, Sampler, Setup

TRIES = {
    "server_error": 10,
    "busy": 50,
    "timeout": 4,
    "bad_response": 8,
    "refused": 1,
    "too_long": 1,
}
"""Tries of a request while others are answered: more than for a question that may stay open."""

POLL_S = 0.05
"""How soon to ask again for requests, where there were none and there is room."""

OURS = {
    "model": "args.model",
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_tokens",
    "stop": "stop",
    "n": "n",
    "use_beam_search": "beam_width",
    "prompt": None,
    "messages": None,
    "seed": None,
    "stream": None,
    "echo": None,
    "best_of": None,
}
"""Fields of a request that have a setting of ours, or must stay as they are (None)."""

T = TypeVar("T")
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]


def openai(
    setup: Setup,
    *,
    base_url: str,
    model: str | None = None,
    api: Literal["completions", "chat"] = "completions",
    adapters: dict[str, str] | None = None,
    extra: dict[str, Any] | None = None,
    api_key_env: str | None = None,
    max_concurrency: Positive = 256,
    requests_per_minute: Rate | None = None,
    tokens_per_minute: Rate | None = None,
    timeout_s: Rate = 600.0,
    patience_s: Rate = 300.0,
) -> Sampler:
    """`use: openai`. Raises RftError if the server can't be reached, or can't serve what is asked.

    base_url: the server's address, mostly ending in /v1.
    model: the name that it serves the model under; by default the one that says it is model.base.
    api: `completions` asks by token ids: the served model must have model.base's tokenizer. `chat`
    sends messages and takes text.
    adapters: folder of a LoRA adapter -> the name that it is served under. Those that aren't named
    are found by the folder that the server says they are from, or it is asked to load them from there.
    extra: more fields of each request, which win over ours; null takes one out (`logprobs: null`).
    api_key_env: name of the environment variable that holds the key, where the server wants one.
    max_concurrency: most requests on their way; for vLLM its --max-num-seqs.
    requests_per_minute: most requests in a minute.
    tokens_per_minute: most prompt and completion tokens in a minute.
    timeout_s: seconds that one request may take, waiting at the server included.
    patience_s: seconds to wait for a server that answers nothing any more.
    """
    return OpenaiSampler(
        setup,
        base_url,
        model,
        api,
        adapters or {},
        extra or {},
        api_key_env=api_key_env,
        max_concurrency=max_concurrency,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        timeout_s=timeout_s,
        patience_s=patience_s,
    )


def _check_args(args: dict[str, Any]) -> None:
    """Raises ValueError for arguments that can't be (rft/components.py)."""
    if "base_url" in args:
        check_address(args["base_url"], args.get("api_key_env"))
    for name, value in (args.get("extra") or {}).items():
        if name in OURS and value is not None:
            fix = f"set {OURS[name]} instead" if OURS[name] else "leave it out"
            raise ValueError(f"extra.{name}: {fix}")


openai.check_args = _check_args  # type: ignore[attr-defined]


class OpenaiSampler:
    """One server. Requests go on in a thread of their own while the caller is busy."""

    def __init__(
        self,
        setup: Setup,
        base_url: str,
        model: str | None,
        api: str,
        adapters: dict[str, str],
        extra: Body,
        **transport: Any,
    ):
        for name in ("dtype", "extra"):
            if getattr(setup.engine, name) != getattr(type(setup.engine)(), name):
                raise RftError(
                    f"engine.{name}: the server has an engine of its own: leave it out, and start the "
                    "server with it"
                )
        if api == "chat" and setup.renderer.chat.response_prefix:
            raise RftError(
                "chat.response_prefix: a chat server begins its answers itself: leave it out, or set "
                f"{setup.section}.args.api: completions"
            )
        self._setup, self._at, self._base_url = setup, f"{setup.section}.args.", base_url
        self._is_chat, self._extra = api == "chat", extra
        self._given = Given(model, {os.path.realpath(k): name for k, name in adapters.items()})
        self._names: dict[str | None, str] = {}
        """What the base model (None) and each adapter's folder are served as."""
        self._messages = functools.lru_cache(maxsize=1024)(self._render)
        self._stats = dict.fromkeys(("requests", "prompt_tokens", "tokens", "counted_tokens"), 0)
        self._seconds = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: Server[Answer] | None = None
        self._rows = Rows(setup, self._at, base_url)
        try:
            self._call(self._start(base_url, transport))
        except BaseException:
            self.close()
            raise

    def _call(self, job: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(job, self._loop).result()

    async def _start(self, base_url: str, transport: dict[str, Any]) -> None:
        self._server = server = Server(
            base_url,
            read=read_chat if self._is_chat else read_completion,
            at=self._at,
            instead="set use: vllm to sample on this machine",
            tries=TRIES,
            **transport,
        )
        self._reloads = asyncio.Lock()
        models = await server.reach()
        self._is_vllm = any(model.get("owned_by") == "vllm" for model in models)
        if self._is_vllm:
            server.widen()
        self._names[None] = base_name(server, self._given, self._setup.model, models, self._at)
        for folder in self._setup.adapters:
            self._names[folder] = await self._adapter_name(folder, models)

    async def _adapter_name(self, folder: str, models: list[Body]) -> str:
        assert self._server is not None
        return await adapter_name(self._server, self._given, folder, models, self._at)

    def sample(self, requests: Iterator[Request | None]) -> Iterator[Candidate]:
        """Pulls requests while there is room, and yields candidates in the order they are answered.

        At most twice as many are pulled as may be on their way. Raises RftError for a prompt of
        model.max_len tokens or more, an adapter that the set-up doesn't name, a setting that the
        server lacks, a request that it can't answer, and a server that is gone; candidates under way
        come first.
        """
        assert self._server is not None
        pulled = Peekable(requests)
        done: queue.SimpleQueue[Future[Answer]] = queue.SimpleQueue()
        under_way: dict[Future[Answer], Request] = {}
        failed: Exception | None = None
        began = time.monotonic()
        try:
            while True:
                try:
                    while failed is None and len(under_way) < 2 * self._server.width:
                        if not pulled.more():
                            break
                        if not under_way:
                            began = time.monotonic()
                        request = pulled.next()
                        future = self._ask(request)
                        under_way[future] = request
                        future.add_done_callback(done.put)
                except Exception as fault:
                    failed = fault
                if not under_way:
                    if failed is not None:
                        raise failed
                    if pulled.ended:
                        return
                    continue
                pulling = failed is None and not pulled.ended
                room = len(under_way) < 2 * self._server.width
                try:
                    future = done.get(timeout=POLL_S if pulling and room else None)
                except queue.Empty:
                    continue
                request = under_way.pop(future)
                if not under_way:
                    self._seconds += time.monotonic() - began
                try:
                    answer = future.result()
                    got = self._rows.candidate(request, answer, self._is_chat)
                except RftError as fault:
                    failed = failed or fault
                    continue
                self._count(got, answer)
                yield got
        finally:
            if under_way and not self._loop.is_closed():
                self._seconds += time.monotonic() - began
                self._call(_cancel())

    def _ask(self, request: Request) -> Future[Answer]:
        tokens = budget(request, self._setup.model.max_len)
        check_adapter(request.adapter, self._setup)
        self._check_decoding(request)
        body: Body = {"model": self._names[request.adapter]}
        if self._is_chat:
            body["messages"] = self._messages(request.prompt_id, request.prompt_token_ids)
            body["logprobs"] = True
        else:
            body["prompt"] = list(request.prompt_token_ids)
            body["logprobs"] = 0  # the sampled token's alone
            body["return_token_ids"] = True if self._is_vllm else None
        body |= fields(request, tokens, self._is_vllm) | self._extra
        body = {name: value for name, value in body.items() if value is not None}
        return asyncio.run_coroutine_threadsafe(self._draw(request, body, tokens), self._loop)

    def _check_decoding(self, request: Request) -> None:
        decoding = request.decoding
        if decoding.beam_width:
            raise RftError(
                "beam_width: a server's beam search is not ours: set it to 0, or use: vllm"
            )
        if self._is_vllm and 0 < decoding.temperature < 0.01:
            # vLLM would sample at 0.01 instead, or below 1e-5 at 0.
            raise RftError(
                f"temperature: {decoding.temperature} is too low for vLLM: set 0 (greedy, with n: 1), "
                "or 0.01 and above"
            )
        for name, neutral in NEUTRAL.items():
            if not self._is_vllm and getattr(decoding, name) != neutral:
                raise RftError(
                    f"{name}: {self._base_url} doesn't say that it is vLLM, and other servers may pass "
                    f"over this setting in silence: leave it out, and put the server's own field into "
                    f"{self._at}extra"
                )

    def _render(self, prompt_id: str, token_ids: tuple[int, ...]) -> list[dict[str, str]]:
        """The prompt's messages. Raises RftError where they aren't the prompt that is trained on."""
        prompt, renderer = self._setup.prompts[prompt_id], self._setup.renderer
        if renderer.prompt_ids(prompt.question, prompt.answer) != token_ids:
            raise RftError(
                f"{self._at}api: chat cannot say prompt {prompt_id} as it was rendered here: set api: "
                "completions"
            )
        return renderer.messages(prompt.question, prompt.answer)

    async def _draw(self, request: Request, body: Body, tokens: int) -> Answer:
        assert self._server is not None
        path = "/chat/completions" if self._is_chat else "/completions"
        most = len(request.prompt_token_ids) + tokens
        got = await self._server.ask(path, body, most)
        if isinstance(got, Fault) and got.status == 404 and request.adapter is not None:
            # A server that was started again has lost the adapters that it had loaded.
            async with self._reloads:
                models = await self._server.reach()
                name = await self._adapter_name(request.adapter, models)
            self._names[request.adapter] = name
            got = await self._server.ask(path, body | {"model": name}, most)
        if isinstance(got, Fault):
            raise self._unanswered(request, got)
        return got

    def _unanswered(self, request: Request, fault: Fault) -> RftError:
        at = self._at
        fix = {
            "timeout": f"raise {at}timeout_s, or lower {at}max_concurrency or max_tokens",
            "busy": f"lower {at}requests_per_minute, {at}tokens_per_minute or {at}max_concurrency",
            "bad_response": f"check that {at}base_url is an OpenAI-compatible server",
            "server_error": "the server's log should say why",
            "too_long": "lower model.max_len to what the server takes",
            "refused": f"change the setting that it names, or take the field out ({at}extra: {{FIELD: "
            f"null}}); a server that takes no token ids wants {at}api: chat",
        }[fault.kind]
        return RftError(
            f"{at}base_url: {self._base_url} does not answer prompt {request.prompt_id}, sample "
            f"{request.index} ({fault.kind}): {fault.detail[:400].strip()}. Fix: {fix}. Finished "
            "samples are kept"
        )

    def _count(self, got: Candidate, answer: Answer) -> None:
        self._stats["requests"] += 1
        self._stats["prompt_tokens"] += len(got.prompt_token_ids)
        self._stats["tokens"] += len(got.token_ids)
        self._stats["counted_tokens"] += answer.tokens

    def stats(self) -> dict[str, float]:
        """Counts, tries that failed, and seconds in which requests were under way. counted_tokens:
        completion tokens as the server counts them, reasoning included."""
        return {
            **self._stats,
            "retries": self._server.retries if self._server else 0,
            "seconds": self._seconds,
            "tokens_per_s": self._stats["tokens"] / self._seconds if self._seconds else 0.0,
        }

    def close(self) -> None:
        """Gives up what is under way. Adapters that the server was asked to load stay there."""
        if self._loop.is_closed():
            return
        if self._server is not None:
            self._call(_cancel())
            self._call(self._server.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel() -> None:
    """Ends all other tasks of the loop."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
