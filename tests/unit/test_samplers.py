"""Samplers against each other, and what is particular to one, on a real tiny model. What all of them
promise is in test_sampler_contract.py.

One vLLM engine with two adapters serves most tests: its base requests must be the base model's.
"""

import dataclasses
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import rft
from rft.chat import Renderer
from rft.components import find
from rft.config import Chat, Model
from rft.config_decoding import Decoding, Engine, Loops
from rft.loops import is_audited, stopped_at
from rft.samplers import _formats
from rft.samplers._beam import BeamSearch
from rft.types import Candidate, Finish, Prompt, Request, RftError, Sampler, Setup, digest

EMBEDDED = Path(rft.__file__).parent / "embedded" / "model"
MAX_LEN = 192

QUESTIONS = [
    "Ana has 12 apples and Ben has 7 apples. How many apples do they have?",
    "There are 3 boxes with 4 pens and 5 keys in each. How many things are there?",
    "Dan had 30 coins. He gave away 8 coins. How many coins are left?",
    "Eva has 5 bags with 6 eggs each. How many eggs does she have?",
    "Kim reads 9 books, then 4 more, then 2 more. How many books does she read?",
    "12 + 5 =",
]


def set_up(
    base: str | Path = EMBEDDED, adapters: Iterable[str] = (), max_len: int = MAX_LEN, **engine: Any
) -> Setup:
    model = Model(base=str(base), max_len=max_len)
    return Setup(
        model=model,
        engine=Engine(kv_cache_gb=0.25, **engine),
        renderer=Renderer(model, Chat()),
        prompts={},
        adapters=tuple(adapters),
    )


def requests(
    setup: Setup,
    questions: Iterable[str] = QUESTIONS,
    n: int = 1,
    adapter: str | None = None,
    **decoding: Any,
) -> Iterator[Request]:
    settings = Decoding(
        n=n, **{"max_tokens": 24, "temperature": 0.0 if n == 1 else 1.0, **decoding}
    )
    for question, index in itertools.product(questions, range(n)):
        key = digest(question, adapter, index)
        yield Request(
            id=key,
            prompt_id=digest(question),
            index=index,
            prompt_token_ids=setup.renderer.prompt_ids(question),
            decoding=settings,
            seed=int(key[:15], 16),
            adapter=adapter,
        )


def by_id(candidates: Iterable[Candidate]) -> dict[str, Candidate]:
    got = list(candidates)
    assert len({c.id for c in got}) == len(got)
    return {c.id: c for c in got}


def tokens(candidates: Iterable[Candidate]) -> dict[str, tuple[int, ...]]:
    return {key: c.token_ids for key, c in by_id(candidates).items()}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two random adapters of ranks 4 and 12, strong enough to change what is said."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    paths = []
    for i, rank in enumerate((4, 12)):
        torch.manual_seed(i)
        model = AutoModelForCausalLM.from_pretrained(EMBEDDED)
        wrapped = get_peft_model(
            model, LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear")
        )
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.15)
        paths.append(str(tmp_path_factory.mktemp("adapter")))
        wrapped.save_pretrained(paths[-1])
    return paths[0], paths[1]


@pytest.fixture(scope="module")
def setup(adapters: tuple[str, str]) -> Setup:
    return set_up(adapters=adapters, max_num_seqs=8)


@pytest.fixture(scope="module")
def slow_one(setup: Setup) -> Iterator[Sampler]:
    from rft.samplers.transformers import transformers

    sampler = transformers(setup)
    yield sampler
    sampler.close()


@pytest.fixture(scope="module")
def engine(setup: Setup) -> Iterator[Sampler]:
    pytest.importorskip("vllm")
    from rft.samplers.vllm import vllm

    # So few tokens a step that several of the longer prompts don't fit into one.
    few = setup.engine.model_copy(update={"extra": {"max_num_batched_tokens": 512}})
    sampler = vllm(dataclasses.replace(setup, engine=few))
    yield sampler
    sampler.close()


