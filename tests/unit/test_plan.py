"""What shares a stage, and what a change does or does not make again."""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from rft import loader, runner
from rft.check import check
from rft.config import ConfigError
from rft.nodes import Node
from rft.plan import Plan
from rft.types import RftError

ARMS: dict[str, Any] = {
    "base": {"train": None},
    "sft": {"sample": {"use": "reference"}},
    "sft_matched": {"sample": {"use": "reference"}, "train": {"match": "arm:rft"}},
    "random": {"select": [{"use": "random", "args": {"rows": "arm:rft"}}]},
    "rft": {},
}
SCORER = """
from rft.types import Score, Verdict
def mine(prompt, candidate):
    return Score(Verdict.CORRECT)
"""


class Bench:
    """One experiment in a folder, which each test changes a little."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        (folder / "mine.py").write_text(SCORER)
        self.data(train=[q(i) for i in range(4)], eval=[q(i) for i in range(10, 13)])

    def data(self, **splits: list[dict[str, Any]]) -> None:
        for name, rows in splits.items():
            text = "\n".join(json.dumps(row) for row in rows)
            (self.folder / f"{name}.jsonl").write_text(text)

    def plan(self, *overrides: str, arms: dict[str, Any] | None = None, **body: Any) -> Plan:
        raw = {
            "name": "x",
            "seeds": [0, 1],
            "model": {"base": "./model"},
            "prompts": {"use": "jsonl", "args": {"train": "./train.jsonl", "eval": "./eval.jsonl"}},
            "sample": {"policy": "arm:sft"},
            "arms": arms or ARMS,
            **body,
        }
        path = self.folder / "e.yaml"
        path.write_text(yaml.safe_dump(raw, sort_keys=False))
        return Plan(loader.load(path, [f"runs={self.folder}/runs", *overrides]))


def q(i: int, answer: int | None = None) -> dict[str, Any]:
    answer = i + 1 if answer is None else answer
    return {"question": f"{i} + 1?", "answer": answer, "solution": f"{i} + 1 = {i + 1}"}


def links(plan: Plan, arm: str, seed: int = 0) -> dict[str, Node]:
    (row,) = [r for r in plan.rows if (r.arm, r.seed) == (arm, seed)]
    return row.links


def keys(plan: Plan) -> dict[str, str]:
    return {
        f"{row.arm}/{row.seed}/{name}": node.key
        for row in plan.rows
        for name, node in row.links.items()
    }


def changed(before: Plan, after: Plan) -> set[str]:
    """Kinds of the stages (`eval_` for those of the evaluation) with another key."""
    one, two = keys(before), keys(after)
    assert one.keys() == two.keys()
    return {name.split("/")[2].split("_", 1)[1] for name in one if one[name] != two[name]}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_arms_and_seeds_share_what_is_the_same(bench: Bench) -> None:
    plan = bench.plan()
    rft, random, sft = (links(plan, arm) for arm in ("rft", "random", "sft"))
    assert rft["2_sample"] is random["2_sample"]
    assert rft["3_score"] is random["3_score"]
    assert rft["2_sample_reference"] is sft["2_sample_reference"]
    assert rft["4_select"] is not random["4_select"]
    assert sft["4_select"] is links(plan, "sft_matched")["4_select"]
    assert sft["5_train"] is not links(plan, "sft_matched")["5_train"]
    # Another seed: the same solutions, another training, so another policy and other samples.
    again = links(plan, "rft", 1)
    assert again["2_sample_reference"] is rft["2_sample_reference"]
    assert links(plan, "sft", 1)["4_select"] is sft["4_select"]
    assert links(plan, "sft", 1)["5_train"] is not sft["5_train"]
    for name in ("2_sample", "3_score", "4_select", "5_train", "6_eval"):
        assert again[name] is not rft[name]
    assert len({n.key for n in plan.nodes()}) == len(list(plan.nodes()))


def test_greedy_base_is_evaluated_once(bench: Bench) -> None:
    plan = bench.plan()
    for name in ("6_eval_sample", "6_eval_score", "6_eval"):
        assert links(plan, "base", 0)[name] is links(plan, "base", 1)[name]
    sampled = bench.plan(eval={"temperature": 1.0, "n": 4})
    assert (
        links(sampled, "base", 0)["6_eval_sample"] is not links(sampled, "base", 1)["6_eval_sample"]
    )


def test_nodes_come_after_what_they_need(bench: Bench) -> None:
    seen: set[str] = set()
    for node in bench.plan().nodes():
        assert {need.key for need in node.needs} <= seen
        seen.add(node.key)
    plan = bench.plan()
    assert links(plan, "rft")["4_select"] in links(plan, "random")["4_select"].needs
    assert links(plan, "rft")["5_train"] in links(plan, "sft_matched")["5_train"].needs
    assert links(plan, "sft")["5_train"] in links(plan, "rft")["2_sample"].needs


def test_the_same_experiment_has_the_same_keys(bench: Bench) -> None:
    assert keys(bench.plan()) == keys(bench.plan())


BASE_ONLY = {"policy": "base"}


def test_gold_answers_are_no_part_of_a_sample(bench: Bench) -> None:
    before = bench.plan(sample=BASE_ONLY)
    bench.data(train=[q(0, 99), *(q(i) for i in range(1, 4))])
    after = bench.plan(sample=BASE_ONLY)
    assert "score" in changed(before, after) and "select" in changed(before, after)
    assert not {"sample", "sample_reference"} & changed(before, after)
    assert links(before, "base")["6_eval_score"].key == links(after, "base")["6_eval_score"].key


def test_solutions_are_a_part_of_references_alone(bench: Bench) -> None:
    before = bench.plan(sample=BASE_ONLY)
    bench.data(train=[{**q(0), "solution": "another"}, *(q(i) for i in range(1, 4))])
    after = bench.plan(sample=BASE_ONLY)
    assert "sample_reference" in changed(before, after)
    assert "sample" not in changed(before, after)


def test_order_of_the_data_changes_nothing(bench: Bench) -> None:
    before = bench.plan()
    bench.data(train=[q(i) for i in reversed(range(4))])
    assert changed(before, bench.plan()) == set()


def test_another_question_changes_the_sample_but_no_id(bench: Bench) -> None:
    before = bench.plan(sample=BASE_ONLY)
    bench.data(train=[q(i) for i in range(5)])
    after = bench.plan(sample=BASE_ONLY)
    assert {"prompts", "sample", "sample_reference"} <= changed(before, after)
    assert pool(before) == pool(after)


def pool(plan: Plan, arm: str = "rft", seed: int = 0) -> str:
    """What a candidate's id is made of besides its prompt and index."""
    got: str = links(plan, arm, seed)["2_sample"].job["pool"]
    return got


