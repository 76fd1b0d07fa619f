"""What every sampler promises (rft.types.Sampler), run over all of them with real models.

A sampler that needs more than this process, such as a server, has the same tests beside its own: there
is a fixture `case` of the module's scope, and `class TestContract(Contract)`.
"""

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import rft
from rft.chat import Renderer
from rft.config import Chat, Model
from rft.config_decoding import Decoding, Engine
from rft.samplers._common import completion_text
from rft.types import Candidate, Finish, Prompt, Request, RftError, Sampler, Setup, digest

EMBEDDED = Path(rft.__file__).parent / "embedded"
SEQUENCES = 8
"""Sequences that an engine here decodes together."""


def solved_problems(count: int) -> dict[str, Prompt]:
    """The first training problems of the embedded data that have a solution, by id."""
    rows = map(json.loads, (EMBEDDED / "train.jsonl").read_text().splitlines())
    solved = (row for row in rows if row["solution"])
    return {
        digest(row["question"]): Prompt(
            digest(row["question"]), row["question"], row["answer"], row["solution"]
        )
        for row in itertools.islice(solved, count)
    }


def set_up(**engine: Any) -> Setup:
    """The embedded model, asked about 100 problems."""
    model = Model(base=str(EMBEDDED / "model"), max_len=128)
    chat = Chat(prompt="Question: {question}\nAnswer:", solution="\n{solution}")
    return Setup(
        model=model,
        engine=Engine(kv_cache_gb=0.25, max_num_seqs=SEQUENCES, **engine),
        renderer=Renderer(model, chat),
        prompts=solved_problems(100),
    )


@dataclasses.dataclass
class Case:
    """A sampler, and what it is known to do differently."""

    sampler: Sampler
    setup: Setup
    ahead: int
    """Most requests that it pulls before it has yielded any."""
    draws: bool = True
    """Whether a model is behind it, so that a budget and a stop string end its samples."""

    def requests(
        self, prompts: int = 6, n: int = 1, adapter: str | None = None, **decoding: Any
    ) -> Iterator[Request]:
        settings = Decoding(**{"n": n, "max_tokens": 24, "temperature": 1.0, **decoding})
        chosen = itertools.islice(self.setup.prompts.values(), prompts)
        for prompt, index in itertools.product(chosen, range(n)):
            key = digest("contract", prompt.id, index)
            ids = self.setup.renderer.prompt_ids(prompt.question)
            yield Request(key, prompt.id, index, ids, settings, int(key[:15], 16), adapter)


def by_id(candidates: Iterable[Candidate]) -> dict[str, Candidate]:
    got = list(candidates)
    assert len({c.id for c in got}) == len(got)
    return {c.id: c for c in got}


class Mine(Exception):
    """Raised by an iterator of requests."""


