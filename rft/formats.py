"""Number formats to look at: what each can hold, and what becomes of a number in it (`rft formats`).

Tables of such facts are usually typed in, and typed wrongly. Here a floating-point format is two
numbers, the bits of its exponent and of its fraction, as IEEE 754-2019 (section 3.4) lays them out,
and all else is computed from these, exactly, in integers and fractions. torch would do for some of it,
but it takes seconds to import, doesn't round to TF32, and rounds a Python number to FP32 before it
rounds that to 16 bits, which is not the same as rounding once.

INT8 and NF4 are no such formats: they hold a block of numbers as levels of its largest.
"""

import math
import sys
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from statistics import NormalDist

from rft.types import RftError

Number = float | Fraction
"""What can be rounded: a Fraction where a float, which is FP64, would itself be rounded."""


@dataclass(frozen=True)
class Floating:
    """A binary floating-point format: sign, exponent and fraction, with subnormals, inf and nan."""

    name: str
    exponent_bits: int
    fraction_bits: int
    use: str
    """What it is for in training."""

    @property
    def stored_bits(self) -> int:
        """Bits that a number takes in memory: the next power of two, which for TF32 is 32 for 19."""
        return 1 << (self.exponent_bits + self.fraction_bits).bit_length()

    @property
    def bias(self) -> int:
        """What is added to an exponent before it is stored, and also the largest exponent."""
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def least_exponent(self) -> int:
        """The exponent of the smallest normal number, and of all subnormal ones."""
        return 1 - self.bias

    @property
    def infinity(self) -> int:
        """inf as bits: an exponent of ones and a fraction of zeros. A nan has another fraction."""
        return ((1 << self.exponent_bits) - 1) << self.fraction_bits

    @property
    def largest(self) -> float:
        return decode(self.infinity - 1, self)

    @property
    def smallest_normal(self) -> float:
        return decode(1 << self.fraction_bits, self)

    @property
    def smallest_subnormal(self) -> float:
        return decode(1, self)

    @property
    def epsilon(self) -> float:
        """From 1 to the next number."""
        return spacing(1.0, self)

    @property
    def digits(self) -> float:
        """Significant decimal digits: those of as many bits as the fraction has, and the bit before it."""
        return (self.fraction_bits + 1) * math.log10(2)

    @property
    def overflow(self) -> float:
        """The smallest number that is rounded to inf: half a step above the largest."""
        return self.largest + spacing(self.largest, self) / 2


FP32 = Floating("FP32", 8, 23, "masters and sums")
TF32 = Floating("TF32", 8, 10, "products of FP32")
BF16 = Floating("BF16", 8, 7, "compute and base")
FP16 = Floating("FP16", 5, 10, "both on older GPUs")
FLOATING = (FP32, TF32, BF16, FP16)


def encode(x: Number, fmt: Floating) -> int:
    """The bits of the number of `fmt` that is nearest to x; of two, the one whose last bit is 0.

    Numbers below the smallest normal lose bits one by one, and those from `fmt.overflow` on are inf
    (IEEE 754-2019, sections 4.3.1 and 7.4).
    """
    negative = x < 0 if isinstance(x, Fraction) else math.copysign(1.0, x) < 0
    sign = negative << (fmt.exponent_bits + fmt.fraction_bits)
    if isinstance(x, float) and math.isnan(x):
        return sign | fmt.infinity | 1 << (fmt.fraction_bits - 1)
    if isinstance(x, float) and math.isinf(x):
        return sign | fmt.infinity
    size = abs(Fraction(x))
    exponent = max(_exponent(size), fmt.least_exponent)
    # round() of a Fraction is exact and goes to the even one of two.
    steps = round(size / Fraction(2) ** (exponent - fmt.fraction_bits))
    # The leading bit of `steps`, where it has one, counts the exponent up from 0, the subnormals'; and
    # steps that were rounded up to the next power of two count it up once more.
    code = ((exponent - fmt.least_exponent) << fmt.fraction_bits) + steps
    return sign | min(code, fmt.infinity)


def _exponent(size: Fraction) -> int:
    """floor(log2(size)), exactly; for 0 something small enough to be no number's."""
    if not size:
        return -sys.maxsize
    guess = size.numerator.bit_length() - size.denominator.bit_length()
    return guess if size >= Fraction(2) ** guess else guess - 1


def decode(bits: int, fmt: Floating) -> float:
    """The number that these bits are. A float holds it exactly."""
    magnitude = bits & ((1 << (fmt.exponent_bits + fmt.fraction_bits)) - 1)
    sign = -1.0 if bits != magnitude else 1.0
    if magnitude >= fmt.infinity:
        return sign * math.inf if magnitude == fmt.infinity else math.nan
    exponent, fraction = divmod(magnitude, 1 << fmt.fraction_bits)
    significand = fraction + (1 << fmt.fraction_bits if exponent else 0)
    return sign * math.ldexp(significand, max(exponent, 1) - fmt.bias - fmt.fraction_bits)