@pytest.mark.parametrize("text", ["sample.n=9", "sample.logprobs=tokens", "model.max_len=99"])
def test_more_samples_keep_the_ids_of_those_there_are(bench: Bench, text: str) -> None:
    before, after = bench.plan(sample=BASE_ONLY), bench.plan(text, sample=BASE_ONLY)
    assert links(before, "rft")["2_sample"].key != links(after, "rft")["2_sample"].key
    assert pool(before) == pool(after)


@pytest.mark.parametrize(
    "text",
    [
        "sample.temperature=0.7",
        "sample.max_tokens=9",
        "sample.stop=[x]",
        "chat.prompt='Q {question}'",
        "sample.engine.dtype=bfloat16",
        "sample.engine.extra.quantization=fp8",
    ],
)
def test_other_decoding_or_prompt_gives_other_ids(bench: Bench, text: str) -> None:
    assert pool(bench.plan()) != pool(bench.plan(text))


def test_policy_and_seed_are_part_of_an_id(bench: Bench) -> None:
    plan, base = bench.plan(), bench.plan(sample=BASE_ONLY)
    pools = {pool(p, seed=seed) for p in (plan, base) for seed in (0, 1)}
    assert len(pools) == 4


@pytest.mark.parametrize(
    "text",
    [
        "sample.engine.max_num_seqs=3",
        "sample.engine.kv_cache_gb=1",
        "eval.engine.compile=true",
        "train.checkpoint_every=1",
        "train.tokens_per_batch=64",
        "train.gradient_checkpointing=true",
        "compare.level=0.9",
        "name=y",
    ],
)
def test_speed_settings_change_no_key(bench: Bench, text: str) -> None:
    assert changed(bench.plan(), bench.plan(text)) == set()


def test_training_settings_leave_the_start_alone(bench: Bench) -> None:
    before = bench.plan(sample=BASE_ONLY)
    after = bench.plan("train.lr=0.5", sample=BASE_ONLY)
    assert changed(before, after) == {"train", "eval_sample", "eval_score", "eval"}


def test_scorer_changes_scores_and_not_samples(bench: Bench) -> None:
    mine = {"score": [{"use": "./mine.py:mine"}], "sample": BASE_ONLY}
    before = bench.plan(sample=BASE_ONLY)
    after = bench.plan(**mine)
    assert "score" in changed(before, after)
    assert not {"sample", "sample_reference", "prompts"} & changed(before, after)
    (bench.folder / "mine.py").write_text(SCORER.replace("CORRECT", "WRONG"))
    loaded = [name for name in sys.modules if name.startswith("rft_user_mine")]
    for name in loaded:
        del sys.modules[name]
    assert "score" in changed(after, bench.plan(**mine))


def test_model_files_are_part_of_every_sample(bench: Bench) -> None:
    before = bench.plan()
    (bench.folder / "model" / "config.json").write_text('{"a": 1}')
    after = bench.plan()
    assert {"sample", "sample_reference", "train", "eval_sample"} <= changed(before, after)
    assert "prompts" not in changed(before, after)


def test_two_revisions_of_one_hub_model_are_two_models(bench: Bench) -> None:
    arms = {"a": {}, "b": {"model": {"revision": "two"}}}
    body = {"model": {"base": "some/model", "revision": "one"}, "compare": {"baseline": "a"}}
    plan = bench.plan(arms=arms, sample=BASE_ONLY, **body)
    assert pool(plan, "a") != pool(plan, "b")


