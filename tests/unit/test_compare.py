"""`rft compare`: what goes together, what is refused, and what the report then says."""

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rft import cli, integrity, rows
from rft.compare import compare
from rft.rundir import StageDir, stage_record, to_json
from rft.types import ProblemRow, RftError, ScoreRow, Verdict
from tests.synthetic import build
from tests.unit import test_harness


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def lines(
    arm: str | None, share: float, problems: range = range(100), seed: int | None = None
) -> list[dict[str, Any]]:
    own: dict[str, Any] = {} if arm is None else {"arm": arm}
    if seed is not None:
        own["seed"] = seed
    rng = random.Random(f"{arm} {share} {seed}")
    return [{**own, "problem": f"p{i:03}", "correct": rng.random() < share} for i in problems]


def told(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "comparison.json").read_text())
    assert (out / "report.html").is_file()
    assert (out / "report.md").is_file()
    return found


def run(root: Path, arms: tuple[str, ...] = ("sft", "rft"), lr: float = 0.001, **more: Any) -> Path:
    """A finished run with its links and settings. more: for tests/synthetic.py."""
    job = build(root, arms, resamples=50, **more)
    shutil.rmtree(root / "report", ignore_errors=True)
    links = {}
    for entry in job["arms"]:
        home = root / entry["arm"] / f"seed{entry['seed']}"
        home.mkdir(parents=True)
        places = {
            "1_prompts": entry["prompts"],
            "4_select": entry["select"],
            "5_train": entry["train"],
            **{f"6_{k}": entry[k] for k in ("eval_sample", "eval_score", "eval")},
        }
        for pool in entry["pools"]:
            places |= {"2_sample": pool["sample"], "3_score": pool["score"]}
        for name, stage in places.items():
            if stage:
                (home / name).symlink_to(f"../../stages/{Path(stage).name}")
                links[f"{entry['arm']}/seed{entry['seed']}/{name}"] = Path(stage).name
    own: dict[str, Any] = {arm: {"train": {"lr": lr}} if arm != "base" else {"train": None} for arm in arms}  # fmt: skip
    config = {"name": root.name, "arms": own, "compare": {"baseline": "sft"}}
    (root / "experiment.yaml").write_text(json.dumps(config))
    integrity.seal(root, links)
    return root


# Verdicts made elsewhere


def test_verdicts_made_elsewhere(tmp_path: Path) -> None:
    file = write(tmp_path / "v.jsonl", *lines("sft", 0.3), *lines("rft", 0.8))
    compare([str(file)], out=tmp_path / "out", margin=0.05, level=0.9)
    got = told(tmp_path / "out")
    assert got["headline"] == {"arm": "rft", "baseline": "sft"}
    assert got["level"] == 0.9
    assert "rft is better than sft by" in got["answer"]
    rate = {a["arm"]: a["accuracy"]["value"] for a in got["arms"]}
    for arm, share in (("sft", 0.3), ("rft", 0.8)):
        own = lines(arm, share)
        assert rate[arm] == pytest.approx(sum(one["correct"] for one in own) / 100)
    (pair,) = got["comparisons"]
    assert pair["difference"] == pytest.approx(rate["rft"] - rate["sft"])
    assert pair["equivalence"]["margin"] == 0.05
    # Nobody told of these: a dash, not a zero.
    assert all(a["tokens"] is None and a["truncated"] is None for a in got["arms"])
    assert "<td>–</td>" in (tmp_path / "out/report.html").read_text()


def test_order_of_lines_and_form_of_verdicts_do_not_matter(tmp_path: Path) -> None:
    a, b = lines("a", 0.4), lines("b", 0.6)
    whole = [
        {"arm": one["arm"], "problem": one["problem"], "correct": int(one["correct"]), "n": 1}
        for one in (*a, *b)
    ]
    mixed = [{**one, "correct": float(one["correct"])} if i % 2 else one for i, one in enumerate([*a, *b])]  # fmt: skip
    files = {"a": [*a, *b], "b": [*b[::-1], *a[::-1]], "c": whole, "d": mixed}
    found = []
    for name, rows_ in files.items():
        file = write(tmp_path / f"{name}.jsonl", *rows_)
        compare([str(file)], baseline="a", out=tmp_path / name)
        found.append(told(tmp_path / name)["comparisons"])
    assert all(one == found[0] for one in found)


def test_samples_and_counts_say_the_same(tmp_path: Path) -> None:
    samples, counts = [], []
    for arm in ("a", "b"):
        rng = random.Random(arm)
        for i in range(30):
            hits = [rng.random() < 0.5 for _ in range(4)]
            for j in random.sample(range(4), 4):
                samples.append({"problem": i, "arm": arm, "sample": j, "correct": hits[j]})
            counts.append({"problem": i, "arm": arm, "n": 4, "correct": sum(hits)})
    for name, rows_ in (("samples", samples), ("counts", counts)):
        compare([str(write(tmp_path / f"{name}.jsonl", *rows_))], out=tmp_path / name)
    one, other = told(tmp_path / "samples"), told(tmp_path / "counts")
    assert one["arms"] == other["arms"]
    assert set(one["arms"][0]["pass_at_k"]) == {"1", "2", "4"}
    assert one["samples_per_problem"] == {"smallest": 4, "largest": 4}


def test_null_is_unknown_and_not_wrong(tmp_path: Path) -> None:
    own = lines("a", 0.5)
    own[3]["correct"] = None
    compare([str(write(tmp_path / "v.jsonl", *own))], out=tmp_path / "out")
    assert told(tmp_path / "out")["arms"][0]["unknown"] == 1


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"problem": "p", "correct": tru}', "no JSON"),
        ("[1]", "no JSON object"),
        ('{"problem": "p"}', "no field `correct`: it has problem"),
        ('{"id": "p", "correct": 1}', "no field `problem`: it has id, correct"),
        ('{"problem": null, "correct": 1}', "`problem` is null"),
        ('{"problem": "p", "correct": 2}', "`correct` is 2, and should be true, false, 0 or 1"),
        ('{"problem": "p", "correct": 0.5}', "`correct` is 0.5"),
        ('{"problem": "p", "correct": 5, "n": 4}', "`correct` is 5, and should be 0 to 4"),
        ('{"problem": "p", "correct": null, "n": 4}', "`n` is 4"),
        ('{"problem": "p", "correct": 1, "n": 0}', "`n` is 0"),
        ('{"problem": "p", "correct": 1, "n": 4, "sample": 1}', "do not go together"),
        ('{"problem": "p", "correct": "yes"}', "`correct` is 'yes', and should be bool or int"),
        ('{"problem": "p", "correct": 1, "seed": "0"}', "`seed` is '0', and should be int"),
        ('{"problem": ["p"], "correct": 1}', "`problem` is ['p']"),
        ('{"problem": "p", "correct": NaN}', "`correct` is nan"),
        ('{"problem": "p", "correct": Infinity}', "`correct` is inf"),
        ('{"problem": "p", "correct": 1, "seed": 99999999999999999999}', "`seed` is 9999"),
        ('{"problem": "p", "correct": 1, "arm": ""}', "`arm` is empty"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, why: str) -> None:
    file = write(tmp_path / "v.jsonl", *lines("a", 0.5, range(5)))
    file.write_text(file.read_text() + "\n" + line + "\n")
    with pytest.raises(RftError) as fault:
        compare([str(file)])
    assert str(fault.value).startswith(f"{file}:7: ")
    assert why in str(fault.value)


def test_a_second_verdict_on_one_sample_is_named(tmp_path: Path) -> None:
    own = lines("a", 0.5, range(5))
    file = write(tmp_path / "v.jsonl", *own, {**own[2], "correct": True})
    with pytest.raises(RftError, match=rf"{file}:6: a second verdict on problem 'p002', the first is {file}:3"):  # fmt: skip
        compare([str(file)])
    samples = [{"problem": 1, "sample": j, "correct": True} for j in (0, 1, 1)]
    with pytest.raises(RftError, match=r":3: a second verdict on problem '1', the first is .*:2\."):
        compare([str(write(tmp_path / "s.jsonl", *samples))])
    counts = [{"problem": 1, "n": 4, "correct": 2}, {"problem": 1, "correct": 1, "sample": 7}]
    with pytest.raises(RftError, match=r":2: a second verdict"):
        compare([str(write(tmp_path / "c.jsonl", *counts))])


def test_more_samples_than_memory_are_refused(tmp_path: Path) -> None:
    own = [{"problem": i, "correct": 5, "n": 3_000_000_000, "arm": "a"} for i in range(3)]
    with pytest.raises(RftError, match="9,000,000,000 samples by its `n`"):
        compare([str(write(tmp_path / "v.jsonl", *own))])


def test_empty_and_missing(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    (tmp_path / "folder").mkdir()
    for name, why in (
        ("empty.jsonl", "the file is empty"),
        ("blank.jsonl", "there are no verdicts in it"),
        ("folder", "neither a run folder"),
        ("none.jsonl", "no such file or folder"),
    ):
        with pytest.raises(RftError, match=f"{tmp_path / name}: {why}"):
            compare([str(tmp_path / name)])


@pytest.mark.parametrize("name", ["topic", "difficulty"])
def test_groups_that_verdicts_tell_have_rows_of_their_own(tmp_path: Path, name: str) -> None:
    own = [*lines("a", 0.3), *lines("b", 0.6)]
    own = [{**one, name: "odd" if int(one["problem"][1:]) % 2 else "even"} for one in own]
    compare([str(write(tmp_path / "v.jsonl", *own))], out=tmp_path / "out")
    groups = told(tmp_path / "out")["slices"]["kind"]["groups"]
    assert [(g["name"], g["problems"]) for g in groups] == [("even", 50), ("odd", 50)]
    right = [one["correct"] for one in own if one["arm"] == "b" and one[name] == "odd"]
    assert groups[1]["arms"]["b"]["value"] == pytest.approx(sum(right) / 50)


def test_the_command_is_told(tmp_path: Path) -> None:
    file = write(tmp_path / "a file.jsonl", *lines("a", 0.3), *lines("b", 0.6))
    out = tmp_path / "out"
    compare([str(file)], out=out, baseline="b", level=0.9, intersect=True)
    command = f"rft compare '{file}' --baseline b --level 0.9 --out {out} --intersect"
    assert command in (out / "report.md").read_text()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_none_or_all_correct(tmp_path: Path, share: float) -> None:
    file = write(tmp_path / "v.jsonl", *lines("a", share), *lines("b", share), *lines("c", 0.5))
    compare([str(file)], baseline="a", out=tmp_path / "out")
    got = told(tmp_path / "out")
    assert [p["p"] for p in got["comparisons"] if p["arm"] == "b"] == [1.0]
    assert got["pooled"]["a"]["accuracy"]["value"] == share


def test_one_seed_and_several(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", *lines("a", 0.5), *lines("b", 0.5))
    compare([str(one)], out=tmp_path / "one")
    text = (tmp_path / "one/report.md").read_text()
    assert "with one seed, this report cannot say" in text
    every = [x for arm in "ab" for seed in (0, 1, 2) for x in lines(arm, 0.5, seed=seed)]
    compare([str(write(tmp_path / "many.jsonl", *every))], out=tmp_path / "many")
    assert told(tmp_path / "many")["comparisons"][-1]["seeds"] == [0, 1, 2]


# What goes together


def test_different_problems_are_refused_or_cut_to_those_of_all(tmp_path: Path) -> None:
    file = write(tmp_path / "v.jsonl", *lines("a", 0.5, range(80)), *lines("b", 0.5, range(20, 100)))  # fmt: skip
    with pytest.raises(RftError, match=r"20 only in the first, 20 only in the second.*60 that all .*--intersect"):  # fmt: skip
        compare([str(file)])
    compare([str(file)], intersect=True, out=tmp_path / "out")
    got = told(tmp_path / "out")
    assert got["problems"] == 60
    note = "Compared on the 60 problems that all arms have. Left out, since others lack them: a, seed 0 20; b, seed 0 20."  # fmt: skip
    assert note in got["notes"]
    assert note in (tmp_path / "out/report.md").read_text()
    assert note in (tmp_path / "out/report.html").read_text()


def test_no_common_problem_is_refused_in_any_case(tmp_path: Path) -> None:
    file = write(tmp_path / "v.jsonl", *lines("a", 0.5, range(50)), *lines("b", 0.5, range(50, 100)))  # fmt: skip
    with pytest.raises(RftError, match=r"no problem is in all arms: a has 50 .*such as p000.*p050"):
        compare([str(file)], intersect=True)


def test_an_arm_must_have_its_seeds_on_all_problems(tmp_path: Path) -> None:
    own = [*lines("a", 0.5, seed=0), *lines("a", 0.5, range(90), seed=1), *lines("b", 0.5, seed=0)]
    file = write(tmp_path / "v.jsonl", *own, *lines("b", 0.5, seed=1))
    with pytest.raises(RftError, match=r"a, seed 0 .* and a, seed 1 .*10 only in the first"):
        compare([str(file)])


def test_seeds_that_differ_between_arms_are_told_of(tmp_path: Path) -> None:
    own = [*lines("a", 0.5, seed=0), *lines("a", 0.5, seed=1), *lines("b", 0.5, seed=1)]
    compare([str(write(tmp_path / "v.jsonl", *own))], out=tmp_path / "out")
    got = told(tmp_path / "out")
    assert "Not all arms have the same seeds (a 0, 1; b 1): two arms are compared on those they share." in got["notes"]  # fmt: skip
    assert got["comparisons"][-1]["seeds"] == [1]
    other = write(tmp_path / "o.jsonl", *lines("a", 0.5, seed=0), *lines("b", 0.5, seed=1))
    with pytest.raises(
        RftError, match="arm b has seeds 1 and a, which all are compared with, 0: none is in both"
    ):
        compare([str(other)])


def test_an_arm_without_a_seed_of_the_headline_arm_is_refused(tmp_path: Path) -> None:
    given = [*lines("sft", 0.3, seed=0), *lines("sft", 0.3, seed=1), *lines("other", 0.4, seed=0)]
    file = write(tmp_path / "v.jsonl", *given, *lines("rft", 0.4, seed=1))
    with pytest.raises(RftError, match="arm other has seeds 0 and rft, .* 1: .*another --arm"):
        compare([str(file)])


def test_an_arm_may_have_a_name_like_a_round(tmp_path: Path) -> None:
    file = write(tmp_path / "v.jsonl", *lines("llama@base", 0.3), *lines("llama@v2", 0.4))
    compare([str(file)], out=tmp_path / "out")
    assert list(told(tmp_path / "out")["pooled"]) == ["llama@base", "llama@v2"]


def test_labels_tell_files_apart(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{x}.jsonl", *lines(None, share)) for x, share in (("x", 0.3), ("y", 0.9))]  # fmt: skip
    compare([str(paths[0]), f"new={paths[1]}"], out=tmp_path / "out")
    assert told(tmp_path / "out")["headline"] == {"arm": "new", "baseline": "x"}
    with pytest.raises(RftError, match=r"both hold arm same, seed 0, on the same problems: give each a label"):  # fmt: skip
        compare([f"same={paths[0]}", f"same={paths[1]}"])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"baseline": "c"}, "--baseline c: there is no such arm; there are a, b"),
        ({"arm": "c"}, "--arm c: there is no such arm"),
        ({"arm": "a"}, "--arm a: it is the baseline"),
        ({"level": 0.4}, "--level 0.4"),
        ({"margin": 2.0}, "--margin 2.0"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: dict[str, Any], why: str) -> None:
    file = write(tmp_path / "v.jsonl", *lines("a", 0.5), *lines("b", 0.5))
    with pytest.raises(RftError, match=why):
        compare([str(file)], **options)


def test_on_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "v.jsonl", *lines("a", 0.1), *lines("b", 0.9))
    assert cli.main(["compare", str(file), "--arm", "b", "--level", "0.9"]) == 0
    said = capfd.readouterr().err
    assert "b is better than a by" in said
    assert "report:" not in said, "without --out nothing is written"
    assert list(tmp_path.iterdir()) == [file]
    assert cli.main(["compare", str(file), "--arm", "x"]) == 2