@pytest.fixture(params=["vllm", "transformers"])
def sampler(request: pytest.FixtureRequest) -> Sampler:
    name = {"vllm": "engine", "transformers": "slow_one"}[request.param]
    found: Sampler = request.getfixturevalue(name)
    return found


# ---- both samplers give the same ---------------------------------------------------------------


GREEDY = [
    {},
    {"max_tokens": 5},
    {"stop": ["="]},
    {"stop": ["\n", "That"]},
    {"repetition_penalty": 1.5},
    {"n": 3, "temperature": 0, "beam_width": 3},
    {"n": 2, "temperature": 0, "beam_width": 4, "stop": ["\n"]},
]


@pytest.mark.parametrize("decoding", GREEDY, ids=json.dumps)
def test_vllm_and_transformers_agree(
    setup: Setup, engine: Sampler, slow_one: Sampler, decoding: dict[str, Any]
) -> None:
    fast = by_id(engine.sample(requests(setup, **decoding)))
    slow = by_id(slow_one.sample(requests(setup, **decoding)))
    assert {k: c.token_ids for k, c in fast.items()} == {k: c.token_ids for k, c in slow.items()}
    for key, c in fast.items():
        assert (c.text, c.finish) == (slow[key].text, slow[key].finish)
        assert c.logprob == pytest.approx(slow[key].logprob, abs=1e-3)
        assert c.text == setup.renderer.decode(c.token_ids) or decoding.get("stop")


LOOPING = ["\n books " * 8, ") apples " * 4, "zebra # " * 8, "zebra : " * 5]
"""After these the embedded model says the same thing again and again: greedily, and in the end."""


@pytest.mark.parametrize("decoding", [{}, {"n": 3, "temperature": 0.5}], ids=json.dumps)
def test_both_stop_a_loop_at_the_token_that_the_rule_names(
    setup: Setup, engine: Sampler, slow_one: Sampler, decoding: dict[str, Any]
) -> None:
    rule = Loops(period=16, repeats=3, min_tokens=12, audit=0)
    asked = {"questions": LOOPING + QUESTIONS, "max_tokens": 100, **decoding}

    def drawn(sampler: Sampler, loops: Loops | None) -> dict[str, Candidate]:
        return by_id(sampler.sample(requests(setup, loops=loops, **asked)))

    from vllm.v1.core.sched import utils

    assert (
        utils.check_sequence_repetition.__module__ == "rft.samplers._vllm_patches"
    )  # not the slow one
    for sampler in (engine, slow_one):
        whole = drawn(sampler, None)
        ends = {key: stopped_at(c.token_ids[:-1], rule) for key, c in whole.items()}
        looped = {key for key, at in ends.items() if at is not None}
        assert len(looped) >= 4 and len(whole) - len(looped) >= 6
        for key, c in drawn(sampler, rule).items():
            if key in looped:
                assert (c.finish, c.token_ids) == (Finish.LOOP, whole[key].token_ids[: ends[key]])
                assert c.text == setup.renderer.decode(c.token_ids)
            else:
                assert (c.finish, c.token_ids) == (whole[key].finish, whole[key].token_ids)
        # The audited share runs on, and its ids say which that is.
        half = rule.model_copy(update={"audit": 0.5})
        got = drawn(sampler, half)
        stopped = {key for key, c in got.items() if c.finish is Finish.LOOP}
        assert stopped == {key for key in looped if not is_audited(key, half)}
        assert 0 < len(stopped) < len(looped)
        for key in got.keys() - stopped:
            assert got[key].token_ids == whole[key].token_ids


