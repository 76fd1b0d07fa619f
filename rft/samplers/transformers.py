"""Sampling with transformers' `generate`: slower than vLLM, and runs wherever torch runs.

Use it for models or adapters that vLLM can't serve, and as a second opinion on what vLLM says.

`generate` draws all rows of a batch from one random generator, so a sample would depend on its
neighbours. Here every row has its own generator, seeded by its request, and the draw is the
Gumbel-max one (Gumbel 1954; Maddison et al. 2014): argmax(log p + g), with g = -log(e) for e
exponential, has distribution p. `generate` then only takes the argmax. A sample depends on its
batch through the last bits of the logits alone; in INT8 also through the outliers, which are columns of
the whole batch.

Settings apply in vLLM's order: repetition penalty, temperature, min_p, top_k, top_p. As there,
log-probabilities are log-softmax of the raw logits, in nats.
"""

import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rft.config_decoding import Decoding, Loops
from rft.loops import in_loop, may_stop, stopped_at
from rft.samplers._beam import Peekable
from rft.samplers._common import budget, candidate, check_adapter
from rft.samplers._formats import int8_arguments, missing, peak_rss_gb, weights_gb
from rft.types import Candidate, Finish, Request, RftError, Sampler, Setup


def transformers(setup: Setup) -> Sampler:
    """`use: transformers`. Loads the model; raises RftError if it can't be had."""
    return TransformersSampler(setup)