def test_pools_are_sampled_each_with_its_settings(bench: Bench) -> None:
    pools = {
        "base": {"policy": "base"},
        "hot": {"temperature": 1.5, "n": 2},
        "hint": {"only": "unsolved", "chat": {"prompt": "{question} It is {answer}."}},
    }
    plan = bench.plan(sample={"policy": "arm:sft", "pools": pools})
    got = links(plan, "rft")
    samples = {n: got[n] for n in got if n.startswith("2_")}
    assert set(samples) == {f"2_sample_{n}" for n in ("reference", "base", "hot", "hint")}
    assert [p["own_prompts"] for p in got["4_select"].job["pools"]] == [True, True, True, False]
    assert samples["2_sample_base"].job["adapter"] is None
    assert samples["2_sample_hot"].job["decoding"]["temperature"] == 1.5
    assert samples["2_sample_hot"].job["decoding"]["n"] == 2
    hint = samples["2_sample_hint"]
    assert hint.job["pool_name"] == "hint" and "{answer}" in hint.job["chat"]["prompt"]
    earlier = [got["3_score_base"], got["3_score_hot"]]
    assert hint.job["unless_solved_by"] == [str(n.dir.path) for n in earlier]
    assert all(n in hint.needs for n in earlier)
    assert len({n.job["pool"] for n in samples.values()}) == 4


def test_a_pool_that_hints_depends_on_the_answers_and_others_do_not(bench: Bench) -> None:
    pools = {"plain": {}, "hint": {"chat": {"prompt": "{question} It is {answer}."}}}
    before = bench.plan(sample={"policy": "base", "pools": pools})
    bench.data(train=[q(i, answer=99) for i in range(4)])
    after = bench.plan(sample={"policy": "base", "pools": pools})
    moved = changed(before, after)
    assert "sample_hint" in moved and "sample_plain" not in moved


def test_few_shot_examples_are_the_first_solved_problems_with_one_to_spare(bench: Bench) -> None:
    plan = bench.plan(sample={"policy": "base", "chat": {"shots": 1}}, eval={"chat": {"shots": 1}})
    got = links(plan, "rft")
    solved = ["0 + 1?", "1 + 1?"]
    for link in ("2_sample", "6_eval_sample"):
        chat = got[link].job["chat"]
        assert [e["question"] for e in chat["examples"]] == solved and chat["shots"] == 1
    assert got["4_select"].job["chat"]["shots"] == 0
    assert [p["own_prompts"] for p in got["4_select"].job["pools"]] == [True, False]
    with pytest.raises(ConfigError, match=r"chat\.shots: 1000 examples"):
        bench.plan(sample={"policy": "base", "chat": {"shots": 1000}})


def test_allocator_makes_the_samples_depend_on_the_scorers(bench: Bench) -> None:
    adaptive = {"policy": "base", "allocate": {"use": f"{bench.folder}/own.py:halves"}}
    (bench.folder / "own.py").write_text("def halves(tallies, *, most: int = 4):\n    yield None\n")
    before = bench.plan(sample=adaptive)
    after = bench.plan("score=[{use: math}]", sample=adaptive)
    assert links(before, "rft")["2_sample"].key != links(after, "rft")["2_sample"].key
    assert pool(before, "rft") == pool(after, "rft")
    most = {**adaptive, "allocate": {**adaptive["allocate"], "args": {"most": 2}}}
    assert (
        links(bench.plan(sample=most), "rft")["2_sample"].key
        != links(before, "rft")["2_sample"].key
    )
    with pytest.raises(
        ConfigError, match=r"allocate\.use: .* needs verdicts .* score\.0: consensus"
    ):
        bench.plan("score=[{use: consensus}]", sample=adaptive)
    with pytest.raises(ConfigError, match=r"sample\.allocate\.args\.mots"):
        bench.plan(sample={**adaptive, "allocate": {**adaptive["allocate"], "args": {"mots": 2}}})


@pytest.mark.parametrize("args, n", [({"target": 9}, 8), ({}, 3)], ids=["given", "default"])
def test_target_that_no_prompt_can_reach(bench: Bench, args: dict[str, Any], n: int) -> None:
    with pytest.raises(ConfigError, match=r"sample\.allocate\.args\.target: no prompt.* n = "):
        bench.plan(sample={"n": n, "allocate": {"use": "adaptive", "args": args}})


def test_engines_on_many_machines_draw_the_same_samples(bench: Bench) -> None:
    here = bench.plan(sample={"policy": "base"})
    there = bench.plan(sample={"policy": "base", "use": "ray"})
    assert links(here, "rft")["2_sample"].key == links(there, "rft")["2_sample"].key