def test_what_ends_at_the_same_token_is_no_loop(
    setup: Setup, engine: Sampler, slow_one: Sampler
) -> None:
    rule = Loops(period=16, repeats=3, min_tokens=12, audit=0)
    (looped,) = slow_one.sample(requests(setup, LOOPING[:1], max_tokens=100, loops=rule))
    assert looped.finish is Finish.LOOP
    at = len(looped.token_ids)
    for sampler in (engine, slow_one):
        (cut,) = sampler.sample(requests(setup, LOOPING[:1], max_tokens=at, loops=rule))
        assert (cut.finish, cut.token_ids) == (Finish.LENGTH, looped.token_ids)
        (longer,) = sampler.sample(requests(setup, LOOPING[:1], max_tokens=at + 1, loops=rule))
        assert (longer.finish, longer.token_ids) == (Finish.LOOP, looped.token_ids)
        stop = [looped.text[-1]]
        (ended,) = sampler.sample(
            requests(setup, LOOPING[:1], max_tokens=100, loops=rule, stop=stop)
        )
        assert ended.finish is Finish.STOP


@pytest.mark.parametrize("which", [0, 1])
def test_adapters_agree_and_differ_from_the_base(
    setup: Setup, engine: Sampler, slow_one: Sampler, adapters: tuple[str, str], which: int
) -> None:
    # Base and adapter requests share their batches in vLLM.
    mixed = [*requests(setup), *requests(setup, adapter=adapters[which])]
    mixed = mixed[::2] + mixed[1::2]
    fast, slow = tokens(engine.sample(iter(mixed))), tokens(slow_one.sample(iter(mixed)))
    assert fast == slow
    base = {r.prompt_id: fast[r.id] for r in mixed if r.adapter is None}
    assert any(fast[r.id] != base[r.prompt_id] for r in mixed if r.adapter)


@pytest.mark.slow
def test_vllm_and_transformers_agree_on_a_real_model() -> None:
    base = os.environ.get("RFT_TEST_MODEL")
    if not base:
        pytest.skip("set RFT_TEST_MODEL to the folder of a pretrained model")
    pytest.importorskip("vllm")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        fast = pool.submit(_greedy, "vllm", base).result()
    assert fast == _greedy("transformers", base)


def _greedy(sampler: str, base: str) -> dict[str, tuple[int, ...]]:
    setup = set_up(base, max_len=256)
    made = find("samplers", sampler)(setup)
    return tokens(made.sample(requests(setup)))


# ---- seeds ------------------------------------------------------------------------------------


def test_other_seeds_give_other_samples(setup: Setup, sampler: Sampler) -> None:
    got = tokens(sampler.sample(requests(setup, QUESTIONS[:1], n=16, temperature=2.0)))
    assert len(set(got.values())) > 8


@pytest.mark.parametrize(
    "settings", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=json.dumps
)
def test_truncation_to_one_token_is_greedy(
    setup: Setup, sampler: Sampler, settings: dict[str, Any]
) -> None:
    greedy = {c.prompt_id: c.token_ids for c in sampler.sample(requests(setup))}
    for c in sampler.sample(requests(setup, n=2, **settings)):
        assert c.token_ids == greedy[c.prompt_id]


def test_frequencies_follow_the_model(setup: Setup, sampler: Sampler) -> None:
    """First-token frequencies against the model's own probabilities, at temperature 1.5."""
    import torch
    from transformers import AutoModelForCausalLM

    n = 400
    got = list(
        sampler.sample(
            requests(setup, QUESTIONS[:1], n=n, temperature=1.5, max_tokens=1, logprobs="tokens")
        )
    )
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED)
    with torch.inference_mode():
        logits = model(torch.tensor([got[0].prompt_token_ids])).logits[0, -1]
    raw, hot = logits.log_softmax(-1), (logits / 1.5).softmax(-1)
    for c in got:
        assert c.token_logprobs == (c.logprob,)
        assert c.logprob == pytest.approx(float(raw[c.token_ids[0]]), abs=1e-3)
    likeliest = int(hot.argmax())
    p = float(hot[likeliest])
    share = sum(c.token_ids[0] == likeliest for c in got) / n
    assert abs(share - p) < 4 * (p * (1 - p) / n) ** 0.5
    assert sum(float(hot[t]) for t in {c.token_ids[0] for c in got}) > 0.9


