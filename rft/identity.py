"""What results depend on, as digests: data, models, components. A plan's keys are made of these.

Each is worked out once: over a large data set or a model one takes tens of milliseconds.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rft import components, prompts
from rft.chat import chat_digest
from rft.config import Arm, Chat, ConfigError, Example, Model, Sample
from rft.config_decoding import Decoding, Eval
from rft.rundir import file_digest, flatten, folder_digest, model_digest
from rft.section import Component
from rft.types import Prompt, digest

TRANSPORT: dict[str, tuple[str, ...]] = {
    "openai": (
        "base_url",
        "api_key_env",
        "adapters",
        "max_concurrency",
        "requests_per_minute",
        "tokens_per_minute",
        "timeout_s",
        "patience_s",
    )
}
"""Of built-in samplers the arguments that say how samples are had, not which."""


class Identity:
    """The digests of an experiment. Loads the prompts, since their digests are among them."""

    def __init__(self) -> None:
        self._sets: dict[str, prompts.PromptSet] = {}
        self._models: dict[tuple[str, str | None], str] = {}
        self._digests: dict[tuple[str, str, str], str] = {}
        self._sources: dict[tuple[str, str], str] = {}

    def prompt_set(self, arm: Arm) -> prompts.PromptSet:
        key = digest(arm.prompts.model_dump(mode="json"))
        if key not in self._sets:
            self._sets[key] = prompts.load(arm.prompts)
        return self._sets[key]

    def problems(self, arm: Arm, split: str) -> list[Prompt]:
        """The problems of `train`, of `eval`, or of `seen`: the training problems that the arms are
        evaluated on."""
        got = self.prompt_set(arm)
        if split != "seen":
            return got.train if split == "train" else got.eval
        gold = [p for p in got.train if p.answer is not None or p.tests is not None]
        solved = [p for p in gold if p.solution is not None]
        return (solved or gold)[: arm.eval.train_problems]

    def digest(self, of: Callable[[Iterable[Prompt]], str], arm: Arm, split: str) -> str:
        """`of` the split, once: over a large data set it takes tens of milliseconds."""
        some = arm.eval.train_problems if split == "seen" else None
        key = (of.__name__, digest(arm.prompts.model_dump(mode="json"), some), split)
        if key not in self._digests:
            self._digests[key] = of(self.problems(arm, split))
        return self._digests[key]

    def chat(self, arm: Arm, own: dict[str, Any]) -> Chat:
        """How a question is asked, with its examples chosen."""
        chat = arm.asking(own)
        if not chat.shots or chat.examples:
            return chat
        # One more than are shown: a prompt that is among them is not shown itself.
        solved = (p for p in self.prompt_set(arm).train if p.solution is not None)
        examples = [
            Example(question=p.question, solution=p.solution or "", answer=p.answer)
            for p in itertools.islice(solved, chat.shots + 1)
        ]
        if len(examples) <= chat.shots:
            raise ConfigError(
                f"chat.shots: {chat.shots} examples are wanted, and with one to spare there are only "
                f"{len(examples)} training problems with a solution: give chat.examples"
            )
        return chat.model_copy(update={"examples": examples})

    def component(self, kind: str, component: Component, arm: Arm, split: str) -> dict[str, Any]:
        """What of a component its stage depends on. Files that its arguments name count, and with
        one of the user's own all of a prompt; modules that it imports don't."""
        use = component.use
        if (kind, use) not in self._sources:
            self._sources[kind, use] = components.source_digest(kind, use)
        inputs: dict[str, Any] = {"use": _portable(use), "source": self._sources[kind, use]}
        if ":" in use:
            inputs["prompts"] = self.digest(prompts.rows_digest, arm, split)
        named = {k: v for k, v in flatten(component.args).items() if isinstance(v, str)}
        files = {k: file_digest(Path(v)) for k, v in named.items() if _is_file(v)}
        # A folder is a model: of a reward, of embeddings. Or the user's own lists.
        files |= {k: folder_digest(Path(v)) for k, v in named.items() if _is_folder(v)}
        # A component of the user's own among the arguments.
        own = {k: v.rpartition(":")[0] for k, v in named.items() if ".py:" in v}
        files |= {k: file_digest(Path(v)) for k, v in own.items() if _is_file(v)}
        if files or ":" in use:
            inputs["files"] = files
        if "kind" in component.args.values():
            # `by: kind`: the labels that the prompts are grouped by.
            inputs["kinds"] = self.digest(prompts.kinds_digest, arm, split)
        return inputs

    def allocation(self, arm: Arm, asked: Sample, where: str) -> dict[str, Any]:
        """What of an allocator the samples depend on. Raises ConfigError for one that can't be followed."""
        target = components.argument("allocators", asked.allocate, "target", f"{where}.allocate")
        if isinstance(target, int) and target > asked.n:
            raise ConfigError(
                f"{where}.allocate.args.target: no prompt can have {target} right answers of n = "
                f"{asked.n} samples: raise n to several times the target, or lower the target"
            )
        for i, scorer in enumerate(arm.score):
            if components.is_stream(scorer.use):
                raise ConfigError(
                    f"{where}.allocate.use: {asked.allocate.use} needs verdicts while it samples, and "
                    f"score.{i}: {scorer.use} gives none before: use scorers that judge one candidate "
                    "at a time, or set allocate.use to uniform"
                )
        what = self.component("allocators", asked.allocate, arm, "train")
        return {**what, "args": flatten(asked.allocate.args), "distinct": asked.distinct}

    def verdicts(self, arm: Arm, split: str, where: Callable[[str], str]) -> dict[str, Any]:
        """What the verdicts on given candidates depend on. where: a setting's dotted path."""
        setting, given, rule = arm.scorers(split)
        scorers = []
        for i, scorer in enumerate(given):
            # Bound now, so that a wrong argument is found before anything is sampled.
            components.bind("scorers", scorer, where(f"{setting}.{i}"))
            what = self.component("scorers", scorer, arm, split)
            scorers.append({**what, "args": without_folders(scorer.args)})
        inputs: dict[str, Any] = {
            "gold": self.digest(prompts.gold_digest, arm, split),
            "score": scorers,
        }
        if len(scorers) > 1:
            inputs["combine"] = rule.model_dump(mode="json")
        return inputs

    def model(self, model: Model, chat: Chat) -> dict[str, Any]:
        """What of a model is part of an id: its weights, and how text becomes tokens."""
        return {"weights": self.weights(model), "chat": chat_digest(chat)}

    def weights(self, model: Model) -> str:
        base, revision = model.base, model.revision
        if Path(base).is_absolute() and not Path(base).is_dir():
            raise ConfigError(f"model.base: no such folder: {base}")
        if (base, revision) not in self._models:
            self._models[base, revision] = model_digest(base, revision)
        return self._models[base, revision]

    def adapter(self, folder: str, where: str, base: str) -> str:
        if not (Path(folder) / "adapter_config.json").is_file():
            raise ConfigError(
                f"{where}.policy: {folder}: there is no LoRA adapter (adapter_config.json)"
            )
        if fault := _misfit(Path(folder), Path(base)):
            raise ConfigError(
                f"{where}.policy: {folder}: this adapter was made for another model than {base}: {fault}. "
                "Give the model that it was trained on, as `model` of a pool or of all"
            )
        return folder_digest(Path(folder))


