"""A reward model: any sequence classifier, which gives each answer a number.

Values are what the classifier's head says, before any sigmoid or softmax, and do not depend on what
shares a batch (beyond rounding). Three traps lie there. Decoder classifiers read their last token
that is not the padding token, so a row must be padded with the very id that the model's config names,
or, where it names none, with an id that no row of the batch holds. A language model without a head
loads as a classifier with a random one; that is refused. And an answer that spells a control token
(`<|im_end|>`) would be read as one, and could write the next turn itself; it is not judged.

The candidates of a prompt have most of their tokens in common. Where the model allows it, the prompt
is computed once: prompt and answers lie in one sequence, each answer sees the prompt and itself
(an additive 4D mask, positions that restart at the prompt's end). Models that might not allow it
(windows, recurrent layers) are left out by their config, the others are tried on the first group
against one row at a time, and taken the ordinary way if the values differ.
"""

import math
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from rft.types import Candidate, Prompt, RftError, Score, Verdict

WINDOW = 16
"""Batches' worth of tokens that are pulled and sorted by length together."""
PACK = 1024
"""Tokens that a prompt and its answers may have as one sequence; attention is over all pairs."""
SHARED = 8
"""Fewer tokens in common than this are not worth sharing."""

Groups = Iterator[tuple[Prompt, Sequence[Candidate]]]


@dataclass
class Row:
    """One distinct answer to a prompt, as token ids, and the candidates that gave it."""

    tokens: list[int]
    ids: list[str]


@dataclass
class Pack:
    """Rows of one prompt, whose first `shared` tokens are the same."""

    rows: list[Row]
    shared: int

    @property
    def length(self) -> int:
        return self.shared + sum(len(row.tokens) - self.shared for row in self.rows)