def test_adapter_by_its_folder_is_a_policy(bench: Bench) -> None:
    folder = bench.folder / "adapter"
    with pytest.raises(ConfigError, match=r"policy: .*adapter: there is no LoRA adapter"):
        bench.plan(sample={"policy": str(folder)})
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"one")
    before = bench.plan(sample={"policy": str(folder)})
    assert links(before, "rft")["2_sample"].job["adapter"] == str(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"two")
    after = bench.plan(sample={"policy": str(folder)})
    assert pool(before, "rft") != pool(after, "rft")


def test_adapter_of_another_model_is_refused_before_anything_runs(bench: Bench) -> None:
    """By the shapes in the files' headers, in either orientation of the base's weights."""

    def save(file: Path, **shapes: list[int]) -> None:
        file.parent.mkdir(exist_ok=True)
        tensors = {
            name.replace("__", "."): {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
            for name, shape in shapes.items()
        }
        header = json.dumps({"__metadata__": {}, **tensors}).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header)

    adapter = bench.folder / "adapter"
    save(bench.folder / "model" / "model.safetensors", model__q__weight=[64, 48])
    layer = "base_model__model__model__q__lora_{}__weight".format
    for a, b, fits in (([8, 48], [64, 8], 1), ([8, 64], [48, 8], 1), ([8, 576], [64, 8], 0)):
        save(adapter / "adapter_model.safetensors", **{layer("A"): a, layer("B"): b})
        (adapter / "adapter_config.json").write_text("{}")
        if fits:
            bench.plan(sample={"policy": str(adapter)})
        else:
            with pytest.raises(ConfigError, match=r"sample\.policy: .*adapter: .* 64 x 48 .* 576"):
                bench.plan(sample={"policy": str(adapter)})
    shutil.copytree(bench.folder / "model", bench.folder / "other")
    save(bench.folder / "other" / "model.safetensors", model__q__weight=[32, 48])
    pools = {"own": {}, "other": {"model": {"base": "./other"}}}
    with pytest.raises(ConfigError, match=r"pools\.other\.policy: .*set policy: base"):
        bench.plan(sample={"policy": "arm:sft", "pools": pools})


def test_many_rounds_are_planned_at_once(bench: Bench) -> None:
    """Each round samples from the last, matches its steps and its rows."""
    arms: dict[str, Any] = {"sft": {"sample": {"use": "reference"}}}
    for i in range(12):
        last = f"arm:{list(arms)[-1]}"
        arms[f"round{i}"] = {
            "sample": {"policy": last},
            "train": {"match": last},
            "select": [{"use": "random", "args": {"rows": last}}],
        }
    begun = time.monotonic()
    plan = bench.plan(arms=arms)
    assert time.monotonic() - begun < 5
    assert links(plan, "round0")["5_train"] in links(plan, "round1")["2_sample"].needs


def test_each_round_samples_from_the_policy_of_the_one_before(bench: Bench) -> None:
    plan = bench.plan(sample={"policy": "arm:sft"}, rounds=3)
    first, second, last = (links(plan, arm) for arm in ("rft@1", "rft@2", "rft"))
    assert first["5_train"] not in second["5_train"].needs
    assert second["2_sample"].job["adapter"] == str(first["5_train"].dir.path)
    assert last["2_sample"].job["adapter"] == str(second["5_train"].dir.path)
    assert len({arm["2_sample"].job["pool"] for arm in (first, second, last)}) == 3
    # Each is trained from the base model, on the survivors of its own samples and the references.
    assert [p["sample"] for p in second["4_select"].job["pools"]] == [
        str(second[name].dir.path) for name in ("2_sample_reference", "2_sample")
    ]
    assert last["5_train"].job["start"] is None
    watched = last["4_select"].job["rounds"]
    assert watched["first"][0]["sample"] == str(first["2_sample"].dir.path)
    assert watched["pools"][0]["sample"] == str(last["2_sample"].dir.path)
    assert first["4_select"].job["rounds"]["first"] is None
    # Arms that sample nothing have one round, and one that is named elsewhere is its last.
    assert {row.arm for row in plan.rows} == {
        "base", "sft", "sft_matched", "random@1", "random@2", "random", "rft@1", "rft@2", "rft",
    }  # fmt: skip
    assert links(plan, "sft_matched")["5_train"].job["match"] == str(last["5_train"].dir.path)
    counted = links(plan, "random")["4_select"].job["selectors"][0]["counts"]
    assert counted == {"rows": str(last["4_select"].dir.path)}


def test_a_pool_with_a_policy_of_its_own_keeps_it_and_the_others_follow(bench: Bench) -> None:
    pools = {"few": {"policy": "base", "n": 2}, "own": {}}
    plan = bench.plan(rounds=2, sample={"policy": "arm:sft", "pools": pools})
    second = links(plan, "rft")
    policies = {name: second[f"2_sample_{name}"].inputs["decoding"]["policy"] for name in pools}
    assert policies == {"few": "base", "own": links(plan, "rft@1")["5_train"].key}
    # Both are watched for collapse; another model's pool, and one for the unsolved, are not.
    assert len(second["4_select"].job["rounds"]["pools"]) == 2
    pools = {
        "own": {},
        "other": {"policy": "base", "model": {"base": "hub/x"}},
        "hint": {"only": "unsolved"},
    }
    plan = bench.plan(
        rounds={"n": 2, "survivors": "keep"}, sample={"policy": "base", "pools": pools}
    )
    select = links(plan, "rft")["4_select"]
    assert len(select.job["rounds"]["pools"]) == len(select.job["rounds"]["first"]) == 1
    # The other model's samples are the same in both rounds, and stand there once.
    folders = [pool["sample"] for pool in select.job["pools"]]
    assert len(folders) == len(set(folders))


