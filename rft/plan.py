"""From an experiment to the stages it needs, before any of them runs.

A node's key is the hash of named inputs: its slice of the config, the keys of the stages it reads,
the digests of the data it depends on, and its components' source. Nodes with the same key are one
node, which is how arms and seeds share work. What a stage does not depend on is left out of its
key: sampling does not depend on gold answers, nor any id on the engine's speed settings.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rft import components, harness, prompts
from rft.chat import chat_digest
from rft.config import ConfigError, Experiment, Model, Sample
from rft.config_decoding import Decoding, Eval
from rft.config_inference import NAMES
from rft.config_train import SPEED_ONLY
from rft.identity import Identity, drawn_by, without_folders
from rft.loader import launch_fault
from rft.nodes import ArmPlan, Node, in_order
from rft.section import Component
from rft.types import digest


class Plan:
    """All nodes of an experiment. Loads the prompts, since their digests are inputs."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.folder = experiment.folder
        self.stages = self.folder / "stages"
        self.arms = {name: experiment.arm(name) for name in experiment.arms}
        self.identity = Identity()
        self._made: dict[tuple[str, str, int, int], Node] = {}
        self._open: list[str] = []
        self._nodes: dict[str, Node] = {}
        try:
            self.rows = [
                ArmPlan(
                    name if number == arm.last_round else f"{name}@{number}",
                    seed,
                    self._links(name, seed, number),
                )
                for seed in experiment.seeds
                for name, arm in self.arms.items()
                for number in range(1, arm.last_round + 1)
            ]
        except ConfigError as fault:
            raise ConfigError(f"{experiment.path}: {fault}") from fault

    def nodes(self) -> Iterator[Node]:
        """Every node once, each after those it needs."""
        return in_order(node for row in self.rows for node in row.links.values())

    def _links(self, name: str, seed: int, number: int) -> dict[str, Node]:
        arm = self.arms[name]
        links = {"1_prompts": self._prompts(name)}
        if arm.train is not None:
            for suffix, (sample, score) in self.pools(name, seed, number).items():
                links[f"2_sample{suffix}"] = sample
                links[f"3_score{suffix}"] = score
            links["4_select"] = self._guarded(self._select, name, seed, number)
            links["5_train"] = self._train(name, seed, number)
        seen = ["_seen"] if arm.eval.train_problems else []
        if seen and not self.identity.problems(arm, "seen"):
            raise ConfigError(
                f"{self._where(name, 'eval.train_problems')}: no training problem has an answer or tests to "
                "judge by: set it to 0"
            )
        for suffix in dict.fromkeys(["", *arm.eval.in_formats(), *seen]):
            end = self._eval(name, seed, number, suffix)
            links[f"6_eval_sample{suffix}"], links[f"6_eval_score{suffix}"] = end.needs
            links[f"6_eval{suffix}"] = end
        if number == arm.last_round:
            links |= harness.links(self, name, seed, links.get("5_train"))
        return links

    def node(self, kind: str, label: str, inputs: dict[str, Any], *needs: Node, **job: Any) -> Node:
        late = job.pop("late", False)
        node = Node(kind, label, inputs, needs, job, self.stages, late)
        # Arms that share a node get the same object, with the first one's label.
        node = self._nodes.setdefault(node.key, node)
        node.job.update(folder=str(node.dir.path), label=node.label)
        return node

    def _prompts(self, name: str) -> Node:
        arm = self.arms[name]
        splits = {s: self.identity.digest(prompts.rows_digest, arm, s) for s in ("train", "eval")}
        inputs = {"kind": "prompts", **splits}
        return self.node("prompts", f"prompts ({name})", inputs, set=self.identity.prompt_set(arm))

    def _policy(
        self, name: str, asked: Sample, seed: int, number: int, pool_name: str
    ) -> tuple[Node | None, str | None]:
        """The training that made the adapter to sample with, or the adapter's folder. A pool that names
        a policy of its own keeps it in every round."""
        fixed = "policy" in self.arms[name].sample.pools.get(pool_name, {})
        if number > 1 and asked.model is None and not fixed:
            return self._train(name, seed, number - 1), None
        if asked.policy.startswith("arm:"):
            return self._train(asked.policy.removeprefix("arm:"), seed), None
        return None, None if asked.policy == "base" else asked.policy

    def _sample(
        self,
        name: str,
        split: str,
        asked: Sample | Eval,
        seed: int,
        number: int = 1,
        pool_name: str = "",
        before: Sequence[Node] = (),
        beside: Node | None = None,
    ) -> Node:
        """asked: the settings to sample with. number: the round. before: the score stages of the pools
        before it. beside: samples whose seeds these take, one by one."""
        arm, data, use = self.arms[name], self._prompts(name), asked.use
        is_eval, is_reference = isinstance(asked, Eval), use == "reference"
        where = self._where(name, "eval" if is_eval else "sample")
        if pool_name and not is_reference:
            where += f".pools.{pool_name}"
        folder: str | None = None
        node = base = None
        if isinstance(asked, Eval):
            node = self._train(name, seed, number) if arm.train is not None else None
        elif not is_reference:
            node, folder = self._policy(name, asked, seed, number, pool_name)
            base = asked.model
        model = base or arm.model
        chat = self.identity.chat(arm, {} if is_reference else asked.chat)
        sampler = Component(use=use, args=asked.args)
        # Engines on many machines draw the same samples as one here.
        alike = Component(use="vllm") if use == "ray" else sampler
        if not is_reference:
            components.bind("samplers", sampler, where)
        component = self.identity.component("samplers", alike, arm, split)
        settings = {k: v for k, v in asked.model_dump().items() if k in Decoding.model_fields}
        drawn: dict[str, Any] = {}
        if is_reference:
            drawn["solutions"] = self.identity.digest(prompts.solutions_digest, arm, split)
        else:
            adapter = "base"
            if folder:
                adapter = self.identity.adapter(folder, where, model.base)
            elif node:
                self._check_same_model(node, model, where)
                adapter = node.key
            drawn = drawn_by(asked, model, adapter, seed, component)
            if "{answer}" in chat.prompt:
                drawn["answers"] = self.identity.digest(prompts.gold_digest, arm, split)
        # The pool is what a candidate's id is made of, with its prompt and index.
        pool = {
            "kind": "sample",
            "use": component["use"],
            "model": self.identity.model(model, chat),
            "decoding": drawn,
        }
        if beside and asked.temperature:
            pool["seeds"] = beside.job["pool"]
        inputs = {
            **pool,
            "n": settings["n"],
            "logprobs": settings["logprobs"],
            "questions": self.identity.digest(prompts.questions_digest, arm, split),
            "max_len": model.max_len,
            "sampler": component,
        }
        if pool_name:
            inputs["pool"] = pool_name
        needs = [n for n in (data, node) if n is not None]
        allocate = Component(use="uniform")
        unless_solved_by: list[Node] = []
        if isinstance(asked, Sample) and not is_reference:
            allocate = asked.allocate
            if asked.only == "unsolved":
                unless_solved_by = list(before)
                inputs["unless_solved_by"] = [n.key for n in before]
                needs += before
        adapts = allocate.use != "uniform"
        counts_reference = bool(adapts and arm.train and arm.train.include_reference)
        if adapts:
            assert isinstance(asked, Sample)
            inputs["allocate"] = self.identity.allocation(arm, asked, where)
            inputs["verdicts"] = self.identity.verdicts(arm, split, partial(self._where, name))
            if counts_reference:
                inputs["ways"] = self.identity.digest(prompts.solutions_digest, arm, split)
        label = f"{split} sample" if is_eval else "sample"
        own = f" {pool_name}" if pool_name else ""
        setting = f"{where}.{'inference.formats' if beside else 'engine.dtype'}"
        if beside:
            own = f" in {NAMES.get(asked.engine.dtype, asked.engine.dtype)} by {use}"
        return self.node(
            "sample",
            f"{label} ({name}{_nth(number)}{own}, seed {seed})",
            inputs,
            *needs,
            late=is_eval,
            split=split,
            prompts=_folder(data, split),
            only=[p.id for p in self.identity.problems(arm, split)] if split == "seen" else None,
            model=model.model_dump(mode="json"),
            chat=chat.model_dump(mode="json"),
            engine=asked.engine.model_dump(mode="json"),
            setting=setting,
            use=use,
            args=asked.args,
            decoding=settings,
            adapter=str(node.dir.path) if node else folder,
            pool=digest(pool),
            seeds=beside.job["pool"] if beside else digest(pool),
            pool_name=pool_name,
            allocate=allocate.model_dump(mode="json"),
            distinct=asked.distinct if isinstance(asked, Sample) else "text",
            train_on_reference=counts_reference,
            unless_solved_by=[str(n.dir.path) for n in unless_solved_by],
        )

    def _check_same_model(self, trained: Node, model: Model, where: str) -> None:
        own = Model(**trained.job["model"])
        weights = [self.identity.weights(one) for one in (own, model)]
        if weights[0] != weights[1]:
            raise ConfigError(
                f"{where}.policy: the adapter of `{trained.label}` was trained on {own.base}, and this "
                f"samples from {model.base}: set policy: base, or leave out `model`"
            )

    def _score(self, name: str, split: str, sample: Node) -> Node:
        arm, data = self.arms[name], self._prompts(name)
        _, given, rule = arm.scorers(split)
        verdicts = self.identity.verdicts(arm, split, partial(self._where, name))
        inputs = {"kind": "score", "candidates": sample.key, **verdicts}
        return self.node(
            "score",
            sample.label.replace("sample", "score", 1),
            inputs,
            data,
            sample,
            late=sample.late,
            prompts=_folder(data, split),
            sample=str(sample.dir.path),
            scorers=[s.model_dump() for s in given],
            combine=rule.model_dump(mode="json"),
            loops=sample.job["decoding"]["loops"],
            ray=self.experiment.ray.model_dump(),
        )

    def pools(self, name: str, seed: int, number: int) -> dict[str, tuple[Node, Node]]:
        """Link suffix -> (candidates, their scores): references, then each pool of a round."""
        arm = self.arms[name]
        assert arm.train is not None
        solved = any(p.solution is not None for p in self.identity.prompt_set(arm).train)
        if arm.sample.use == "reference" and not solved:
            raise ConfigError(
                f"{self._where(name, 'sample.use')}: reference needs worked solutions, and the "
                f"training data has none: leave this arm out (arms.{name}=null, and another "
                "compare.baseline), or map their column with prompts.args.solution"
            )
        made: dict[str, tuple[Node, Node]] = {}

        def add(suffix: str, asked: Sample, pool_name: str) -> None:
            before = [score for key, (_, score) in made.items() if key != "_reference"]
            node = self._sample(name, "train", asked, seed, number, pool_name, before)
            made[suffix] = node, self._score(name, "train", node)

        if solved and arm.train.include_reference:
            add("_reference", Sample(use="reference", n=1), "reference")
        if arm.sample.use != "reference":
            for pool_name, asked in arm.sample.each_pool().items():
                add(f"_{pool_name}" if pool_name else "", asked, pool_name)
        return made

    def _select(self, name: str, seed: int, number: int) -> Node:
        arm, data = self.arms[name], self._prompts(name)
        rounds = range(1, number + 1) if arm.rounds.survivors == "keep" else [number]
        found = {
            # References are the same in every round.
            (suffix if suffix == "_reference" else f"{suffix}@{i}"): pair
            for i in rounds
            for suffix, pair in self.pools(name, seed, i).items()
        }
        # A pool of another model is the same in every round.
        pools = list({pair[0].key: pair for pair in found.values()}.values())
        chat = self.identity.chat(arm, {})
        specs, slices, needs = [], [], [data]
        for i, component in enumerate(arm.select):
            where = self._where(name, f"select.{i}")
            args, counts, keyed = dict(component.args), {}, dict(component.args)
            for key, value in component.args.items():
                if isinstance(value, str) and value.startswith("arm:"):
                    other = self._selected(value.removeprefix("arm:"), seed)
                    counts[key], keyed[key] = str(other.dir.path), other.key
                    needs.append(other)
            known = components.parameters("selectors", component.use, where)
            if "seed" in known and "seed" not in args:
                args["seed"] = keyed["seed"] = seed
            # Bound now, so that a wrong argument is found before anything is sampled.
            components.bind("selectors", Component(use=component.use, args=args), where)
            specs.append({"use": component.use, "args": args, "counts": counts})
            what = self.identity.component("selectors", component, arm, "train")
            slices.append({**what, "args": without_folders(keyed)})
        own = self.identity.weights(arm.model)
        inputs: dict[str, Any] = {
            "kind": "select",
            "pools": [score.key for _, score in pools],
            "select": slices,
            # The rows are this model's tokens.
            "model": own,
            "chat": chat_digest(chat),
        }
        loss = arm.train.loss.of_rows() if arm.train else {}
        if loss:
            inputs["loss"] = loss
        return self.node(
            "select",
            f"select ({name}{_nth(number)}, seed {seed})",
            inputs,
            *needs,
            *(node for pair in pools for node in pair),
            prompts=str(data.dir.path / "train"),
            pools=[
                {
                    **_paths(a, b),
                    # Its tokens, and its prompts, are those that the model is trained with.
                    "own_tokens": self.identity.weights(Model(**a.job["model"])) == own,
                    "own_prompts": a.job["chat"] == chat.model_dump(mode="json"),
                }
                for a, b in pools
            ],
            selectors=specs,
            loss=loss,
            model=arm.model.model_dump(mode="json"),
            chat=chat.model_dump(mode="json"),
            must_sample=arm.sample.use != "reference",
            rounds=self._rounds(name, seed, number),
        )

    def _rounds(self, name: str, seed: int, number: int) -> dict[str, Any] | None:
        """What it takes to see whether a round's samples have lost their variety."""
        arm = self.arms[name]
        if arm.last_round == 1:
            return None
        # Other models do not change with the rounds, and a pool for what others left unsolved has
        # the hard prompts alone.
        changing = [
            f"_{pool_name}" if pool_name else ""
            for pool_name, asked in arm.sample.each_pool().items()
            if asked.model is None and asked.only == "all"
        ]
        if not changing:
            return None
        paths = {
            i: [_paths(*self.pools(name, seed, i)[suffix]) for suffix in changing]
            for i in {1, number}
        }
        return {
            "number": number,
            "pools": paths[number],
            "first": paths[1] if number > 1 else None,
            "distinct": arm.sample.distinct,
            "on_collapse": arm.rounds.on_collapse,
        }

    def _selected(self, name: str, seed: int) -> Node:
        """What an arm has selected in its last round."""
        return self._guarded(self._select, name, seed, self.arms[name].last_round)

    def _train(self, name: str, seed: int, number: int | None = None) -> Node:
        """An arm's training in a round, by default its last."""
        if name not in self.arms or self.arms[name].train is None:
            raise ConfigError(f"arm {name!r} trains nothing, so it has no policy to sample from")
        return self._guarded(self._train_node, name, seed, number or self.arms[name].last_round)

    def _train_node(self, name: str, seed: int, number: int) -> Node:
        arm = self.arms[name]
        assert arm.train is not None
        select = self._guarded(self._select, name, seed, number)
        settings = arm.train.model_dump(mode="json")
        # These change speed, memory or safety, not what is learnt.
        # Where leaps are rolled back to is learnt, or not.
        rolls_back = arm.train.spikes.action == "rollback"
        for speed in SPEED_ONLY:
            if not (speed == "checkpoint_every" and rolls_back):
                settings.pop(speed)
        settings.pop("include_reference")
        match = None
        if arm.train.match:
            match = self._train(arm.train.match.removeprefix("arm:"), seed)
            settings["match"] = match.key
            settings.pop("epochs")
        else:
            settings.pop("match_by")
        if arm.train.launch and (fault := launch_fault(Path(arm.train.launch))):
            raise ConfigError(f"{self._where(name, 'train.launch')}: {fault}")
        inputs = {
            "kind": "train",
            "rows": select.key,
            "weights": self.identity.model(arm.model, arm.chat)["weights"],
            "train": settings,
            "seed": seed,
        }
        start, folder = None, None
        if arm.rounds.init == "last" and arm.sample.use != "reference":
            if number > 1:
                start = self._train(name, seed, number - 1)
            else:
                own = (p for p in arm.sample.each_pool().items() if p[1].model is None)
                if pool := next(own, None):
                    start, folder = self._policy(name, pool[1], seed, number, pool[0])
            if start or folder:
                inputs["start"] = (
                    start.key
                    if start
                    else self.identity.adapter(folder or "", "sample", arm.model.base)
                )
        return self.node(
            "train",
            f"train ({name}{_nth(number)}, seed {seed})",
            inputs,
            *(n for n in (select, match, start) if n is not None),
            start=str(start.dir.path) if start else folder,
            model=arm.model.model_dump(mode="json"),
            train=arm.train.model_dump(mode="json"),
            seed=seed,
            rows=str(select.dir.path / "train"),
            match=str(match.dir.path) if match else None,
            drawn=[
                {
                    "sample": str(sample.dir.path),
                    "adapter": sample.job["adapter"],
                    "dtype": sample.job["engine"]["dtype"],
                }
                for suffix, (sample, _) in self.pools(name, seed, number).items()
                if suffix != "_reference"
                and self.identity.weights(Model(**sample.job["model"])) == inputs["weights"]
            ],
        )

    def _eval(self, name: str, seed: int, number: int, suffix: str = "") -> Node:
        """suffix: one of `Eval.in_formats`, or `_seen`."""
        asked = self.arms[name].eval
        split = "seen" if suffix == "_seen" else "eval"
        sample = self._sample(name, split, asked, seed, number)
        if suffix and split == "eval":
            again = asked.in_formats()[suffix]
            sample = self._sample(name, split, again, seed, number, beside=sample)
        score = self._score(name, split, sample)
        return self.node(
            "eval",
            f"eval ({name}{_nth(number)}{suffix.replace('_', ' ')}, seed {seed})",
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

    def _guarded(self, make: Any, name: str, seed: int, number: int) -> Node:
        """Makes a round's node once, and refuses to go round in a circle of references."""
        known = (make.__name__, name, seed, number)
        if known in self._made:
            return self._made[known]
        step = f"{make.__name__.strip('_')} {name} {number}"
        if step in self._open:
            arms = [s.split()[1] for s in self._open[self._open.index(step) :]] + [name]
            raise ConfigError(f"arms: {' -> '.join(dict.fromkeys(arms))} -> {name}: a circle")
        self._open.append(step)
        try:
            node: Node = make(name, seed, number)
        finally:
            self._open.pop()
        self._made[known] = node
        return node


def _folder(data: Node, split: str) -> str:
    return str(data.dir.path / ("train" if split == "seen" else split))


def _paths(sample: Node, score: Node) -> dict[str, str]:
    return {"sample": str(sample.dir.path), "score": str(score.dir.path)}


def _nth(number: int) -> str:
    return f" round {number}" if number > 1 else ""
