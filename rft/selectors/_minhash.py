"""Finds near-duplicate texts by MinHash (Broder 1997) over word n-grams, in plain NumPy.

datasketch does the same, but brings SciPy along and hashes one n-gram at a time. A signature holds
the least value of each of 128 hash functions over a text's n-grams; the share of places in which
two signatures agree estimates the Jaccard similarity of the two sets, with a standard error of
sqrt(s * (1 - s) / 128), at most 0.045. Pairs are found by bands of two places, which miss a pair of
similarity 0.3 once in 400 times and one of 0.5 never (0.75 ** 64 is 1e-8).
"""

import hashlib
import zlib
from typing import Any

import numpy as np

PLACES = 128
# From a hash and not a random generator, so that a signature is the same in every process, run and
# version of NumPy.
_TIMES, _PLUS = np.frombuffer(
    hashlib.shake_256(b"rft minhash").digest(2 * PLACES * 8), dtype="<u8"
).reshape(2, PLACES)
_TIMES = _TIMES | np.uint64(1)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


def signature(tokens: list[str], n: int) -> Any:
    """uint32 [PLACES] of the n-grams of a text's words; a shorter text is one n-gram as a whole."""
    hashed = np.array([zlib.crc32(t.encode()) for t in tokens] or [0], dtype=np.uint64)
    n = min(n, len(hashed))
    grams = np.zeros(len(hashed) - n + 1, dtype=np.uint64)
    for i in range(n):
        # A polynomial of the words' hashes; NumPy's integers wrap around, as is meant.
        grams = grams * _STEP + hashed[i : len(hashed) - n + 1 + i]
    grams = (grams * _STEP) >> _HALF
    # Multiply-add-shift on 32-bit keys is strongly universal (Dietzfelbinger 1996).
    mixed = (grams[:, None] * _TIMES + _PLUS) >> _HALF
    return mixed.min(axis=0).astype(np.uint32)


class Index:
    """Signatures, and which of them a new one is close to."""

    def __init__(self, threshold: float):
        self.threshold = threshold
        self._held = np.zeros((16, PLACES), dtype=np.uint32)
        self._count = 0
        self._bands: dict[tuple[int, int], list[int]] = {}

    def add(self, one: Any) -> None:
        for band in enumerate(one.view(np.uint64).tolist()):
            self._bands.setdefault(band, []).append(self._count)
        if self._count == len(self._held):
            self._held = np.concatenate([self._held, np.zeros_like(self._held)])
        self._held[self._count] = one
        self._count += 1

    def find(self, one: Any) -> int | None:
        """Position of the first signature that is at least `threshold` similar, or None."""
        near: set[int] = set()
        for band in enumerate(one.view(np.uint64).tolist()):
            near.update(self._bands.get(band, ()))
        if not near:
            return None
        places = sorted(near)
        alike = np.count_nonzero(self._held[places] == one, axis=1)
        hits = np.flatnonzero(alike >= self.threshold * PLACES)
        return places[hits[0]] if len(hits) else None
