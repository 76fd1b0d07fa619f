"""The reward model on real classifiers: tiny ones of several families with random weights for how
values are computed, and one that scripts/train_reward_model.py trains for what they are worth."""

import importlib.util
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import rft
from rft.components import make
from rft.config import ConfigError
from rft.scorers.reward_model import reward_model
from rft.section import Component
from rft.types import Candidate, Finish, Prompt, RftError, Score, Verdict

ROOT = Path(__file__).resolve().parents[2]
BASE = Path(rft.__file__).parent / "embedded" / "model"
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
SMALL = {
    "vocab_size": 576,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
EOS, PAD = 0, 1

FAMILIES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "llama": ("Llama", {"pad_token_id": PAD}, True),
    # What many published ones have: the last token of a row is then no padding, or all of them.
    "llama_no_pad": ("Llama", {"pad_token_id": None}, True),
    "llama_eos_is_pad": ("Llama", {"pad_token_id": EOS}, True),
    "qwen2": ("Qwen2", {"pad_token_id": PAD}, True),
    "gemma": ("Gemma", {"pad_token_id": PAD, "head_dim": 16}, True),
    "window": ("Mistral", {"pad_token_id": PAD, "sliding_window": 16}, False),
    "gemma2_windows": (
        "Gemma2",
        {"pad_token_id": PAD, "head_dim": 16, "sliding_window": 16},
        False,
    ),
    "gpt2": ("GPT2", {"pad_token_id": PAD}, False),
    "bert": ("Bert", {"pad_token_id": PAD, "num_key_value_heads": None}, False),
}
"""Name: (class, settings of its config, whether a prompt's answers may share it)."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small only lose by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def save(
    folder: Path, family: str, template: str | None = TEMPLATE, labels: int = 1, **more: Any
) -> str:
    kind, settings, _ = FAMILIES[family]
    torch.manual_seed(3)
    config = getattr(transformers, f"{kind}Config")(
        **SMALL | settings | more, eos_token_id=EOS, num_labels=labels
    )
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)


def groups(
    prompts: int = 6, each: int = 5, seed: int = 0
) -> list[tuple[Prompt, Sequence[Candidate]]]:
    """Questions and answers of very different lengths; one answer of each comes twice."""
    rng = random.Random(seed)
    words = [
        "Ana",
        "has",
        "12",
        "apples",
        "and",
        "gives",
        "7",
        "of",
        "them",
        "to",
        "Ben.",
        "3",
        "+",
        "4",
        "=",
        "7\n",
        "####",
        "99",
    ]
    found = []
    for i in range(prompts):
        prompt = Prompt(f"p{i}", " ".join(rng.choices(words, k=rng.randint(3, 25))))
        texts = [" ".join(rng.choices(words, k=rng.randint(1, 30))) for _ in range(each - 1)]
        texts.append(texts[0])
        found.append(
            (
                prompt,
                [
                    Candidate(f"p{i}c{k}", prompt.id, k, t, (), (), Finish.STOP)
                    for k, t in enumerate(texts)
                ],
            )
        )
    return found


def alone(folder: str, found: list[tuple[Prompt, Sequence[Candidate]]]) -> dict[str, float]:
    """Each row by itself, without padding, straight through transformers."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    values = {}
    for prompt, candidates in found:
        for c in candidates:
            messages = [
                {"role": "user", "content": prompt.question},
                {"role": "assistant", "content": c.text},
            ]
            ids = tokenizer.apply_chat_template(messages, return_tensors="pt")["input_ids"]
            with torch.inference_mode():
                values[c.id] = model(input_ids=ids).logits[0, 0].item()
    return values


def scores(
    scorer: reward_model, found: list[tuple[Prompt, Sequence[Candidate]]]
) -> dict[str, Score]:
    got = list(scorer.score(iter(found)))
    assert len(got) == len(dict(got)), "each once"
    return dict(got)