class Contract:
    def test_each_request_is_answered_once(self, case: Case) -> None:
        asked = {r.id: r for r in case.requests(prompts=9, n=3)}
        got = by_id(case.sampler.sample(iter(asked.values())))
        assert got.keys() == asked.keys()
        for id, c in got.items():
            r = asked[id]
            assert (c.prompt_id, c.index) == (r.prompt_id, r.index)
            assert c.prompt_token_ids == r.prompt_token_ids
        assert list(case.sampler.sample(iter([]))) == []

    def test_an_answer_follows_from_its_request_alone(self, case: Case) -> None:
        """Not on the order of requests, nor on what else is under way: a resume asks for the rest."""
        asked = list(case.requests(n=4, top_k=40, top_p=0.95, min_p=0.01))
        first = by_id(case.sampler.sample(iter(asked)))
        again = by_id(case.sampler.sample(reversed(asked)))
        some = asked[5::4]
        other = (r for r in case.requests(prompts=9) if r.prompt_id != asked[0].prompt_id)
        rest = [*some, *(r for r in other if r.id not in first)]
        few = by_id(case.sampler.sample(iter(rest)))
        for id, c in first.items():
            assert (again[id].token_ids, again[id].text) == (c.token_ids, c.text)
        for r in some:
            assert few[r.id].token_ids == first[r.id].token_ids

    @pytest.mark.parametrize("stop", [[], ["=", "many"]], ids=str)
    def test_an_end_is_what_it_says(self, case: Case, stop: list[str]) -> None:
        """Each request has its own budget, and both kinds of end occur."""
        renderer = case.setup.renderer
        special = set(renderer.tokenizer.all_special_ids)
        short = list(case.requests(prompts=20, max_tokens=4, stop=stop, logprobs="tokens"))
        long = list(case.requests(prompts=40, max_tokens=40, stop=stop, logprobs="tokens"))[20:]
        asked = {r.id: r for pair in zip(short, long, strict=True) for r in pair}
        ends = set()
        for c in by_id(case.sampler.sample(iter(asked.values()))).values():
            ends.add(c.finish)
            decoding = asked[c.id].decoding
            assert not special.intersection(c.token_ids[:-1])
            by_token = c.token_ids[-1] in special
            if c.token_logprobs is not None:
                assert len(c.token_logprobs) == len(c.token_ids)
                assert c.logprob == pytest.approx(sum(c.token_logprobs))
            assert (c.token_logprobs is not None) == case.draws
            if c.finish is Finish.REFERENCE:
                assert by_token and c.text == renderer.decode(c.token_ids)
                continue
            assert c.text == completion_text(renderer, c.token_ids, decoding.stop)
            by_string = c.text != renderer.decode(c.token_ids)
            assert len(c.token_ids) <= decoding.max_tokens
            if c.finish is Finish.STOP:
                assert by_token or by_string
            else:
                assert c.finish is Finish.LENGTH and len(c.token_ids) == decoding.max_tokens
                assert not by_token and not by_string
        assert ends in ({Finish.REFERENCE}, {Finish.STOP, Finish.LENGTH})

    # ---- the iterator of requests ----

    def test_requests_are_pulled_as_there_is_room(self, case: Case) -> None:
        """Candidates come while requests do, and one who has enough may stop."""
        pulled = 0

        def endless() -> Iterator[Request]:
            nonlocal pulled
            for round in itertools.count():
                for r in case.requests(prompts=100):
                    pulled += 1
                    assert pulled < 10_000, "they are pulled without end"
                    yield dataclasses.replace(r, id=digest(r.id, round))

        stream = case.sampler.sample(endless())
        for done, _ in enumerate(itertools.islice(stream, 60), start=1):
            assert pulled - done <= case.ahead
        stream.close()  # type: ignore[attr-defined]
        # What was left inside does not come out later.
        asked = {r.id for r in case.requests()}
        assert by_id(case.sampler.sample(case.requests())).keys() == asked

    @pytest.mark.parametrize("burst", [1, 5])
    def test_requests_may_wait_for_candidates(self, case: Case, burst: int) -> None:
        """None while the last burst is under way; then, with nothing under way, a pause."""
        asked = list(case.requests(prompts=10))
        got: list[Candidate] = []
        nones = 0

        def bursts() -> Iterator[Request | None]:
            nonlocal nones
            for start in range(0, len(asked), burst):
                yield from asked[start : start + burst]
                limit = time.monotonic() + 60
                while len(got) < start + burst:
                    assert time.monotonic() < limit, "nothing comes"
                    nones += 1
                    yield None
                time.sleep(0.02)

        began = time.monotonic()
        for c in case.sampler.sample(bursts()):
            got.append(c)
        assert by_id(got).keys() == {r.id for r in asked}
        # None means: go on with what is under way. Who only asked again would ask 100,000 times a
        # second.
        assert nones <= 10 + 3000 * (time.monotonic() - began)

    def test_requests_may_depend_on_candidates(self, case: Case) -> None:
        """An iterator sees what has come so far, and ends when that is enough."""
        got: list[Candidate] = []

        def until_three() -> Iterator[Request | None]:
            for r in case.requests(prompts=100):
                if len(got) >= 3:
                    return
                yield r

        for c in case.sampler.sample(until_three()):
            got.append(c)
        assert 3 <= len(got) <= 3 + case.ahead

    @pytest.mark.parametrize("before", [0, 1, 3])
    def test_a_fault_of_the_iterator_comes_through(self, case: Case, before: int) -> None:
        def faulty() -> Iterator[Request]:
            yield from case.requests(prompts=before)
            raise Mine

        with pytest.raises(Mine):
            list(case.sampler.sample(faulty()))
        assert len(by_id(case.sampler.sample(case.requests()))) == 6

    # ---- requests that can't be, and the rest ----

    @pytest.mark.parametrize("before", [0, 2])
    def test_an_unknown_adapter_is_refused(self, case: Case, before: int) -> None:
        bad = case.requests(prompts=1, adapter="./nowhere")
        with pytest.raises(RftError, match="./nowhere"):
            list(case.sampler.sample(itertools.chain(case.requests(prompts=before), bad)))
        assert len(by_id(case.sampler.sample(case.requests()))) == 6

    @pytest.mark.parametrize("room", [None, 0, -1])
    def test_a_prompt_without_room_is_refused(self, case: Case, room: int | None) -> None:
        """None: a prompt of no tokens."""
        length = 0 if room is None else case.setup.model.max_len - room
        bad = dataclasses.replace(next(case.requests()), prompt_token_ids=(5,) * length)
        with pytest.raises(RftError, match="max_len|no tokens"):
            list(case.sampler.sample(iter([bad])))
        assert len(by_id(case.sampler.sample(case.requests()))) == 6

    def test_a_prompt_with_little_room_bounds_the_budget(self, case: Case) -> None:
        one = next(case.requests())
        padded = (one.prompt_token_ids * 20)[: case.setup.model.max_len - 3]
        (got,) = case.sampler.sample(iter([dataclasses.replace(one, prompt_token_ids=padded)]))
        assert len(got.token_ids) <= 3 or got.finish is Finish.REFERENCE

    def test_stats_are_numbers_and_count(self, case: Case) -> None:
        before = case.sampler.stats()
        got = list(case.sampler.sample(case.requests(n=2)))
        after = case.sampler.stats()
        for name, value in after.items():
            assert isinstance(name, str) and type(value) in (int, float) and math.isfinite(value)
        assert after["requests"] - before["requests"] == len(got)
        assert after["tokens"] - before["tokens"] == sum(len(c.token_ids) for c in got)
        if case.draws:
            assert after["tokens_per_s"] == pytest.approx(after["tokens"] / after["seconds"])
        json.dumps(after)

    def test_it_can_be_closed_twice(self, case: Case) -> None:
        """The last of these tests: nothing can be asked of the sampler after it."""
        case.sampler.close()
        case.sampler.close()