# Run folders


def test_a_run_gives_what_its_own_report_gives(tmp_path: Path) -> None:
    from rft.stages import report

    job = build(tmp_path / "one", ("base", "sft", "rft"), (0, 1), resamples=50, eval_n=2, k=(1, 2))
    report.run([job])
    same = run(tmp_path / "two", ("base", "sft", "rft"), seeds=(0, 1), eval_n=2)
    compare([str(same)], out=tmp_path / "out")
    mine, theirs = told(tmp_path / "out"), told(tmp_path / "one/report")
    for part in ("headline", "pooled", "arms"):
        assert mine[part] == theirs[part]
    kept = ("arm", "difference", "low", "high", "p", "wins")
    assert [[c[k] for k in kept] for c in mine["comparisons"]] == [
        [c[k] for k in kept] for c in theirs["comparisons"]
    ]
    assert "Ann has " in (tmp_path / "out/report.html").read_text(), "questions that changed"


def fold(root: Path, number: int, **more: Any) -> Path:
    """A run whose held-out problems no other fold has."""
    return run(root / f"fold{number}", held_out=f"fold {number}", problems=20 + number, **more)


def remake(folder: Path) -> None:
    """As if the stage had made its rows so."""
    manifest = StageDir(folder).manifest() or {}
    (folder / "manifest.json").unlink()
    kept = {k: v for k, v in manifest.items() if k not in ("files", "digest", "seconds", "finished", "rft")}  # fmt: skip
    StageDir(folder).commit(manifest["seconds"], **kept)


def test_folds_are_pooled(tmp_path: Path) -> None:
    folds = [fold(tmp_path, i, seeds=(0, 1)) for i in range(3)]
    compare([str(one) for one in folds], out=tmp_path / "out")
    got = told(tmp_path / "out")
    assert list(got["pooled"]) == ["sft", "rft"]
    assert got["problems"] == 20 + 21 + 22
    each = []
    for i, one in enumerate(folds):
        compare([str(one)], out=tmp_path / f"one{i}")
        each.append(told(tmp_path / f"one{i}"))
    pair, parts = got["comparisons"][-1], [one["comparisons"][-1] for one in each]
    assert pair["difference"] == pytest.approx(
        sum(p["difference"] * p["problems"] for p in parts) / 63
    )
    assert pair["wins"] == sum(p["wins"] for p in parts)
    assert got["arms"][0]["tokens"] == sum(e["arms"][0]["tokens"] for e in each)
    rft = next(a for a in got["arms"] if a["arm"] == "rft")
    assert rft["steps"] == 120
    assert any("rft, seed 0" in n and ": 3 parts on different problems as one (fold0 20, fold1 21" in n for n in got["notes"])  # fmt: skip
    assert set(got["made_of"]) == {k for e in each for k in e["made_of"]}


def test_folds_of_other_settings_are_no_folds(tmp_path: Path) -> None:
    folds = [fold(tmp_path, i, lr=0.001 * (i + 1)) for i in range(2)]
    with pytest.raises(RftError, match=r"fold0/sft .* and fold1/sft .*different data|no problem is in all arms: fold0/sft"):  # fmt: skip
        compare([str(one) for one in folds])
    with pytest.raises(RftError, match=r"both hold arm x/sft, seed 0, with other settings \(train\.lr: 0\.001 -> 0\.002\)"):  # fmt: skip
        compare([f"x={one}" for one in folds])


def test_arms_of_two_runs_stand_side_by_side(tmp_path: Path) -> None:
    one, other = run(tmp_path / "one", ("sft",)), run(tmp_path / "two", ("rft", "base"))
    compare([str(one), str(other)], out=tmp_path / "out")
    got = told(tmp_path / "out")
    assert list(got["pooled"]) == ["sft", "rft", "base"]
    assert got["headline"] == {"arm": "rft", "baseline": "sft"}


def test_an_arm_in_two_runs_is_told_apart_by_its_run(tmp_path: Path) -> None:
    one, other = run(tmp_path / "one"), run(tmp_path / "two")
    compare([str(one), f"new={other}"], out=tmp_path / "out", arm="new/rft")
    got = told(tmp_path / "out")
    assert list(got["pooled"]) == ["one/sft", "one/rft", "new/sft", "new/rft"]
    assert got["headline"] == {"arm": "new/rft", "baseline": "one/sft"}


def test_more_seeds_of_an_arm_join_it(tmp_path: Path) -> None:
    one, other = run(tmp_path / "one"), run(tmp_path / "two", seeds=(1, 2))
    compare([str(one), str(other)], out=tmp_path / "out")
    assert told(tmp_path / "out")["comparisons"][-1]["seeds"] == [0, 1, 2]


def test_different_scorers_are_refused_or_flagged(tmp_path: Path) -> None:
    one, other = run(tmp_path / "one", ("sft",)), run(tmp_path / "two", ("rft",))
    link = other / "rft/seed0/6_eval_score"
    old = link.resolve()
    record = json.loads((old / "stage.json").read_text())
    record["inputs"]["score"] = [{"use": "math"}]
    record = stage_record("score", record["inputs"])
    new = old.with_name(f"score-{record['key'][:12]}")
    old.rename(new)
    (new / "stage.json").write_bytes(to_json(record))
    remake(new)
    link.unlink()
    link.symlink_to(f"../../stages/{new.name}")
    links = integrity.links(other)
    integrity.seal(other, {**links, "rft/seed0/6_eval_score": new.name})
    with pytest.raises(RftError, match=r"judged by different scorers \(score\.0\.use: .*answer.* -> .*math.*--flagged"):  # fmt: skip
        compare([str(one), str(other)])
    compare([str(one), str(other)], flagged=True, out=tmp_path / "out")
    (flag,) = told(tmp_path / "out")["flags"]
    assert "different scorers" in flag
    text = (tmp_path / "out/report.md").read_text()
    assert text.index("**Careful: ") < text.index("| arm |")
    assert "<b>Careful:</b>" in (tmp_path / "out/report.html").read_text()


def test_verdicts_on_the_problems_of_a_run_stand_beside_its_arms(tmp_path: Path) -> None:
    one = run(tmp_path / "one")
    ids = [p.prompt_id for p in rows.read(one / "rft/seed0/6_eval", ProblemRow)]
    own = [{"problem": id, "correct": i % 2 == 0} for i, id in enumerate(ids)]
    compare([str(one), f"mine={write(tmp_path / 'v.jsonl', *own)}"], out=tmp_path / "out")
    got = told(tmp_path / "out")
    assert list(got["pooled"]) == ["sft", "rft", "mine"]
    assert "What judged mine is not known: whether it judges as the others are judged is for you to say." in got["notes"]  # fmt: skip
    same = [{**line, "arm": "rft"} for line in own]
    compare([str(one), f"mine={write(tmp_path / 'v.jsonl', *same)}"], out=tmp_path / "out")
    assert list(told(tmp_path / "out")["pooled"]) == ["sft", "one/rft", "mine/rft"]


def test_an_arm_that_is_not_evaluated_is_named(tmp_path: Path) -> None:
    one = run(tmp_path / "one")
    (one / "rft/seed0/6_eval/manifest.json").unlink()
    with pytest.raises(RftError, match=rf"{one}: arm rft, seed 0 is not evaluated yet \(6_eval is"):
        compare([str(one)])


def test_a_copy_without_its_training_gives_the_rest(tmp_path: Path) -> None:
    one = run(tmp_path / "one")
    for name in ("5_train", "4_select", "2_sample", "1_prompts"):
        shutil.rmtree((one / "rft/seed0" / name).resolve())
    compare([str(one)], out=tmp_path / "out")
    got = told(tmp_path / "out")
    assert any("not here, so parts of the report are left out: 1_prompts, 2_sample, 4_select, 5_train" in n for n in got["notes"])  # fmt: skip
    assert next(a for a in got["arms"] if a["arm"] == "rft")["train_rows"] is None


def test_what_is_in_the_report_of_a_run_alone_is_told(tmp_path: Path) -> None:
    one = run(tmp_path / "one")
    links = integrity.links(one)
    compare([str(one)], out=tmp_path / "out")
    assert not any("alone" in note for note in told(tmp_path / "out")["notes"])
    place = "rft/seed0/7_harness_gsm8k"
    links[place] = links["rft/seed0/6_eval"]
    (one / place).symlink_to((one / "rft/seed0/6_eval").readlink())
    integrity.seal(one, links)
    compare([str(one)], out=tmp_path / "out")
    assert any("lm-evaluation-harness" in note for note in told(tmp_path / "out")["notes"])


def a_verdict(one: Path) -> Path:
    folder = (one / "rft/seed0/6_eval_score").resolve()
    (part,) = rows.parts(folder)
    first, *rest = rows.read(folder, ScoreRow)
    turned = Verdict.WRONG if first.verdict is Verdict.CORRECT else Verdict.CORRECT
    part.unlink()
    rows.write_part(folder, [dataclasses.replace(first, verdict=turned), *rest], ScoreRow)
    return part


def a_setting(one: Path) -> Path:
    file = one / "experiment.yaml"
    file.write_text(file.read_text().replace("0.001", "0.1"))
    return file


def a_link(one: Path) -> Path:
    link = one / "rft/seed0/6_eval"
    link.unlink()
    link.symlink_to((one / "sft/seed0/6_eval").readlink())
    return link


@pytest.mark.parametrize("name", ["run.json", "experiment.yaml"])
@pytest.mark.parametrize("text", [b"{}", b"[]", b"\xff", b"compare: {level: high}\nlinks: 1"])
def test_a_file_that_is_something_else_is_named(tmp_path: Path, name: str, text: bytes) -> None:
    one = run(tmp_path / "one")
    (one / name).write_bytes(text)
    with pytest.raises(RftError, match=name):
        compare([str(one)])


def test_rows_that_contradict_themselves_are_no_rows(tmp_path: Path) -> None:
    one = run(tmp_path / "one")
    folder = (one / "rft/seed0/6_eval").resolve()
    (part,) = rows.parts(folder)
    first, *rest = rows.read(folder, ProblemRow)
    part.unlink()
    rows.write_part(folder, [dataclasses.replace(first, correct=first.n + 1), *rest], ProblemRow)
    with pytest.raises(RftError, match=f"{first.prompt_id}.*cannot be"):
        compare([str(one)], flagged=True)


@pytest.mark.parametrize("change", [a_verdict, a_setting, a_link])
def test_what_was_changed_is_refused_or_flagged(
    tmp_path: Path, change: Callable[[Path], Path]
) -> None:
    one = run(tmp_path / "one")
    file = change(one)
    with pytest.raises(RftError, match="not as it was written.*") as fault:
        compare([str(one)], out=tmp_path / "out")
    assert f"{file}: " in str(fault.value)
    assert not (tmp_path / "out").exists()
    compare([str(one)], flagged=True, out=tmp_path / "out")
    flags = told(tmp_path / "out")["flags"]
    assert any(f"changed after the run had written it: {file}: " in flag for flag in flags)
    text = (tmp_path / "out/report.md").read_text()
    assert text.index("**Careful: ") < text.index("| arm |")


# lm-evaluation-harness


def logged(folder: Path, share: float, task: str = "gsm8k", docs: range = range(60)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(str(folder))
    found = [test_harness.line(f"d{i:02}", exact_match=float(rng.random() < share), f1=0.123 * i / 60) for i in docs]  # fmt: skip
    name = f"samples_{task}_2026-01-01T00-00-00.000000.jsonl"
    return test_harness.write(folder, *found, name=name)


def test_what_the_harness_logged(tmp_path: Path) -> None:
    base, tuned = logged(tmp_path / "out/base", 0.2), logged(tmp_path / "out/tuned", 0.8)
    compare([str(tmp_path / "out")], out=tmp_path / "folder")
    compare([f"base={base}", f"tuned={tuned.parent}"], out=tmp_path / "files")
    got = told(tmp_path / "folder")
    assert got["headline"] == {"arm": "tuned", "baseline": "base"}
    assert got["comparisons"] == told(tmp_path / "files")["comparisons"]
    assert "base: lm-evaluation-harness's gsm8k by exact_match,none." in got["notes"]
    with pytest.raises(RftError, match="f1,none is neither right nor wrong.*--metric"):
        compare([str(base)], metric="f1")
    with pytest.raises(RftError, match="no metric acc in it; it has exact_match,none"):
        compare([str(base)], metric="acc")


def test_other_prompts_are_told_of(tmp_path: Path) -> None:
    one, other = logged(tmp_path / "a", 0.5), logged(tmp_path / "b", 0.5)
    other.write_text(other.read_text().replace("asked d", "asked otherwise d", 10))
    compare([str(one.parent), str(other.parent)], out=tmp_path / "out")
    (flag,) = told(tmp_path / "out")["flags"]
    assert flag.startswith("10 problems were put to b in other words than to a")


def test_another_task_or_metric_is_refused(tmp_path: Path) -> None:
    one, other = logged(tmp_path / "a", 0.5), logged(tmp_path / "b", 0.5, task="math")
    with pytest.raises(
        RftError, match=r"different scorers .*gsm8k by exact_match.*math by exact_m"
    ):
        compare([f"a={one}", f"b={other}"])
    with pytest.raises(
        RftError, match=r"no problem is in all arms: a has 60 .*gsm8k:d.*b 60 .*math"
    ):
        compare([f"a={one}", f"b={other}"], flagged=True, intersect=True)


def test_several_tasks_are_one_arm(tmp_path: Path) -> None:
    for name, share in (("a", 0.3), ("b", 0.6)):
        logged(tmp_path / name, share)
        logged(tmp_path / name, share, task="math", docs=range(40))
    compare([str(tmp_path / "a"), str(tmp_path / "b")], out=tmp_path / "out")
    assert told(tmp_path / "out")["problems"] == 100
    shutil.copy(
        logged(tmp_path / "a", 0.3), tmp_path / "a/samples_gsm8k_2026-01-02T00-00-00.000000.jsonl"
    )
    with pytest.raises(RftError, match="a second file of task gsm8k"):
        compare([str(tmp_path / "a"), str(tmp_path / "b")])