def round_to(x: Number, fmt: Floating) -> float:
    """What is left of x in this format."""
    return decode(encode(x, fmt), fmt)


def spacing(x: Number, fmt: Floating) -> float:
    """From x, rounded, to the next number away from 0; of inf and nan, themselves, as in math.ulp."""
    kept = abs(round_to(x, fmt))
    if not math.isfinite(kept):
        return kept
    exponent = max(_exponent(Fraction(kept)), fmt.least_exponent)
    return math.ldexp(1.0, exponent - fmt.fraction_bits)


def pattern(x: Number, fmt: Floating) -> str:
    """x, rounded, as `sign|exponent|fraction`."""
    bits = f"{encode(x, fmt):0{1 + fmt.exponent_bits + fmt.fraction_bits}b}"
    return f"{bits[0]}|{bits[1 : 1 + fmt.exponent_bits]}|{bits[1 + fmt.exponent_bits :]}"


def relative_error(x: Number, fmt: Floating) -> float:
    """(kept - x) / x: 0 where it is exact, -1 where x underflows to 0, inf where it overflows."""
    kept = round_to(x, fmt)
    if kept == x:
        return 0.0
    if math.isinf(kept):
        return math.inf
    return math.nan if math.isnan(kept) else float(Fraction(kept) / Fraction(x) - 1)


@dataclass(frozen=True)
class Blockwise:
    """A format for a block of numbers: of each the nearest level, and once the block's largest."""

    name: str
    bits: int
    """Of each number; the largest, in FP32 or less, comes once for the block."""
    levels: tuple[float, ...]
    """What a number can be, as a share of the block's largest, in ascending order."""
    use: str

    @property
    def worst(self) -> float:
        """How far off a number may be, as a share of the block's largest."""
        return max(b - a for a, b in zip(self.levels, self.levels[1:])) / 2


def int8_levels() -> tuple[float, ...]:
    """-127 to 127 of 127 (absmax quantisation: LLM.int8, arXiv 2208.07339, section 2.1)."""
    return tuple(i / 127 for i in range(-127, 128))


def nf4_levels() -> tuple[float, ...]:
    """Quantiles of the normal distribution, 7 below 0 and 8 above it, over the largest.

    The text of QLoRA (arXiv 2305.14314, equation 4) takes means of neighbouring quantiles, and these
    are not the levels that its appendix E lists. This is how bitsandbytes makes those: from 0 to one
    quantile in equal steps of probability, 7 of them on one side and 8 on the other. That quantile is
    1 - (1/32 + 1/30) / 2 (arXiv 2306.06965), in the seven digits of bitsandbytes.
    """
    normal, last = NormalDist(), 0.9677083

    def side(count: int) -> list[float]:
        return [normal.inv_cdf(last + (0.5 - last) * i / count) for i in range(count)]

    below, above = [-x for x in side(7)], side(8)
    return tuple(x / above[0] for x in sorted([*below, 0.0, *above]))


INT8 = Blockwise("INT8", 8, int8_levels(), "frozen base")
NF4 = Blockwise("NF4", 4, nf4_levels(), "frozen base (QLoRA)")
BLOCKWISE = (INT8, NF4)


def keep(block: Sequence[float], fmt: Blockwise) -> list[float]:
    """What is left of the numbers of one block. Raises ValueError for inf and nan."""
    if not all(map(math.isfinite, block)):
        raise ValueError("a block holds finite numbers only")
    largest = max(map(abs, block), default=0.0)
    if not largest:
        return [0.0 for _ in block]
    middles = [(a + b) / 2 for a, b in zip(fmt.levels, fmt.levels[1:])]
    return [fmt.levels[bisect(middles, x / largest)] * largest for x in block]


def lost(block: Sequence[float], left: Sequence[float]) -> float:
    """Root mean square of what was lost, over that of the block; 0 for a block of zeros."""
    return math.dist(block, left) / (math.hypot(*block) or 1.0)


WEIGHTS = tuple(NormalDist().inv_cdf((i + 0.5) / 64) for i in range(64))
"""A block as QLoRA has them, 64 weights, normally distributed around 0 with a standard deviation of 1."""

OUTLIER = 20.0
"""As large beside WEIGHTS as LLM.int8 finds activations to be beside others."""


def floating_rows() -> list[list[str]]:
    """What the floating-point formats can hold, headings first."""
    head = ["format", "bits", "exponent", "fraction", "largest", "smallest normal"]
    rows = [[*head, "smallest subnormal", "epsilon", "digits", "use for"]]
    for f in FLOATING:
        sizes = (f.largest, f.smallest_normal, f.smallest_subnormal, f.epsilon)
        counts = (f.stored_bits, f.exponent_bits, f.fraction_bits)
        shown = [*map(str, counts), *(f"{size:.5g}" for size in sizes)]
        rows.append([f.name, *shown, f"{f.digits:.1f}", f.use])
    return rows