def _misfit(adapter: Path, base: Path) -> str | None:
    """Why an adapter can't be of a model: the first layer whose shape is another; None where all that
    can be compared fit. Only headers are read. An engine would say so after it has started, or not."""
    wanted = _shapes(adapter / "adapter_model.safetensors")
    files = sorted(base.glob("*.safetensors"))
    there = {name: shape for file in files for name, shape in _shapes(file).items()}
    for name, shape in wanted.items():
        layer, _, part = name.removeprefix("base_model.model.").partition(".lora_")
        weight = there.get(f"{layer}.weight")
        if weight is None or part not in ("A.weight", "B.weight") or len(weight) != 2:
            continue
        size = shape[1] if part == "A.weight" else shape[0]
        # The weights of some layers (GPT-2's) lie the other way round.
        if size not in weight:
            return f"{layer} has {weight[0]} x {weight[1]} weights there, and here {size}"
    return None


def _shapes(file: Path) -> dict[str, list[int]]:
    """Shapes of a file's tensors that are floating point, by name; none where it can't be read, which
    whoever loads it will say."""
    try:
        with open(file, "rb") as data:
            header = json.loads(data.read(int.from_bytes(data.read(8), "little")))
        tensors = {k: v for k, v in header.items() if k != "__metadata__"}
        return {k: v["shape"] for k, v in tensors.items() if v["dtype"] in ("F32", "F16", "BF16")}
    except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError):
        return {}


def drawn_by(
    asked: Sample | Eval,
    model: Model,
    adapter: str,
    seed: int,
    component: dict[str, Any],
) -> dict[str, Any]:
    """What of the settings a sample depends on. adapter: its digest, or `base`; component: what of the
    sampler it depends on."""
    settings = asked.model_dump()
    apart = ("n", "logprobs") if settings["loops"] else ("n", "logprobs", "loops")
    drawn = {k: settings[k] for k in Decoding.model_fields if k not in apart}
    drawn["policy"] = adapter
    drawn["engine"] = {"dtype": asked.engine.dtype, "extra": asked.engine.extra}
    if asked.temperature > 0:
        drawn["seed"] = seed
    if asked.beam_width:
        # Where the budget ends decides which beams win.
        drawn["max_len"] = model.max_len
    if ":" in asked.use:
        drawn |= {"source": component["source"], "prompts": component["prompts"]}
    if asked.use != "ray":
        how = TRANSPORT.get(asked.use, ())
        args = {k: v for k, v in asked.args.items() if k not in how}
        if asked.use == "speculative":
            args = _speculation(args)
        if args:
            drawn["args"] = without_folders(args)
        if files := component.get("files"):
            drawn["files"] = files
    return drawn


def _speculation(args: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `speculative`, without where it draws and where a scorer of the user's lies."""
    if args.get("sampler") == "ray":
        args = {k: v for k, v in args.items() if k not in ("sampler", "sampler_args")}
    by = args.get("by")
    if isinstance(by, dict) and isinstance(by.get("use"), str):
        args = {**args, "by": {**by, "use": _portable(by["use"])}}
    return args


def without_folders(args: dict[str, Any]) -> dict[str, Any]:
    """Arguments as {dotted path: value}. A file counts by what it holds and its format, not by where
    it lies."""
    return {
        k: Path(v).suffix if isinstance(v, str) and (_is_file(v) or _is_folder(v)) else v
        for k, v in flatten(args).items()
    }


def _is_file(text: str) -> bool:
    # A bare word is a setting, even if a file of that name lies around.
    return "/" in text and os.path.isfile(text)


def _is_folder(text: str) -> bool:
    return "/" in text and os.path.isdir(text)


def _portable(use: str) -> str:
    """`use` without the folder of a file of the user's: its source is in the key already, and a
    moved checkout must not make a run anew."""
    where, _, name = use.rpartition(":")
    return f"{Path(where).name}:{name}" if where.endswith(".py") else use
