"""The sampler `openai` against a real HTTP server on this machine whose faults are scripted.

What it says is a function of what it is asked, so every row can be told in advance. The real
`vllm serve` is in tests/pipeline/test_openai_server.py.
"""

import dataclasses
import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rft
from rft import components
from rft.chat import Renderer
from rft.components import make
from rft.config import Chat, ConfigError, Model
from rft.config_decoding import Decoding, Engine
from rft.loops import is_audited
from rft.samplers import openai as module
from rft.samplers.openai import OpenaiSampler, openai
from rft.section import Component
from rft.types import Candidate, Finish, Prompt, Request, RftError, Setup, digest
from tests.unit._served import Answer, Script, Served

EMBEDDED = str(Path(rft.__file__).parent / "embedded" / "model")
MODEL = Model(base=EMBEDDED, max_len=64)
RENDERER = Renderer(MODEL, Chat())
SAYABLE = sorted(
    set(RENDERER.tokenizer("Ana has 12 apples and Ben has 7 = 19 books.")["input_ids"])
)
CARD = {"id": "tiny", "owned_by": "vllm", "root": EMBEDDED, "parent": None, "max_model_len": 64}
OTHER = {"id": "tiny", "owned_by": "somebody"}
GOOD = Decoding(n=8, temperature=0.8, max_tokens=12)


def prompt(number: int) -> Prompt:
    question = f"What is {number} + {number}?"
    return Prompt(digest(question), question, str(2 * number))


def set_up(adapters: Iterable[str] = (), **more: Any) -> Setup:
    prompts = {p.id: p for p in map(prompt, range(300))}
    return dataclasses.replace(
        Setup(MODEL, Engine(), RENDERER, prompts, tuple(adapters)),
        **more,
    )


def requests(
    count: int, n: int = 1, decoding: Decoding = GOOD, adapter: str | None = None
) -> list[Request]:
    made = []
    for number, index in itertools.product(range(count), range(n)):
        asked = prompt(number)
        key = digest(asked.id, index, adapter)
        ids = RENDERER.prompt_ids(asked.question)
        made.append(Request(key, asked.id, index, ids, decoding, int(key[:16], 16) >> 1, adapter))
    return made


def says(body: dict[str, Any]) -> tuple[int, ...]:
    """The ids that the server samples for a request: they follow from its prompt, seed and model."""
    rng = random.Random(digest(body["prompt"], body.get("seed"), body["model"]))
    ids = [rng.choice(SAYABLE) for _ in range(rng.randint(1, 20))] + [RENDERER.eos_id]
    return tuple(ids[: body["max_tokens"]])


def logprobs(ids: tuple[int, ...]) -> list[float]:
    return [-(token % 7) / 8 for token in ids]


def completion(body: dict[str, Any], **change: Any) -> bytes:
    """The answer that vLLM gives."""
    ids = says(body)
    choice = {
        "index": 0,
        "text": RENDERER.decode(ids),
        "finish_reason": "stop" if ids[-1] == RENDERER.eos_id else "length",
        "logprobs": {"token_logprobs": logprobs(ids)},
    }
    if body.get("return_token_ids"):
        choice |= {"token_ids": list(ids), "prompt_token_ids": body["prompt"]}
    usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(ids)}
    return json.dumps({"choices": [choice | change], "usage": usage}).encode()


def answers(n: int, body: dict[str, Any]) -> Answer:
    return 200, {}, completion(body)


def expected(request: Request, model: str = "tiny") -> Candidate:
    budget = min(request.decoding.max_tokens, MODEL.max_len - len(request.prompt_token_ids))
    ids = says(
        {
            "prompt": list(request.prompt_token_ids),
            "seed": request.seed if request.decoding.temperature else None,
            "model": model,
            "max_tokens": budget,
        }
    )
    return Candidate(
        id=request.id,
        prompt_id=request.prompt_id,
        index=request.index,
        text=RENDERER.decode(ids),
        prompt_token_ids=request.prompt_token_ids,
        token_ids=ids,
        finish=Finish.STOP if ids[-1] == RENDERER.eos_id else Finish.LENGTH,
        logprob=sum(logprobs(ids)),
    )


def rows(candidates: Iterable[Candidate]) -> dict[str, Candidate]:
    got = list(candidates)
    assert len({c.id for c in got}) == len(got), "each once"
    return {c.id: c for c in got}


class Server(Served):
    """Completions, with vLLM's list of models."""

    def __init__(self, answer: Script = answers, **more: Any):
        super().__init__(answer, **({"path": "/v1/completions", "models": [CARD]} | more))

    def asked(self) -> Counter[str]:
        """How often each prompt and seed was asked for."""
        return Counter(digest(body["prompt"], body.get("seed")) for body in self.bodies)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rft.server.PAUSE_S", 0.05)


@pytest.fixture
def open_() -> Iterator[list[Any]]:
    """What is to be closed after a test."""
    opened: list[Any] = []
    yield opened
    for thing in opened:
        (thing.close if isinstance(thing, OpenaiSampler) else thing.stop)()


