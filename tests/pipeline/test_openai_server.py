"""The sampler `openai` at a real `vllm serve`, against the sampler `vllm` on the same requests.

The engine of `vllm` has a process of its own, since one process holds one. Requests with and without
an adapter go to the server apart: on a CPU it mixes them up (rft/samplers/vllm.py).
"""

import dataclasses
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rft.samplers.openai import openai
from rft.types import Candidate, Finish, Prompt, Request, RftError, Setup, digest
from tests.pipeline import _serve
from tests.pipeline._serve import CORES, LORA
from tests.unit.test_sampler_contract import Case, Contract, solved_problems
from tests.unit.test_samplers import (  # noqa: F401
    EMBEDDED,
    MAX_LEN,
    QUESTIONS,
    adapters,
    by_id,
    requests,
    set_up,
)

CASES: list[tuple[dict[str, Any], int | None]] = [
    ({"logprobs": "tokens"}, None),
    ({"max_tokens": 5}, None),
    ({"stop": ["\n", "That"]}, None),
    ({"repetition_penalty": 1.5}, None),
    ({"loops": {"period": 8, "repeats": 2, "min_tokens": 2, "audit": 0.3}}, None),
    ({"n": 6, "temperature": 1.2, "top_k": 40, "min_p": 0.01, "top_p": 0.95}, None),
    ({}, 0),
    ({}, 1),
]
"""Decoding settings, and which of the two adapters."""


def asked(setup: Setup, case: tuple[dict[str, Any], int | None]) -> Iterator[Request]:
    decoding, adapter = case
    folder = None if adapter is None else setup.adapters[adapter]
    return requests(setup, adapter=folder, **decoding)


def of_the_engine(model: str, adapters: tuple[str, str]) -> list[dict[str, Candidate]]:  # noqa: F811
    from rft.samplers.vllm import vllm

    os.sched_setaffinity(0, CORES[-1:])
    setup = set_up(model, adapters, max_num_seqs=64)
    sampler = vllm(setup)
    try:
        return [by_id(sampler.sample(asked(setup, case))) for case in CASES]
    finally:
        sampler.close()


@pytest.fixture(scope="module")
def engine(
    served_model: Path,
    adapters: tuple[str, str],  # noqa: F811
) -> Iterator["Future[list[dict[str, Candidate]]]"]:
    """Its rows, while the server starts."""
    pytest.importorskip("vllm")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool.submit(of_the_engine, str(served_model), adapters)


def test_a_server_gives_the_rows_of_an_engine(
    adapters: tuple[str, str],  # noqa: F811
    served_model: Path,
    engine: "Future[list[dict[str, Candidate]]]",
    tiny_server: str,
) -> None:
    setup, url = set_up(served_model, adapters), tiny_server
    sampler = openai(setup, base_url=url, max_concurrency=64)
    got = [by_id(sampler.sample(asked(setup, case))) for case in CASES]
    check_other_ways(setup, url, got[0])
    sampler.close()
    expected = engine.result(timeout=200)
    for case, mine, theirs in zip(CASES, got, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for id, row in mine.items():
            same = dataclasses.replace(
                theirs[id], logprob=row.logprob, token_logprobs=row.token_logprobs
            )
            assert row == same, case
            assert row.logprob == pytest.approx(theirs[id].logprob, abs=1e-3)
            assert row.token_logprobs == pytest.approx(theirs[id].token_logprobs, abs=1e-3)
    assert {row.finish for rows in got for row in rows.values()} == {
        Finish.STOP,
        Finish.LENGTH,
        Finish.LOOP,
    }
    texts = [{row.text for row in got[i].values()} for i in (0, -2, -1)]
    assert texts[0] != texts[1] != texts[2]


def check_other_ways(setup: Setup, url: str, greedy: dict[str, Candidate]) -> None:
    """Chat, and what the server refuses."""
    prompts = {digest(question): Prompt(digest(question), question) for question in QUESTIONS}
    chat = openai(dataclasses.replace(setup, prompts=prompts), base_url=url, api="chat")
    for id, row in by_id(chat.sample(requests(setup))).items():
        same = greedy[id]
        assert (row.text, row.finish) == (same.text, same.finish)
        assert row.logprob == pytest.approx(same.logprob, abs=1e-3)
        assert setup.renderer.decode(row.token_ids) == row.text
    chat.close()
    with pytest.raises(RftError, match="HTTP 404.*does not exist.*it serves tiny"):
        list(openai(setup, base_url=url, model="huge").sample(requests(setup)))
    with pytest.raises(RftError, match="model.max_len: 512 tokens are more than the 256"):
        openai(set_up(setup.model.base, max_len=512), base_url=url)
    with pytest.raises(
        RftError, match="sample.args.adapters: .*does not load it.*No adapter found"
    ):
        openai(set_up(setup.model.base, [broken_adapter(setup)]), base_url=url)
    bad = dataclasses.replace(next(requests(setup)), prompt_token_ids=(5, 100_000))
    sampler = openai(setup, base_url=url)
    with pytest.raises(RftError, match=f"prompt {bad.prompt_id}, .*100000 is out of vocabulary"):
        list(sampler.sample(iter([bad])))
    sampler.close()


def broken_adapter(setup: Setup) -> str:
    folder = Path(setup.model.base).parent / "broken"
    folder.mkdir()
    shutil.copy(Path(setup.adapters[0]) / "adapter_model.safetensors", folder)
    return str(folder)


@pytest.fixture(scope="module")
def case(tiny_server: str, served_model: Path) -> Iterator[Case]:
    setup = dataclasses.replace(set_up(served_model), prompts=solved_problems(100))
    sampler = openai(setup, base_url=tiny_server, max_concurrency=8)
    yield Case(sampler, setup, ahead=2 * 8 + 1)
    sampler.close()


class TestContract(Contract):
    """Of a server."""


@pytest.mark.slow
def test_a_server_killed_and_started_again_in_mid_run(
    adapters: tuple[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    """With an adapter that the new one has to load again."""
    pytest.importorskip("vllm")
    log, port = tmp_path / "log", _serve.free_port()
    base = Path(EMBEDDED)
    servers = [_serve.start(base, "tiny", MAX_LEN, log, port, *LORA, cores=CORES[:1])]
    setup = set_up(adapters=adapters)

    def restart() -> None:
        _serve.stop(servers[0], signal.SIGKILL)
        servers.append(_serve.start(base, "tiny", MAX_LEN, log, port, *LORA, cores=CORES[:1]))

    try:
        _serve.wait_for(servers[0], port, log)
        sampler = openai(
            setup, base_url=f"http://127.0.0.1:{port}/v1", max_concurrency=16, patience_s=200
        )
        many = list(requests(setup, n=20, adapter=adapters[0], max_tokens=60))
        undisturbed = by_id(sampler.sample(iter(many)))
        killer = threading.Thread(target=restart)
        got: list[Candidate] = []
        for row in sampler.sample(iter(many)):
            got.append(row)
            if len(got) == 30:
                killer.start()
        killer.join()
        assert len(servers) == 2 and by_id(got).keys() == undisturbed.keys()
        assert {r.id: r.token_ids for r in got} == {k: r.token_ids for k, r in undisturbed.items()}
        began = time.monotonic()
        _serve.stop(servers[1])
        impatient = list(requests(setup, n=2))
        sampler._server._patience_s = 2  # type: ignore[attr-defined]
        with pytest.raises(RftError, match="answered nothing for patience_s"):
            list(sampler.sample(iter(impatient)))
        assert time.monotonic() - began < 30
        sampler.close()
    finally:
        for server in servers:
            _serve.stop(server, signal.SIGKILL)