@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_those_of_single_rows(tmp_path: Path, family: str) -> None:
    folder = save(tmp_path, family)
    found = groups()
    expected = alone(folder, found)
    assert len({round(value, 3) for value in expected.values()}) > 15  # they do differ
    for batch_tokens in (1, 300, 4096):
        scorer = reward_model(folder, batch_tokens=batch_tokens)
        got = scores(scorer, found)
        assert got.keys() == expected.keys()
        for id, score in got.items():
            assert (score.verdict, score.reason) == (Verdict.UNKNOWN, "unjudged")
            assert score.value == pytest.approx(expected[id], abs=1e-4, rel=1e-4)
        stats = scorer.stats()
        assert stats["rows"] == 24
        shares = stats["computed_tokens"] < 0.8 * stats["tokens"]
        assert shares == FAMILIES[family][2]
        assert shares or stats["computed_tokens"] == stats["tokens"]


def test_one_answer_is_the_beginning_of_another(tmp_path: Path) -> None:
    """Nothing is left of the shorter one once what they share is cut off."""
    folder = save(tmp_path, "llama", template=TEMPLATE.replace("{{ eos_token }}", ""))
    prompt, candidates = Prompt("p", "Ana has 12 apples and 7 books."), []
    for i, text in enumerate(["3 + 4", "3 + 4 = 7", "3 + 4 = 7\n#### 7", "3"]):
        candidates.append(Candidate(f"c{i}", "p", i, text, (), (), Finish.STOP))
    found = [(prompt, candidates)]
    expected = alone(folder, found)
    for id, score in scores(reward_model(folder), found).items():
        assert score.value == pytest.approx(expected[id], abs=1e-4, rel=1e-4)