@pytest.fixture
def serve(open_: list[Any]) -> Any:
    def start(answer: Script = answers, **more: Any) -> Server:
        open_.insert(0, Server(answer, **more))
        return open_[0]

    return start


@pytest.fixture
def sampler(open_: list[Any]) -> Any:
    def start(server: Served, setup: Setup | None = None, **args: Any) -> OpenaiSampler:
        made = openai(setup or set_up(), base_url=server.url, **args)
        assert isinstance(made, OpenaiSampler)
        open_.insert(0, made)
        return made

    return start


# ---- what is asked, and what becomes of the answer ------------------------------------------------


def test_rows_are_those_of_the_sampled_ids(serve: Any, sampler: Any) -> None:
    server = serve()
    asked = requests(10, 8)
    made = sampler(server)
    got = rows(made.sample(iter(asked)))
    assert got == {r.id: expected(r) for r in asked}
    assert {c.finish for c in got.values()} == {Finish.STOP, Finish.LENGTH}
    assert set(server.asked().values()) == {1} and len(server.bodies) == 80
    stats = made.stats()
    assert (stats["requests"], stats["retries"]) == (80, 0)
    assert stats["tokens"] == stats["counted_tokens"] == sum(len(c.token_ids) for c in got.values())
    assert stats["tokens_per_s"] == pytest.approx(stats["tokens"] / stats["seconds"])


def test_what_vllm_is_told(serve: Any, sampler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMPLER_KEY", "secret")
    server = serve()
    decoding = Decoding(
        n=2, temperature=0.7, top_p=0.9, top_k=40, min_p=0.1, repetition_penalty=1.1,
        max_tokens=500, stop=["\n\n"],
    )  # fmt: skip
    asked = requests(1, decoding=decoding)
    made = sampler(server, api_key_env="SAMPLER_KEY", extra={"priority": 3, "logprobs": None})
    list(made.sample(iter(asked)))
    assert server.keys == ["Bearer secret"]
    assert server.bodies == [
        {
            "model": "tiny",
            "prompt": list(asked[0].prompt_token_ids),
            "max_tokens": 64 - len(asked[0].prompt_token_ids),
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 40,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "seed": asked[0].seed,
            "stop": ["\n\n"],
            "return_token_ids": True,
            "priority": 3,
        }
    ]


def test_greedy_has_no_seed(serve: Any, sampler: Any) -> None:
    server = serve()
    asked = requests(3, decoding=Decoding(n=1, temperature=0, max_tokens=12))
    assert rows(sampler(server).sample(iter(asked))) == {r.id: expected(r) for r in asked}
    assert not any("seed" in body for body in server.bodies)


def test_other_servers_are_told_what_openai_has(serve: Any, sampler: Any) -> None:
    server = serve(models=[OTHER])
    asked = requests(1)
    made = sampler(server, model="tiny", extra={"top_k": 5})
    (got,) = made.sample(iter(asked))
    (body,) = server.bodies
    assert set(body) == {
        "model", "prompt", "max_tokens", "temperature", "top_p", "seed", "logprobs", "top_k",
    }  # fmt: skip
    assert body["seed"] == asked[0].seed % (1 << 31) and body["top_k"] == 5
    # Text alone: the ids are made of it, and the sum is the server's.
    ids = says(body)
    assert got.text == RENDERER.decode(ids)
    assert got.logprob == sum(logprobs(ids)) and got.token_logprobs is None
    assert RENDERER.decode(got.token_ids) == got.text
    assert (got.token_ids[-1] == RENDERER.eos_id) == (got.finish is Finish.STOP)


def test_token_logprobs(serve: Any, sampler: Any) -> None:
    asked = requests(3, decoding=GOOD.model_copy(update={"logprobs": "tokens"}))
    for got in sampler(serve()).sample(iter(asked)):
        assert got.token_logprobs == tuple(logprobs(got.token_ids))
    bare = serve(lambda n, body: (200, {}, completion(body, logprobs=None)))
    with pytest.raises(RftError, match="logprobs: .*gives no log-probabilities"):
        list(sampler(bare).sample(iter(asked)))
    (got, *_) = sampler(bare).sample(iter(requests(2)))
    assert got.logprob is None and got.token_ids


def test_text_ends_before_its_stop_string(serve: Any, sampler: Any) -> None:
    ids = tuple(RENDERER.tokenizer("12 + 7 = 19 books")["input_ids"])

    def stopped(n: int, body: dict[str, Any]) -> Answer:
        end = next(i for i in range(len(ids)) if "=" in RENDERER.decode(ids[:i]))
        return 200, {}, completion(
            body, text="12 + 7 ", token_ids=ids[:end], finish_reason="stop",
            logprobs={"token_logprobs": logprobs(ids[:end])},
        )  # fmt: skip

    asked = requests(1, decoding=GOOD.model_copy(update={"stop": ["="]}))
    (got,) = sampler(serve(stopped)).sample(iter(asked))
    assert got.text == "12 + 7 " and "=" in RENDERER.decode(got.token_ids)
    assert got.finish is Finish.STOP


def test_half_a_character_is_replaced(serve: Any, sampler: Any) -> None:
    """JSON can spell half a surrogate pair; no file can."""
    server = serve(lambda n, body: (200, {}, completion(body, text="7 \ud83d")), models=[OTHER])
    (got,) = sampler(server, model="tiny").sample(iter(requests(1)))
    assert got.text == "7 ?" and got.text.encode()


def test_loops_are_stopped_where_they_may_be(serve: Any, sampler: Any) -> None:
    server = serve(
        lambda n, body: (
            200,
            {},
            completion(body, **({"finish_reason": "repetition"} if n % 2 else {})),
        )
    )
    loops = {"period": 8, "repeats": 3, "min_tokens": 6, "audit": 0.5}
    decoding = Decoding(n=8, max_tokens=12, loops=loops)  # type: ignore[arg-type]
    assert decoding.loops
    asked = requests(5, 8, decoding)
    got = rows(sampler(server).sample(iter(asked)))
    assert sum(c.finish is Finish.LOOP for c in got.values()) == 20
    told = {body["seed"]: body.get("repetition_detection") for body in server.bodies}
    rule = {"max_pattern_size": 8, "min_pattern_size": 2, "min_count": 3}
    for request in asked:
        audited = is_audited(request.id, decoding.loops)
        assert told[request.seed] == (None if audited else rule)
    assert len({str(v) for v in told.values()}) == 2


# ---- chat -----------------------------------------------------------------------------------------


def chats(text: str | None, finish: str = "stop", logprob: bool = True, **more: Any) -> Script:
    def answer(n: int, body: dict[str, Any]) -> Answer:
        tokens = [{"token": "x", "logprob": -0.5}] * 3
        choice = {
            "message": {"role": "assistant", "content": text} | more,
            "finish_reason": finish,
            "logprobs": {"content": tokens} if logprob else None,
        }
        usage = {"prompt_tokens": 30, "completion_tokens": 3}
        return 200, {}, json.dumps({"choices": [choice], "usage": usage}).encode()

    return answer


def chat_server(serve: Any, answer: Script, **more: Any) -> Served:
    server: Served = serve(answer, path="/v1/chat/completions", models=[OTHER], **more)
    return server


def test_chat(serve: Any, sampler: Any) -> None:
    server = chat_server(serve, chats("It is 2.", reasoning_content="Hm."))
    setup = set_up()
    asked = requests(2)
    made = sampler(server, setup, model="tiny", api="chat")
    got = rows(made.sample(iter(asked)))
    assert {body["messages"][0]["content"] for body in server.bodies} == {
        "What is 0 + 0?",
        "What is 1 + 1?",
    }
    assert all(body["logprobs"] is True and "prompt" not in body for body in server.bodies)
    for request in asked:
        row = got[request.id]
        assert row.token_ids == RENDERER.completion_ids("It is 2.")
        assert (row.text, row.finish, row.logprob) == ("It is 2.", Finish.STOP, -1.5)
        assert row.prompt_token_ids == request.prompt_token_ids
    assert made.stats()["counted_tokens"] == 6


@pytest.mark.parametrize(
    "text, reason, stop, finish, kept",
    [
        ("It is", "length", [], Finish.LENGTH, "It is"),
        ("It is", "content_filter", [], Finish.LENGTH, "It is"),
        (None, "length", [], Finish.LENGTH, ""),
        (None, "stop", [], Finish.STOP, ""),
        ("It = 2", "stop", ["="], Finish.STOP, "It "),
        ("\udc00 2", "stop", [], Finish.STOP, "? 2"),
    ],
)
def test_ends_of_a_chat(
    serve: Any,
    sampler: Any,
    text: str | None,
    reason: str,
    stop: list[str],
    finish: Finish,
    kept: str,
) -> None:
    server = chat_server(serve, chats(text, reason, logprob=False))
    asked = requests(1, decoding=GOOD.model_copy(update={"stop": stop}))
    (got,) = sampler(server, model="tiny", api="chat").sample(iter(asked))
    assert (got.text, got.finish, got.logprob) == (kept, finish, None)
    ids = RENDERER.completion_ids(kept)
    assert got.token_ids == (ids if finish is Finish.STOP else ids[:-1])


def test_a_text_of_more_tokens_than_there_is_room_for_is_cut(serve: Any, sampler: Any) -> None:
    """Another tokenizer may say in 12 tokens what takes this one more."""
    server = chat_server(serve, chats("Ana has 12 apples. " * 9))
    (got,) = sampler(server, model="tiny", api="chat").sample(iter(requests(1)))
    assert len(got.token_ids) == 12 and got.finish is Finish.LENGTH
    assert got.text == RENDERER.decode(got.token_ids)


def test_what_chat_cannot_do(serve: Any, sampler: Any) -> None:
    server = chat_server(serve, chats("2"))
    begun = Renderer(MODEL, Chat(response_prefix="A:"))
    with pytest.raises(RftError, match="response_prefix.*sample.args.api: completions"):
        sampler(server, set_up(renderer=begun), model="tiny", api="chat")
    other = dataclasses.replace(requests(1)[0], prompt_token_ids=(5, 6, 7))
    with pytest.raises(
        RftError, match=f"sample.args.api: chat cannot say prompt {other.prompt_id}"
    ):
        list(sampler(server, model="tiny", api="chat").sample(iter([other])))
    exact = requests(1, decoding=GOOD.model_copy(update={"logprobs": "tokens"}))
    with pytest.raises(RftError, match="logprobs: .*set sum"):
        list(sampler(server, model="tiny", api="chat").sample(iter(exact)))


# ---- passing faults -------------------------------------------------------------------------------


def late(body: dict[str, Any]) -> Answer:
    time.sleep(2)
    return 200, {}, completion(body)


FAULTS: dict[str, Any] = {
    "429": lambda body: (429, {"retry-after": "0.3"}, b"slow down"),
    "500": lambda body: (500, {}, b"oops"),
    "502": lambda body: (502, {}, b"<html>bad gateway</html>"),
    "503": lambda body: (503, {"retry-after": "0.1"}, b"starting"),
    "408": lambda body: (408, {}, b""),
    "dropped": lambda body: None,
    "html": lambda body: (200, {}, b"<html>welcome</html>"),
    "half": lambda body: (200, {}, completion(body)[:-40]),
    "breaks off": lambda body: (
        200,
        {"content-length": "100000"},
        completion(body),
    ),
    "no choices": lambda body: (200, {}, b'{"choices": []}'),
    "error as answer": lambda body: (200, {}, b'{"error": {"message": "no"}}'),
    "aborted": lambda body: (200, {}, completion(body, finish_reason="abort")),
    "no end": lambda body: (200, {}, completion(body, finish_reason=None)),
    "ids are text": lambda body: (200, {}, completion(body, token_ids=["1", "2"])),
    "one logprob too many": lambda body: (
        200,
        {},
        completion(body, logprobs={"token_logprobs": [*logprobs(says(body)), 0.0]}),
    ),
    "late": late,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_costs_a_try(serve: Any, sampler: Any, fault: str) -> None:
    seen: list[str] = []

    def answer(n: int, body: dict[str, Any]) -> Answer:
        key = digest(body["prompt"], body["seed"])
        seen.append(key)
        if seen.count(key) == 1 and int(key, 16) % 3 == 0:
            got: Answer = FAULTS[fault](body)
            return got
        return answers(n, body)

    server = serve(answer)
    asked = requests(6, 3)
    made = sampler(server, timeout_s=1.0 if fault == "late" else 60.0)
    assert rows(made.sample(iter(asked))) == {r.id: expected(r) for r in asked}
    struck = {key for key in seen if int(key, 16) % 3 == 0}
    assert struck and made.stats()["retries"] == len(seen) - 18
    if fault != "late":  # where more than the late ones may be, on a busy machine
        assert server.asked() == {key: 2 if key in struck else 1 for key in seen}


@settings(max_examples=8, deadline=None)
@given(data=st.data(), chance=st.sampled_from([0.1, 0.3, 0.6]), seed=st.integers(0, 1 << 30))
def test_any_mixture_of_faults_loses_and_doubles_nothing(
    data: st.DataObject, chance: float, seed: int
) -> None:
    kinds = data.draw(st.lists(st.sampled_from(sorted(set(FAULTS) - {"late"})), min_size=1))
    rng, lock = random.Random(seed), threading.Lock()

    def answer(n: int, body: dict[str, Any]) -> Answer:
        with lock:
            kind = rng.choice(kinds) if rng.random() < chance else None
        got: Answer = FAULTS[kind](body) if kind else answers(n, body)
        return (got[0], {}, got[2]) if got and "retry-after" in got[1] else got

    server = Server(answer)
    asked = requests(10, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rft.server.PAUSE_S", 0.002)
        patch.setattr("rft.server.LONGEST_PAUSE_S", 0.02)
        patch.setattr(module, "TRIES", dict.fromkeys(module.TRIES, 60))
        made = openai(set_up(), base_url=server.url, max_concurrency=16)
        try:
            got = rows(made.sample(iter(asked)))
            assert got == {r.id: expected(r) for r in asked}
            assert len(server.bodies) == 40 + made.stats()["retries"]
        finally:
            made.close()
            server.stop()


def test_pauses_grow_and_are_uneven(serve: Any, sampler: Any) -> None:
    server = serve(lambda n, body: (500, {}, b"oops") if n < 5 else answers(n, body))
    list(sampler(server).sample(iter(requests(1))))
    gaps = [b - a for a, b in itertools.pairwise(server.times)]
    for i, gap in enumerate(gaps):  # 0.05, 0.1, 0.2, ... times 0.5 to 1.5
        assert 0.5 * 0.05 * 2**i <= gap <= 1.5 * 0.05 * 2**i + 0.3


def test_waits_as_long_as_it_is_told(serve: Any, sampler: Any) -> None:
    server = serve(lambda n, body: FAULTS["429"](body) if n == 0 else answers(n, body))
    list(sampler(server).sample(iter(requests(1))))
    assert 0.3 <= server.times[1] - server.times[0] < 1


def test_fewer_at_once_where_the_server_is_overrun(serve: Any, sampler: Any) -> None:
    """Room for 6: more are turned away."""
    turned_away: list[bool] = []

    def answer(n: int, body: dict[str, Any]) -> Answer:
        turned_away.append(server.now > 6)
        if turned_away[-1]:
            return 429, {}, b"slow down"
        time.sleep(0.1)
        return answers(n, body)

    server = serve(answer)
    asked = requests(60, 4)
    made = sampler(server, max_concurrency=48)
    assert rows(made.sample(iter(asked))).keys() == {r.id for r in asked}
    # All 48 came at first; it halves until few are turned away.
    assert sum(turned_away[:48]) > 20 and made._server.width < 24
    assert sum(turned_away[-60:]) < 30


def test_all_at_once_at_vllm_and_few_at_first_elsewhere(serve: Any, sampler: Any) -> None:
    def answer(n: int, body: dict[str, Any]) -> Answer:
        time.sleep(0.3)
        return answers(n, body)

    wide, careful = serve(answer), serve(answer, models=[OTHER])
    list(sampler(wide, max_concurrency=20).sample(iter(requests(20))))
    assert wide.most > 10
    list(sampler(careful, model="tiny", max_concurrency=20).sample(iter(requests(60))))
    assert 8 < careful.most <= 20
    assert [t - careful.times[0] > 0.25 for t in careful.times[:5]] == [False] * 4 + [True]


def test_requests_per_minute(serve: Any, sampler: Any) -> None:
    server = serve()
    list(sampler(server, requests_per_minute=600).sample(iter(requests(11))))
    assert server.times[-1] - server.times[0] > 0.9


# ---- a server that is away ------------------------------------------------------------------------


def test_a_server_that_is_started_again_in_mid_run(serve: Any, sampler: Any) -> None:
    def answer(n: int, body: dict[str, Any]) -> Answer:
        time.sleep(0.02)
        if n == 25:
            threading.Thread(target=restart).start()
        return None if n >= 25 else answers(n, body)

    def restart() -> None:
        server.stop()
        time.sleep(1)
        again.append(serve(port=server.port))

    server, again = serve(answer), list[Server]()
    asked = requests(30, 4)
    began = time.monotonic()
    made = sampler(server, max_concurrency=16)
    assert rows(made.sample(iter(asked))) == {r.id: expected(r) for r in asked}
    assert time.monotonic() - began < 6
    # Each was answered once, by one of the two.
    answered = Counter(digest(b["prompt"], b["seed"]) for b in server.bodies[:25])
    assert answered + again[0].asked() == {
        digest(list(r.prompt_token_ids), r.seed): 1 for r in asked
    }
    # While nobody listened, one knocked now and then, not all the time.
    assert made.stats()["retries"] < 16 * 3 + 40
    assert made._server.width == 16


def test_a_server_that_stays_away_ends_it_and_a_second_run_asks_for_the_rest(
    serve: Any, sampler: Any
) -> None:
    def answer(n: int, body: dict[str, Any]) -> Answer:
        if n == 12:
            threading.Thread(target=server.stop).start()
        return None if n >= 12 else answers(n, body)

    server = serve(answer)
    asked = requests(20, 2)
    got: list[Candidate] = []
    made = sampler(server, max_concurrency=4, patience_s=1.0)
    began = time.monotonic()
    with pytest.raises(
        RftError, match="sample.args.base_url: .* answered nothing for patience_s .*are kept"
    ):
        got.extend(made.sample(iter(asked)))
    assert time.monotonic() - began < 5 and len(rows(got)) == 12
    second = serve()
    missing = [r for r in asked if r.id not in rows(got)]
    rest = rows(sampler(second).sample(iter(missing)))
    assert rest | rows(got) == {r.id: expected(r) for r in asked}
    assert len(second.bodies) == 28


def test_nobody_there(open_: list[Any]) -> None:
    began = time.monotonic()
    threads = threading.active_count()
    with pytest.raises(RftError, match="^sample.args.base_url: no server answers at .*vllm serve"):
        openai(set_up(), base_url="http://127.0.0.1:9/v1")
    with pytest.raises(RftError, match="^eval.args.base_url: no server answers"):
        openai(set_up(section="eval"), base_url="http://127.0.0.1:9/v1")
    assert time.monotonic() - began < 15 and threading.active_count() <= threads


# ---- faults that no waiting cures -----------------------------------------------------------------


@pytest.mark.parametrize(
    "status, words",
    [
        (401, "sample.args.api_key_env: .* refuses the key"),
        (403, "sample.args.api_key_env: .* refuses the key"),
        (404, "sample.args.base_url: .*HTTP 404.*Check base_url .*model; it serves tiny"),
        (
            400,
            r"does not answer prompt \w+, sample 0 \(refused\): HTTP 400: no.*extra: {FIELD: null}",
        ),
    ],
)
def test_refusals(serve: Any, sampler: Any, status: int, words: str) -> None:
    server = serve(lambda n, body: (status, {}, b"no such thing"))
    with pytest.raises(RftError, match=words):
        list(sampler(server, model="tiny").sample(iter(requests(1))))
    assert len(server.bodies) == 1


def test_one_refused_prompt_is_named_and_costs_no_other(serve: Any, sampler: Any) -> None:
    asked = requests(30)
    poison = list(asked[9].prompt_token_ids)

    def answer(n: int, body: dict[str, Any]) -> Answer:
        if body["prompt"] == poison:
            return 400, {}, b"maximum context length is 5"
        time.sleep(0.1)  # the others are still being answered when it fails
        return answers(n, body)

    server = serve(answer)
    got: list[Candidate] = []
    with pytest.raises(
        RftError,
        match=rf"prompt {asked[9].prompt_id}, sample 0 \(too_long\): .*is 5. Fix: lower model.max_len",
    ):
        got.extend(sampler(server, max_concurrency=8).sample(iter(asked)))
    # All that it had been asked for came out first, and nothing more was asked.
    assert len(rows(got)) == len(server.bodies) - 1 and 15 <= len(got) < 29


def test_a_prompt_that_the_server_always_fails_on(
    serve: Any, sampler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rft.server.LONGEST_PAUSE_S", 0.05)
    asked = requests(200)
    poison = list(asked[0].prompt_token_ids)

    def answer(n: int, body: dict[str, Any]) -> Answer:
        time.sleep(0.02)
        return (500, {}, b"CUDA error") if body["prompt"] == poison else answers(n, body)

    server = serve(answer)
    with pytest.raises(RftError, match=r"\(server_error\): HTTP 500: CUDA error.*server's log"):
        list(sampler(server, max_concurrency=4).sample(iter(asked)))
    assert sum(body["prompt"] == poison for body in server.bodies) >= module.TRIES["server_error"]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"text": "Something else"}, "another tokenizer than model.base"),
        ({"prompt_token_ids": [1, 2]}, "has changed prompt"),
        ({"finish_reason": "length"}, "ends answers at .* tokens where 12 were asked for"),
    ],
)
def test_a_server_that_does_something_else(
    serve: Any, sampler: Any, change: dict[str, Any], words: str
) -> None:
    def answer(n: int, body: dict[str, Any]) -> Answer:
        return 200, {}, completion(body, **change)

    # Of these, some are shorter than the budget.
    with pytest.raises(RftError, match=words):
        list(sampler(serve(answer)).sample(iter(requests(8))))