# ---- vLLM alone -------------------------------------------------------------------------------


def test_more_seeded_prompts_than_one_step_holds(setup: Setup, engine: Sampler) -> None:
    """On a CPU vLLM 0.32 dies here with chunked prefill: 8 prompts of 180 tokens at once, 512 a step."""
    prompt = setup.renderer.prompt_ids(" ".join(QUESTIONS * 9))[:178]
    asked = [
        dataclasses.replace(r, prompt_token_ids=(5 + i, *prompt))
        for i, r in enumerate(requests(setup, QUESTIONS[:1], n=40, max_tokens=8))
    ]
    assert len(by_id(engine.sample(iter(asked)))) == 40


def test_prefix_cache_serves_siblings(setup: Setup, engine: Sampler) -> None:
    before = engine.stats()
    prompt = setup.renderer.prompt_ids(" ".join(QUESTIONS * 9))[:130]
    asked = [
        dataclasses.replace(r, prompt_token_ids=(3, *prompt))
        for r in requests(setup, QUESTIONS[:1], n=8, max_tokens=2)
    ]
    list(engine.sample(iter(asked)))
    after = engine.stats()
    cached = after["cached_tokens"] - before["cached_tokens"]
    assert cached >= 7 * 128 * 0.9  # blocks of 32 tokens, for all but the first


def test_beam_search_refuses_a_penalty(setup: Setup, engine: Sampler) -> None:
    asked = requests(setup, n=1, temperature=0, beam_width=2, repetition_penalty=1.2)
    with pytest.raises(RftError, match="repetition_penalty"):
        list(engine.sample(asked))


def test_a_second_engine_is_refused(engine: Sampler) -> None:
    from rft.samplers.vllm import vllm

    with pytest.raises(RftError, match="close"):
        vllm(set_up())


def test_a_temperature_that_vllm_would_change_is_refused(setup: Setup, engine: Sampler) -> None:
    with pytest.raises(RftError, match="temperature"):
        list(engine.sample(requests(setup, n=2, temperature=0.001)))


def test_beams_resume_by_index(setup: Setup, engine: Sampler) -> None:
    asked = list(requests(setup, QUESTIONS[:2], n=3, temperature=0, beam_width=3))
    all_of_them = tokens(engine.sample(iter(asked)))
    assert len({(r.prompt_id, all_of_them[r.id]) for r in asked}) == 6
    assert tokens(engine.sample(iter(asked[2::3]))) == {
        r.id: all_of_them[r.id] for r in asked[2::3]
    }


BAD_EXTRA = [
    ({"max_num_seq": 3}, "did you mean max_num_seqs"),
    ({"enable_chunked_prefill": True}, "prefilled in more than one step"),
    ({"max_num_batched_tokens": MAX_LEN - 1}, "prefilled in more than one step"),
    ({"max_model_len": 100}, "set model.max_len instead"),
    ({"logprobs_mode": "processed_logprobs"}, "changes what a log-probability is"),
    ({"max_num_seqs": 3}, "set engine.max_num_seqs instead"),
]


@pytest.mark.parametrize("extra, message", BAD_EXTRA)
def test_bad_engine_arguments(extra: dict[str, Any], message: str) -> None:
    pytest.importorskip("vllm")
    from rft.samplers.vllm import vllm

    with pytest.raises(RftError, match=message):
        vllm(set_up(extra=extra))


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        fault = pool.submit(_start, str(tmp_path)).exception()
    assert isinstance(fault, RftError)
    assert "did not start" in str(fault) and "Fix: " in str(fault)


def _start(base: str) -> None:
    from rft.samplers.vllm import vllm

    vllm(dataclasses.replace(set_up(), model=Model(base=base, max_len=MAX_LEN)))


