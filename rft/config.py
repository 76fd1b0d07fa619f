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

from rft.config_inference import DTYPES, Inference
from rft.config_train import Train
from rft.section import Fraction, Positive, Section
from rft.types import RftError


class ConfigError(RftError):
    """The experiment file is wrong; the message names file, dotted path and fix."""


def _policy(text: str) -> str:
    if text != "base" and not text.startswith("arm:") and "/" not in text:
        raise ValueError(f"write base, arm:{text}, or a folder as ./{text}, not {text!r}")
    return text


Policy = Annotated[str, AfterValidator(_policy)]


class Component(Section):
    """A part chosen by name: a built-in, or a function or class in a file of yours."""

    use: str
    """Built-in name, `./file.py:function` (relative to this YAML), or `package.module:function`."""
    args: dict[str, Any] = {}
    """Keyword arguments, checked against the function's signature."""


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


class Loops(Section):
    """When a sample that repeats itself is stopped: it is `unknown: loop`, never correct."""

    period: Positive = 128
    """Most tokens in the piece that is repeated."""
    repeats: Annotated[int, Field(ge=2)] = 3
    """How many times in a row the piece must have been said."""
    min_tokens: Positive = 64
    """Fewest tokens of all repetitions together; shorter ones (`0000`, the rule of a table) are no loop."""
    audit: Fraction = 0.05
    """Share of all samples that are never stopped, so that the manifest of the score stage can tell how
    many of those that loop come out correct."""

    @property
    def least(self) -> int:
        """Fewest tokens in a piece; a shorter one counts as several of itself."""
        return -(-self.min_tokens // self.repeats)

    @model_validator(mode="after")
    def _possible(self) -> "Loops":
        if self.least > self.period:
            raise ValueError(
                f"{self.repeats} pieces of at most {self.period} tokens are never min_tokens = "
                f"{self.min_tokens} long: raise period or repeats, or lower min_tokens"
            )
        return self


class Decoding(Section):
    """How tokens are drawn. `temperature: 0` is greedy; `beam_width` above 0 is beam search."""

    n: Positive = 8
    """Samples per prompt."""
    temperature: Annotated[float, Field(ge=0)] = 0.8
    """Flattens (above 1) or sharpens (below 1) the distribution; 0 takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the smallest set of tokens whose probabilities sum to this (nucleus sampling)."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Draw from the k likeliest tokens; 0 means from all."""
    min_p: Fraction = 0.0
    """Drop tokens less likely than this share of the likeliest one's probability."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Above 1 makes tokens that already occurred less likely."""
    beam_width: Annotated[int, Field(ge=0)] = 0
    """Beams kept per prompt; the best n are returned. 0 turns beam search off."""
    max_tokens: Positive = 512
    """Longest completion. A candidate cut off here is never counted as correct."""
    stop: list[str] = []
    """Strings that end a completion; the string itself is left out of the text."""
    loops: Loops | None = None
    """Stop samples that repeat themselves, as `sample.loops` does; null lets them run to `max_tokens`."""
    logprobs: Literal["sum", "tokens"] = "sum"
    """Keep each sample's summed log-probability, or one for every token as well."""

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0 and not self.beam_width

    @model_validator(mode="after")
    def _possible(self) -> "Decoding":
        if self.is_greedy and self.n > 1:
            raise ValueError(
                f"temperature 0 gives the same sample {self.n} times: set n to 1, or temperature "
                "above 0"
            )
        if self.beam_width and self.temperature:
            raise ValueError("beam search is deterministic: set temperature to 0")
        if self.beam_width and self.beam_width < self.n:
            raise ValueError(f"beam_width {self.beam_width} cannot give n = {self.n} answers")
        return self


class Engine(Section):
    """The machine side of sampling. Only `dtype` and `extra` are part of a sample's id; the rest
    changes speed and memory."""

    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    """Format of weights and arithmetic. `auto`: float32 on a CPU; on a GPU the checkpoint's own, but
    with vLLM 16 bits for a checkpoint in float32. `int8`: LLM.int8, with `use: transformers` only."""
    max_num_seqs: Positive | None = None
    """Sequences decoded together; default 64 on a CPU, 256 on a GPU (transformers: 32 and 128)."""
    kv_cache_gb: Annotated[float, Field(gt=0)] = 2.0
    """Memory for vLLM's KV cache on a CPU, GiB."""
    gpu_memory_utilization: Fraction = 0.9
    """Share of a GPU's memory for vLLM's weights and KV cache."""
    tensor_parallel: Positive = 1
    """GPUs that one copy of the model is spread over."""
    data_parallel: Positive = 1
    """Copies of the model, each on its own `tensor_parallel` GPUs; requests go to the idlest."""
    compile: bool | None = None
    """vLLM: compile the model at start: slower start, faster tokens. Default: only on a GPU."""
    extra: dict[str, Any] = {}
    """Further vLLM engine arguments, passed on as they are. They are part of every sample's id,
    since some of them (`quantization`) change what is sampled."""


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


class Eval(Decoding):
    """Stage 6: sampling on the held-out problems. Takes nothing from `sample`: set `stop`,
    `max_tokens` and `engine` here too."""

    n: Positive = 1
    """Samples per problem."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy, the usual way to report accuracy; above 0 with n > 1 for pass@k and maj@k."""
    use: str = "vllm"
    """Sampler, as in `sample.use`."""
    args: dict[str, Any] = {}
    """Its arguments."""
    chat: dict[str, Any] = {}
    """Keys of `chat` that are different for evaluation, for instance `shots` for an untrained model."""
    k: Annotated[list[Positive], Field(min_length=1)] = [1]
    """The k of pass@k and maj@k; none above n."""
    score: Annotated[list[Component], Field(min_length=1)] | None = None
    """Scorers of held-out answers, all of which must say correct; by default those of the body and its
    `combine`. For filters that call nothing correct, such as a reward model's value."""
    engine: Engine = Engine()
    inference: Inference = Inference()

    @model_validator(mode="after")
    def _enough(self) -> "Eval":
        if max(self.k) > self.n:
            raise ValueError(f"pass@{max(self.k)} needs n of at least {max(self.k)}, not {self.n}")
        return self

    @model_validator(mode="after")
    def _formats(self) -> "Eval":
        formats, use = self.inference.formats, self.inference.use or self.use
        if formats and use not in ("vllm", "transformers"):
            raise ValueError(
                f"inference.formats: {use} computes in formats of its own: set inference.use to "
                "transformers or vllm"
            )
        if formats and "int8" in (*formats, self.engine.dtype) and use == "vllm":
            raise ValueError(
                "inference.formats: vllm has no LLM.int8: set inference.use to transformers, or leave "
                "int8 out"
            )
        for name in formats:
            if DTYPES[name] == self.engine.dtype:
                raise ValueError(
                    f"inference.formats: {name} is the format of engine.dtype, which the others are "
                    "compared with: leave it out"
                )
        return self

    def in_formats(self) -> dict[str, "Eval"]:
        """Link suffix -> evaluation, in each format. The first is what the others are compared with:
        this evaluation itself ("") where one sampler does all, else its format through the other."""
        asked = self.inference
        if not asked.formats:
            return {}
        use, engine, args = asked.use or self.use, self.engine, self.args
        same = use == self.use
        if not same:
            # Of another sampler only what both know.
            args, own = {}, ("dtype", "max_num_seqs", "kv_cache_gb", "gpu_memory_utilization")
            engine = Engine(**{name: getattr(engine, name) for name in own})

        def made(dtype: str) -> "Eval":
            told = engine.model_copy(update={"dtype": dtype})
            return self.model_copy(update={"use": use, "args": args, "engine": told})

        first = {"": self} if same else {"_main": made(engine.dtype)}
        return first | {f"_{name}": made(DTYPES[name]) for name in asked.formats}


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


class Compare(Section):
    """The comparison of arms on the same held-out problems."""

    baseline: str = "sft"
    """Arm that the others are compared with."""
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Confidence level of the intervals."""
    resamples: Positive = 10_000
    """Bootstrap resamples and random sign flips."""
    margin: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Largest loss of accuracy that would not matter, a fraction (0.01 is one point): the report then
    says whether an arm is shown to be no worse than the baseline by more, and whether they are
    equivalent. To be chosen before the results are known; null asks neither."""


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
        """Setting, scorers and rule for `train` or `eval`."""
        if split == "eval" and self.eval.score is not None:
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