@pytest.mark.parametrize(
    "models, args, words",
    [
        (
            [CARD | {"root": "/models/other"}],
            {},
            "args.model: .*serves tiny, and nothing there says",
        ),
        ([], {}, "args.model: .*serves no list of its models"),
        ([CARD | {"max_model_len": 32}], {}, "model.max_len: 64 tokens are more than the 32"),
        ([CARD | {"max_model_len": 32}], {"model": "tiny"}, "model.max_len: 64"),
    ],
)
def test_models_that_do_not_fit(
    serve: Any, sampler: Any, models: list[dict[str, Any]], args: dict[str, Any], words: str
) -> None:
    with pytest.raises(RftError, match=words):
        sampler(serve(models=models), **args)


def test_a_model_is_found_by_its_folder(serve: Any, sampler: Any, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(EMBEDDED)
    cards = [CARD | {"id": "big", "root": "/m"}, CARD | {"root": str(tmp_path / "link")}]
    server = serve(models=cards)
    list(sampler(server).sample(iter(requests(1))))
    assert server.bodies[0]["model"] == "tiny"


@pytest.mark.parametrize(
    "decoding, models, words",
    [
        ({"n": 1, "temperature": 0, "beam_width": 2}, [CARD], "beam_width: .*set it to 0"),
        ({"temperature": 0.001}, [CARD], "temperature: 0.001 is too low for vLLM"),
        ({"top_k": 5}, [OTHER], "top_k: .*doesn't say that it is vLLM.*sample.args.extra"),
        ({"min_p": 0.1}, [OTHER], "min_p: "),
        ({"repetition_penalty": 1.1}, [OTHER], "repetition_penalty: "),
        ({"loops": {}}, [OTHER], "loops: "),
    ],
)
def test_settings_that_a_server_lacks(
    serve: Any,
    sampler: Any,
    decoding: dict[str, Any],
    models: list[dict[str, Any]],
    words: str,
) -> None:
    server = serve(models=models)
    with pytest.raises(RftError, match=words):
        list(sampler(server, model="tiny").sample(iter(requests(1, 1, Decoding(**decoding)))))
    assert not server.bodies


def test_engine_settings_are_the_servers(serve: Any, sampler: Any) -> None:
    for engine in (Engine(dtype="bfloat16"), Engine(extra={"quantization": "fp8"})):
        with pytest.raises(RftError, match="engine.*of its own"):
            sampler(serve(), set_up(engine=engine))


@pytest.mark.parametrize("length", [0, 64])
def test_impossible_prompts(serve: Any, sampler: Any, length: int) -> None:
    bad = dataclasses.replace(requests(1)[0], prompt_token_ids=(5,) * length)
    made = sampler(serve())
    with pytest.raises(RftError, match="max_len|no tokens"):
        list(made.sample(iter([bad])))
    assert len(rows(made.sample(iter(requests(3))))) == 3


@pytest.mark.parametrize(
    "args, words",
    [
        ({"base_url": "localhost:8000"}, "is no address"),
        ({"api_key_env": "NO_SUCH_KEY"}, "the environment has no NO_SUCH_KEY"),
        ({"extra": {"temperature": 1}}, "extra.temperature: set temperature instead"),
        ({"extra": {"stream": True}}, "extra.stream: leave it out"),
        ({"api": "responses"}, "api: .*'completions' or 'chat'"),
        ({"max_concurrency": 0}, "max_concurrency: .*greater than 0"),
        ({"timeout": 3}, "did you mean timeout_s"),
    ],
)
def test_wrong_arguments_are_named(args: dict[str, Any], words: str) -> None:
    component = Component(use="openai", args={"base_url": "http://localhost/v1"} | args)
    with pytest.raises(ConfigError, match=words):
        make("samplers", component, "sample")


def test_a_base_url_is_needed() -> None:
    with pytest.raises(ConfigError, match="sample.args: openai needs the argument 'base_url'"):
        components.bind("samplers", Component(use="openai"), "sample")


# ---- adapters -------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> str:
    path = tmp_path / "adapter"
    path.mkdir()
    (path / "adapter_config.json").write_text("{}")
    (path / "adapter_model.safetensors").write_bytes(b"weights")
    return str(path)


def loads(n: int, body: dict[str, Any]) -> Answer:
    return 200, {}, b"Success"


def test_adapters_by_name_by_folder_and_loaded(
    serve: Any, sampler: Any, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(2, adapter=folder) + requests(2)

    def names(server: Server) -> set[str]:
        return {body["model"] for body in server.bodies}

    monkeypatch.chdir(Path(folder).parent)
    named = serve()
    made = sampler(named, set_up([folder]), adapters={"adapter": "mine"})
    got = rows(made.sample(iter(asked)))
    assert names(named) == {"tiny", "mine"} and not named.loads
    assert got == {r.id: expected(r, "mine" if r.adapter else "tiny") for r in asked}

    found = serve(models=[CARD, CARD | {"id": "static", "root": folder, "parent": "tiny"}])
    list(sampler(found, set_up([folder])).sample(iter(asked)))
    assert names(found) == {"tiny", "static"} and not found.loads

    asks = serve(load=loads)
    list(sampler(asks, set_up([folder])).sample(iter(asked)))
    (loaded,) = asks.loads
    assert loaded["lora_path"] == folder and names(asks) == {"tiny", loaded["lora_name"]}

    # One that is there from last time is not loaded again, unless it has changed since.
    card = CARD | {"id": loaded["lora_name"], "root": folder, "parent": "tiny"}
    again = serve(models=[CARD, card], load=loads)
    list(sampler(again, set_up([folder])).sample(iter(asked)))
    assert not again.loads and names(again) == {"tiny", loaded["lora_name"]}
    (Path(folder) / "adapter_model.safetensors").write_bytes(b"others")
    sampler(again, set_up([folder]))
    assert len(again.loads) == 1 and again.loads[0]["lora_name"] != loaded["lora_name"]


def test_adapters_that_the_server_has_lost_are_loaded_again(
    serve: Any, sampler: Any, folder: str
) -> None:
    there: set[str] = set()

    def load(n: int, body: dict[str, Any]) -> Answer:
        if body["lora_name"] in there:
            return 400, {}, b"The lora adapter has already been loaded."
        there.add(body["lora_name"])
        return loads(n, body)

    def answer(n: int, body: dict[str, Any]) -> Answer:
        if n == 5:
            there.clear()
        if body["model"] not in there:
            return 404, {}, b"The model does not exist."
        return answers(n, body)

    server = serve(answer, load=load)
    asked = requests(20, adapter=folder)
    made = sampler(server, set_up([folder]), max_concurrency=2)
    got = rows(made.sample(iter(asked)))
    name = server.loads[0]["lora_name"]
    assert got == {r.id: expected(r, name) for r in asked}
    assert len(server.loads) >= 2 and {load["lora_name"] for load in server.loads} == {name}


@pytest.mark.parametrize(
    "load",
    [None, lambda n, body: (404, {}, b"No adapter found"), lambda n, body: (500, {}, b"rank 64")],
)
def test_adapters_that_are_not_served(
    serve: Any, sampler: Any, folder: str, load: Script | None
) -> None:
    with pytest.raises(
        RftError,
        match=f"sample.args.adapters: .*does not serve the LoRA adapter {folder}.*"
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True.*--lora-modules",
    ):
        sampler(serve(load=load), set_up([folder]))


def test_folders_that_are_no_adapters(serve: Any, sampler: Any, tmp_path: Path) -> None:
    with pytest.raises(RftError, match="not a LoRA adapter"):
        sampler(serve(load=loads), set_up([str(tmp_path)]))
    made = sampler(serve())
    with pytest.raises(RftError, match="./nowhere"):
        list(made.sample(iter(requests(1, adapter="./nowhere"))))


# ---- pulling and yielding -------------------------------------------------------------------------


def test_requests_are_pulled_as_there_is_room(serve: Any, sampler: Any) -> None:
    pulled = 0

    def endless() -> Iterator[Request]:
        nonlocal pulled
        for request in itertools.cycle(requests(50)):
            pulled += 1
            yield dataclasses.replace(request, id=digest(pulled))

    stream = sampler(serve(), max_concurrency=8).sample(endless())
    for done, _ in enumerate(itertools.islice(stream, 60), start=1):
        assert pulled - done <= 16
        time.sleep(0.002)
    stream.close()


def test_each_comes_out_when_it_is_done(serve: Any, sampler: Any) -> None:
    asked = requests(6)
    slow = list(asked[0].prompt_token_ids)

    def answer(n: int, body: dict[str, Any]) -> Answer:
        time.sleep(1.0 if body["prompt"] == slow else 0)
        return answers(n, body)

    began, times = time.monotonic(), dict[str, float]()
    for row in sampler(serve(answer)).sample(iter(asked)):
        times[row.id] = time.monotonic() - began
    assert times.pop(asked[0].id) > 1 and max(times.values()) < 0.8


def test_an_iterator_without_a_request_is_asked_again(serve: Any, sampler: Any) -> None:
    """It waits for verdicts: soon there may be one, while a slow answer is still under way."""
    asked = requests(8)
    slow = list(asked[0].prompt_token_ids)

    def answer(n: int, body: dict[str, Any]) -> Answer:
        time.sleep(1.0 if body["prompt"] == slow else 0)
        return answers(n, body)

    got: list[Candidate] = []
    nones = 0

    def by_and_by() -> Iterator[Request | None]:
        nonlocal nones
        yield asked[0]
        for i, request in enumerate(asked[1:]):
            began = time.monotonic()
            while time.monotonic() - began < 0.05:
                nones += 1
                yield None
            assert len(got) == i, "while the first is under way the others come and go"
            yield request
            while len(got) < i + 1:
                yield None

    for row in sampler(serve(answer)).sample(by_and_by()):
        got.append(row)
    assert [row.id for row in got] == [r.id for r in [*asked[1:], asked[0]]]
    assert 7 <= nones < 200  # it is not asked without end either


def test_answers_go_on_while_the_caller_is_busy(serve: Any, sampler: Any) -> None:
    server = serve()
    stream = sampler(server, max_concurrency=8).sample(iter(requests(40)))
    next(stream)
    time.sleep(0.5)
    assert 16 <= len(server.bodies) <= 17
    assert len(rows(stream)) == 39


def test_a_caller_that_stops_early_leaves_nothing_behind(serve: Any, sampler: Any) -> None:
    def answer(n: int, body: dict[str, Any]) -> Answer:
        time.sleep(0.05 if n < 3 else 3)
        return answers(n, body)

    server = serve(answer)
    made = sampler(server, max_concurrency=4)
    stream = made.sample(iter(requests(30)))
    next(stream)
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < 1
    seen = len(server.bodies)
    time.sleep(0.3)
    assert len(server.bodies) == seen
    quick = requests(2, decoding=Decoding(n=1, temperature=0, max_tokens=12))
    server.bodies.clear()  # numbers from 0 again, so these are quick
    assert rows(made.sample(iter(quick))) == {r.id: expected(r) for r in quick}


def test_a_fault_of_the_iterator_comes_after_what_is_under_way(serve: Any, sampler: Any) -> None:
    def answer(n: int, body: dict[str, Any]) -> Answer:
        time.sleep(0.1)
        return answers(n, body)

    def breaks() -> Iterator[Request]:
        yield from requests(5)
        raise KeyError("a bug of the allocator")

    got: list[Candidate] = []
    with pytest.raises(KeyError, match="allocator"):
        got.extend(sampler(serve(answer)).sample(breaks()))
    assert len(rows(got)) == 5


def test_closing_ends_its_thread(serve: Any) -> None:
    threads = threading.active_count()
    server = serve()
    listening = threading.active_count()
    made = openai(set_up(), base_url=server.url)
    list(made.sample(iter(requests(3))))
    stream = made.sample(iter(requests(3)))
    next(stream)
    made.close()
    made.close()
    stream.close()  # type: ignore[attr-defined]
    server.stop()
    end = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < end:
        time.sleep(0.02)
    assert threading.active_count() <= threads < listening