def test_sharing_is_given_up_where_values_would_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that counts positions itself, so that they don't restart at the prompt's end."""
    folder = save(tmp_path, "llama")
    scorer = reward_model(folder)
    scorer._running = scorer._start()
    base = scorer._running._model.model
    whole = base.forward
    base.forward = lambda *a, **kw: whole(*a, **kw | {"position_ids": None})
    found = groups()
    assert {id: s.value for id, s in scores(scorer, found).items()} == pytest.approx(
        alone(folder, found), abs=1e-4, rel=1e-4
    )
    assert "not shared" in capsys.readouterr().out
    assert scorer.stats()["computed_tokens"] == scorer.stats()["tokens"]


def test_threshold_and_label(tmp_path: Path) -> None:
    folder = save(tmp_path, "qwen2", labels=3)
    with pytest.raises(
        ConfigError, match="label: the model has 3.*0 LABEL_0, 1 LABEL_1, 2 LABEL_2"
    ):
        make("scorers", Component(use="reward_model", args={"model": folder}))
    with pytest.raises(ConfigError, match="label: the model has no 3"):
        make("scorers", Component(use="reward_model", args={"model": folder, "label": 3}))
    found = groups(2)
    columns = [scores(reward_model(folder, label=i), found) for i in range(3)]
    for id, first in columns[0].items():
        assert len({c[id].value for c in columns}) == 3
        at = first.value
        assert at is not None
        for threshold, verdict in ((at, Verdict.CORRECT), (at + 1e-3, Verdict.WRONG)):
            got = scores(reward_model(folder, label=0, threshold=threshold), found)[id]
            assert (got.verdict, got.reason) == (verdict, None) and got.value == pytest.approx(at)
        break


def test_what_is_not_judged(tmp_path: Path) -> None:
    folder = save(tmp_path, "llama")
    texts = ["3 + 4 = 7", "7" * 300, "7<|endoftext|>assistant: fine", "<|pad|>", ""]
    found = [
        (
            Prompt("p", "?"),
            [Candidate(str(i), "p", i, t, (), (), Finish.STOP) for i, t in enumerate(texts)],
        )
    ]
    got = scores(reward_model(folder), found)
    assert [got[str(i)].reason for i in range(5)] == [
        "unjudged",
        "too_long",
        "control_tokens",
        "control_tokens",
        "unjudged",
    ]
    assert got["1"] == Score(Verdict.UNKNOWN, "too_long")
    assert scores(reward_model(folder, max_len=10), found)["0"].reason == "too_long"


def test_nan_is_no_value(tmp_path: Path) -> None:
    folder = save(tmp_path, "llama")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.score.weight[:] = float("nan")
    model.save_pretrained(folder)
    got = scores(reward_model(folder, threshold=0.0), groups(2))
    assert set(got.values()) == {Score(Verdict.UNKNOWN, "nan")}


def test_plain_text_template(tmp_path: Path) -> None:
    with pytest.raises(RftError, match="has no chat template.*template: "):
        reward_model(save(tmp_path / "bare", "llama", template=None))
    with pytest.raises(ValueError, match="must hold {question} and {answer}"):
        reward_model(str(tmp_path / "bare"), template="{answer}")
    chat = save(
        tmp_path / "chat", "llama", template="{{ messages[0].content }}|{{ messages[1].content }}"
    )
    prompt = Prompt("p", "Use {answer} and {0}")
    found = [(prompt, [Candidate("c", "p", 0, "{question} {x} %s", (), (), Finish.STOP)])]
    plain = reward_model(str(tmp_path / "bare"), template="{question}|{answer}")
    assert scores(plain, found) == scores(reward_model(chat), found)


def test_models_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RftError, match="LlamaForCausalLM, not a sequence classifier.*random head"):
        reward_model(str(BASE))
    with pytest.raises(RftError, match="cannot be loaded"):
        reward_model(str(tmp_path / "nothing"))
    folder = save(tmp_path / "headless", "llama")
    transformers.LlamaModel.from_pretrained(folder).save_pretrained(folder)
    config = json.loads((Path(folder) / "config.json").read_text())
    config["architectures"] = ["LlamaForSequenceClassification"]
    (Path(folder) / "config.json").write_text(json.dumps(config))
    with pytest.raises(RftError, match=r"lacks weights \(score.weight\), which would be random"):
        scores(reward_model(folder), groups(1))


@pytest.mark.parametrize(
    "args, words",
    [
        ({"backend": "transformers", "engine": {"seed": 1}}, "set backend: vllm"),
        ({"threshold": float("nan")}, "nan is above and below nothing"),
        ({"backend": "torch"}, "transformers"),
        ({"batch_tokens": 0}, "greater than 0"),
        ({"treshold": 1}, "did you mean threshold"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, args: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make("scorers", Component(use="reward_model", args={"model": str(BASE)} | args))


def test_streams(tmp_path: Path) -> None:
    """It pulls no more than a window before it yields, and takes a prompt in pieces."""
    folder = save(tmp_path, "llama")
    found = groups(60, each=4)
    pulled = itertools.count()
    last = 0

    def source() -> Iterator[tuple[Prompt, Sequence[Candidate]]]:
        nonlocal last
        for prompt, candidates in found:
            for half in (candidates[:2], candidates[2:]):
                last = next(pulled)
                yield prompt, half

    scorer = reward_model(folder, batch_tokens=64)
    got = scorer.score(source())
    first = next(got)
    assert last < 60
    rest = dict(got)
    assert len(rest) == 239 and first[0] not in rest
    whole = scores(reward_model(folder), found)
    assert {k: s.value for k, s in rest.items()} == pytest.approx(
        {k: s.value for k, s in whole.items() if k in rest}, abs=1e-4
    )


def test_16_bits(tmp_path: Path) -> None:
    folder = save(tmp_path, "llama", initializer_range=0.05)
    found = groups(2)
    exact = scores(reward_model(folder), found)
    rough = scores(reward_model(folder, dtype="bfloat16"), found)
    assert {k: s.value for k, s in rough.items()} == pytest.approx(
        {k: s.value for k, s in exact.items()}, abs=0.05
    )
    assert rough != exact


# vLLM

IN_VLLM = """
import json, sys
from tests.unit.test_reward_model import groups
from rft.scorers.reward_model import reward_model
found = {}
for folder in sys.argv[2:]:
    scorer = reward_model(folder, backend="vllm", engine={"max_num_seqs": 16}, threshold=0.0)
    found[folder] = {id: [s.verdict, s.value] for id, s in scorer.score(iter(groups()))}
    found[folder]["stats"] = scorer.stats()
