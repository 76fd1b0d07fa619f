"""The border between text and ids: what a prompt is, and what of a sample is learnt."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rft
from rft.chat import Renderer
from rft.config import Chat, Model
from rft.types import Candidate, Finish, RftError

EMBEDDED = Path(rft.__file__).parent / "embedded" / "model"
MODEL = Model(base=str(EMBEDDED), max_len=64)
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def renderer(template: str | None = None, **chat: Any) -> Renderer:
    made = Renderer(MODEL, Chat(**chat))
    made.tokenizer.chat_template = template
    return Renderer(MODEL, Chat(**chat), made.tokenizer)


def with_template(**chat: Any) -> Renderer:
    tokenizer = renderer().tokenizer
    tokenizer.chat_template = TEMPLATE
    return Renderer(MODEL, Chat(**chat), tokenizer)


def sampled(token_ids: tuple[int, ...], text: str, finish: Finish) -> Candidate:
    return Candidate("id", "prompt", 0, text, (1,), token_ids, finish)


PROMPTS = [
    (renderer, {}, "How many?", "How many?"),
    (renderer, {"prompt": "Q: {question}\nA:"}, "1+1", "Q: 1+1\nA:"),
    (renderer, {"response_prefix": " Let me see."}, "Why?", "Why? Let me see."),
    (with_template, {"template": "none"}, "Why?", "Why?"),
    (with_template, {}, "Why?", "<user>Why?\n<assistant>"),
    (with_template, {"system": "Be brief."}, "Why?", "<system>Be brief.\n<user>Why?\n<assistant>"),
    (with_template, {"response_prefix": "So"}, "Why?", "<user>Why?\n<assistant>So"),
    # A question is data: braces and placeholders in it stay as they are.
    (renderer, {"prompt": "{question}!"}, "{question} {x}", "{question} {x}!"),
]


@pytest.mark.parametrize("make, chat, question, text", PROMPTS)
def test_prompt_text(make: Any, chat: dict[str, str], question: str, text: str) -> None:
    made = make(**chat)
    assert made.prompt_text(question) == text
    ids = made.prompt_ids(question)
    assert made.decode(ids) == text
    assert ids[-1] != made.eos_id


def test_system_needs_a_template() -> None:
    with pytest.raises(RftError, match="chat.system.*chat.prompt"):
        renderer(system="Be brief.")


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(RftError, match="model.base.*cannot load a tokenizer"):
        Renderer(Model(base=str(tmp_path)), Chat())


def test_a_tokenizer_without_an_end_token_is_named() -> None:
    made = renderer()
    made.tokenizer.eos_token = None
    with pytest.raises(
        RftError, match="model.base: .*no end-of-sequence token.*eos_token in tokenizer_config"
    ):
        Renderer(MODEL, Chat(), made.tokenizer)


def test_special_tokens_of_a_raw_prompt_are_the_tokenizers_own() -> None:
    """A tokenizer that opens with BOS does so for raw prompts, not for completions."""
    from tokenizers.processors import TemplateProcessing

    made = renderer()
    made.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{made.tokenizer.eos_token} $A {made.tokenizer.eos_token}",
        special_tokens=[(made.tokenizer.eos_token, made.eos_id)],
    )
    plain = renderer().prompt_ids("2 + 2 =")
    assert made.prompt_ids("2 + 2 =") == (made.eos_id, *plain)
    assert made.completion_ids("4") == (*renderer().completion_ids("4")[:-1], made.eos_id)
    templated = Renderer(MODEL, Chat(), made.tokenizer)
    templated.tokenizer.chat_template = TEMPLATE
    templated = Renderer(MODEL, Chat(), templated.tokenizer)
    assert templated.eos_id not in templated.prompt_ids("Why?")


# ---- what is learnt ----------------------------------------------------------------------------


def test_a_sample_is_learnt_as_sampled() -> None:
    made = renderer()
    ids = made.completion_ids("12 + 7 = 19")
    assert ids[-1] == made.eos_id
    assert made.train_ids(sampled(ids, "12 + 7 = 19", Finish.STOP)) == ids
    # Also where another tokenisation of the same text would be shorter.
    spelled = tuple(i for c in "apples" for i in made.completion_ids(c)[:-1])
    assert len(spelled) > len(made.completion_ids("apples")) - 1
    ids = (*spelled, made.eos_id)
    assert made.train_ids(sampled(ids, "apples", Finish.STOP)) == ids


def test_a_truncated_sample_teaches_no_end() -> None:
    made = renderer()
    ids = made.completion_ids("12 + 7 = 19")[:-1]
    assert made.train_ids(sampled(ids, "12 + 7 = 19", Finish.LENGTH)) == ids


def test_a_reference_ends_in_one_end_token() -> None:
    made = renderer()
    ids = made.completion_ids("4 apples.")
    got = made.train_ids(sampled(ids, "4 apples.", Finish.REFERENCE))
    assert got == ids and got.count(made.eos_id) == 1


def test_a_stop_string_at_a_token_border_makes_way_for_the_end() -> None:
    made = renderer()
    body, stop = made.completion_ids("12 + 7")[:-1], made.completion_ids("\n")[:-1]
    got = made.train_ids(sampled(body + stop, "12 + 7", Finish.STOP))
    assert got == (*body, made.eos_id)


def test_a_stop_string_of_several_tokens() -> None:
    made = renderer()
    body, stop = made.completion_ids("12 + 7")[:-1], made.completion_ids("\nQuestion:")[:-1]
    assert len(stop) > 1
    got = made.train_ids(sampled(body + stop, "12 + 7", Finish.STOP))
    assert got == (*body, made.eos_id)


def test_a_stop_string_inside_a_token_is_tokenised_anew() -> None:
    made = renderer()
    ids = made.completion_ids("Ana has apples")[:-1]
    last = made.decode(ids[-1:])
    assert len(last) > 2
    text = "Ana has apples"[: -len(last) + 1]  # cut inside the last token
    got = made.train_ids(sampled(ids, text, Finish.STOP))
    assert got == made.completion_ids(text)
    assert made.decode(got) == text


def test_ended_by_a_stop_string_with_nothing_before_it() -> None:
    made = renderer()
    stop = made.completion_ids("\n")[:-1]
    assert made.train_ids(sampled(stop, "", Finish.STOP)) == (made.eos_id,)


def test_another_end_token_stays() -> None:
    """Models with several end tokens: the one that was sampled is the one to learn."""
    made = renderer()
    other = next(i for i in made.tokenizer.all_special_ids if i != made.eos_id)
    ids = (*made.completion_ids("19")[:-1], other)
    assert made.train_ids(sampled(ids, "19", Finish.STOP)) == ids


def test_the_tokenizer_is_the_one_that_transformers_chooses_and_needs_no_torch() -> None:
    from transformers import AutoTokenizer

    mine, chosen = renderer().tokenizer, AutoTokenizer.from_pretrained(EMBEDDED)
    assert type(mine) is type(chosen) and mine.init_kwargs == chosen.init_kwargs
    assert mine.backend_tokenizer.to_str() == chosen.backend_tokenizer.to_str()
    code = (
        "import sys; from rft.chat import Renderer; from rft.config import Chat, Model\n"
        f"Renderer(Model(base={str(EMBEDDED)!r}), Chat()).completion_ids('7')\n"
        "print([m for m in ('torch', 'vllm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr
