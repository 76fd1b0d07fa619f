"""Sections as text, the commands of the report, and the figures as files."""

import dataclasses
import json
import re
import shlex
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from rft.cli import parser
from rft.report import analyses, evidence, load, page, paper, parts, trace
from rft.report.compare import compare
from rft.report.parts import Item, Part, Table
from rft.rundir import link
from rft.stages import report
from rft.types import RftError
from tests.synthetic import HOSTILE, build

ARMS = ("base", "sft", "sft_matched", "random", "rft_repeats", "rft")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("runs") / "a run"
    made = build(root, ARMS, (0, 1), 60, eval_n=2, k=(1, 2), resamples=100, seen=20)
    (root / "experiment.yaml").write_text("name: synthetic\n")
    for entry in made["arms"]:
        home = root / entry["arm"] / f"seed{entry['seed']}"
        for stage, name in trace.LINKS.items():
            if entry.get(stage):
                link(home / name, Path(entry[stage]))
    report.run([made])
    return made


def _text(job: dict[str, Any], name: str) -> str:
    return (Path(job["folder"]) / name).read_text()


def test_a_sections_text_reads_no_markup_and_stays_in_its_lines() -> None:
    part = Part(
        "key",
        "Title",
        "Lead <b>bold</b>",
        items=[Item("mark", "kept", "a\nb <i>", "fix")],
        tables=[Table(["x", "y"], [["a | b", "<script>"], ["c\nd", "1"]], "name")],
        codes=[("Add:", "arms:\n  <x>: {}")],
        notes=["one", "two"],
    )
    lines = parts.markdown(part)
    assert "Lead &lt;b>bold&lt;/b>" in lines
    assert "- **mark**: a b &lt;i> fix" in lines
    assert "| a \\| b | &lt;script> |" in lines and "| c d | 1 |" in lines
    assert "      <x>: {}" in lines, "code is shown as it is"
    assert lines[-2:] == ["- one", "- two"]


def test_text_and_page_have_the_same_sections(job: dict[str, Any]) -> None:
    text, html = _text(job, "report.md"), _text(job, "report.html")
    found = evidence.parts(json.loads(_text(job, "comparison.json")))
    assert [one.key for one in found] == ["claims", "confounds", "slices", "diversity", "cost"]
    for one in found:
        assert text.count(f"\n## {one.title}\n") == 1
        assert html.count(f'<section id="{one.key}">') == 1
        for table in one.tables:
            assert {len(row) for row in table.rows} == {len(table.headings)}
    assert HOSTILE[0] not in text.replace(f"`{HOSTILE[0]}`", "")
    assert "\\_" not in text


def test_backticks_are_code_and_nothing_else_is_markup() -> None:
    told = page._prose("set `a.b` to <b>-1</b> & `<i>`")
    assert told == "set <code>a.b</code> to &lt;b&gt;−1&lt;/b&gt; &amp; <code>&lt;i&gt;</code>"


def test_commands_of_the_page_are_ones_that_there_are(job: dict[str, Any]) -> None:
    html = _text(job, "report.html").replace("&#39;", "'")
    told = re.findall(r"<code>(rft [^<]+)</code>", html)
    assert len(told) > 30
    verbs = set()
    for line in dict.fromkeys(told):
        words = shlex.split(line)
        options = parser().parse_args(words[1:])
        verbs.add(options.verb)
        if options.verb == "show":
            assert Path(options.run).is_dir()
            assert options.stage is None or (Path(options.run) / options.stage).is_dir()
        else:
            assert Path(options.config).is_file()
    assert verbs == {"run", "report", "show"}
    # An arm's own links, not another's that shares the stage.
    assert any("rft/seed0/6_eval_score" in line for line in told)
    assert any("sft/seed0/6_eval_score" in line for line in told)


def test_a_stage_without_a_link_is_shown_by_its_folder(tmp_path: Path) -> None:
    made = build(tmp_path, ("sft", "rft"), problems=10, resamples=50)
    run = load.load(made)[0]
    assert trace.place(run, "eval") == [str(tmp_path), Path(made["arms"][0]["eval"]).name]
    assert trace.again(made) == [], "no file to run again"