# ---- the samplers of this process ------------------------------------------------------------------


def reference(folder: Path) -> Case:
    from rft.samplers.reference import reference

    setup = set_up()
    return Case(reference(setup), setup, ahead=1, draws=False)


def replay(folder: Path) -> Case:
    """Of a file with short answers and long ones."""
    from rft.samplers.replay import replay

    setup = set_up()
    with open(folder / "samples.jsonl", "w") as file:
        for p in setup.prompts.values():
            said = [f"\n{p.solution}", f"{p.answer}", f"\nHow many? {p.solution}", "\nI can't say."]
            file.write(json.dumps({"question": p.question, "responses": said}) + "\n")
    return Case(replay(setup, path=str(folder)), setup, ahead=1, draws=False)


def transformers(folder: Path) -> Case:
    from rft.samplers.transformers import transformers

    setup = set_up()
    return Case(transformers(setup), setup, ahead=SEQUENCES + 1)


def vllm(folder: Path) -> Case:
    pytest.importorskip("vllm")
    from rft.samplers.vllm import vllm

    setup = set_up()
    return Case(vllm(setup), setup, ahead=2 * SEQUENCES + 1)


def speculative(folder: Path) -> Case:
    """Every sample by itself where it has pieces: what is rejected depends on its neighbours, so
    test_speculative.py is about that."""
    from rft.samplers.speculative import speculative

    setup = set_up()
    by = {"use": f"{folder}/own.py:long"}
    (folder / "own.py").write_text(
        "from rft.types import Score, Verdict\n"
        "def long(prompt, candidate):\n"
        "    return Score(Verdict.UNKNOWN, value=len(candidate.text))\n"
    )
    made = speculative(setup, by=by, at=[28], sampler="transformers")
    return Case(made, setup, ahead=SEQUENCES + 1)


MAKERS: list[Callable[[Path], Case]] = [reference, replay, transformers, vllm, speculative]


@pytest.fixture(scope="module", params=MAKERS, ids=lambda make: make.__name__)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    made = request.param(tmp_path_factory.mktemp("case"))
    yield made
    made.sampler.close()


class TestContract(Contract):
    """Here, of the samplers that need nothing but this process."""


def test_every_built_in_sampler_is_held_to_the_contract() -> None:
    from rft.components import builtin_names

    elsewhere = {"openai": "pipeline/test_openai_server.py", "ray": "pipeline/test_ray.py"}
    here = {make.__name__ for make in MAKERS}
    assert sorted(here | elsewhere.keys()) == builtin_names("samplers")
    for place in elsewhere.values():
        assert "(Contract)" in (Path(__file__).parents[1] / place).read_text()