def blockwise_rows() -> list[list[str]]:
    """What the formats for blocks can hold, headings first."""
    head = ["format", "bits", "levels", "worst error", "usual error"]
    rows = [[*head, "beside an outlier", "use for"]]
    for f in BLOCKWISE:
        usual = lost(WEIGHTS, keep(WEIGHTS, f))
        crowded = lost(WEIGHTS, keep([*WEIGHTS, OUTLIER], f)[:-1])
        errors = [f"{error:.1%}" for error in (f.worst, usual, crowded)]
        rows.append([f.name, str(f.bits), str(len(f.levels)), *errors, f.use])
    return rows


def overview() -> str:
    """The formats, and when to choose which."""
    return "\n".join(
        [
            *_aligned(floating_rows(), left=(0, 9)),
            "",
            *_aligned(blockwise_rows(), left=(0, 6)),
            "worst error: of the block's largest; the others: RMS, of what 64 normally distributed weights",
            f"lose, alone and where one number of {OUTLIER:g} times their size is with them",
            "",
            "Compute in BF16 where the hardware has it (Ampere and newer GPUs, CPUs with AMX), in FP16 on",
            "Volta and Turing, in FP32 on other CPUs, and in TF32 where a GPU has it and BF16 is too coarse.",
            "Store a frozen base in the format that is computed in; in INT8 or NF4 only if it doesn't fit.",
            "Master weights are FP32 always. More: docs/precision.md; a number: rft formats 65504.1",
        ]
    )


def parse(word: str) -> Number:
    """The number that a user typed, exactly. Raises RftError."""
    try:
        number = Decimal(word)
    except InvalidOperation:
        raise RftError(
            f"{word!r} is not a number: write one like 65504.1, 1e-8, -0.0, inf or nan"
        ) from None
    if number.is_nan():
        return math.nan
    if number.is_infinite() or not number:
        return float(number)
    # Far beyond all formats, where the digits would only fill the memory.
    power = number.adjusted()
    if abs(power) > 300:
        number = Decimal((number.is_signed(), (1,), 300 if power > 0 else -300))
    return Fraction(number)


def described(word: str) -> str:
    """What becomes of a number in each of the floating-point formats. Raises RftError."""
    x = parse(word)
    rows = [["", "stored", "relative error", "sign|exponent|fraction", "gap", ""]]
    for f in FLOATING:
        kept, error, gap = round_to(x, f), relative_error(x, f), spacing(x, f)
        shown = ["exact" if error == 0 else f"{error:+.1e}" if math.isfinite(error) else "-"]
        shown += [pattern(x, f), f"{gap:.3g}" if math.isfinite(gap) else "-"]
        # 9 digits tell any two numbers of FP32 apart.
        rows.append([f.name, f"{kept:.9g}", *shown, note(x, f)])
    return "\n".join([word, *_aligned(rows, left=(0, 3, 5), indent="  ")])


def note(x: Number, fmt: Floating) -> str:
    """What is special about x in this format; empty if nothing is."""
    kept = abs(round_to(x, fmt))
    if math.isinf(kept) and abs(x) != kept:
        return f"overflow: inf from {fmt.overflow:.9g} on"
    if not kept and x:
        return f"underflow: 0 up to {fmt.smallest_subnormal / 2:.3g}"
    if 0 < kept < fmt.smallest_normal:
        bits = encode(kept, fmt).bit_length()
        return f"subnormal: {bits} of {fmt.fraction_bits + 1} bits left"
    return ""


def as_block(words: Sequence[str]) -> str:
    """What becomes of these numbers where they share a block; empty for fewer than two of them."""
    # A block's largest is itself stored in FP32.
    known = [(word, parse(word)) for word in words]
    fit = [(word, float(x)) for word, x in known if math.isfinite(round_to(x, FP32))]
    if len(fit) < 2:
        return ""
    block = [x for _, x in fit]
    columns = [["", *(word for word, _ in fit), "lost (RMS)"]]
    for f in BLOCKWISE:
        left = keep(block, f)
        columns.append([f.name, *(f"{x:.4g}" for x in left), f"{lost(block, left):.2%}"])
    rows = [list(row) for row in zip(*columns)]
    return "\n".join(["as one block", *_aligned(rows, left=(0,), indent="  ")])


def show(words: Sequence[str]) -> None:
    """Prints the formats, or what becomes of numbers in them. Raises RftError for other words."""
    if not words:
        print(overview())
        return
    parts = [*map(described, words), as_block(words)]
    print("\n\n".join(part for part in parts if part))


def _aligned(rows: list[list[str]], left: tuple[int, ...], indent: str = "") -> list[str]:
    """Lines of a table. left: columns that are aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        indent
        + "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