class TransformersSampler:
    def __init__(self, setup: Setup):
        began = time.monotonic()
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        engine, model = setup.engine, setup.model
        default = type(engine)()
        for name in ("extra", "compile", "tensor_parallel", "data_parallel"):
            if getattr(engine, name) != getattr(default, name):
                raise RftError(
                    f"engine.{name}: transformers has no such setting, vLLM has: leave it out, or "
                    "set use: vllm"
                )
        self._setup = setup
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._size = engine.max_num_seqs or (32 if self._device == "cpu" else 128)
        dtype = engine.dtype
        if dtype == "auto" and self._device == "cpu":
            dtype = "float32"
        if why := missing(dtype, "transformers"):
            raise RftError(f"engine.dtype: {why}")
        is_int8 = dtype == "int8"
        if self._device == "cuda":
            # An engine before this one in the same process had its own.
            torch.cuda.reset_peak_memory_stats()
        try:
            self._model: Any = AutoModelForCausalLM.from_pretrained(
                model.base,
                revision=model.revision,
                trust_remote_code=model.trust_remote_code,
                **(int8_arguments(self._device) if is_int8 else {"dtype": dtype}),
            )
            if not is_int8:
                self._model = self._model.to(self._device)
        except (OSError, ValueError, RuntimeError, ImportError) as fault:
            raise RftError(
                f"model.base: {model.base}: cannot be loaded: {str(fault).splitlines()[0]}"
            ) from fault
        own = self._model.generation_config.eos_token_id
        own = [own] if isinstance(own, int) else own or []
        self._end_ids = sorted({*own, setup.renderer.eos_id})
        # The model's own suggestions (temperature, penalties, ...) must not leak into our settings.
        self._model.generation_config = GenerationConfig(
            eos_token_id=self._end_ids, pad_token_id=setup.renderer.eos_id
        )
        self.dtype = dtype if dtype != "auto" else str(self._model.dtype).removeprefix("torch.")
        self._adapters = {path: f"adapter{i}" for i, path in enumerate(setup.adapters)}
        self._load_adapters()
        self._model.eval()
        self._stats = dict.fromkeys(("requests", "prompt_tokens", "tokens"), 0)
        self._seconds = 0.0
        self._start_s = time.monotonic() - began

    def _load_adapters(self) -> None:
        if not self._adapters:
            return
        from peft import PeftModel

        for path, name in self._adapters.items():
            try:
                if isinstance(self._model, PeftModel):
                    self._model.load_adapter(path, adapter_name=name)
                else:
                    self._model = PeftModel.from_pretrained(self._model, path, adapter_name=name)
            except (OSError, ValueError, RuntimeError, KeyError) as fault:
                raise RftError(
                    f"{path}: not an adapter for {self._setup.model.base}: "
                    f"{str(fault).splitlines()[0]}"
                ) from fault

    def sample(self, requests: Iterator[Request | None]) -> Iterator[Candidate]:
        """Pulls requests a batch at a time, and yields a batch's candidates together.

        Consecutive requests share a batch while their decoding settings and adapter are the same.
        Raises RftError for a prompt of model.max_len tokens or more, or an unknown adapter.
        """
        pulled = Peekable(requests)
        while pulled.more() or not pulled.ended:
            if not (batch := self._batch(pulled)):
                continue
            decoding, adapter = batch[0].decoding, batch[0].adapter
            check_adapter(adapter, self._setup)
            draw = self._search if decoding.beam_width else self._draw
            began = time.monotonic()
            with self._adapter(adapter):
                done = draw(batch, decoding)
            self._seconds += time.monotonic() - began
            self._stats["requests"] += len(done)
            self._stats["prompt_tokens"] += sum(len(c.prompt_token_ids) for c in done)
            self._stats["tokens"] += sum(len(c.token_ids) for c in done)
            yield from done

    def _batch(self, pulled: Peekable) -> list[Request]:
        """The next requests that go together. Of a beam search's prompts all are taken."""
        batch: list[Request] = []
        prompts: set[str] = set()
        while pulled.more():
            request = pulled.peek()
            decoding = request.decoding
            if batch and _settings(request) != _settings(batch[0]):
                break
            if not decoding.beam_width and len(batch) == self._size:
                break
            size = max(1, self._size // max(1, decoding.beam_width))
            if len(prompts) == size and request.prompt_id not in prompts and decoding.beam_width:
                break
            prompts.add(request.prompt_id)
            batch.append(pulled.next())
        return batch

    def _adapter(self, adapter: str | None) -> Any:
        if adapter is not None:
            self._model.set_adapter(self._adapters[adapter])
        elif self._adapters:
            return self._model.disable_adapter()
        return contextlib.nullcontext()

    def _draw(self, batch: list[Request], decoding: Decoding) -> list[Candidate]:
        budgets = [budget(request, self._setup.model.max_len) for request in batch]
        prompts, mask = self._pad([request.prompt_token_ids for request in batch])
        chooser = _Chooser(decoding, mask, [request.seed for request in batch])
        loops = [may_stop(request.id, decoding.loops) for request in batch]
        self._generate(prompts, mask, max(budgets), decoding, [chooser], loops)
        rows = []
        for i, request in enumerate(batch):
            tokens = [int(step[0][i]) for step in chooser.steps]
            logprobs = [float(step[1][i]) for step in chooser.steps]
            length, finish = self._end(tokens, budgets[i], decoding.stop, loops[i])
            rows.append(
                candidate(
                    request,
                    self._setup.renderer,
                    tuple(tokens[:length]),
                    tuple(logprobs[:length]),
                    finish,
                )
            )
        return rows

    def _search(self, batch: list[Request], decoding: Decoding) -> list[Candidate]:
        """Beam search; batch holds all wanted indexes of each of its prompts in turn."""
        prompts = list(dict.fromkeys(request.prompt_token_ids for request in batch))
        budgets = {
            request.prompt_token_ids: budget(request, self._setup.model.max_len)
            for request in batch
        }
        found: dict[tuple[int, ...], Any] = {}
        # Prompts of other budgets are other searches: a beam's end is part of its score.
        for tokens, group in itertools.groupby(
            sorted(prompts, key=budgets.__getitem__), budgets.__getitem__
        ):
            ids = list(group)
            padded, mask = self._pad(ids)
            extra = []
            if decoding.repetition_penalty != 1:
                extra.append(_Penalty(decoding.repetition_penalty, mask, decoding.beam_width))
            out = self._generate(padded, mask, tokens, decoding, extra)
            out = out[:, padded.shape[1] :].view(len(ids), decoding.beam_width, -1).tolist()
            found.update(zip(ids, out, strict=True))
        rows = []
        for request in batch:
            tokens = found[request.prompt_token_ids][request.index]
            length, finish = self._end(tokens, budgets[request.prompt_token_ids], decoding.stop)
            kept = tuple(tokens[:length])
            logprobs = self._logprobs(request.prompt_token_ids, kept)
            rows.append(candidate(request, self._setup.renderer, kept, logprobs, finish))
        return rows

    def _generate(
        self,
        prompts: Any,
        mask: Any,
        tokens: int,
        decoding: Decoding,
        processors: list[Any],
        loops: Sequence[Loops | None] = (),
    ) -> Any:
        import torch
        from transformers import LogitsProcessorList, StoppingCriteriaList

        stops = StoppingCriteriaList()
        if decoding.stop:
            stops.append(_Stops(self._setup.renderer.tokenizer, decoding.stop, prompts.shape[1]))
        if any(loops):
            stops.append(_Repeats(loops, prompts.shape[1]))
        width = max(1, decoding.beam_width)
        with torch.inference_mode():
            return self._model.generate(
                input_ids=prompts,
                attention_mask=mask,
                max_new_tokens=tokens,
                do_sample=False,
                num_beams=width,
                num_return_sequences=width,
                logits_processor=LogitsProcessorList(processors),
                stopping_criteria=stops,
            )

    def _logprobs(self, prompt: tuple[int, ...], tokens: tuple[int, ...]) -> tuple[float, ...]:
        """Log-probability of each token after the prompt, by one forward pass."""
        import torch

        ids = torch.tensor([prompt + tokens], device=self._device)
        with torch.inference_mode():
            logits = self._model(input_ids=ids, logits_to_keep=len(tokens) + 1).logits[0, :-1]
            logprobs = logits.float().log_softmax(-1)
            return tuple(logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0].tolist())

    def _end(
        self, tokens: list[int], limit: int, stop: list[str], loops: Loops | None = None
    ) -> tuple[int, Finish]:
        """Length of a row up to its end, and what ended it."""
        stops = _Stops(self._setup.renderer.tokenizer, stop, 0)
        # What ends at the budget as well counts as that, as in vLLM.
        looped = stopped_at(tokens[: limit - 1], loops) if loops else None
        limit = min(limit, len(tokens))
        for at in range(limit):
            if tokens[at] in self._end_ids or (stop and stops.ends(tokens[: at + 1])):
                return at + 1, Finish.STOP
            if at + 1 == looped:
                return looped, Finish.LOOP
        return limit, Finish.LENGTH

    def _pad(self, prompts: list[tuple[int, ...]]) -> tuple[Any, Any]:
        """Left-padded ids and attention mask, each [rows, longest prompt]."""
        import torch

        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self._setup.renderer.eos_id)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, longest - len(prompt) :] = torch.tensor(prompt)
            mask[i, longest - len(prompt) :] = 1
        return ids.to(self._device), mask.to(self._device)

    def stats(self) -> dict[str, float]:
        """Counts, seconds spent generating, and memory: of the weights, and the most there was."""
        memory = {"weights_gb": weights_gb(self._model), "peak_rss_gb": peak_rss_gb()}
        if self._device == "cuda":
            import torch

            memory["peak_gpu_gb"] = torch.cuda.max_memory_allocated() / (1 << 30)
        return {
            **self._stats,
            **memory,
            "seconds": self._seconds,
            "tokens_per_s": self._stats["tokens"] / self._seconds if self._seconds else 0.0,
            "engine_start_s": self._start_s,
        }

    def close(self) -> None:
        self._model = None