def test_what_is_selected_is_the_tokens_of_the_arms_own_model(bench: Bench) -> None:
    """Two arms that select the same texts of the same pool for two models."""
    shutil.copytree(bench.folder / "model", bench.folder / "big")
    (bench.folder / "big" / "config.json").write_text('{"big": 1}')
    big = {"base": str(bench.folder / "big")}
    train = {"include_reference": False}
    arms = {
        "small": {"sample": {"policy": "base", "model": big}, "train": train},
        "big": {"model": big, "sample": {"policy": "base"}, "train": train},
    }
    plan = bench.plan(arms=arms, compare={"baseline": "small"})
    small, large = (links(plan, name)["4_select"] for name in arms)
    assert links(plan, "small")["2_sample"].key == links(plan, "big")["2_sample"].key
    assert small.key != large.key
    assert [n.job["pools"][0]["own_tokens"] for n in (small, large)] == [False, True]


def test_survivors_of_all_rounds_can_be_kept_and_training_can_go_on(bench: Bench) -> None:
    plan = bench.plan(
        sample={"policy": "arm:sft"}, rounds={"n": 3, "survivors": "keep", "init": "last"}
    )
    first, second, last = (links(plan, arm) for arm in ("rft@1", "rft@2", "rft"))
    reference = str(first["2_sample_reference"].dir.path)
    samples = [str(arm["2_sample"].dir.path) for arm in (first, second, last)]
    assert [p["sample"] for p in last["4_select"].job["pools"]] == [reference, *samples]
    assert first["5_train"].job["start"] == str(links(plan, "sft")["5_train"].dir.path)
    assert last["5_train"].job["start"] == str(second["5_train"].dir.path)
    assert second["5_train"] in last["5_train"].needs


def test_more_rounds_leave_those_that_are_done_as_they_are(bench: Bench) -> None:
    two, three = bench.plan(rounds=2), bench.plan(rounds=3)
    for before, after in (("rft@1", "rft@1"), ("rft", "rft@2")):
        assert links(two, before)["5_train"].key == links(three, after)["5_train"].key
        assert links(two, before)["6_eval"].key == links(three, after)["6_eval"].key


def test_selector_is_given_the_seed_and_the_count_of_the_arm_it_names(bench: Bench) -> None:
    plan = bench.plan()
    for seed in (0, 1):
        (spec,) = links(plan, "random", seed)["4_select"].job["selectors"]
        assert spec["args"]["seed"] == seed
        rft = links(plan, "rft", seed)["4_select"]
        assert spec["counts"] == {"rows": str(rft.dir.path)}


def test_control_follows_the_arm_that_it_is_matched_with(bench: Bench) -> None:
    before = bench.plan()
    after = bench.plan("arms.rft.select=[{use: correct}]")
    for arm, stage in (("random", "4_select"), ("sft_matched", "5_train")):
        assert links(before, arm)[stage].key != links(after, arm)[stage].key
    assert links(before, "sft")["5_train"].key == links(after, "sft")["5_train"].key


