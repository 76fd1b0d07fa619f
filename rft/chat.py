"""The only code that turns text into token ids and back.

Sampler and trainer both take ids from here, so template, beginning-of-sequence token and EOS token
cannot differ between them. A completion is tokenised apart from its prompt: the boundary between
the two is a boundary between tokens, as it is when the model generates.
"""

import functools
import json
import re
from pathlib import Path
from typing import Any

from rft.config import Chat, Model
from rft.types import CUT_OFF, Candidate, RftError, digest

_FIELD = re.compile(r"\{(?:question|answer)\}")


def load_tokenizer(model: Model) -> Any:
    """The model's tokenizer (transformers). Raises RftError when it cannot be had."""
    try:
        return _tokenizer_class(model).from_pretrained(
            model.base, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as fault:
        raise RftError(
            f"model.base: {model.base}: cannot load a tokenizer from it: "
            f"{str(fault).splitlines()[0]}. Give a model folder (./name), or a hub name."
        ) from fault


def _tokenizer_class(model: Model) -> Any:
    """AutoTokenizer, or the class that it would choose for a tokenizer saved by transformers 5.

    AutoTokenizer brings torch along, which takes 5 s of a core in every stage that runs no model.
    """
    try:
        saved = json.loads((Path(model.base) / "tokenizer_config.json").read_text())
    except (OSError, ValueError):
        saved = {}
    if saved.get("tokenizer_class") == "TokenizersBackend" and "auto_map" not in saved:
        from transformers import TokenizersBackend

        return TokenizersBackend
    from transformers import AutoTokenizer

    return AutoTokenizer


class Renderer:
    """Renders one model's prompts and completions."""

    def __init__(self, model: Model, chat: Chat, tokenizer: Any = None):
        self.tokenizer = tokenizer or load_tokenizer(model)
        self.chat = chat
        self.uses_template = chat.template == "auto" and bool(self.tokenizer.chat_template)
        if chat.system and not self.uses_template:
            raise RftError(
                "chat.system: this tokenizer has no chat template: put the text into chat.prompt"
            )
        if self.tokenizer.eos_token_id is None:
            raise RftError(
                f"model.base: {model.base}: its tokenizer has no end-of-sequence token, so no completion could "
                "end. Give it one: eos_token in tokenizer_config.json"
            )
        self.eos_id: int = self.tokenizer.eos_token_id

    @property
    def shows_answer(self) -> bool:
        """Whether prompts hold the gold answer, as a hint."""
        return "{answer}" in self.chat.prompt

    def _message(self, question: str, answer: str | None) -> str:
        # In one pass: a question may hold such words itself.
        told = {"{question}": question, "{answer}": answer or ""}
        return _FIELD.sub(lambda field: told[field[0]], self.chat.prompt)

    def _examples(self, question: str) -> list[tuple[str, str]]:
        """(asked, answered) of the worked examples that come before a question."""
        shown = [e for e in self.chat.examples if e.question != question][: self.chat.shots]
        return [
            (
                self._message(e.question, e.answer),
                self.chat.response_prefix + self.chat.solution.replace("{solution}", e.solution),
            )
            for e in shown
        ]

    def messages(self, question: str, answer: str | None = None) -> list[dict[str, str]]:
        """The prompt as messages of a chat, to which a template is still to be applied.

        answer: the gold answer, for prompts that hint at it.
        """
        messages = [{"role": "system", "content": self.chat.system}] if self.chat.system else []
        for asked, told in self._examples(question):
            messages.append({"role": "user", "content": asked})
            messages.append({"role": "assistant", "content": told})
        return [*messages, {"role": "user", "content": self._message(question, answer)}]

    def prompt_text(self, question: str, answer: str | None = None) -> str:
        """The prompt as text: examples, template and response prefix included."""
        if not self.uses_template:
            shown = "".join(f"{asked}{told}\n\n" for asked, told in self._examples(question))
            return shown + self._message(question, answer) + self.chat.response_prefix
        text: str = self.tokenizer.apply_chat_template(
            self.messages(question, answer), tokenize=False, add_generation_prompt=True
        )
        return text + self.chat.response_prefix

    def prompt_ids(self, question: str, answer: str | None = None) -> tuple[int, ...]:
        """Ids of the prompt; a template writes its own special tokens, a raw prompt gets the
        tokenizer's."""
        return self._prompt_ids(self.prompt_text(question, answer))

    def _prompt_ids(self, text: str) -> tuple[int, ...]:
        got = self.tokenizer(text, add_special_tokens=not self.uses_template)["input_ids"]
        if not self.uses_template and got and got[-1] == self.eos_id:
            got = got[:-1]  # some tokenizers end every text
        return tuple(got)

    def completion_ids(self, text: str) -> tuple[int, ...]:
        """Ids of a written completion, with the EOS token."""
        got = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return (*got, self.eos_id)

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """Text of a completion without special tokens."""
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def end(self, token_ids: tuple[int, ...]) -> tuple[int, ...]:
        """The special token that ends a completion; empty where none does."""
        last = token_ids[-1:]
        return last if last and last[0] in (self.eos_id, *self.tokenizer.all_special_ids) else ()

    def learnt(self, token_ids: tuple[int, ...]) -> str:
        """Text of a completion as it is learnt: special tokens and all, but the one at its end."""
        ids = token_ids[: len(token_ids) - len(self.end(token_ids))]
        text: str = self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return text

    @functools.cached_property
    def lead(self) -> str:
        """What the tokenizer puts before a raw prompt, such as a beginning-of-sequence token."""
        text: str = self.tokenizer.decode(list(self._prompt_ids("")))
        return text

    def train_ids(self, candidate: Candidate) -> tuple[int, ...]:
        """The completion ids to learn: as sampled, ending in the EOS token.

        Where a stop string ended the sample, its tokens go and the EOS token takes their place,
        since the model should learn to end there. If the stop string began inside a token, the
        text before it is tokenised anew: the one case in which ids are not the sampled ones.
        """
        ids = candidate.token_ids
        if candidate.finish in CUT_OFF or (ids and ids[-1] == self.eos_id):
            return ids
        text = self.decode(ids)
        if text == candidate.text:
            # Ended by another of the model's EOS tokens, or by a reference's own.
            return ids if ids and ids[-1] in self.tokenizer.all_special_ids else (*ids, self.eos_id)
        for end in range(len(ids) - 1, -1, -1):
            shorter = self.decode(ids[:end])
            if shorter == candidate.text:
                return (*ids[:end], self.eos_id)
            if len(shorter) < len(candidate.text):
                break
        return self.completion_ids(candidate.text)


def chat_digest(chat: Chat) -> str:
    settings = chat.model_dump(mode="json")
    if not chat.shots:
        del settings["shots"], settings["examples"]
    return digest(settings)