class reward_model:
    """Gives each answer the value that a reward model's head says, and a verdict by `threshold`.

    The model reads the question as the user's message and the answer as the assistant's, through its
    own chat template. Without a threshold a value is no verdict: the score is unknown for the reason
    `unjudged`, and the verdict is up to the other scorers. Put one that knows the gold answer before
    it, or nothing counts as correct, on the held-out problems neither.

    model: folder or hub name of a sequence classifier (AutoModelForSequenceClassification).
    threshold: correct at or above this value, else wrong; none: a value only.
    revision: hub revision; pin it to make runs repeatable.
    backend: `transformers`, or `vllm` for its pooling engine.
    dtype: format of the weights; `auto` is float32 on a CPU, else the model's own.
    label: which of the head's numbers is the value, from 0; needed where there are several.
    template: plain text with {question} and {answer}, in place of the chat template.
    max_len: longest question plus answer in tokens; longer ones are unknown (`too_long`), and never
    cut. By default what the model was made for.
    batch_tokens: tokens in a batch, padding included.
    trust_remote_code: run Python code that the model's folder carries. Off unless you trust its
    author.
    engine: further arguments of `vllm.LLM`, with `backend: vllm`.

    Unknown for reasons `unjudged`, `too_long`, `control_tokens` and `nan`.
    """

    whole_prompts = False

    def __init__(
        self,
        model: str,
        threshold: float | None = None,
        revision: str | None = None,
        backend: Literal["transformers", "vllm"] = "transformers",
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        label: Annotated[int, Field(ge=0)] | None = None,
        template: str | None = None,
        max_len: Annotated[int, Field(gt=0)] | None = None,
        batch_tokens: Annotated[int, Field(gt=0)] = 4096,
        trust_remote_code: bool = False,
        engine: dict[str, Any] | None = None,
    ):
        if engine and backend != "vllm":
            raise ValueError("engine: these are arguments of vLLM: set backend: vllm")
        if threshold is not None and math.isnan(threshold):
            raise ValueError("threshold: nan is above and below nothing: give a number")
        if template is not None and not ("{question}" in template and "{answer}" in template):
            raise ValueError("template: it must hold {question} and {answer}")
        self._model_name, self._revision, self._trust = model, revision, trust_remote_code
        self._threshold, self._backend, self._dtype = threshold, backend, dtype
        self._template, self._batch_tokens, self._engine = template, batch_tokens, engine or {}
        self._config, self._tokenizer = self._load_small()
        self._label = self._choose_label(label)
        self._max_len = max_len or self._longest()
        self._control = self._control_tokens()
        self._running: Any = None
        self._stats = dict.fromkeys(("rows", "tokens", "computed_tokens", "seconds"), 0.0)

    def _load_small(self) -> tuple[Any, Any]:
        """Config and tokenizer: enough to know whether the model will do."""
        from transformers import AutoConfig, AutoTokenizer

        where = {"revision": self._revision, "trust_remote_code": self._trust}
        try:
            config = AutoConfig.from_pretrained(self._model_name, **where)
            tokenizer = AutoTokenizer.from_pretrained(self._model_name, **where)
        except (OSError, ValueError) as fault:
            raise RftError(
                f"reward_model: model: {self._model_name}: cannot be loaded: "
                f"{str(fault).splitlines()[0]}. Give a model folder (./name), or a hub name"
            ) from fault
        kinds = config.architectures or []
        if kinds and not self._trust and not any("Classification" in kind for kind in kinds):
            raise RftError(
                f"reward_model: model: {self._model_name} is a {kinds[0]}, not a sequence classifier "
                "(...ForSequenceClassification): its values would come from a random head. Give a "
                "reward model, or `use: judge` for a language model"
            )
        if self._template is None and not tokenizer.chat_template:
            raise RftError(
                f"reward_model: model: {self._model_name} has no chat template: say how it reads an "
                'answer, for instance template: "{question}\\n{answer}"'
            )
        return config, tokenizer

    def _choose_label(self, label: int | None) -> int:
        count = self._config.num_labels
        names = ", ".join(f"{i} {name}" for i, name in sorted(self._config.id2label.items()))
        if label is None and count > 1:
            raise ValueError(f"label: the model has {count}: say which is the reward ({names})")
        if label is not None and label >= count:
            raise ValueError(f"label: the model has no {label}, it has {names}")
        return label or 0

    def _longest(self) -> int:
        known = (
            getattr(self._config.get_text_config(), "max_position_embeddings", None),
            self._tokenizer.model_max_length,
        )
        found = [n for n in known if isinstance(n, int) and 0 < n < 10**7]
        if not found:
            raise ValueError(
                "max_len: the model does not say how long a text it reads: give max_len"
            )
        return min(found)

    def _control_tokens(self) -> re.Pattern[str] | None:
        added = self._tokenizer.added_tokens_decoder.values()
        names = {*self._tokenizer.all_special_tokens, *(t.content for t in added if t.special)}
        return re.compile("|".join(map(re.escape, sorted(names)))) if names else None

    def score(self, groups: Groups) -> Iterator[tuple[str, Score]]:
        """Pulls groups for several batches, sorts their rows by length, yields batch by batch."""
        try:
            for window in self._windows(groups):
                yield from self.ask(window)
        finally:
            self.close()

    def ask(self, pairs: Sequence[tuple[Prompt, Candidate]]) -> Iterator[tuple[str, Score]]:
        """Scores of these now; the model stays loaded until `close`."""
        ready, rows = self._read(pairs)
        yield from ready
        if rows and self._running is None:
            self._running = self._start()
        began = time.monotonic()
        for row, value in self._values(rows):
            self._stats["seconds"] += time.monotonic() - began
            yield from ((id, self._judge(value)) for id in row.ids)
            began = time.monotonic()

    def close(self) -> None:
        """Frees the model."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def stats(self) -> dict[str, float]:
        """Rows and tokens that were judged, how many of the tokens were computed (the rest was
        shared with other answers to the prompt), and seconds in the model."""
        return dict(self._stats)

    def _windows(self, groups: Groups) -> Iterator[list[tuple[Prompt, Candidate]]]:
        """Pairs with about WINDOW batches of tokens; four characters are taken for a token."""
        held: list[tuple[Prompt, Candidate]] = []
        size = 0
        for prompt, candidates in groups:
            for candidate in candidates:
                held.append((prompt, candidate))
                size += (len(prompt.question) + len(candidate.text)) // 4 + 1
            if size >= WINDOW * self._batch_tokens:
                yield held
                held, size = [], 0
        if held:
            yield held

    def _read(
        self, window: Sequence[tuple[Prompt, Candidate]]
    ) -> tuple[list[tuple[str, Score]], dict[str, list[Row]]]:
        """What needs no model, and the rest as rows by prompt, the same answer only once."""
        ready: list[tuple[str, Score]] = []
        fine: list[tuple[Prompt, Candidate]] = []
        for prompt, candidate in window:
            if self._control and self._control.search(candidate.text):
                ready.append((candidate.id, Score(Verdict.UNKNOWN, "control_tokens")))
            else:
                fine.append((prompt, candidate))
        texts = [self._text(prompt.question, candidate.text) for prompt, candidate in fine]
        # A chat template writes its own special tokens.
        plain = self._template is not None
        tokens = (
            self._tokenizer(texts, add_special_tokens=plain, verbose=False)["input_ids"]
            if texts
            else []
        )
        rows: dict[str, dict[tuple[int, ...], Row]] = {}
        for (prompt, candidate), row in zip(fine, tokens, strict=True):
            if len(row) > self._max_len:
                ready.append((candidate.id, Score(Verdict.UNKNOWN, "too_long")))
                continue
            of_prompt = rows.setdefault(prompt.id, {})
            of_prompt.setdefault(tuple(row), Row(row, [])).ids.append(candidate.id)
        return ready, {id: list(found.values()) for id, found in rows.items()}

    def _text(self, question: str, answer: str) -> str:
        if self._template is not None:
            values = {"question": question, "answer": answer}
            return re.sub(r"\{(question|answer)\}", lambda m: values[m[1]], self._template)
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        text: str = self._tokenizer.apply_chat_template(messages, tokenize=False)
        return text

    def _judge(self, value: float) -> Score:
        if not math.isfinite(value):
            return Score(Verdict.UNKNOWN, "nan")
        if self._threshold is None:
            return Score(Verdict.UNKNOWN, "unjudged", None, value)
        verdict = Verdict.CORRECT if value >= self._threshold else Verdict.WRONG
        return Score(verdict, None, None, value)

    def _start(self) -> Any:
        if self._backend == "transformers":
            return _Torch(self)
        from rft.scorers._vllm import Engine

        return Engine(
            "reward_model",
            self._model_name,
            revision=self._revision,
            trust_remote_code=self._trust,
            max_len=self._max_len,
            dtype=self._dtype,
            extra=self._engine,
            pooling=True,
        )

    def _values(self, prompts: dict[str, list[Row]]) -> Iterator[tuple[Row, float]]:
        rows = [row for found in prompts.values() for row in found]
        self._stats["rows"] += len(rows)
        self._stats["tokens"] += sum(len(row.tokens) for row in rows)
        if isinstance(self._running, _Torch):
            yield from self._running.values(prompts.values(), self._stats)
        elif rows:
            self._stats["computed_tokens"] += sum(len(row.tokens) for row in rows)
            got = self._running.classify([self._cut(row.tokens) for row in rows])
            yield from ((row, v[self._label]) for row, v in zip(rows, got, strict=True))

    def _cut(self, tokens: list[int]) -> list[int]:
        """Without padding tokens at the end: transformers reads the last other token, vLLM the
        last."""
        pad = self._config.get_text_config().pad_token_id
        end = len(tokens)
        while end > 1 and tokens[end - 1] == pad:
            end -= 1
        return tokens[:end]


class _Torch:
    """The model through transformers."""

    def __init__(self, of: reward_model):
        import torch
        from transformers import AutoModelForSequenceClassification
        from transformers.modeling_layers import GenericForSequenceClassification

        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = "float32" if of._dtype == "auto" and self._device == "cpu" else of._dtype
        try:
            model, info = AutoModelForSequenceClassification.from_pretrained(
                of._model_name,
                revision=of._revision,
                trust_remote_code=of._trust,
                dtype=dtype,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as fault:
            raise RftError(
                f"reward_model: model: {of._model_name}: cannot be loaded: "
                f"{str(fault).splitlines()[0]}"
            ) from fault
        if info["missing_keys"]:
            raise RftError(
                f"reward_model: model: {of._model_name} lacks weights "
                f"({', '.join(sorted(info['missing_keys'])[:3])}), which would be random: give a "
                "trained reward model"
            )
        self._model = model.to(self._device).eval()
        self._label, self._batch_tokens = of._label, of._batch_tokens
        self._config = model.config.get_text_config()
        self._pad = self._config.pad_token_id
        layers = set(getattr(self._config, "layer_types", None) or ["full_attention"])
        window = getattr(self._config, "sliding_window", None)
        self._may_pack = (
            isinstance(model, GenericForSequenceClassification)
            and getattr(self._config, "is_causal", True)
            and layers == {"full_attention"}
            and not (window and window < of._max_len)
        )
        self._tried = False

    def close(self) -> None:
        del self._model
        if self._device == "cuda":
            self._torch.cuda.empty_cache()

    def values(
        self, prompts: Iterable[list[Row]], stats: dict[str, float]
    ) -> Iterator[tuple[Row, float]]:
        """(row, value) in batches by length; counts `computed_tokens` in stats."""
        with self._torch.inference_mode():
            packs: list[Pack] = []
            singles: list[Row] = []
            for rows in prompts:
                shared = _in_common(rows) if self._may_pack else 0
                if shared >= SHARED and not self._tried:
                    self._try(rows, shared)
                if shared < SHARED or not self._may_pack:
                    singles += rows
                else:
                    packs += _packs(rows, shared)
            lengths = {"computed_tokens": sum(len(r.tokens) for r in singles)}
            lengths["computed_tokens"] += sum(pack.length for pack in packs)
            stats["computed_tokens"] += lengths["computed_tokens"]
            for batch in _batches(singles, lambda row: len(row.tokens), self._batch_tokens):
                yield from zip(batch, self._run(self._plain, batch), strict=True)
            for many in _batches(packs, lambda pack: pack.length, self._batch_tokens):
                every = [row for pack in many for row in pack.rows]
                yield from zip(every, self._run(self._packed, many), strict=True)

    def _try(self, rows: list[Row], shared: int) -> None:
        """Whether packing gives what single rows give; exact to 1e-4 in float32."""
        self._tried = True
        few = _packs(rows[:4], shared)[0]
        alone = [self._plain([row])[0] for row in few.rows]
        near = 1e-4 if self._model.dtype is self._torch.float32 else 3e-2
        self._may_pack = all(
            abs(a - b) <= near * max(1.0, abs(a))
            for a, b in zip(alone, self._packed([few]), strict=True)
        )
        if not self._may_pack:
            print("reward_model: sharing the prompt changes this model's values: not shared")

    def _run(self, how: Any, batch: list[Any]) -> list[float]:
        try:
            found: list[float] = how(batch)
            return found
        except self._torch.OutOfMemoryError as fault:
            raise RftError(
                f"reward_model: no memory for a batch of {self._batch_tokens} tokens: lower "
                "batch_tokens"
            ) from fault

    def _plain(self, rows: list[Row]) -> list[float]:
        torch = self._torch
        pad = self._pad
        if pad is None:
            # The model reads each row's last token. It needs a padding id to find that, and any
            # will do that no row has.
            held = {token for row in rows for token in row.tokens}
            pad = next(i for i in range(len(held) + 1) if i not in held)
        width = max(len(row.tokens) for row in rows)
        ids = torch.tensor([r.tokens + [pad] * (width - len(r.tokens)) for r in rows])
        lengths = torch.tensor([len(r.tokens) for r in rows])
        mask = (torch.arange(width) < lengths[:, None]).long()
        self._config.pad_token_id = pad
        try:
            out = self._model(
                input_ids=ids.to(self._device), attention_mask=mask.to(self._device)
            ).logits[:, self._label]
        finally:
            self._config.pad_token_id = self._pad
        found: list[float] = out.float().tolist()
        return found

    def _packed(self, packs: list[Pack]) -> list[float]:
        """The prompt once, then its answers: token i sees token j if j is not after it, and is of
        the same answer or of the prompt."""
        torch = self._torch
        width = max(pack.length for pack in packs)
        ids = torch.zeros(len(packs), width, dtype=torch.long)
        positions = torch.zeros_like(ids)
        part = torch.full_like(ids, -1)  # 0 the prompt, from 1 the answers, -1 padding
        ends: list[tuple[int, int]] = []
        for i, pack in enumerate(packs):
            at, shared = pack.shared, pack.shared
            ids[i, :at] = torch.tensor(pack.rows[0].tokens[:at])
            positions[i, :at] = torch.arange(at)
            part[i, :at] = 0
            for k, row in enumerate(pack.rows, start=1):
                end = at + len(row.tokens) - shared
                ids[i, at:end] = torch.tensor(row.tokens[shared:])
                positions[i, at:end] = torch.arange(shared, len(row.tokens))
                part[i, at:end] = k
                last = len(row.tokens) - 1
                while last > 0 and row.tokens[last] == self._pad:
                    last -= 1
                ends.append((i, last if last < shared else at + last - shared))
                at = end
        ids, positions, part = (t.to(self._device) for t in (ids, positions, part))
        order = torch.arange(width, device=self._device)
        seen = (order[:, None] >= order) & (
            (part[:, :, None] == part[:, None]) | (part[:, None] == 0)
        )
        dtype = self._model.dtype
        mask = torch.zeros(seen.shape, dtype=dtype, device=self._device)
        mask = mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]
        base = getattr(self._model, self._model.base_model_prefix)
        hidden = base(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        row, at_end = torch.tensor(ends, device=self._device).T
        found: list[float] = self._model.score(hidden[row, at_end])[:, self._label].float().tolist()
        return found


def _in_common(rows: list[Row]) -> int:
    """Tokens that all rows begin with, leaving each at least one of its own; 0 for one row."""
    if len(rows) < 2:
        return 0
    # The first and the last in order differ earliest of all.
    low, high = min(r.tokens for r in rows), max(r.tokens for r in rows)
    most = min(len(row.tokens) for row in rows) - 1
    return next((i for i in range(most) if low[i] != high[i]), most)


def _packs(rows: list[Row], shared: int) -> list[Pack]:
    """Rows of a prompt in packs of at most PACK tokens, or of one row if it is longer."""
    packs: list[Pack] = []
    for row in sorted(rows, key=lambda row: len(row.tokens)):
        own = len(row.tokens) - shared
        if not packs or packs[-1].length + own > PACK:
            packs.append(Pack([], shared))
        packs[-1].rows.append(row)
    return packs


def _batches(items: list[Any], length: Any, tokens: int) -> Iterator[list[Any]]:
    """Items of about one length together, at most `tokens` with padding (or a single one)."""
    batch: list[Any] = []
    for item in sorted(items, key=length):
        if batch and length(item) * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
