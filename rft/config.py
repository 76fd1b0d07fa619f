"""An experiment as data: every setting there is, with its type, default and meaning.

The docstring under a field is its help text, its JSON schema description and its line in
docs/configuration.md, so each fact is written once. Unknown keys are errors. Values are read
through the declared type, so `1e-4`, which YAML reads as a string, is a float where one is due. An
arm is the body with a few keys replaced. Files are read by rft/loader.py.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    PrivateAttr,
    field_validator,
    model_validator,
)

from rft.config_compare import Compare
from rft.config_decoding import Decoding, Engine, Eval, Loops
from rft.config_train import Train
from rft.section import Component, Fraction, Positive, Section
from rft.types import RftError


class ConfigError(RftError):
    """The experiment file is wrong; the message names file, dotted path and fix."""


def _policy(text: str) -> str:
    if text != "base" and not text.startswith("arm:") and "/" not in text:
        raise ValueError(f"write base, arm:{text}, or a folder as ./{text}, not {text!r}")
    return text


Policy = Annotated[str, AfterValidator(_policy)]


class Model(Section):
    """The language model that every arm starts from."""

    base: str
    """Folder (`./model`, or absolute) or name on the Hugging Face hub."""
    revision: str | None = None
    """Hub revision; pin it to make runs repeatable."""
    max_len: Positive = 2048
    """Longest prompt plus completion, in tokens."""
    trust_remote_code: bool = False
    """Run Python code that the model's folder carries. Off unless you trust its author."""


class Prompts(Component):
    """Where problems come from. The loader returns rows with question, answer and solution."""

    train: str = "train"
    """Name of the split to sample and train on."""
    eval: str = "eval"
    """Name of the held-out split."""
    limit_train: Positive | None = None
    """Keep only the first so many training problems."""
    limit_eval: Positive | None = None
    """Keep only the first so many held-out problems."""
    leakage: Literal["error", "drop"] = "error"
    """A training question that is also held out (case, spaces and punctuation aside) stops the run
    (`error`) or leaves the training set (`drop`)."""


class Example(Section):
    """A worked example."""

    question: str
    """The question."""
    solution: str
    """The worked solution."""
    answer: str | None = None
    """For prompts that hint at it."""


class Chat(Section):
    """How a question becomes the prompt's tokens, for sampling and for training alike."""

    template: Literal["auto", "none"] = "auto"
    """`auto`: the tokenizer's chat template where it has one; `none`: the raw prompt text."""
    prompt: str = "{question}"
    """The user's message (or the raw prompt); `{question}` stands for the question. In `sample.chat`
    `{answer}` stands for the gold answer: a hint, that training and evaluation never show."""
    system: str | None = None
    """System message, with a chat template only."""
    response_prefix: str = ""
    """Text that every answer starts with; part of the prompt, so it is not trained on."""

    solution: str = "{solution}"
    """What follows the prompt where the data set has a worked solution."""
    shots: Annotated[int, Field(ge=0)] = 0
    """Worked examples shown before the question (few-shot), each as a turn of its own."""
    examples: list[Example] = []
    """Those examples; by default the first training problems that have a solution. One that is the
    question itself is left out, so give one more than `shots`."""

    @model_validator(mode="after")
    def _has_question(self) -> "Chat":
        if "{question}" not in self.prompt:
            raise ValueError("prompt must contain {question}")
        if "{solution}" not in self.solution:
            raise ValueError("solution must contain {solution}")
        if self.template == "none" and self.system:
            raise ValueError("system needs a chat template: put its text into `prompt` instead")
        return self