def _settings(request: Request) -> tuple[Decoding, str | None]:
    return request.decoding, request.adapter


def penalise(scores: Any, ids: Any, penalty: float) -> None:
    """Repetition penalty (Keskar et al. 2019, CTRL, section 4.1) on one row, in place."""
    seen = ids.unique()
    values = scores[seen]
    scores[seen] = values.where(values < 0, values / penalty).where(values > 0, values * penalty)


class _Penalty:
    """Repetition penalty that doesn't take padding for text, as transformers' own does."""

    def __init__(self, penalty: float, mask: Any, width: int = 1):
        self._penalty, self._width = penalty, width
        self._skip = (mask == 0).sum(1).tolist()

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        scores = scores.clone()
        for i in range(len(scores)):
            penalise(scores[i], input_ids[i, self._skip[i // self._width] :], self._penalty)
        return scores


class _Chooser:
    """A logits processor that draws the tokens itself and writes down their log-probabilities."""

    def __init__(self, decoding: Decoding, mask: Any, seeds: list[int]):
        import torch

        self._decoding = decoding
        self._penalty = _Penalty(decoding.repetition_penalty, mask)
        self._generators = [
            torch.Generator(mask.device).manual_seed(seed % (1 << 63)) for seed in seeds
        ]
        self.steps: list[tuple[Any, Any]] = []
        """(token ids, log-probabilities) of every row, for each step so far."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        raw, decoding = scores.float().log_softmax(-1), self._decoding
        scores = scores.float()
        if decoding.repetition_penalty != 1:
            scores = self._penalty(input_ids, scores)
        if decoding.temperature:
            scores = truncate(scores / decoding.temperature, decoding)
            noise = torch.empty_like(scores)
            for row, generator in zip(noise, self._generators, strict=True):
                row.exponential_(generator=generator)
            scores = scores - noise.log_()
        chosen = scores.argmax(-1)
        self.steps.append((chosen.tolist(), raw.gather(1, chosen[:, None])[:, 0].tolist()))
        return scores


def truncate(scores: Any, decoding: Decoding) -> Any:
    """Scores [rows, vocabulary] with the tokens that min_p, top_k and top_p exclude at -inf."""
    if decoding.min_p:
        probs = scores.softmax(-1)
        floor = decoding.min_p * probs.max(-1, keepdim=True).values
        scores = scores.masked_fill(probs < floor, -float("inf"))
    if 0 < decoding.top_k < scores.shape[-1]:
        least = scores.topk(decoding.top_k, -1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -float("inf"))
    if decoding.top_p < 1:
        ordered, order = scores.sort(-1, descending=True)
        probs = ordered.softmax(-1)
        # A token stays while the likelier ones together fall short of top_p.
        beyond = probs.cumsum(-1) - probs >= decoding.top_p
        scores = scores.masked_fill(beyond.scatter(-1, order, beyond), -float("inf"))
    return scores


class _Stops:
    """Ends a row once its newest token completes a stop string, in the completion alone.

    transformers' own `stop_strings` would also match across the border with the prompt.
    """

    def __init__(self, tokenizer: Any, stop: list[str], prompt_len: int):
        self._tokenizer, self._stop, self._from = tokenizer, stop, prompt_len
        # A token may hold as little as one byte, and special tokens none.
        self._window = max((len(s.encode()) for s in stop), default=0) + 8

    def ends(self, tokens: list[int]) -> bool:
        tail = self._tokenizer.decode(tokens[-self._window :], skip_special_tokens=True)
        return any(s in tail for s in self._stop)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        import torch

        rows = input_ids[:, self._from :].tolist()
        return torch.tensor([self.ends(row) for row in rows], device=input_ids.device)


class _Repeats:
    """Ends the rows that repeat themselves; a row whose rule is None goes on."""

    def __init__(self, loops: Sequence[Loops | None], prompt_len: int):
        self._loops, self._from = loops, prompt_len
        self._window = max(rule.period * rule.repeats for rule in loops if rule)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        import torch

        rows = input_ids[:, self._from :][:, -self._window :].tolist()
        ended = [
            rule is not None and in_loop(row, rule.least, rule.period, rule.repeats)
            for row, rule in zip(rows, self._loops, strict=True)
        ]
        return torch.tensor(ended, device=input_ids.device)
