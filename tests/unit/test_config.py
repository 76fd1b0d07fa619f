"""An experiment file is checked in full: each fault is one line with file, path and fix."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from rft import cli, config, loader, reference
from rft.config import ConfigError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if p.parent.name != "accelerate")
SMALL: dict[str, Any] = {
    "name": "x",
    "model": {"base": "./model"},
    "prompts": {"use": "jsonl", "args": {"train": "./train.jsonl", "eval": "../eval.jsonl"}},
}


def write(folder: Path, file: str = "e.yaml", more: str = "", **changes: Any) -> Path:
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({**SMALL, **changes}) + more)
    return path


def refused(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as fault:
        loader.load(path, overrides)
    return str(fault.value).split("\n")


def test_smallest_experiment_is_enough(tmp_path: Path) -> None:
    got = loader.load(write(tmp_path))
    assert list(got.arms) == ["base", "sft", "rft"]
    assert got.arm("base").train is None
    assert got.arm("sft").sample.use == "reference"
    assert got.compare.baseline in got.arms


def test_setting_of_one_default_arm_keeps_the_others(tmp_path: Path) -> None:
    got = loader.load(write(tmp_path), ["arms.rft.sample.n=4"])
    assert list(got.arms) == ["base", "sft", "rft"] and got.arm("rft").sample.n == 4
    got = loader.load(write(tmp_path), ["arms.base=null", "arms.rft.sample.n=4"])
    assert list(got.arms) == ["sft", "rft"]


@pytest.mark.parametrize(
    "changes, path, meant",
    [
        ({"trian": {}}, "trian", "train"),
        ({"sample": {"temprature": 1}}, "sample.temprature", "sample.temperature"),
        ({"train": {"lora": {"rnk": 8}}}, "train.lora.rnk", "train.lora.rank"),
        ({"score": [{"use": "answer", "arg": {}}]}, "score.0.arg", "score.0.args"),
        (
            {"arms": {"sft": {"train": {"lrr": 1}}}},
            "arms.sft.train.lrr",
            "arms.sft.train.lr",
        ),
    ],
)
def test_unknown_key(tmp_path: Path, changes: dict[str, Any], path: str, meant: str) -> None:
    file = write(tmp_path, **changes)
    assert refused(file) == [f"{file}: {path} is not a setting; did you mean {meant}?"]


def test_unknown_key_like_no_other_lists_what_there_is(tmp_path: Path) -> None:
    (line,) = refused(write(tmp_path, train={"lora": {"zzz": 1}}))
    assert "train.lora.zzz is not a setting; settings there are rank, alpha" in line


def test_arm_cannot_set_what_belongs_to_the_experiment(tmp_path: Path) -> None:
    (line,) = refused(write(tmp_path, arms={"sft": {"seeds": [1]}}))
    assert "arms.sft.seeds is not a setting" in line
    assert "did you mean arms.sft.seeds" not in line


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"train": {"lr": "fast"}}, ["train.lr", "number", '"fast"']),
        ({"train": {"lr": 0}}, ["train.lr", "greater than 0"]),
        ({"sample": {"n": 1.5}}, ["sample.n", "integer", "1.5"]),
        ({"sample": {"policy": 5}}, ["sample.policy", "string", "5"]),
        ({"sample": {"policy": ["base"]}}, ["sample.policy", "base"]),
        ({"sample": {"only": "unsolved"}}, ["sample.only", "several pools"]),
        (
            {"sample": {"pools": {"a": {"temprature": 1}}}},
            ["sample.pools.a.temprature", "did you mean"],
        ),
        ({"sample": {"pools": {"a": {"n": 0}}}}, ["sample.pools.a.n", "0"]),
        ({"sample": {"pools": {"a": {"chat": {"promt": "x"}}}}}, ["sample.pools.a.chat.promt"]),
        ({"sample": {"pools": {"a/b": {}}}}, ["sample.pools.a/b", "letters"]),
        ({"sample": {"pools": {"reference": {}}}}, ["sample.pools.reference"]),
        ({"sample": {"pools": {"a": {"use": "reference"}}}}, ["sample.pools.a.use"]),
        (
            {"sample": {"pools": {"a": {"only": "unsolved"}}}},
            ["sample.pools.a.only", "put it after"],
        ),
        ({"sample": {"pools": {"a": {"pools": {"b": {}}}}}}, ["sample.pools.a.pools"]),
        ({"chat": {"prompt": "{question} {answer}"}}, ["chat.prompt", "sample.chat.prompt"]),
        ({"eval": {"chat": {"prompt": "{question} {answer}"}}}, ["eval.chat.prompt"]),
        ({"score": "answer"}, ["score", "list"]),
        ({"score": []}, ["score", "use: answer"]),
        ({"select": []}, ["select", "use: correct"]),
        ({"model": 3}, ["model", "3"]),
        ({"seeds": []}, ["seeds"]),
        ({"seeds": [0, 0]}, ["seeds", "once"]),
        ({"eval": {"k": []}}, ["eval.k"]),
        ({"arms": {"rft": None}}, ["arms", "at least one"]),
        ({"arms": {}}, ["arms", "at least one"]),
        ({"arms": {"a b": {}}}, ["arms.a b", "letters"]),
        ({"name": ""}, ["name"]),
        ({"name": "../other"}, ["name", "other"]),
        ({"name": "./other"}, ["name", "other"]),
        ({"extends": 3}, ["extends"]),
        # Combinations that cannot be.
        ({"sample": {"temperature": 0}}, ["sample", "temperature 0", "n to 1"]),
        ({"sample": {"beam_width": 8}}, ["sample", "beam search", "temperature to 0"]),
        (
            {"sample": {"beam_width": 4, "temperature": 0}},
            ["sample", "beam_width 4", "n = 8"],
        ),
        ({"eval": {"k": [4]}}, ["eval", "pass@4", "at least 4"]),
        ({"eval": {"inference": {"formats": ["fp8"]}}}, ["eval.inference.formats.0", "int8"]),
        ({"eval": {"inference": {"formats": ["fp16"] * 2}}}, ["eval.inference.formats", "once"]),
        (
            {"eval": {"inference": {"formats": ["fp16", "int8"]}}},
            ["eval: inference.formats: vllm has no LLM.int8", "inference.use to transformers"],
        ),
        (
            {"eval": {"use": "openai", "inference": {"formats": ["bf16"]}}},
            ["inference.formats: openai", "inference.use"],
        ),
        (
            {"eval": {"engine": {"dtype": "float16"}, "inference": {"formats": ["fp16"]}}},
            ["inference.formats: fp16", "engine.dtype", "leave it out"],
        ),
        ({"chat": {"prompt": "no place"}}, ["chat", "{question}"]),
        ({"chat": {"solution": "none"}}, ["chat", "{solution}"]),
        ({"chat": {"template": "none", "system": "x"}}, ["chat", "system", "template"]),
        ({"sample": {"policy": "sft"}}, ["sample.policy", "arm:sft"]),
        ({"train": {"match": "rft"}}, ["train.match", "arm:rft"]),
        ({"train": {"precision": {"base": "bf16"}}}, ["train.precision", "compute to bf16"]),
        (
            {
                "arms": {"sft": {"sample": {"use": "reference"}}},
                "train": {"include_reference": False},
            },
            ["arms.sft", "include_reference"],
        ),
        (
            {"arms": {"sft": {"eval": {"n": 4, "temperature": 1, "k": [4]}}}},
            ["arms.sft.eval.k", "set eval.k"],
        ),
        ({"train": {"loss": {"negatives": {}}}}, ["train.loss", "without clip", "clip to 0.2"]),
        ({"train": {"loss": {"clip": 1}}}, ["train.loss.clip", "less than 1"]),
        ({"train": {"loss": {"reward": {}}}}, ["train.loss.reward", "answer", "verdicts alone"]),
        ({"train": {"loss": {"reward": {"beta": 0}}}}, ["train.loss.reward.beta"]),
        (
            {"train": {"loss": {"clip": 0.2}}},
            ["sample.logprobs", "set it to tokens", "train.loss.clip to null"],
        ),
        (
            {"arms": {"sft": {}, "rft": {"train": {"loss": {"clip": 0.2}}}}},
            ["sample.logprobs", "arms.rft.train.loss.clip to null"],
        ),
        (
            {
                "sample": {"logprobs": "tokens", "pools": {"a": {}, "b": {"model": {"base": "x"}}}},
                "train": {"loss": {"clip": 0.2}},
            },
            ["sample.pools.b.model", "tokenised anew"],
        ),
        (
            {
                "sample": {"logprobs": "tokens", "chat": {"prompt": "Sum: {question}"}},
                "train": {"loss": {"clip": 0.2}},
            },
            ["sample.chat", "same prompt"],
        ),
        # References between arms.
        ({"compare": {"baseline": "zft"}}, ["compare.baseline", "did you mean sft?"]),
        ({"sample": {"policy": "arm:stf"}}, ["arms.rft.sample.policy", "did you mean sft?"]),
        ({"sample": {"pools": {"a": {"policy": "arm:stf"}}}}, ["sample.pools.a.policy", "'stf'"]),
        ({"sample": {"policy": "arm:base"}}, ["sample.policy", "'base' trains nothing"]),
        ({"train": {"match": "arm:none"}}, ["train.match", "'none'"]),
        (
            {"select": [{"use": "random", "args": {"rows": "arm:fft"}}]},
            ["select.0.args.rows", "did you mean"],
        ),
    ],
)
def test_refused(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    file = write(tmp_path, **changes)
    message = "\n".join(refused(file))
    assert str(file) in message
    for word in words:
        assert word in message, message


def test_missing_key(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text("name: x\nprompts: {use: jsonl}\n")
    assert refused(file) == [f"{file}: model is missing: set it"]


def test_several_faults_at_once(tmp_path: Path) -> None:
    lines = refused(write(tmp_path, trian={}, train={"lr": -1}, eval={"nn": 2}))
    assert [line.split(": ")[1].split(" ")[0] for line in lines] == ["train.lr", "eval.nn", "trian"]


@pytest.mark.parametrize(
    "text",
    ["a: [", "- 1", "just text", "", "1: 2", "? [a]\n: 2", "name: x\nname: y", "a: {b: 1, b: 2}"],
)
def test_not_an_experiment(tmp_path: Path, text: str) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(text)
    assert refused(file)[0].startswith(f"{file}: ")


def test_key_given_twice_is_named(tmp_path: Path) -> None:
    message = "\n".join(refused(write(tmp_path, more="train: {lr: 1}\ntrain: {epochs: 2}\n")))
    assert "'train' is given twice" in message


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_bytes(b"name: \xff\xfe")
    assert "cannot be read" in refused(file)[0]


def test_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, "quickstart.yaml")
    (line,) = refused(tmp_path / "quickstrat.yaml")
    assert f"did you mean {tmp_path / 'quickstart.yaml'}?" in line


def test_exponents_are_numbers_in_yaml_and_on_the_command_line(tmp_path: Path) -> None:
    file = write(tmp_path, more="train: {lr: 1e-4}\n")
    got = loader.load(file).train
    assert got and got.lr == 1e-4
    got = loader.load(file, ["train.lr=3e-5"]).train
    assert got and got.lr == 3e-5


def test_command_line(tmp_path: Path) -> None:
    file = write(tmp_path)
    settings = [
        "train=null",
        "arms={sft: {sample: {n: 4}, train: {}}}",
        "arms.sft.sample.n=16",
        "chat.prompt=a=b {question}",
        "seeds=[1, 2]",
    ]
    got = loader.load(file, settings)
    assert got.train is None
    assert got.arm("sft").sample.n == 16
    assert got.chat.prompt == "a=b {question}"
    assert got.seeds == [1, 2]
    again = loader.load(file, ["train=null", "train.lr=0.5"]).train
    assert again and again.lr == 0.5


@pytest.mark.parametrize(
    "text, words",
    [
        ("train.lr", "'train.lr' is not a setting: write it as train.lr=1e-4"),
        ("=3", "'=3' is not a setting"),
        ("train.lr=[1", "command line: 'train.lr=[1'"),
        ("train..lr=1", "command line: train. is not a setting"),
        ("score.0.use=math", "command line: score: Input should be a valid list"),
    ],
)
def test_command_line_refused(tmp_path: Path, text: str, words: str) -> None:
    assert refused(write(tmp_path), text)[0].startswith(words)


def test_fault_of_the_command_line_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, train={"lr": -1})
    assert refused(file, "sample.n=x", "eval.n=4") == [
        "command line: sample.n: Input should be a valid integer, unable to parse string as an"
        ' integer, not "x"',
        f"{file}: train.lr: Input should be greater than 0, not -1",
        "command line: eval: temperature 0 gives the same sample 4 times: set n to 1, or"
        " temperature above 0",
    ]


def test_paths_are_relative_to_the_file_they_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    write(home, score=[{"use": "./mine.py:f"}], select=[{"use": "~/s.py:g"}])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(home))
    got = loader.load(home / "e.yaml", ["prompts.args.train=./t.jsonl"])
    assert got.model.base == str(home / "model")
    assert got.prompts.args["eval"] == str(tmp_path / "eval.jsonl")
    assert got.prompts.args["train"] == str(elsewhere / "t.jsonl")
    assert got.score[0].use == f"{home}/mine.py:f"
    assert got.select[0].use == f"{home}/s.py:g"
    assert got.runs == "runs"


def test_extends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "low/low.yaml", train={"lr": 0.1, "epochs": 5}, seeds=[1, 2])
    (tmp_path / "mid.yaml").write_text(
        "extends: low/low.yaml\ntrain: {lr: 0.2}\nseeds: [3]\nmodel: {max_len: 9}\n"
    )
    (tmp_path / "top.yaml").write_text("extends: ./mid.yaml\nmodel: {base: ./mine}\n")
    monkeypatch.chdir("/")
    got = loader.load(tmp_path / "top.yaml")
    assert got.train and (got.train.lr, got.train.epochs) == (0.2, 5)
    assert got.seeds == [3]
    assert (got.model.base, got.model.max_len) == (str(tmp_path / "mine"), 9)
    assert got.prompts.args["train"] == str(tmp_path / "low" / "train.jsonl")


def test_extends_in_a_circle_or_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: ./b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: ./a.yaml\n")
    assert "circle" in refused(tmp_path / "a.yaml")[0]
    (tmp_path / "c.yaml").write_text("extends: ./bb.yaml\n")
    assert "no such file; did you mean" in refused(tmp_path / "c.yaml")[0]


def test_merge() -> None:
    below = {"use": "a", "args": {"x": 1}, "limit": 3}
    assert config.merge(below, {"args": {"y": 2}}) == {**below, "args": {"x": 1, "y": 2}}
    assert config.merge(below, {"use": "a", "args": {"y": 2}})["args"] == {"x": 1, "y": 2}
    assert config.merge(below, {"use": "b"}) == {"use": "b", "limit": 3}
    assert config.merge(below, {"use": "b", "args": {"y": 2}})["args"] == {"y": 2}
    assert config.merge({"k": [1, 2]}, {"k": [3]}) == {"k": [3]}
    assert config.merge({"k": {"a": 1}}, {"k": None}) == {"k": None}
    assert below == {"use": "a", "args": {"x": 1}, "limit": 3}


def test_cli_prints_the_fault_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, trian={})
    for verb in ("run", "check", "sample", "report"):
        assert cli.main([verb, str(file)]) == 2
        told = capsys.readouterr().err
        assert told == f"error: {file}: trian is not a setting; did you mean train?\n"


def test_arms_in_a_circle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train.jsonl", "eval.jsonl"):
        (tmp_path / name).write_text(f'{{"question": "{name}?", "answer": "1"}}\n')
    args = {"train": "./train.jsonl", "eval": "./eval.jsonl"}
    one, two = {"sample": {"policy": "arm:two"}}, {"sample": {"policy": "arm:one"}}
    file = write(
        tmp_path,
        prompts={"use": "jsonl", "args": args},
        arms={"one": one, "two": two},
        compare={"baseline": "one"},
    )
    assert cli.main(["check", str(file), f"runs={tmp_path}"]) == 2
    told = capsys.readouterr().err
    assert "two -> one -> two: a circle" in told and "Traceback" not in told


def test_resolved_experiment_loads_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, path in enumerate(CONFIGS):
        first = loader.load(path, ["seeds=[0, 7]", "train.lr=3e-7"])
        resolved = tmp_path / str(number) / "resolved.yaml"
        resolved.parent.mkdir()
        resolved.write_text(loader.dump(first))
        monkeypatch.chdir(resolved.parent)
        again = loader.load(resolved)
        assert again.model_dump() == first.model_dump()
        for name in first.arms:
            assert again.arm(name) == first.arm(name)


def test_no_config_escapes() -> None:
    every = {p for p in (ROOT / "configs").glob("**/*") if p.suffix in (".yaml", ".yml")}
    launch = {p for p in every if p.is_relative_to(ROOT / "configs" / "accelerate")}
    assert set(CONFIGS) == every - launch
    assert len(CONFIGS) >= 2


def test_launch_configs_open_with_a_command() -> None:
    for path in (ROOT / "configs" / "accelerate").iterdir():
        where = path.relative_to(ROOT)
        command = f"# rft run configs/quickstart.yaml train.launch={where}"
        assert path.read_text().splitlines()[0] == command


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_loads_and_opens_with_its_command(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith(f"# rft run {path.relative_to(ROOT)}")
    loader.load(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_validates_against_the_schema(path: Path) -> None:
    schema = json.loads((ROOT / "configs" / "schema.json").read_text())
    raw = yaml.safe_load(path.read_text())
    jsonschema.validate(raw, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**raw, "trian": {}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**raw, "train": {"lr": "fast"}}, schema)


def test_generated_files_are_current() -> None:
    hint = "is stale: run python scripts/make_reference.py"
    for name, text in {
        "docs/configuration.md": reference.reference(),
        "configs/schema.json": reference.schema(),
    }.items():
        assert (ROOT / name).read_text() == text, f"{name} {hint}"


def test_every_setting_is_described() -> None:
    schema = json.loads(reference.schema())
    objects = {"Experiment": schema, **schema["$defs"]}
    assert len(objects) >= 10
    for name, spec in objects.items():
        for key, field in spec.get("properties", {}).items():
            nested = "$ref" in field or any("$ref" in f for f in field.get("anyOf", []))
            assert nested or field.get("description"), f"{name}.{key}"


def test_null_takes_an_arm_out(tmp_path: Path) -> None:
    quick = Path(__file__).parents[2] / "configs/quickstart.yaml"
    assert set(
        loader.load(
            quick, [f"arms.{arm}=null" for arm in ("random", "rft", "rft_repeats", "sft_matched")]
        ).arms
    ) == {
        "base",
        "sft",
    }
    with pytest.raises(config.ConfigError, match=r"no arm 'randm'; did you mean random\?"):
        loader.load(quick, ["arms.randm=null"])


def test_experiment_in_the_readme_is_the_one_in_configs() -> None:
    shown = (ROOT / "README.md").read_text().split("```yaml\n")[1].split("```")[0]
    path = ROOT / "configs" / "gsm8k.yaml"
    assert yaml.safe_load(shown) == yaml.safe_load(path.read_text())


def test_merged_yaml_mappings_are_no_keys_given_twice(tmp_path: Path) -> None:
    more = (
        "sample: &a {n: 4, top_k: 9}\n"
        "eval: &b {<<: *a, temperature: 1}\n"
        "arms: {base: {train: null}, sft: {sample: {<<: *b, n: 2}}}\n"
    )
    got = loader.load(write(tmp_path, more=more))
    assert (got.eval.n, got.eval.top_k, got.arm("sft").sample.n) == (4, 9, 2)


def test_clipping_asks_nothing_of_arms_without_samples(tmp_path: Path) -> None:
    arms = {"base": {"train": None}, "sft": {"sample": {"use": "reference"}}, "rft": {}}
    file = write(
        tmp_path,
        arms=arms,
        sample={"logprobs": "tokens"},
        score=[{"use": "answer"}, {"use": "reward_model", "args": {"model": "m"}}],
        train={"loss": {"clip": 0.2, "negatives": {}, "reward": {}, "weigh": "completions"}},
    )
    loss = loader.load(file).arm("sft").train.loss
    assert loss.negatives.per_prompt == 4 and loss.reward.beta == 1.0
