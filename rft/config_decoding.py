"""How tokens are drawn, and the settings of evaluation, which are those and a few more."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rft.config_harness import Harness
from rft.config_inference import DTYPES, Inference
from rft.section import Component, Fraction, Positive, Section


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
    train_problems: Annotated[int, Field(ge=0)] = 0
    """Evaluate every arm on so many training problems as well, the first that have a worked solution (any,
    where none has one): the report then tells how much better an arm does on what it has seen."""
    inference: Inference = Inference()
    harness: Harness = Harness()

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
