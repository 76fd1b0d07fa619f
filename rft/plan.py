"""From an experiment to the stages it needs, before any of them runs.

A node's key is the hash of named inputs: its slice of the config, the keys of the stages it reads,
the digests of the data it depends on, and its components' source. Nodes with the same key are one
node, which is how arms and seeds share work. What a stage does not depend on is left out of its
key: sampling does not depend on gold answers, nor any id on the engine's speed settings.
"""

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rft import components, prompts
from rft.chat import chat_digest
from rft.config import Arm, Component, ConfigError, Decoding, Experiment
from rft.rundir import StageDir, file_digest, flatten, folder_digest, model_digest
from rft.types import Prompt, digest


@dataclass(frozen=True)
class Node:
    """One stage to run: its key's inputs, the stages it reads, and what its process is told."""

    kind: str
    """prompts, sample, score, select, train or eval."""
    label: str
    inputs: dict[str, Any]
    needs: tuple["Node", ...]
    job: dict[str, Any] = field(repr=False)
    stages: Path = field(repr=False)
    late: bool = False
    """Evaluation waits for all training, so that one engine serves every arm."""

    @functools.cached_property
    def key(self) -> str:
        return digest(self.inputs)

    @property
    def dir(self) -> StageDir:
        return StageDir(self.stages / f"{self.kind}-{self.key[:12]}")

    @property
    def done(self) -> bool:
        return self.dir.manifest() is not None


@dataclass(frozen=True)
class ArmPlan:
    """The nodes of one arm and seed, by the name of the link to each."""

    arm: str
    seed: int
    links: dict[str, Node]


