"""The report of a real run: its commands show the rows that its page shows."""

import json
import re
import shlex
import sys
from html import unescape
from pathlib import Path

import pytest

from rft import cli
from tests.pipeline.conftest import copy, rft


def test_rows_that_the_page_shows_are_found_by_its_commands(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    html = (finished / "report" / "report.html").read_text()
    told = [unescape(one) for one in re.findall(r"<code>(rft show [^<]+)</code>", html)]
    rows = [one for one in dict.fromkeys(told) if len(shlex.split(one)) == 5]
    assert len(rows) > 10
    assert {shlex.split(one)[3].rpartition("/")[2] for one in rows} == {"6_eval_score", "4_select"}
    for line in rows:
        words = shlex.split(line)
        assert cli.main(words[1:]) == 0, line
        shown = capsys.readouterr().out
        assert words[4] in shown
        # The page has the row's question, whole, in the same fold.
        fold = next(f for f in html.split("<details>") if line in unescape(f))
        question = re.search(r"<pre>(.*?)</pre>", fold, re.DOTALL)
        assert question
        assert "".join(unescape(question[1]).split()) in "".join(shown.split())


def test_a_real_run_has_its_controls_and_costs(finished: Path) -> None:
    got = json.loads((finished / "report" / "comparison.json").read_text())
    states = {one["control"]: one["state"] for one in got["claims"]}
    assert set(states) == {"base", "sft", "sft_matched", "random", "repeats"}
    assert "missing" not in states.values()
    found = {one["name"]: one for one in got["confounds"]}
    assert found["matching"]["state"] == "clear"
    assert found["tuning"]["figures"] == {"stale": 0, "runs": {}}
    cost = {one["arm"]: one for one in got["cost"]["arms"]}
    # rft samples from what sft has trained, so it needs that too.
    assert cost["rft"]["by_stage"]["train"] > cost["sft"]["by_stage"]["train"] > 0
    assert cost["rft"]["tokens_sampled"] > cost["sft"]["tokens_sampled"]
    assert cost["base"]["seconds"] == cost["rft"]["by_stage"]["score"] == 0
    ways = {one["arm"]: one["ways"] for one in got["diversity"]["arms"] if "ways" in one}
    assert ways["sft"] == 1 < ways["rft"]


def test_the_report_is_made_again_with_its_figures(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = copy(finished, tmp_path)
    file = runs / "quickstart" / "experiment.yaml"
    done = rft(sys.executable, "-m", "rft.cli", "report", str(file), f"runs={runs}", "--figures")
    assert done.returncode == 0, done.stdout + done.stderr
    made = {one.name for one in (runs / "quickstart" / "report" / "figures").iterdir()}
    assert {"accuracy.svg", "accuracy.pdf", "differences.svg", "difficulty.pdf"} <= made