class Sample(Decoding):
    """Stage 2: where an arm's candidates come from."""

    use: str = "vllm"
    """`vllm`, `transformers`, `openai` (a server), `ray` (many machines), `replay` (samples that exist
    already), `reference` (the data set's own solutions), `speculative` (through another sampler; the worst
    beginnings of a prompt's are not finished), or your own sampler."""
    args: dict[str, Any] = {}
    """Arguments of the sampler, checked against its signature."""
    allocate: Component = Component(use="uniform")
    """How many of the `n` samples each prompt gets. `uniform`: all. The others look at the verdicts as
    they come: `adaptive`, `budget`, `prop2diff`, or your own function."""
    distinct: Literal["equations", "text", "any"] = "equations"
    """What makes two right answers different where `allocate` counts them: `equations`, the equations in
    them; `text`, their text, spaces aside; `any`, every right answer counts."""
    policy: Policy = "base"
    """`base`, `arm:NAME` (the adapter that arm trained, same seed), or the folder of a LoRA adapter. With
    `rounds`, that of the first round."""
    model: Model | None = None
    """Another model to sample from. Its answers are tokenised anew for the model that is trained."""
    chat: dict[str, Any] = {}
    """Keys of `chat` that are different for sampling: few-shot examples, another system message, a hint
    with `{answer}`. Training always sees the prompt of `chat` itself."""
    only: Literal["all", "unsolved"] = "all"
    """`unsolved`: in a pool, only prompts for which the pools before it have no correct answer."""
    loops: Loops | None = Loops()
    """Stop samples that repeat themselves; null lets them run to `max_tokens`. Beam search is never
    stopped."""
    engine: Engine = Engine()
    pools: dict[str, dict[str, Any]] = {}
    """Several sources of candidates: of each its name, and the keys of `sample` that it replaces. A
    candidate keeps the name."""

    def each_pool(self) -> dict[str, "Sample"]:
        """The pools by name; a single one without a name where none are given."""
        return {name: self.pool(name) for name in self.pools} or {"": self}

    def pool(self, name: str) -> "Sample":
        """The settings of one of `pools`."""
        body = self.model_dump(exclude={"pools"})
        return Sample.model_validate(merge(body, self.pools[name]))


class Rounds(Section):
    """Expert iteration: each round after the first samples from the policy that the one before it
    trained. `rounds: 3` is short for `rounds: {n: 3}`. In the body it holds for every arm that samples and
    trains, controls such as `random` included."""

    n: Positive = 1
    """Rounds of sampling, scoring, selecting and training. Each is evaluated."""
    survivors: Literal["replace", "keep"] = "replace"
    """What a round trains on: `replace`, the survivors of its own samples; `keep`, those of all rounds so
    far. Worked solutions are added as `train.include_reference` says."""
    init: Literal["base", "last"] = "base"
    """What a round's training starts from: `base`, the base model; `last`, the adapter that sampled."""
    on_collapse: Literal["warn", "stop"] = "warn"
    """What to do when a round's samples have lost their variety, measured against the first round's
    (rft/collapse.py): say so, or stop before it trains."""


class Combine(Section):
    """How the verdicts of several scorers become one. Truth tables: rft/combine.py."""

    rule: Literal["all", "any", "first", "veto", "weighted"] = "all"
    """`all`: correct if all say so, wrong if any does, else unknown. `any`: correct if any says so,
    wrong if all do. `first`: the first that is not unknown. `veto`: the first decides, and any other
    can make its correct wrong. `weighted`: correct if the weights of those that say correct reach
    `threshold`, as a share of all. In this order, and none is asked once the verdict is settled."""
    weights: list[Annotated[float, Field(gt=0)]] | None = None
    """With `weighted`, one for each scorer; by default all weigh the same."""
    threshold: Fraction = 0.5
    """With `weighted`, the share of the weights that makes a candidate correct."""

    @model_validator(mode="before")
    @classmethod
    def _mapping(cls, given: Any) -> Any:
        if isinstance(given, str):
            raise ValueError(f"write combine: {{rule: {given}}}")
        return given


class Ray(Section):
    """Scorers on the CPUs of a Ray cluster (docs/cluster.md). Samplers have `use: ray`."""

    scorer_actors: Annotated[int, Field(ge=0)] = 0
    """Actors for scorers that judge one candidate at a time; 0 has them on this machine, without Ray."""
    cpus_per_actor: Positive = 1
    """CPUs that each of them reserves, and its worker processes."""
    address: str | None = None
    """The cluster: `auto`, `host:6379` or `ray://host:10001`; null starts Ray on this machine."""