def test_a_folder_that_is_no_adapter(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    from rft.samplers.vllm import vllm

    with pytest.raises(RftError, match="not a LoRA adapter"):
        vllm(set_up(adapters=[str(tmp_path)]))


def test_data_parallel_replicas(adapters: tuple[str, str]) -> None:
    pytest.importorskip("vllm")
    from rft.samplers.vllm import vllm

    setup = set_up(adapters=adapters, data_parallel=2, max_num_seqs=4)
    sampler = vllm(setup)
    asked = [*requests(setup, n=3), *requests(setup, adapter=adapters[0])]
    first = tokens(sampler.sample(iter(asked)))
    assert first.keys() == {r.id for r in asked}
    assert tokens(sampler.sample(reversed(asked))) == first
    assert sampler.stats()["requests"] == 2 * len(asked)
    # A copy is killed in mid-run: the other one draws what it owed.
    stream = sampler.sample(iter(asked))
    got = [next(stream)]
    multiprocessing.active_children()[0].kill()
    assert tokens([*got, *stream]) == first
    # More requests than the copies' queues hold, of which a copy counts six as one.
    beams = list(requests(setup, n=6, temperature=0, beam_width=6))
    assert len(by_id(sampler.sample(iter(beams)))) == len(beams)
    bad = dataclasses.replace(asked[0], prompt_token_ids=(5,) * MAX_LEN)
    with pytest.raises(RftError, match="max_len"):
        list(sampler.sample(iter([bad])))
    sampler.close()


# ---- reference, beams, imports ---------------------------------------------------------------------


def test_reference_gives_the_written_solution() -> None:
    from rft.samplers.reference import reference

    setup = set_up()
    renderer = Renderer(setup.model, Chat(solution=" {solution}!"))
    prompts = {p.id: p for p in (Prompt("a", "2+2=", "4", "{x} = 4"), Prompt("b", "3+3=", "6"))}
    setup = dataclasses.replace(setup, renderer=renderer, prompts=prompts)
    one = dataclasses.replace(next(requests(setup)), prompt_id="a")
    (got,) = reference(setup).sample(iter([one]))
    assert (got.text, got.finish, got.logprob) == (" {x} = 4!", Finish.REFERENCE, None)
    assert got.token_ids == renderer.completion_ids(" {x} = 4!")
    with pytest.raises(RftError, match="b has no solution"):
        list(reference(setup).sample(iter([dataclasses.replace(one, prompt_id="b")])))


def test_beam_search_finds_what_enumeration_finds() -> None:
    """A chain of 3 letters where the greedy first letter is a trap; a wide beam is exhaustive."""
    import math

    end = 0
    chances = {  # by last token: (end, 1, 2)
        None: (0.0001, 0.6, 0.3999),
        1: (0.34, 0.33, 0.33),
        2: (0.98, 0.01, 0.01),
    }

    def logs(ids: tuple[int, ...]) -> list[tuple[int, float]]:
        return [(t, math.log(p)) for t, p in enumerate(chances[ids[-1] if ids else None])]

    def score(ids: tuple[int, ...]) -> float:
        return sum(logs(ids[:i])[t][1] for i, t in enumerate(ids)) / len(ids)

    whole = [
        (*middle, last)
        for length in range(3)
        for middle in itertools.product((1, 2), repeat=length)
        for last in ((0, 1, 2) if length == 2 else (0,))
    ]
    search = BeamSearch(12, 3, frozenset({end}), lambda ids: False)
    while not search.done:
        search.advance([logs(beam.token_ids) for beam in search.running])
    best = sorted(whole, key=score, reverse=True)
    assert [b.token_ids for b in search.finished][:5] == best[:5]
    narrow = BeamSearch(1, 3, frozenset({end}), lambda ids: False)
    while not narrow.done:
        narrow.advance([logs(beam.token_ids) for beam in narrow.running])
    assert narrow.finished[0].token_ids[0] == 1 and best[0][0] == 2


def test_finding_samplers_imports_no_engine() -> None:
    code = (
        "import sys; from rft.components import find\n"
        "for name in ('vllm', 'transformers', 'reference'): find('samplers', name)\n"
        "print([m for m in ('torch', 'vllm', 'transformers', 'peft') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "dtype, use, told",
    [
        ("auto", "vllm", None),
        ("float16", "vllm", None),
        ("int8", "transformers", None),
        ("int8", "vllm", "set use to transformers"),
        ("int8", "ray", "set use to transformers"),
    ],
)
def test_formats_that_a_sampler_lacks(
    monkeypatch: pytest.MonkeyPatch, dtype: str, use: str, told: str | None
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    found = _formats.missing(dtype, use)
    assert told in found if told and found else found is told


def test_a_gpu_without_bf16_is_offered_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert _formats.missing("bfloat16", "vllm") == "bf16: Tesla T4 has none: take fp16"
    assert _formats.missing("float16", "vllm") is None


def test_int8_keeps_what_is_said_and_takes_adapters(adapters: tuple[str, str]) -> None:
    """LLM.int8: weights of 8 bits, outliers apart, and the adapter on top of it."""
    nn = pytest.importorskip("bitsandbytes.nn")
    from rft.samplers.transformers import TransformersSampler

    whole, small = (
        TransformersSampler(set_up(adapters=adapters, dtype=dtype)) for dtype in ("float32", "int8")
    )
    assert (whole.dtype, small.dtype) == ("float32", "int8")
    layers = [m for m in small._model.modules() if isinstance(m, nn.Linear8bitLt)]
    assert layers and all(m.state.threshold == _formats.THRESHOLD for m in layers)
    assert small.stats()["weights_gb"] < 0.5 * whole.stats()["weights_gb"]
    said = []
    for adapter in (None, adapters[1]):
        a, b = (
            by_id(
                sampler.sample(
                    requests(sampler._setup, adapter=adapter, max_tokens=1, logprobs="tokens")
                )
            )
            for sampler in (whole, small)
        )
        assert a.keys() == b.keys()
        same = [key for key in a if a[key].token_ids == b[key].token_ids]
        off = [abs((a[key].logprob or 0) - (b[key].logprob or 0)) for key in same]
        assert len(same) >= len(a) - 1 and 0 < max(off) < 0.2
        said.append([c.logprob for c in b.values()])
    assert said[0] != said[1]


def test_outliers_are_multiplied_apart_on_a_cpu() -> None:
    """arXiv 2208.07339, equation 8, with the columns' weights taken out of INT8."""
    nn = pytest.importorskip("bitsandbytes.nn")
    import torch

    torch.manual_seed(0)
    weight, x = torch.randn(32, 64).half().float(), torch.randn(5, 64).half().float()
    x[1, 7], x[3, 40] = 50.0, -9.0
    layer = nn.Linear8bitLt(64, 32, False, has_fp16_weights=False, threshold=_formats.THRESHOLD)
    layer.weight = nn.Int8Params(weight.half(), has_fp16_weights=False, requires_grad=False)
    layer = layer.to("cpu").eval()
    got = layer(x.half()).float()
    w_scale = weight.abs().amax(1, keepdim=True) / 127
    w = (weight / w_scale).round()
    apart = (x.abs() >= _formats.THRESHOLD).any(0)
    assert apart.nonzero().flatten().tolist() == [7, 40]
    # Outliers are no part of their row's scale.
    x_scale = x.where(x.abs() < _formats.THRESHOLD, torch.zeros(())).abs().amax(1, keepdim=True)
    x_int = (x / (x_scale / 127)).round() * ~apart
    want = (x_int @ w.T) * (x_scale / 127) * w_scale.T + x[:, apart] @ (w * w_scale)[:, apart].T
    assert torch.allclose(got, want, atol=0.1)
    plain = x.abs().amax(1, keepdim=True) / 127
    worse = ((x / plain).round() @ w.T) * plain * w_scale.T
    exact = x @ weight.T
    assert (worse - exact).abs().mean() > 2 * (got - exact).abs().mean()