def test_run_details_tell_settings_machine_and_seeds(job: dict[str, Any]) -> None:
    html = _text(job, "report.html")
    for text in ("Settings in which arms differ", "train.match", "<dt>seeds</dt><dd>0, 1</dd>",
                 "<dt>processor</dt>", "<dt>memory</dt>", "rft report ", "--figures"):  # fmt: skip
        assert text in html
    got = json.loads(_text(job, "comparison.json"))["settings"]
    by_path = {one["path"]: one["values"] for one in got}
    assert by_path["train.match"]["sft_matched"] == "arm:rft"
    assert by_path["sample.use"]["sft"] == "reference"
    assert by_path["train"]["base"] is None and by_path["train"]["rft"] == "(set)"
    assert by_path["select.0.args.rows"] == dict.fromkeys(ARMS) | {"random": "arm:rft"}
    # All have the same; all that train have the same; nothing is set.
    for path in ("model.base", "train.lr", "select.0.args"):
        assert path not in by_path


def test_examples_are_as_many_as_asked_for(tmp_path: Path) -> None:
    made = build(tmp_path, ("sft", "rft"), problems=80, resamples=50)
    made["config"]["compare"]["examples"] = 2
    report.run([made])
    html = _text(made, "report.html")
    for kind in ("fixed", "broken", "still"):
        assert html.count(f'<span class="mark {kind}">') == 2
    made["config"]["compare"]["examples"] = 0
    report.run([made])
    assert "None shown." in _text(made, "report.html")


def test_arms_without_folders_give_a_page(tmp_path: Path) -> None:
    """As of verdicts that were made elsewhere: what needs the rows is left out in words."""
    made = build(tmp_path, ("sft", "rft"), problems=20, resamples=50)
    runs = [
        dataclasses.replace(run, folders={}, manifests={}, pools=(), losses=())
        for run in load.load(made)
    ]
    got = compare(made, runs)
    got["answer"] = "so"
    evidence.gather({**made, "config": {}}, runs, got)
    states = {one["name"]: one["state"] for one in got["confounds"]}
    assert states["contamination"] == states["tuning"] == states["decoding"] == "unknown"
    assert got["slices"]["kind"] is None and got["cost"] == {}
    assert [one.key for one in evidence.parts(got)] == ["claims", "confounds", "slices"]
    assert analyses.parts(got)


def test_figures_are_drawn_alike_each_time(job: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = load.load(job)
    got = json.loads(_text(job, "comparison.json"))
    names = paper.draw(tmp_path / "one", runs, got)
    assert names == ["accuracy", "differences", "pass_at_k", "maj_at_k", "difficulty",
                     "ways_and_gain", "ways_and_gap", "loss"]  # fmt: skip
    paper.draw(tmp_path / "two", runs, got)
    for name in names:
        for form in ("svg", "pdf"):
            one = (tmp_path / "one" / f"{name}.{form}").read_bytes()
            assert one == (tmp_path / "two" / f"{name}.{form}").read_bytes()
        assert one.startswith(b"%PDF")
        root = ET.fromstring((tmp_path / "one" / f"{name}.svg").read_text())
        kinds = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert "svg" in kinds and not kinds & {"script", "image", "foreignObject"}
        assert root.attrib["width"].endswith("pt")


def test_an_arms_name_is_no_formula(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made = build(tmp_path, ("sft", "rft"), problems=10, resamples=50)
    for entry in made["arms"]:
        entry["arm"] = entry["arm"].replace("rft", "r$f_t$^")
    report.run([{**made, "figures": True}])
    assert (Path(made["folder"]) / "figures" / "accuracy.pdf").is_file()


def test_figures_without_matplotlib_are_refused_with_the_fix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RftError, match=r"pip install 'rft\[figures\]'"):
        paper.check()
