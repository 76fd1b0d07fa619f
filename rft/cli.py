"""The `rft` command: verbs and their help, no logic.

Importing this file must stay cheap (no torch, no vllm, no pydantic), since `rft --help` is the
first thing that anyone runs. Each verb imports what it needs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

STAGES = {
    "sample": "draw the candidates",
    "score": "score the candidates",
    "select": "choose the training rows",
    "train": "fine-tune the arms",
    "eval": "evaluate the arms on the held-out problems",
}

EXPORTS = {
    "model": "merged, checked",
    "adapter": "PEFT",
    "gguf": "by llama.cpp's converter",
    "parquet": "the training rows",
    "trl": "the rows for TRL",
    "axolotl": "for axolotl",
    "llama-factory": "for LLaMA-Factory",
    "openai": "for OpenAI's fine-tuning",
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="rft",
        description="Rejection-sampling fine-tuning: sample many answers, keep the right ones, "
        "fine-tune on them, and compare with fine-tuning on the data set's own solutions.",
        epilog="example: rft run configs/quickstart.yaml train.lr=1e-3",
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    def verb(name: str, about: str, example: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=about, description=about, epilog=f"example: {example}")

    def experiment(name: str, about: str, example: str) -> argparse.ArgumentParser:
        one = verb(name, about, example)
        one.add_argument("config", help="experiment file (YAML)")
        one.add_argument(
            "settings", nargs="*", metavar="KEY=VALUE", help="settings to replace, by dotted path"
        )
        return one

    one = experiment(
        "run", "run every stage that is not done yet, and report", "rft run configs/quickstart.yaml"
    )
    one.add_argument(
        "--update", action="store_true", help="let an old run folder follow a changed config"
    )
    experiment(
        "check",
        "check the whole experiment without a model: settings, data, scorers on the gold "
        "solutions, and the plan",
        "rft check configs/quickstart.yaml",
    )
    one = experiment(
        "plan",
        "sample a few prompts, and say what sampling all will bring and cost",
        "rft plan configs/quickstart.yaml --prompts 48",
    )
    one.add_argument("--prompts", type=int, default=48, help="training prompts of the pilot (48)")
    one.add_argument("--samples", type=int, default=8, help="samples of each of them, at most (8)")
    for name, about in STAGES.items():
        more = " eval.harness.tasks=[gsm8k] --harness lm-eval" if name == "eval" else ""
        one = experiment(name, f"{about}, running the stages before it as needed",
                         f"rft {name} configs/quickstart.yaml{more}")  # fmt: skip
        one.add_argument(
            "--update", action="store_true", help="let an old run folder follow a changed config"
        )
        if name == "eval":
            one.add_argument("--harness", choices=("lm-eval",),
                             help="evaluate on the tasks of eval.harness as well, and report")  # fmt: skip
    one = experiment("report", "compare the arms again and write the report",
                     "rft report configs/quickstart.yaml compare.level=0.9")  # fmt: skip
    one.add_argument(
        "--figures", action="store_true", help="write report/figures/ too: SVG and PDF for a paper"
    )
    one = verb("compare", "compare the arms of any runs, of what lm-evaluation-harness has logged, and of verdicts "
               "made elsewhere",
               "rft compare runs/quickstart mine=verdicts.jsonl --baseline sft --out compared")  # fmt: skip
    one.add_argument("runs", nargs="+", metavar="[LABEL=]RUN",
                     help="a run folder; samples_*.jsonl of lm-evaluation-harness (--log_samples) or a folder of "
                     "them; or JSON lines of verdicts: problem, correct, and if need be n, arm, seed, sample. "
                     "LABEL names an arm that has no name, and tells runs apart")  # fmt: skip
    one.add_argument("--baseline", metavar="ARM",
                     help="arm that the others are compared with (the first run's, else the first arm)")  # fmt: skip
    one.add_argument("--arm", help="arm of the headline (rft, else the last)")
    one.add_argument("--level", type=float, help="confidence level (0.95)")
    one.add_argument("--margin", type=float,
                     help="largest loss that would not matter, a fraction: is an arm no worse than that?")  # fmt: skip
    one.add_argument("--metric", metavar="NAME[,FILTER]",
                     help="of lm-evaluation-harness's metrics (the first in the file)")  # fmt: skip
    one.add_argument("--intersect", action="store_true",
                     help="compare the problems that all arms have, where they have different ones")  # fmt: skip
    one.add_argument("--flagged", action="store_true",
                     help="go on where a run was changed by hand or scorers differ; the report says so first")  # fmt: skip
    one.add_argument("--out", type=Path, metavar="FOLDER",
                     help="write report.html, report.md and comparison.json there")  # fmt: skip
    one = experiment("export", "write what an arm has learnt, or the rows that it learnt from, as a folder with "
                     "a card",
                     "rft export configs/quickstart.yaml --arm rft --as trl --to data/mine")  # fmt: skip
    one.add_argument("--arm", default="rft", help="arm to export (rft)")
    one.add_argument("--to", required=True, metavar="FOLDER", help="folder to make")
    one.add_argument("--seed", type=int, help="its seed (the first)")
    kinds = "; ".join(f"{name}: {about}" for name, about in EXPORTS.items())
    one.add_argument("--as", dest="form", default="model", choices=EXPORTS, metavar="KIND",
                     help=f"what to write (model). {kinds}")  # fmt: skip
    one.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), help="number format of model and gguf (bf16)"
    )
    one.add_argument("--converter", metavar="FILE",
                     help="llama.cpp's convert_hf_to_gguf.py (the one on the PATH)")  # fmt: skip
    one.add_argument("--push", metavar="OWNER/NAME",
                     help="put the folder on the Hugging Face hub, in a new repository a private one")  # fmt: skip
    one = verb("show", "show a run, one of its stages, or one row",
               "rft show runs/quickstart rft/seed0/4_select")  # fmt: skip
    one.add_argument("run", help="run folder, for instance runs/quickstart")
    one.add_argument("stage", nargs="?", help="for instance sample, or rft/seed0/2_sample")
    one.add_argument("id", nargs="?", help="beginning of a row's id")
    one.add_argument("-n", type=int, default=5, help="rows to show of a stage (default 5)")
    one.add_argument("--tokens", action="store_true", help="token ids and log-probabilities too")
    one = verb("formats", "show what number formats hold, and what becomes of numbers in them",
               "rft formats 65504.1 1e-8 0.1")  # fmt: skip
    one.add_argument("numbers", nargs="*", metavar="NUMBER", help="such as 0.1, -1e-8, inf or nan")
    verb("doctor", "check this machine, and say how to fix what is wrong", "rft doctor")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 a check failed, 2 wrong input, 130 interrupted."""
    from rft import process
    from rft.types import RftError

    process.stop_once()
    top = parser()
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["formats"] and not {"-h", "--help", "--"} & set(words):
        words.insert(1, "--")  # or argparse takes -1e-8 and -inf for options
    options, rest = top.parse_known_args(words)
    # argparse gives up on settings that stand behind an option: rft run X.yaml --update a=b
    settings = [word for word in rest if "=" in word and not word.startswith("-")]
    if len(settings) < len(rest) or (settings and not hasattr(options, "settings")):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if settings:
        options.settings += settings
    try:
        return _do(options)
    except RftError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; give the same command again to go on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `rft show ... | head` closes the pipe early; that is no fault.
        sys.stderr.close()
        return 0


