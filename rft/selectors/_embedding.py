"""Texts as vectors, by any encoder that transformers can load: the mean of its last hidden states.

Mean pooling is what sentence-transformers' models are trained for (Reimers and Gurevych, 2019), and
works for any other transformer in some measure. A text longer than the model's window is read in
pieces and averaged over all its tokens: cut off instead, two long answers that differ in their ends
would be the same. torch and transformers are imported only when an encoder is made.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from rft.types import RftError

BATCH_TOKENS = 8192
"""Tokens in one forward pass, padding included."""

LONGEST = 512
"""Tokens in a piece, if the model does not say how many it can take."""


def check_name(model: str) -> None:
    """Raises ValueError where the model is a folder that is not there. Hub names are not looked up."""
    if Path(model).is_absolute() and not (Path(model) / "config.json").is_file():
        raise ValueError(f"model: {model} is no folder with a model (it has no config.json)")


@functools.lru_cache(maxsize=1)
def encoder(model: str) -> "Encoder":
    return Encoder(model)


class Encoder:
    """model: folder or name on the hub. Raises RftError if it can't be loaded."""

    def __init__(self, model: str):
        import torch
        from transformers import AutoModel, AutoTokenizer

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model)
            self._model = AutoModel.from_pretrained(model, dtype=torch.float32)
        except (OSError, ValueError, KeyError) as fault:
            raise RftError(
                f"select: dedupe: model: {model}: cannot load it: {str(fault).splitlines()[0]} "
                "Give a folder, or a hub name that is in the cache or can be fetched."
            ) from fault
        self._model.eval().to(self._device)
        window = getattr(self._model.config, "max_position_embeddings", None) or LONGEST
        self._piece = min(window, self._tokenizer.model_max_length, LONGEST)

    def embed(self, texts: list[str]) -> Any:
        """float32 [texts, width], each row of length 1; zeros for a text without tokens."""
        import torch

        if not texts:
            return np.zeros((0, self._model.config.hidden_size), dtype=np.float32)
        got = self._tokenizer(
            texts, truncation=True, max_length=self._piece, return_overflowing_tokens=True
        )
        pieces = [
            (i, ids) for i, ids in zip(got["overflow_to_sample_mapping"], got["input_ids"]) if ids
        ]
        pieces.sort(key=lambda piece: len(piece[1]), reverse=True)
        sums = np.zeros((len(texts), self._model.config.hidden_size), dtype=np.float64)
        while pieces:
            count = max(1, BATCH_TOKENS // len(pieces[0][1]))
            batch, pieces = pieces[:count], pieces[count:]
            longest = len(batch[0][1])
            # Padding is masked, so its id plays no part; some tokenizers have none.
            tokens = torch.zeros((len(batch), longest), dtype=torch.long)
            mask = torch.zeros((len(batch), longest), dtype=torch.long)
            for k, (_, piece) in enumerate(batch):
                tokens[k, : len(piece)] = torch.tensor(piece)
                mask[k, : len(piece)] = 1
            tokens, mask = tokens.to(self._device), mask.to(self._device)
            with torch.inference_mode():
                hidden = self._model(input_ids=tokens, attention_mask=mask).last_hidden_state
                summed = (hidden * mask[:, :, None]).sum(dim=1)
            for (i, _), row in zip(batch, summed.cpu().numpy()):
                sums[i] += row
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        return (sums / np.maximum(lengths, 1e-12)).astype(np.float32)