class Plan:
    """All nodes of an experiment. Loads the prompts, since their digests are inputs."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.folder = experiment.folder
        self.stages = self.folder / "stages"
        self.arms = {name: experiment.arm(name) for name in experiment.arms}
        self._sets: dict[str, prompts.PromptSet] = {}
        self._models: dict[tuple[str, str | None], str] = {}
        self._digests: dict[tuple[str, str, str], str] = {}
        self._sources: dict[tuple[str, str], str] = {}
        self._made: dict[tuple[str, str, int], Node] = {}
        self._open: list[str] = []
        self._nodes: dict[str, Node] = {}
        try:
            self.rows = [
                ArmPlan(name, seed, self._links(name, seed))
                for seed in experiment.seeds
                for name in self.arms
            ]
        except ConfigError as fault:
            raise ConfigError(f"{experiment.path}: {fault}") from fault

    def nodes(self) -> Iterator[Node]:
        """Every node once, each after those it needs."""
        seen: set[str] = set()

        def visit(node: Node) -> Iterator[Node]:
            if node.key in seen:
                return
            for need in node.needs:
                yield from visit(need)
            seen.add(node.key)
            yield node

        for row in self.rows:
            for node in row.links.values():
                yield from visit(node)

    def prompt_set(self, arm: Arm) -> prompts.PromptSet:
        key = digest(arm.prompts.model_dump(mode="json"))
        if key not in self._sets:
            self._sets[key] = prompts.load(arm.prompts)
        return self._sets[key]

    def _digest(self, of: Callable[[Iterable[Prompt]], str], arm: Arm, split: str) -> str:
        """`of` the split, once: over a large data set it takes tens of milliseconds."""
        key = (of.__name__, digest(arm.prompts.model_dump(mode="json")), split)
        if key not in self._digests:
            got = self.prompt_set(arm)
            self._digests[key] = of(got.train if split == "train" else got.eval)
        return self._digests[key]

    def _component(self, kind: str, component: Component, arm: Arm, split: str) -> dict[str, Any]:
        """What of a component its stage depends on. Files that its arguments name count, and with
        one of the user's own all of a prompt; modules that it imports don't."""
        use = component.use
        if (kind, use) not in self._sources:
            self._sources[kind, use] = components.source_digest(kind, use)
        inputs: dict[str, Any] = {"use": _portable(use), "source": self._sources[kind, use]}
        if ":" in use:
            inputs["prompts"] = self._digest(prompts.rows_digest, arm, split)
        named = {k: v for k, v in flatten(component.args).items() if isinstance(v, str)}
        files = {k: file_digest(Path(v)) for k, v in named.items() if _is_file(v)}
        # A folder is a model: of a reward, of embeddings. Or the user's own lists.
        files |= {k: folder_digest(Path(v)) for k, v in named.items() if _is_folder(v)}
        if files or ":" in use:
            inputs["files"] = files
        if "kind" in component.args.values():
            # `by: kind`: the labels that the prompts are grouped by.
            inputs["kinds"] = self._digest(prompts.kinds_digest, arm, split)
        return inputs

    def _links(self, name: str, seed: int) -> dict[str, Node]:
        arm = self.arms[name]
        links = {"1_prompts": self._prompts(name)}
        if arm.train is not None:
            for suffix, (sample, score) in self._pools(name, seed).items():
                links[f"2_sample{suffix}"] = sample
                links[f"3_score{suffix}"] = score
            links["4_select"] = self._guarded(self._select, name, seed)
            links["5_train"] = self._train(name, seed)
        end = self._eval(name, seed)
        links["6_eval_sample"], links["6_eval_score"] = end.needs
        links["6_eval"] = end
        return links

    def _node(
        self, kind: str, label: str, inputs: dict[str, Any], *needs: Node, **job: Any
    ) -> Node:
        late = job.pop("late", False)
        node = Node(kind, label, inputs, needs, job, self.stages, late)
        # Arms that share a node get the same object, with the first one's label.
        node = self._nodes.setdefault(node.key, node)
        node.job.update(folder=str(node.dir.path), label=node.label)
        return node

    def _prompts(self, name: str) -> Node:
        arm = self.arms[name]
        splits = {s: self._digest(prompts.rows_digest, arm, s) for s in ("train", "eval")}
        inputs = {"kind": "prompts", **splits}
        return self._node("prompts", f"prompts ({name})", inputs, set=self.prompt_set(arm))

    def _model(self, arm: Arm) -> dict[str, Any]:
        """What of the model is part of an id: its weights, and how text becomes tokens."""
        base, revision = arm.model.base, arm.model.revision
        if Path(base).is_absolute() and not Path(base).is_dir():
            raise ConfigError(f"model.base: no such folder: {base}")
        if (base, revision) not in self._models:
            self._models[base, revision] = model_digest(base, revision)
        weights = self._models[base, revision]
        return {"weights": weights, "chat": chat_digest(arm.chat)}

    def _policy(self, policy: str, seed: int) -> Node | None:
        return None if policy == "base" else self._train(policy.removeprefix("arm:"), seed)

    def _sample(
        self, name: str, split: str, use: str, decoding: Decoding, policy: Node | None, seed: int
    ) -> Node:
        arm, data = self.arms[name], self._prompts(name)
        engine = (arm.eval if split == "eval" else arm.sample).engine
        if use != "reference":
            section = "eval" if split == "eval" else "sample"
            components.find("samplers", use, self._where(name, section))
        component = self._component("samplers", Component(use=use), arm, split)
        model = self._model(arm)
        settings = {k: v for k, v in decoding.model_dump().items() if k in Decoding.model_fields}
        if use == "reference":
            drawn: dict[str, Any] = {
                "solutions": self._digest(prompts.solutions_digest, arm, split)
            }
        else:
            drawn = {k: v for k, v in settings.items() if k not in ("n", "logprobs")}
            drawn["policy"] = "base" if policy is None else policy.key
            drawn["engine"] = {"dtype": engine.dtype, "extra": engine.extra}
            if decoding.temperature > 0:
                drawn["seed"] = seed
            if decoding.beam_width:
                # Where the budget ends decides which beams win.
                drawn["max_len"] = arm.model.max_len
            if ":" in use:
                drawn |= {"source": component["source"], "prompts": component["prompts"]}
        # The pool is what a candidate's id is made of, with its prompt and index.
        pool = {"kind": "sample", "use": component["use"], "model": model, "decoding": drawn}
        inputs = {
            **pool,
            "n": settings["n"],
            "logprobs": settings["logprobs"],
            "questions": self._digest(prompts.questions_digest, arm, split),
            "max_len": arm.model.max_len,
            "sampler": component,
        }
        late = split == "eval"
        return self._node(
            "sample",
            f"{'eval sample' if late else 'sample'} ({name}, seed {seed})",
            inputs,
            *(n for n in (data, policy) if n is not None),
            late=late,
            split=split,
            prompts=str(data.dir.path / split),
            model=arm.model.model_dump(mode="json"),
            chat=arm.chat.model_dump(mode="json"),
            engine=engine.model_dump(mode="json"),
            use=use,
            decoding=settings,
            adapter=str(policy.dir.path) if policy else None,
            pool=digest(pool),
        )

    def _score(self, name: str, split: str, sample: Node) -> Node:
        arm, data = self.arms[name], self._prompts(name)
        setting, given, rule = arm.scorers(split)
        scorers = []
        for i, scorer in enumerate(given):
            # Bound now, so that a wrong argument is found before anything is sampled.
            components.bind("scorers", scorer, self._where(name, f"{setting}.{i}"))
            what = self._component("scorers", scorer, arm, split)
            scorers.append({**what, "args": _without_folders(scorer.args)})
        inputs: dict[str, Any] = {
            "kind": "score",
            "candidates": sample.key,
            "gold": self._digest(prompts.gold_digest, arm, split),
            "score": scorers,
        }
        if len(scorers) > 1:
            inputs["combine"] = rule.model_dump(mode="json")
        return self._node(
            "score",
            sample.label.replace("sample", "score", 1),
            inputs,
            data,
            sample,
            late=sample.late,
            prompts=str(data.dir.path / split),
            sample=str(sample.dir.path),
            scorers=[s.model_dump() for s in given],
            combine=rule.model_dump(mode="json"),
        )

    def _pools(self, name: str, seed: int) -> dict[str, tuple[Node, Node]]:
        """Link suffix -> (candidates, their scores): references, then each policy's samples."""
        arm = self.arms[name]
        assert arm.train is not None
        found: dict[str, Node] = {}
        solved = any(p.solution is not None for p in self.prompt_set(arm).train)
        if arm.sample.use == "reference" and not solved:
            raise ConfigError(
                f"{self._where(name, 'sample.use')}: reference needs worked solutions, and the "
                f"training data has none: leave this arm out (arms.{name}=null, and another "
                "compare.baseline), or map their column with prompts.args.solution"
            )
        if solved and arm.train.include_reference:
            once = Decoding(n=1)
            found["_reference"] = self._sample(name, "train", "reference", once, None, seed)
        if arm.sample.use != "reference":
            for policy in arm.sample.policies:
                suffix = "" if len(arm.sample.policies) == 1 else f"_{policy.replace(':', '_')}"
                node = self._policy(policy, seed)
                found[suffix] = self._sample(name, "train", arm.sample.use, arm.sample, node, seed)
        return {suffix: (node, self._score(name, "train", node)) for suffix, node in found.items()}

    def _select(self, name: str, seed: int) -> Node:
        arm, data = self.arms[name], self._prompts(name)
        pools = list(self._pools(name, seed).values())
        specs, slices, needs = [], [], [data]
        for i, component in enumerate(arm.select):
            where = self._where(name, f"select.{i}")
            args, counts, keyed = dict(component.args), {}, dict(component.args)
            for key, value in component.args.items():
                if isinstance(value, str) and value.startswith("arm:"):
                    other = self._guarded(self._select, value.removeprefix("arm:"), seed)
                    counts[key], keyed[key] = str(other.dir.path), other.key
                    needs.append(other)
            known = components.parameters("selectors", component.use, where)
            if "seed" in known and "seed" not in args:
                args["seed"] = keyed["seed"] = seed
            # Bound now, so that a wrong argument is found before anything is sampled.
            components.bind("selectors", Component(use=component.use, args=args), where)
            specs.append({"use": component.use, "args": args, "counts": counts})
            what = self._component("selectors", component, arm, "train")
            slices.append({**what, "args": _without_folders(keyed)})
        inputs = {"kind": "select", "pools": [score.key for _, score in pools], "select": slices}
        return self._node(
            "select",
            f"select ({name}, seed {seed})",
            inputs,
            *needs,
            *(node for pair in pools for node in pair),
            prompts=str(data.dir.path / "train"),
            pools=[{"sample": str(a.dir.path), "score": str(b.dir.path)} for a, b in pools],
            selectors=specs,
            model=arm.model.model_dump(mode="json"),
            chat=arm.chat.model_dump(mode="json"),
            must_sample=arm.sample.use != "reference",
        )

    def _train(self, name: str, seed: int) -> Node:
        if name not in self.arms or self.arms[name].train is None:
            raise ConfigError(f"arm {name!r} trains nothing, so it has no policy to sample from")
        return self._guarded(self._train_node, name, seed)

    def _train_node(self, name: str, seed: int) -> Node:
        arm = self.arms[name]
        assert arm.train is not None
        select = self._guarded(self._select, name, seed)
        settings = arm.train.model_dump(mode="json")
        # These change speed, memory or safety, not what is learnt.
        for speed in ("launch", "checkpoint_every", "tokens_per_batch", "gradient_checkpointing"):
            settings.pop(speed)
        settings.pop("include_reference")
        match = None
        if arm.train.match_steps:
            match = self._train(arm.train.match_steps.removeprefix("arm:"), seed)
            settings["match_steps"] = match.key
            settings.pop("epochs")
        if arm.train.launch and not Path(arm.train.launch).is_file():
            raise ConfigError(
                f"{self._where(name, 'train.launch')}: no such file: {arm.train.launch} (beside the "
                "YAML: ./file.yaml)"
            )
        inputs = {
            "kind": "train",
            "rows": select.key,
            "weights": self._model(arm)["weights"],
            "train": settings,
            "seed": seed,
        }
        return self._node(
            "train",
            f"train ({name}, seed {seed})",
            inputs,
            *(n for n in (select, match) if n is not None),
            model=arm.model.model_dump(mode="json"),
            train=arm.train.model_dump(mode="json"),
            seed=seed,
            rows=str(select.dir.path / "train"),
            match=str(match.dir.path) if match else None,
        )

    def _eval(self, name: str, seed: int) -> Node:
        arm = self.arms[name]
        policy = None if arm.train is None else self._train(name, seed)
        sample = self._sample(name, "eval", arm.eval.use, arm.eval, policy, seed)
        score = self._score(name, "eval", sample)
        return self._node(
            "eval",
            f"eval ({name}, seed {seed})",
            {"kind": "eval", "scores": score.key},
            sample,
            score,
            late=True,
            sample=str(sample.dir.path),
            score=str(score.dir.path),
        )

    def _where(self, name: str, setting: str) -> str:
        """A setting's dotted path: in the arm if that replaces it, else in the body."""
        top = setting.split(".")[0]
        return f"arms.{name}.{setting}" if top in self.experiment.arms[name] else setting

    def _guarded(self, make: Any, name: str, seed: int) -> Node:
        """Makes an arm's node once, and refuses to go round in a circle of references."""
        known = (make.__name__, name, seed)
        if known in self._made:
            return self._made[known]
        step = f"{make.__name__.strip('_')} {name}"
        if step in self._open:
            arms = [s.split()[1] for s in self._open[self._open.index(step) :]] + [name]
            raise ConfigError(f"arms: {' -> '.join(dict.fromkeys(arms))} -> {name}: a circle")
        self._open.append(step)
        try:
            node: Node = make(name, seed)
        finally:
            self._open.pop()
        self._made[known] = node
        return node


def _without_folders(args: dict[str, Any]) -> dict[str, Any]:
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
