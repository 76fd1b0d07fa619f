"""Tasks of lm-evaluation-harness on the base model and on what the arms have learnt.

One process serves all arms, seeds and tasks. `hf` loads a model for each adapter, as the harness does
it; `vllm` starts once, with the adapters served in turn. A stage is one task of one arm and seed: what
is finished stays where the process is killed. It holds the harness's own files, results_*.json and
samples_*.jsonl.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from rft import process
from rft.chat import Renderer
from rft.config import Chat, Model
from rft.config_decoding import Engine
from rft.report import harness
from rft.rundir import StageDir
from rft.samplers import vllm
from rft.samplers._formats import missing
from rft.stages import _harness
from rft.types import RftError, Setup

LONGEST = 8192
"""Tokens of prompt and answer that vLLM makes room for, where the model takes as many."""


def run(jobs: list[dict[str, Any]]) -> None:
    """Raises RftError where a model or an adapter cannot be had."""
    todo = [job for job in jobs if StageDir(Path(job["folder"])).manifest() is None]
    if not todo:
        return
    asked = todo[0]["harness"]
    _harness.allow_code(asked["unsafe_code"])
    found = _harness.manager(asked["include_path"], tuple(asked["tasks"]))
    by_model: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for job in todo:
        by_model[_weights(job).base].append(job)
    for same in by_model.values():
        serve = _with_hf if asked["model"] == "hf" else _with_vllm
        for model, job in serve(same):
            _evaluate(model, found, job)


def _weights(job: dict[str, Any]) -> Model:
    """The base model; or the one that a training has saved as a whole in the place of an adapter."""
    model, folder = Model(**job["model"]), job["adapter"]
    if folder is None or not (Path(folder) / "config.json").is_file():
        return model
    return model.model_copy(update={"base": folder, "revision": None})


def _adapter(job: dict[str, Any]) -> str | None:
    return None if _weights(job).base == job["adapter"] else job["adapter"]


def _by_adapter(jobs: list[dict[str, Any]]) -> dict[str | None, list[dict[str, Any]]]:
    found: dict[str | None, list[dict[str, Any]]] = defaultdict(list)
    for job in jobs:
        found[_adapter(job)].append(job)
    return found


def _with_hf(jobs: list[dict[str, Any]]) -> Iterator[tuple[Any, dict[str, Any]]]:
    import torch
    from lm_eval.models.huggingface import HFLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    engine = Engine(**jobs[0]["engine"])
    if fault := missing(engine.dtype, "transformers"):
        raise RftError(f"eval.engine.dtype: {fault}")
    for adapter, same in _by_adapter(jobs).items():
        model = _weights(same[0])
        lm = HFLM(
            pretrained=model.base,
            revision=model.revision or "main",
            trust_remote_code=model.trust_remote_code,
            dtype="float32" if device == "cpu" and engine.dtype == "auto" else engine.dtype,
            device=device,
            batch_size=same[0]["harness"]["batch_size"],
            peft=adapter,
        )
        for job in same:
            yield lm, job
        del lm
        if device == "cuda":
            torch.cuda.empty_cache()


def _with_vllm(jobs: list[dict[str, Any]]) -> Iterator[tuple[Any, dict[str, Any]]]:
    model, engine = _weights(jobs[0]), Engine(**jobs[0]["engine"])
    by_adapter = _by_adapter(jobs)
    adapters = tuple(folder for folder in by_adapter if folder)
    # Few-shot prompts can be longer than ours; but memory is set aside for the longest that may come.
    longest = min(_context(model), max(model.max_len, LONGEST))
    model = model.model_copy(update={"max_len": longest})
    setup = Setup(model, engine, Renderer(model, Chat()), {}, adapters, section="eval")
    args, requests = vllm.for_others(setup)
    from lm_eval.models.vllm_causallms import VLLM

    lm = VLLM(pretrained=args.pop("model"), **args)
    for adapter, same in by_adapter.items():
        lm.lora_request = requests[adapter]
        for job in same:
            yield lm, job


def _context(model: Model) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        model.base, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    return int(getattr(config, "max_position_embeddings", model.max_len))


def _evaluate(lm: Any, found: Any, job: dict[str, Any]) -> None:
    import lm_eval
    from lm_eval.loggers import EvaluationTracker

    started, folder, asked = time.monotonic(), Path(job["folder"]), job["harness"]
    for old in (*folder.glob("results_*"), *folder.glob("samples_*")):
        old.unlink()  # of an attempt that was killed
    tracker = EvaluationTracker(output_path=str(folder / "results.json"))
    results: Any = lm_eval.simple_evaluate(
        lm,
        # For the record alone: the model is there.
        model_args={"pretrained": _weights(job).base, "peft": _adapter(job) or ""},
        tasks=[job["task"]],
        task_manager=found,
        num_fewshot=asked["num_fewshot"],
        limit=asked["limit"],
        apply_chat_template=asked["apply_chat_template"],
        batch_size=asked["batch_size"],
        confirm_run_unsafe_code=asked["unsafe_code"],
        bootstrap_iters=0,
        log_samples=True,
        evaluation_tracker=tracker,
    )
    samples = results.pop("samples")
    cut = sum(_cut(lm, rows) for rows in samples.values())
    tracker.save_results_aggregated(results=results, samples=samples)
    files = {}
    for leaf, rows in samples.items():
        tracker.save_results_samples(leaf, rows)
        # It only logs what keeps it from writing.
        files[leaf] = next(folder.glob(f"samples_{leaf}_????-??-??T*.jsonl"), None)
        if files[leaf] is None:
            raise RftError(f"{folder}: the harness wrote no samples of {leaf}: see the log")
    metrics = _metrics(results, {leaf: path for leaf, path in files.items() if path})
    StageDir(folder).commit(
        time.monotonic() - started,
        rows=sum(results["n-samples"][leaf]["effective"] for leaf in samples),
        files_of={leaf: path.name for leaf, path in files.items() if path},
        lm_eval=metadata.version("lm_eval"),
        versions={name: str(version) for name, version in results["versions"].items()},
        task_hashes=results["task_hashes"],
        metrics=metrics,
        cut_prompts=cut,
    )
    told = ", ".join(f"{name} {100 * value:.1f}%" for name, value in list(metrics.items())[:3])
    process.say(f"  {job['label']}: {told or 'no metric that is a mean over problems'}")
    if cut:
        process.say(
            f"  warning: {cut:,} prompts were too long for the model's {lm.max_length:,} tokens, and the "
            "harness cut off their beginning: set eval.harness.num_fewshot lower"
        )


def _metrics(results: Any, files: dict[str, Path]) -> dict[str, float]:
    """The metrics that arms can be compared by, in the task's order: better where higher, and as the
    harness gives them a mean over problems; of a group those of all its tasks. With the mean over all
    problems."""
    found: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for leaf, path in files.items():
        better, told = results["higher_is_better"][leaf], results["results"][leaf]
        for name, (mean, problems) in harness.means(path).items():
            same = abs(mean - float(told.get(name, "nan"))) < 1e-5
            if same and better.get(name.partition(",")[0], True):
                found[name].append((mean, problems))
    return {
        name: sum(mean * n for mean, n in got) / sum(n for _, n in got)
        for name, got in found.items()
        if len(got) == len(files)
    }


def _cut(lm: Any, rows: list[dict[str, Any]]) -> int:
    """Problems whose prompt leaves no room for the answer, so that the harness took off its beginning."""
    found = set()
    for row in rows:
        for asked in row["arguments"]:
            if len(asked) < 2 or not isinstance(asked[0], str) or row["doc_id"] in found:
                continue
            text, answer = asked[0], asked[1]
            if isinstance(answer, dict):
                room = answer.get("max_gen_toks", lm.max_gen_toks)
            else:
                # The last token of an answer that is there already is not read.
                room = len(lm.tok_encode(answer)) - 1
            if len(lm.tok_encode(text)) + room > lm.max_length:
                found.add(row["doc_id"])
    return len(found)


if __name__ == "__main__":
    process.stage_main(run)