def _do(options: argparse.Namespace) -> int:
    if options.verb == "doctor":
        from rft.doctor import run_doctor

        return run_doctor()
    if options.verb == "formats":
        from rft import formats

        formats.show(options.numbers)
        return 0
    if options.verb == "show":
        from rft import show

        show.show(Path(options.run), options.stage, options.id, options.n, options.tokens)
        return 0
    if options.verb == "compare":
        from rft.compare import compare

        given = vars(options).copy()
        compare(given.pop("runs"), **{k: v for k, v in given.items() if k != "verb"})
        return 0
    from rft import loader
    from rft.types import RftError

    experiment = loader.load(options.config, options.settings)
    if options.verb == "export":
        from rft.export import export

        export(
            experiment,
            Path(options.to),
            arm=options.arm,
            seed=options.seed,
            form=options.form,
            dtype=options.dtype,
            converter=options.converter,
            repo=options.push,
        )
        return 0
    if options.verb == "check":
        from rft import check

        return check.check(experiment, options.config)
    from rft import runner

    if options.verb == "plan":
        runner.pilot(experiment, options.prompts, options.samples)
        return 0
    if options.verb == "report":
        runner.report(experiment, options.figures)
        return 0
    with_harness = getattr(options, "harness", None) is not None
    if with_harness and not experiment.eval.harness.tasks:
        raise RftError(
            f"{options.config}: --harness: name the tasks, for instance 'eval.harness.tasks=[gsm8k]'"
        )
    until = None if options.verb == "run" or with_harness else options.verb
    runner.run(experiment, until=until, update=options.update)
    return 0


if __name__ == "__main__":
    sys.exit(main())