@pytest.mark.parametrize(
    "arms, circle",
    [
        ({"sft": {"sample": {"policy": "arm:sft"}}}, "sft -> sft"),
        (
            {"sft": {"sample": {"policy": "arm:b"}}, "b": {"sample": {"policy": "arm:sft"}}},
            "sft -> b -> sft",
        ),
        (
            {
                "sft": {"train": {"match": "arm:b"}, "sample": BASE_ONLY},
                "b": {"train": {"match": "arm:sft"}, "sample": BASE_ONLY},
            },
            "sft -> b -> sft",
        ),
        (
            {
                "sft": {
                    "sample": BASE_ONLY,
                    "select": [{"use": "random", "args": {"rows": "arm:sft"}}],
                }
            },
            "sft -> sft",
        ),
    ],
)
def test_circle_of_arms(bench: Bench, arms: dict[str, Any], circle: str) -> None:
    with pytest.raises(ConfigError, match="a circle") as fault:
        bench.plan(arms=arms)
    first = circle.split(" -> ")
    turned = " -> ".join([*first[1:], first[1]])
    assert circle in str(fault.value) or turned in str(fault.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("score=[{use: answer, args: {markr: x}}]", "score.0.args.markr: .*no argument 'markr'"),
        ("select=[{use: cap, args: {kk: 1}}]", "select.0.args.kk: .*no argument 'kk'"),
        ("select=[{use: corect}]", "select.0.use: .*did you mean correct"),
        ("sample.use=vlm", "sample.use: .*did you mean vllm"),
        ("eval.use=vlm", "eval.use: .*did you mean vllm"),
        (
            "arms.rft.select=[{use: random}]",
            "arms.rft.select.0.args: .*give exactly one of rows and per_prompt",
        ),
        ("model.base=./none", "model.base: no such folder"),
        ("train.launch=none.yaml", "train.launch: no such file: none.yaml"),
    ],
)
def test_wrong_components_are_found_before_anything_runs(
    bench: Bench, text: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as fault:
        bench.plan(text)
    assert str(fault.value).startswith(f"{bench.folder}/e.yaml: ")


@pytest.mark.parametrize(
    "text, words",
    [
        ("distributed_type: DEEPSPEED", "DeepSpeed .* Use configs/accelerate/fsdp8.yaml: FSDP2"),
        ("deepspeed_config: {zero_stage: 3}", "Use configs/accelerate/fsdp8.yaml"),
        ("a: [", "is not YAML"),
        ("just words", "is no launch config"),
    ],
)
def test_launch_configs_that_cannot_train_are_refused_at_the_start(
    bench: Bench, text: str, words: str
) -> None:
    file = bench.folder / "launch.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"train.launch: {file}:? .*{words}") as fault:
        bench.plan(f"train.launch={file}")
    assert "\n" not in str(fault.value)


def test_launch_configs_that_come_with_rft_are_fine(bench: Bench) -> None:
    files = sorted((Path(__file__).parents[2] / "configs" / "accelerate").glob("*.yaml"))
    assert len(files) == 5
    for file in files:
        bench.plan(f"train.launch={file}")


def test_data_without_solutions_has_no_references(bench: Bench) -> None:
    bare = [{k: v for k, v in q(i).items() if k != "solution"} for i in range(4)]
    bench.data(train=bare)
    plan = bench.plan(arms={"base": ARMS["base"], "rft": {}}, sample=BASE_ONLY,
                      compare={"baseline": "base"})  # fmt: skip
    assert "2_sample" in links(plan, "rft") and "2_sample_reference" not in links(plan, "rft")
    with pytest.raises(ConfigError, match=r"arms.sft.sample.use: reference needs .*arms.sft=null"):
        bench.plan()


def test_own_scorer_may_read_all_of_a_prompt_and_the_files_it_is_given(bench: Bench) -> None:
    """The built-in ones read the answer alone, so another `kind` leaves their verdicts as they are."""
    own = {"score": [{"use": "./mine.py:mine"}], "sample": BASE_ONLY}
    builtin, mine = bench.plan(sample=BASE_ONLY), bench.plan(**own)
    bench.data(train=[{**q(0), "kind": "sum"}, *(q(i) for i in range(1, 4))])
    assert changed(builtin, bench.plan(sample=BASE_ONLY)) == {"prompts"}
    assert {"score", "select"} <= changed(mine, bench.plan(**own))
    (bench.folder / "list.txt").write_text("one")
    own["score"] = [{"use": "./mine.py:listed", "args": {"words": "./list.txt"}}]
    (bench.folder / "mine.py").write_text(SCORER + "def listed(p, c, *, words): ...\n")
    for name in [name for name in sys.modules if name.startswith("rft_user_mine")]:
        del sys.modules[name]
    before = bench.plan(**own)
    (bench.folder / "list.txt").write_text("two")
    assert "score" in changed(before, bench.plan(**own))


def test_built_in_selector_depends_on_the_file_and_the_labels_that_it_is_told_to_read(
    bench: Bench,
) -> None:
    for name in ("one.txt", "two.txt", "one.jsonl"):
        (bench.folder / name).write_text('{"question": "?"}')
    bench.data(train=[{**q(0), "kind": "sum"}, *(q(i) for i in range(1, 4))])

    def plan(use: str, **args: str) -> Plan:
        return bench.plan(sample=BASE_ONLY, select=[{"use": use, "args": args}])

    clean = plan("decontaminate", against="./one.txt")
    # Where the file lies is nothing to the result.
    assert not changed(clean, plan("decontaminate", against="./two.txt"))
    assert "select" in changed(clean, plan("decontaminate", against="./one.jsonl"))
    even = {by: plan("balance", by=by) for by in ("kind", "length")}
    bench.data(train=[{**q(0), "kind": "product"}, *(q(i) for i in range(1, 4))])
    assert "select" in changed(even["kind"], plan("balance", by="kind"))
    assert "select" not in changed(even["length"], plan("balance", by="length"))
    assert "select" not in changed(clean, plan("decontaminate", against="./one.txt"))
    (bench.folder / "one.txt").write_text("another question")
    assert "select" in changed(clean, plan("decontaminate", against="./one.txt"))


def test_epochs_of_an_arm_that_matches_steps_change_nothing(bench: Bench) -> None:
    assert changed(bench.plan(), bench.plan("arms.sft_matched.train.epochs=9")) == set()


def test_budget_is_part_of_a_beam(bench: Bench) -> None:
    """Elsewhere a larger max_len leaves what ended by itself as it is; which beams win may change."""
    beams = {"sample": {**BASE_ONLY, "beam_width": 4, "n": 4, "temperature": 0}}
    assert pool(bench.plan(**beams)) != pool(bench.plan("model.max_len=99", **beams))


def test_files_in_arguments_count_by_what_they_hold(bench: Bench) -> None:
    (bench.folder / "mine.py").write_text(SCORER + "def listed(p, c, *, words): ...\n")
    for name in [name for name in sys.modules if name.startswith("rft_user_mine")]:
        del sys.modules[name]

    def plan(folder: str, text: str) -> Plan:
        (bench.folder / folder).mkdir(exist_ok=True)
        (bench.folder / folder / "list.txt").write_text(text)
        args = {"words": [f"./{folder}/list.txt"]}
        score = [{"use": "./mine.py:listed", "args": args}]
        return bench.plan(score=score, sample=BASE_ONLY)

    first = plan("a", "one")
    assert changed(first, plan("b", "one")) == set()
    assert "score" in changed(first, plan("a", "two"))


def test_folders_in_arguments_count_by_all_their_files(bench: Bench) -> None:
    """A reward model, or a folder of lists; below it too."""
    (bench.folder / "mine.py").write_text(SCORER + "def listed(p, c, *, words): ...\n")
    for name in [name for name in sys.modules if name.startswith("rft_user_mine")]:
        del sys.modules[name]

    def plan(folder: str, name: str, text: str) -> Plan:
        path = bench.folder / folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
        score = [{"use": "./mine.py:listed", "args": {"words": f"./{folder}"}}]
        return bench.plan(score=score, sample=BASE_ONLY)

    for i, name in enumerate(("config.json", "list.csv", "1_Pooling/config.json")):
        first = plan(f"a{i}", name, "one")
        assert changed(first, plan(f"b{i}", name, "one")) == set()
        assert "score" in changed(first, plan(f"a{i}", name, "two")), name


@pytest.mark.parametrize(
    "text, words",
    [
        ("sample.policy=base", 'policy: .* -> "base"'),
        ("arms.sft_matched.train.match=arm:sft", "train.match"),
        ("select=[{use: cap, args: {k: 8}}]", "args.k: 4 -> 8"),
    ],
)
def test_change_to_an_old_run_is_named_and_refused(bench: Bench, text: str, words: str) -> None:
    body = {"select": [{"use": "cap", "args": {"k": 4}}]}
    plan = bench.plan(**body)
    for node in plan.nodes():
        node.dir.path.mkdir(parents=True)
        node.dir.begin(node.kind, node.inputs)
    runner._lay_out(plan)
    runner._refuse_changes(bench.plan(**body), update=False)
    with pytest.raises(RftError, match=words) as fault:
        runner._refuse_changes(bench.plan(text, **body), update=False)
    # What only reads a changed stage is not named again.
    assert "6_eval" not in str(fault.value)
    runner._refuse_changes(bench.plan(text, **body), update=True)


def test_held_out_answers_may_have_other_scorers(bench: Bench) -> None:
    """A filter by a reward model's value calls nothing correct."""
    plain = bench.plan()
    other = bench.plan(eval={"score": [{"use": "math"}]})
    assert changed(plain, other) == {"eval_score", "eval"}
    jobs = {name: node.job for name, node in links(other, "rft").items()}
    assert [s["use"] for s in jobs["6_eval_score"]["scorers"]] == ["math"]
    assert [s["use"] for s in jobs["3_score"]["scorers"]] == ["answer"]
    with pytest.raises(ConfigError, match=r"eval\.score\.0\.use: there is no 'maths'"):
        bench.plan(eval={"score": [{"use": "maths"}]})


def test_rule_and_tests_and_models_count(bench: Bench) -> None:
    two = [{"use": "answer"}, {"use": "math"}]
    scores = {"score", "select", "train", "eval_sample", "eval_score", "eval"}
    before = bench.plan(score=two)
    assert "score" in changed(before, bench.plan(score=two, combine={"rule": "any"}))
    # One scorer needs no rule.
    assert not changed(bench.plan(), bench.plan(combine={"rule": "any"}))
    before = bench.plan()
    bench.data(train=[{**q(i), "tests": "assert f(1)"} for i in range(4)])
    assert scores <= changed(before, bench.plan()) | {"sample"}
    with pytest.raises(ConfigError, match=r"write combine: \{rule: first\}"):
        bench.plan(combine="first")


@pytest.mark.parametrize(
    "loss, selects",
    [
        ({"weigh": "prompts"}, False),
        ({"clip": 0.2}, True),
        ({"reward": {}}, True),
        ({"clip": 0.2, "negatives": {}}, True),
    ],
)
def test_the_loss_is_part_of_training_and_of_rows_that_carry_something_for_it(
    bench: Bench, loss: dict[str, Any], selects: bool
) -> None:
    body: dict[str, Any] = {
        "sample": {"policy": "arm:sft", "logprobs": "tokens"},
        "score": [{"use": "./mine.py:mine"}],
    }
    arms = {**ARMS, "rft": {"train": {"loss": loss}}}
    before, after = bench.plan(**body), bench.plan(arms=arms, **body)
    one, two = links(before, "rft"), links(after, "rft")
    assert one["5_train"].key != two["5_train"].key
    assert (one["4_select"].key != two["4_select"].key) == selects
    assert one["3_score"].key == two["3_score"].key
    assert links(before, "random")["3_score"].key == links(after, "random")["3_score"].key
    assert one["4_select"].job["loss"] == {}
    if "clip" in loss:
        other = bench.plan(arms={**ARMS, "rft": {"train": {"loss": {**loss, "clip": 0.3}}}}, **body)
        assert links(other, "rft")["4_select"].key == two["4_select"].key
        assert links(other, "rft")["5_train"].key != two["5_train"].key


FORMATS: dict[str, Any] = {"formats": ["fp16", "int8"], "use": "transformers"}


def test_each_format_is_evaluated_apart_and_leaves_the_rest_as_it_is(bench: Bench) -> None:
    plain = bench.plan()
    few = bench.plan(eval={"use": "transformers", "inference": {"formats": ["fp16"]}})
    main = bench.plan(eval={"use": "transformers"})
    more = bench.plan(eval={"use": "transformers", "inference": {"formats": ["bf16", "fp16"]}})
    assert keys(main).items() <= keys(few).items() <= keys(more).items()
    assert {k.split("/")[2] for k in keys(few).keys() - keys(main).keys()} == {
        "6_eval_sample_fp16", "6_eval_score_fp16", "6_eval_fp16",
    }  # fmt: skip
    job = links(few, "rft")["6_eval_sample_fp16"].job
    assert job["engine"]["dtype"] == "float16" and job["use"] == "transformers"
    assert links(few, "rft")["5_train"] in links(few, "rft")["6_eval_sample_fp16"].needs
    assert "in fp16 by transformers" in job["label"]
    assert "6_eval_fp16" not in links(plain, "rft")


def test_formats_of_another_sampler_are_compared_with_the_main_format_in_it(bench: Bench) -> None:
    engine = {"dtype": "float32", "max_num_seqs": 5, "compile": True, "extra": {"swap_space": 1}}
    plan = bench.plan(eval={"engine": engine, "inference": FORMATS})
    found = links(plan, "rft")
    assert found["6_eval_sample"].job["use"] == "vllm"
    for name, dtype in (("_main", "float32"), ("_fp16", "float16"), ("_int8", "int8")):
        job = found[f"6_eval_sample{name}"].job
        assert (job["use"], job["engine"]["dtype"]) == ("transformers", dtype)
        # What the other sampler has no setting for stays with its own.
        assert job["engine"]["max_num_seqs"] == 5 and not job["engine"]["extra"]
        assert job["engine"]["compile"] is None
    assert keys(bench.plan(eval={"engine": engine})).items() <= keys(plan).items()


@pytest.mark.parametrize("temperature, n", [(0.0, 1), (1.0, 4)])
def test_formats_draw_with_the_seeds_of_the_main_one(
    bench: Bench, temperature: float, n: int
) -> None:
    body = {"temperature": temperature, "n": n, "inference": FORMATS}
    found = links(bench.plan(eval=body), "rft")
    samples = [found[f"6_eval_sample{name}"] for name in ("", "_main", "_fp16", "_int8")]
    assert {one.job["seeds"] for one in samples} == {samples[0].job["pool"]}
    assert len({one.job["pool"] for one in samples}) == 4
    other = links(bench.plan(eval={**body, "engine": {"dtype": "float32"}}), "rft")
    # Other seeds are other samples, and a greedy one has none.
    same = other["6_eval_sample_fp16"].key == found["6_eval_sample_fp16"].key
    assert same == (temperature == 0)


def test_formats_that_are_not_there_are_refused_before_anything_runs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = bench.plan(eval={"inference": FORMATS})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    told = r"^eval\.inference\.formats: int8 needs bitsandbytes: pip install 'rft\[quant\]'$"
    with pytest.raises(RftError, match=told):
        runner.run(plan.experiment)
    assert not list((plan.folder / "stages").glob("*"))
    with pytest.raises(RftError, match=told):
        check(plan.experiment, "e.yaml")
    plan = bench.plan(eval={"engine": {"dtype": "int8"}})
    with pytest.raises(RftError, match=r"^eval\.engine\.dtype: int8: vllm has no LLM\.int8"):
        runner.run(plan.experiment)


def test_training_problems_that_nobody_can_judge_are_refused(bench: Bench) -> None:
    bench.data(train=[{k: v for k, v in q(i).items() if k == "question"} for i in range(4)])
    arms = {"base": {"train": None}, "rft": {}}
    body: dict[str, Any] = {"sample": {}, "compare": {"baseline": "base"}}
    bench.plan(arms=arms, **body)
    with pytest.raises(ConfigError, match="eval.train_problems: no training problem has an answer"):
        bench.plan("eval.train_problems=2", arms=arms, **body)