open(sys.argv[1], "w").write(json.dumps(found))
"""


@pytest.mark.slow
def test_vllm_gives_the_same_values(tmp_path: Path) -> None:
    """One engine after another in one process, which is not this one."""
    found = groups()
    families = ["llama", "llama_eos_is_pad", "llama_no_pad", "qwen2"]
    # Heads of 16 dimensions are too small for its kernels.
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "initializer_range": 0.1}
    folders = [save(tmp_path / family, family, **sizes) for family in families]
    out = tmp_path / "values.json"
    args = [sys.executable, "-c", IN_VLLM, str(out), *folders]
    done = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    got = json.loads(out.read_text())
    for folder in folders:
        expected = alone(folder, found)
        assert got[folder].pop("stats")["rows"] == 24
        assert {id: value for id, (_, value) in got[folder].items()} == pytest.approx(
            expected, abs=1e-4, rel=1e-4
        )
        assert all((v == "correct") == (value >= 0) for v, value in got[folder].values())


# The trained one


def load_script() -> ModuleType:
    """The script as a module; it imports scripts/make_tiny.py, which stands beside it."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        spec = importlib.util.spec_from_file_location(
            "train_reward_model", ROOT / "scripts" / "train_reward_model.py"
        )
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.pop(0)


def held_out_auc(script: ModuleType, folder: Path, count: int) -> dict[str, float]:
    """AUC by corruption of what the scorer says about held-out problems, right answers against
    corrupted ones."""
    rng = random.Random(7)
    found = []
    for i, row in enumerate(script.held_out()[-count:]):
        prompt = Prompt(str(i), row["question"], row["answer"])
        texts = {"right": row["solution"]}
        texts |= {how: script.corrupt(rng, row, how) for how in script.CORRUPTIONS}
        assert len(set(texts.values())) > 1
        members = [
            Candidate(f"{i} {name}", prompt.id, k, text, (), (), Finish.STOP)
            for k, (name, text) in enumerate(texts.items())
        ]
        found.append((prompt, members))
    got = scores(reward_model(str(folder)), found)
    values: dict[str, list[float]] = {}
    for id, score in got.items():
        assert score.value is not None
        values.setdefault(id.split()[1], []).append(score.value)
    right = values.pop("right")
    return {how: script.auc(right, wrong) for how, wrong in values.items()}


def test_corruptions_are_wrong_and_look_right() -> None:
    script = load_script()
    rng = random.Random(0)
    for row in script.held_out()[:200]:
        for how in script.CORRUPTIONS:
            wrong = script.corrupt(rng, row, how)
            lines = wrong.splitlines()
            assert lines[-1].startswith("#### ") and lines[-1] != f"#### {row['answer']}"
            assert lines[-2].endswith(f"= {lines[-1][5:]}")
            assert wrong.count("\n") == row["solution"].count("\n")


def test_a_briefly_trained_one_prefers_right_operations(tmp_path: Path) -> None:
    script = load_script()
    script.make(tmp_path, steps=40, lr=8e-3, corruptions=["operator"])
    found = held_out_auc(script, tmp_path, 200)
    print(found)
    assert found["operator"] > 0.58  # 0.66 here; by chance 0.5, with a deviation of 0.03


@pytest.mark.slow
def test_the_trained_one_ranks_right_above_wrong(tmp_path: Path) -> None:
    script = load_script()
    script.make(tmp_path)
    found = held_out_auc(script, tmp_path, 300)
    print(found)
    assert found["operator"] > 0.85
    assert sum(found.values()) / 3 > 0.62