class Arm(Section):
    """An experiment's body with one arm's keys put in: all that its stages need."""

    model: Model
    prompts: Prompts
    chat: Chat = Chat()
    sample: Sample = Sample()
    score: list[Component] = [Component(use="answer")]
    """Scorers, in the order in which they are asked. `combine` makes one verdict of theirs."""
    combine: Combine = Combine()
    select: list[Component] = [Component(use="correct"), Component(use="distinct_equations")]
    """Selectors, applied in order to the scored candidates."""
    train: Train | None = Train()
    """Training settings; null for an arm that is evaluated as it is."""
    rounds: Rounds = Rounds()
    eval: Eval = Eval()

    @field_validator("rounds", mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        return {"n": given} if isinstance(given, int) else given

    @property
    def last_round(self) -> int:
        """Number of the last round, from 1. References are the same in every round."""
        return self.rounds.n if self.train and self.sample.use != "reference" else 1

    @model_validator(mode="after")
    def _some(self) -> "Arm":
        if not self.score:
            raise ValueError("score: name at least one scorer, for instance [{use: answer}]")
        weights = self.combine.weights
        if weights is not None and self.combine.rule != "weighted":
            raise ValueError("combine.weights: only with rule: weighted")
        if weights is not None and len(weights) != len(self.score):
            raise ValueError(
                f"combine.weights: {len(weights)} for {len(self.score)} scorers; give one for each"
            )
        lora = self.train.lora if self.train else None
        if lora and lora.init == "pissa" and self.rounds.init == "last":
            raise ValueError(
                "rounds.init: last goes on from an adapter, and train.lora.init: pissa begins with the base's "
                "own directions: set one of them to its default"
            )
        if not self.select:
            raise ValueError("select: name at least one selector, for instance [{use: correct}]")
        if self.train and self.sample.use == "reference" and not self.train.include_reference:
            raise ValueError(
                "train.include_reference: false leaves nothing to train on where sample.use is "
                "reference"
            )
        return self

    def asking(self, own: dict[str, Any]) -> Chat:
        """`chat` with the keys that `sample.chat` or `eval.chat` puts in its place."""
        return Chat.model_validate(merge(self.chat.model_dump(), own)) if own else self.chat

    def scorers(self, split: str) -> tuple[str, list[Component], Combine]:
        """Setting, scorers and rule for `train`, or for `eval` and `seen`."""
        if split != "train" and self.eval.score is not None:
            return "eval.score", self.eval.score, Combine()
        return "score", self.score, self.combine


class Experiment(Arm):
    """One YAML file: the body, and arms that each replace a few of its keys."""

    name: str
    """Name of the run's folder under `runs`."""
    runs: str = "runs"
    """Folder for runs, relative to where the command is typed."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0]
    """The whole experiment is repeated with each seed; comparisons are paired within one."""
    arms: dict[str, dict[str, Any]] = {
        "base": {"train": None},
        "sft": {"sample": {"use": "reference"}},
        "rft": {},
    }
    """Name of each arm, and the keys it replaces; null takes an arm out that `extends` brought."""
    compare: Compare = Compare()
    ray: Ray = Ray()

    _path: Path | None = PrivateAttr(None)

    @property
    def path(self) -> str:
        """The file that this was read from, for messages."""
        return str(self._path or "experiment")

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.name

    def arm(self, name: str) -> Arm:
        body = {k: v for k, v in self.model_dump().items() if k in Arm.model_fields}
        return Arm.model_validate(merge(body, self.arms[name]))


def merge(below: Any, above: Any) -> Any:
    """`above` over `below`, key by key through nested mappings; lists are replaced."""
    if isinstance(below, dict) and isinstance(above, dict):
        # Another component's arguments mean nothing to this one.
        if "use" in above and below.get("use") != above["use"] and "args" in below:
            below = {k: v for k, v in below.items() if k != "args"}
        return {**below, **{k: merge(below.get(k), v) for k, v in above.items()}}
    return above
