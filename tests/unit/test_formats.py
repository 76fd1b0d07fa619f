"""Number formats against those who have them: torch and numpy, and the tables of papers."""

import itertools
import math
import statistics
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rft import cli, formats, reference
from rft.formats import BF16, FLOATING, FP16, FP32, INT8, NF4, TF32, Floating
from rft.types import RftError

ROOT = Path(__file__).parents[2]
TORCH = {"FP32": torch.float32, "BF16": torch.bfloat16, "FP16": torch.float16}
NUMPY = {"FP32": np.dtype("float32"), "FP16": np.dtype("float16")}
HAVE_TORCH = [f for f in FLOATING if f.name in TORCH]
HAVE_NUMPY = [f for f in FLOATING if f.name in NUMPY]
by_name = pytest.mark.parametrize("fmt", FLOATING, ids=lambda f: f.name)

PUBLISHED_NF4 = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]
"""QLoRA, appendix E; bitsandbytes has the same."""

bits32 = st.one_of(
    st.integers(0, 2**32 - 1),
    # Half-way cases and carries of all formats: of random bits few have a long tail of zeros or ones.
    st.builds(
        lambda top, tail, by: ((top << 13) + tail + by) % 2**32,
        st.integers(0, 2**19 - 1),
        st.sampled_from([0, 0x1000, 0x1FFF]),
        st.integers(-1, 1),
    ),
    # The exponents around FP16's ends and FP32's own.
    st.builds(
        lambda sign, exponent, fraction: sign << 31 | exponent << 23 | fraction,
        st.integers(0, 1),
        st.sampled_from([0, 1, *range(100, 115), 141, 142, 143, 254, 255]),
        st.one_of(st.integers(0, 2**23 - 1), st.sampled_from([0, 2**16, 2**15, 2**12, 2**23 - 1])),
    ),
)


def same(a: float, b: float) -> bool:
    """Equal, nan to nan, and -0.0 not to 0.0."""
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return a == b and math.copysign(1, a) == math.copysign(1, b)


def as_float32(bits: int) -> np.ndarray:
    return np.array([bits], dtype=np.uint32).view(np.float32)


@pytest.mark.parametrize("fmt", HAVE_TORCH, ids=lambda f: f.name)
def test_facts_are_torch_s(fmt: Floating) -> None:
    info = torch.finfo(TORCH[fmt.name])
    assert fmt.stored_bits == info.bits
    assert fmt.largest == info.max
    assert fmt.smallest_normal == info.smallest_normal
    assert fmt.epsilon == info.eps
    one_bit = torch.ones(1, dtype={16: torch.int16, 32: torch.int32}[info.bits])
    assert fmt.smallest_subnormal == one_bit.view(TORCH[fmt.name]).double().item()


@pytest.mark.parametrize("fmt", HAVE_NUMPY, ids=lambda f: f.name)
def test_facts_are_numpy_s(fmt: Floating) -> None:
    info = np.finfo(NUMPY[fmt.name])
    assert fmt.smallest_subnormal == info.smallest_subnormal
    assert (fmt.exponent_bits, fmt.fraction_bits) == (info.nexp, info.nmant)
    assert fmt.bias == info.maxexp - 1
    assert int(fmt.digits) >= info.precision


@pytest.mark.parametrize(
    "fmt, bits, bias, largest, normal, subnormal, epsilon",
    [
        (TF32, 32, 127, (2 - 2**-10) * 2.0**127, 2.0**-126, 2.0**-136, 2.0**-10),
        (BF16, 16, 127, (2 - 2**-7) * 2.0**127, 2.0**-126, 2.0**-133, 2.0**-7),
        # FP8 E5M2 (arXiv 2209.05433, table 1) is not offered, but it is such a format.
        (Floating("E5M2", 5, 2, ""), 8, 15, 57344.0, 2.0**-14, 2.0**-16, 0.25),
    ],
)
def test_facts(
    fmt: Floating,
    bits: int,
    bias: int,
    largest: float,
    normal: float,
    subnormal: float,
    epsilon: float,
) -> None:
    assert (fmt.stored_bits, fmt.bias, fmt.largest) == (bits, bias, largest)
    got = (fmt.smallest_normal, fmt.smallest_subnormal, fmt.epsilon)
    assert got == (normal, subnormal, epsilon)


@pytest.mark.parametrize("fmt", HAVE_TORCH, ids=lambda f: f.name)
@settings(max_examples=1500, deadline=None)
@given(bits=bits32)
def test_rounding_is_torch_s(fmt: Floating, bits: int) -> None:
    # From FP32, since torch rounds FP64 to FP32 on its way to 16 bits.
    single = torch.from_numpy(as_float32(bits))
    expected = single.to(TORCH[fmt.name]).double().item()
    assert same(formats.round_to(float(single.double()), fmt), expected)


@settings(max_examples=1500, deadline=None)
@given(bits=bits32)
def test_rounding_to_tf32_is_that_of_bits(bits: int) -> None:
    """The upper 19 bits, with half of the last one added, and less by one where that is even."""
    x = float(as_float32(bits)[0])
    assume(not math.isnan(x))
    rounded = (bits + 0xFFF + (bits >> 13 & 1)) >> 13 << 13
    assert same(formats.round_to(x, TF32), float(as_float32(rounded)[0]))
    assert formats.pattern(x, TF32).replace("|", "") == f"{rounded:032b}"[:19]


@settings(max_examples=1000, deadline=None)
@given(
    x=st.one_of(
        st.floats(),
        st.floats(-70000, 70000),
        st.floats(-1e-4, 1e-4),
        # Just beside half-way between two numbers: what rounding twice gets wrong.
        st.builds(
            lambda n, e, by: (n + 0.5 + by * 2.0**-30) * 2.0**e,
            st.integers(1024, 2047),
            st.integers(-24, 5),
            st.integers(-1, 1),
        ),
    )
)
def test_rounding_from_fp64_is_numpy_s(x: float) -> None:
    with np.errstate(over="ignore"):
        assert same(formats.round_to(x, FP16), float(np.float16(x)))
        assert same(formats.round_to(x, FP32), float(np.float32(x)))


@pytest.mark.parametrize("fmt", [BF16, FP16], ids=lambda f: f.name)
def test_it_rounds_once(fmt: Floating) -> None:
    x = 1 + fmt.epsilon / 2 + 2**-40
    assert formats.round_to(x, fmt) == 1 + fmt.epsilon
    assert torch.tensor(x, dtype=TORCH[fmt.name]).item() == 1  # by way of FP32, where it is a tie


@by_name
@settings(max_examples=300, deadline=None)
@given(x=st.floats(allow_nan=False), y=st.floats(allow_nan=False))
def test_rounding_keeps_order_sign_and_what_it_has_made(fmt: Floating, x: float, y: float) -> None:
    low, high = formats.round_to(min(x, y), fmt), formats.round_to(max(x, y), fmt)
    assert low <= high
    assert same(formats.round_to(-x, fmt), -formats.round_to(x, fmt))
    assert same(formats.round_to(low, fmt), low)
    if math.isfinite(low):
        assert abs(Fraction(min(x, y)) - Fraction(low)) * 2 <= Fraction(formats.spacing(low, fmt))


@by_name
@pytest.mark.parametrize("sign", [1, -1])
def test_both_ends(fmt: Floating, sign: int) -> None:
    below = math.nextafter(fmt.overflow, 0)
    assert formats.round_to(sign * below, fmt) == sign * fmt.largest
    assert formats.round_to(sign * fmt.overflow, fmt) == sign * math.inf
    half = fmt.smallest_subnormal / 2
    assert same(formats.round_to(sign * half, fmt), sign * 0.0)
    assert formats.round_to(sign * half * (1 + 2**-50), fmt) == sign * fmt.smallest_subnormal
    assert math.isnan(formats.round_to(math.nan, fmt))
    for x in (0.0, math.inf):
        assert same(formats.round_to(sign * x, fmt), sign * x)


@pytest.mark.parametrize("fmt", [FP16, BF16], ids=lambda f: f.name)
def test_every_number_of_16_bits_is_read_and_written(fmt: Floating) -> None:
    every = np.arange(2**16, dtype=np.uint16)
    theirs = torch.from_numpy(every.view(np.int16)).view(TORCH[fmt.name]).double().tolist()
    ours = [formats.decode(int(bits), fmt) for bits in every]
    assert all(map(same, ours, theirs))
    numbers = [bits for bits in range(2**16) if not math.isnan(ours[bits])]
    assert [formats.encode(ours[bits], fmt) for bits in numbers] == numbers


@pytest.mark.parametrize("fmt", HAVE_NUMPY, ids=lambda f: f.name)
@settings(max_examples=500, deadline=None)
@given(x=st.one_of(st.floats(width=32), st.floats(-1, 1, width=32), st.floats(-1e-6, 1e-6)))
def test_patterns_and_gaps_are_numpy_s(fmt: Floating, x: float) -> None:
    assume(not math.isnan(x))
    with np.errstate(over="ignore"):
        theirs = np.array([x]).astype(NUMPY[fmt.name])
    bits = int(theirs.view(f"uint{fmt.stored_bits}")[0])
    sign, exponent, fraction = formats.pattern(x, fmt).split("|")
    assert sign + exponent + fraction == f"{bits:0{fmt.stored_bits}b}"
    assert (len(sign), len(exponent), len(fraction)) == (1, fmt.exponent_bits, fmt.fraction_bits)
    assert formats.encode(x, fmt) == bits
    # numpy has the gap below the largest number only, and of negative float16 that towards 0.
    if abs(theirs[0]) < fmt.largest:
        assert formats.spacing(x, fmt) == float(np.spacing(abs(theirs[0])))


@pytest.mark.parametrize(
    "x, fmt, pattern",
    [
        (1.0, FP32, "0|01111111|00000000000000000000000"),
        (-2.0, TF32, "1|10000000|0000000000"),
        (0.1, BF16, "0|01111011|1001101"),
        (65504, FP16, "0|11110|1111111111"),
        (2**-24, FP16, "0|00000|0000000001"),
        (-0.0, FP16, "1|00000|0000000000"),
        (-math.inf, BF16, "1|11111111|0000000"),
        (math.nan, FP16, "0|11111|1000000000"),
    ],
)
def test_patterns(x: float, fmt: Floating, pattern: str) -> None:
    assert formats.pattern(x, fmt) == pattern


@pytest.mark.parametrize(
    "x, fmt, error",
    [
        (1.0, BF16, 0.0),
        (1.0 + 2**-9, BF16, -(2**-9) / (1 + 2**-9)),
        (-(1.0 + 2**-9), BF16, -(2**-9) / (1 + 2**-9)),
        (1e-8, FP16, -1.0),
        (-1e-8, FP16, -1.0),
        (1e5, FP16, math.inf),
        (-1e5, FP16, math.inf),
        (0.0, FP16, 0.0),
        (math.inf, FP16, 0.0),
        (math.nan, FP16, math.nan),
    ],
)
def test_relative_error(x: float, fmt: Floating, error: float) -> None:
    assert formats.relative_error(x, fmt) == pytest.approx(error, rel=1e-15, nan_ok=True)


def test_a_typed_number_is_rounded_once() -> None:
    # As FP64 this is 1 + 2^-24, half-way between two numbers of FP32.
    word = "1.0000000596046447753906250000000001"
    assert float(word) == 1 + 2**-24
    assert formats.round_to(float(word), FP32) == 1.0
    assert formats.round_to(formats.parse(word), FP32) == 1 + 2**-23


@pytest.mark.parametrize(
    "word, number",
    [
        ("-1e-8", Fraction(-1, 10**8)),
        ("+.5", Fraction(1, 2)),
        ("-0.0", -0.0),
        ("-0e99", -0.0),
        ("-INF", -math.inf),
        ("infinity", math.inf),
        ("nan", math.nan),
        ("sNaN", math.nan),
        # Written out these would fill the memory.
        ("-1e999999999999", Fraction(-(10**300))),
        ("1e-999999999999", Fraction(1, 10**300)),
    ],
)
def test_parse(word: str, number: formats.Number) -> None:
    got = formats.parse(word)
    if isinstance(number, Fraction):
        assert got == number and isinstance(got, Fraction)
    else:
        assert isinstance(got, float) and same(got, number)


@pytest.mark.parametrize("word", ["abc", "", "1,5", "0x10", "1e", "--", "1/3"])
def test_parse_refuses(word: str) -> None:
    with pytest.raises(RftError, match="is not a number: write one like 65504.1"):
        formats.parse(word)


def test_nf4_levels_are_the_published_ones() -> None:
    assert NF4.levels == pytest.approx(PUBLISHED_NF4, abs=2e-7)
    # bitsandbytes' offset in full, arXiv 2306.06965: what makes both ends 1.
    assert pytest.approx(0.9677083, abs=5e-8) == 1 - (1 / 32 + 1 / 30) / 2
    # And no level is used seldom: each has between half and twice its share of normal weights.
    edge = statistics.NormalDist().inv_cdf(0.9677083)
    middles = [(a + b) / 2 * edge for a, b in itertools.pairwise(NF4.levels)]
    below = [0.0, *map(statistics.NormalDist().cdf, middles), 1.0]
    shares = [b - a for a, b in itertools.pairwise(below)]
    assert all(0.5 < share * 16 < 2 for share in shares)


blocks = st.lists(
    st.one_of(st.floats(-4, 4), st.floats(-1e30, 1e30), st.just(0.0)), min_size=1, max_size=20
)


@pytest.mark.parametrize("fmt", [INT8, NF4], ids=lambda f: f.name)
@settings(max_examples=300, deadline=None)
@given(block=blocks)
def test_a_block_keeps_its_largest_and_the_nearest_levels(
    fmt: formats.Blockwise, block: list[float]
) -> None:
    left, largest = formats.keep(block, fmt), max(map(abs, block))
    assume(largest == 0 or largest > 1e-300)
    for x, kept in zip(block, left):
        off = min(abs(x - level * largest) for level in fmt.levels)
        assert abs(x - kept) <= off + 1e-12 * largest
        assert abs(x - kept) <= (fmt.worst + 1e-12) * largest
        # All ends are levels, also -1: 16 levels are 7 below 0 and 8 above.
        if abs(x) == largest:
            assert kept == pytest.approx(x)
    assert formats.keep(left, fmt) == pytest.approx(left)


@settings(max_examples=300, deadline=None)
@given(block=blocks)
def test_int8_is_absmax(block: list[float]) -> None:
    """LLM.int8, section 2.1: X_i8 = round(127 X / max |X|)."""
    x = torch.tensor(block, dtype=torch.float64)
    largest = x.abs().max()
    assume(largest > 1e-300)
    scaled = 127 * x / largest
    assume(bool(((scaled - scaled.floor() - 0.5).abs() > 1e-9).all()))
    codes = [round(kept * 127 / largest.item()) for kept in formats.keep(block, INT8)]
    assert codes == scaled.round().int().tolist()


def test_what_blocks_lose() -> None:
    block = [1.0, 0.5, -0.3, 0.0]
    left = formats.keep(block, NF4)
    assert left == pytest.approx([1.0, 0.4407, -0.2844, 0.0], abs=1e-4)
    lost = math.sqrt((0.5 - left[1]) ** 2 + (0.3 + left[2]) ** 2) / math.sqrt(1.34)
    assert formats.lost(block, left) == pytest.approx(lost)
    assert formats.lost([], []) == formats.lost([0.0], formats.keep([0.0], INT8)) == 0
    assert statistics.pstdev(formats.WEIGHTS) == pytest.approx(1, abs=0.02)
    for bad in (math.inf, math.nan):
        with pytest.raises(ValueError, match="finite"):
            formats.keep([1.0, bad], INT8)


def test_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["formats"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line}
    assert "|".join(rows["FP16"][:8]) == "FP16|16|5|10|65504|6.1035e-05|5.9605e-08|0.00097656"
    assert rows["TF32"][1:5] == ["32", "8", "10", "3.4012e+38"]
    assert rows["NF4"][1:3] == ["4", "16"] and rows["INT8"][1:3] == ["8", "255"]
    assert any(line.startswith("Compute in BF16 where the hardware has it") for line in lines)
    assert max(map(len, lines)) <= 122 and not any(line.endswith(" ") for line in lines)


@pytest.mark.parametrize(
    "word, fmt, row",
    [
        ("65504.1", "FP32", "65504.1016 +2.4e-08 0|10001110|11111111110000000011010 0.00391"),
        ("65504.1", "BF16", "65536 +4.9e-04 0|10001111|0000000 512"),
        ("65504.1", "FP16", "65504 -1.5e-06 0|11110|1111111111 32"),
        ("65520", "FP16", "inf - 0|11111|0000000000 - overflow: inf from 65520 on"),
        ("-1e-8", "FP16", "-0 -1.0e+00 1|00000|0000000000 5.96e-08 underflow: 0 up to 2.98e-08"),
        ("2e-7", "FP16", "1.78813934e-07 -1.1e-01 0|00000|0000000011 5.96e-08 "
                         "subnormal: 2 of 11 bits left"),
        ("6.103515625e-5", "FP16", "6.10351562e-05 exact 0|00001|0000000000 5.96e-08"),
        ("0.1", "TF32", "0.0999755859 -2.4e-04 0|01111011|1001100110 6.1e-05"),
        ("-0.0", "BF16", "-0 exact 1|00000000|0000000 9.18e-41"),
        ("-inf", "FP16", "-inf exact 1|11111|0000000000 -"),
        ("nan", "FP16", "nan - 0|11111|1000000000 -"),
        ("-1e9999", "BF16", "-inf - 1|11111111|0000000 - overflow: inf from 3.39617753e+38 on"),
    ],
)  # fmt: skip
def test_a_number(capsys: pytest.CaptureFixture[str], word: str, fmt: str, row: str) -> None:
    assert cli.main(["formats", word]) == 0
    heading, _, *lines = capsys.readouterr().out.splitlines()
    assert heading == word
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in lines}
    assert list(rows) == ["FP32", "TF32", "BF16", "FP16"]
    assert rows[fmt] == row


def test_several_numbers_and_their_block(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["formats", "1", "-3", "nan", "1e300", "1", "-1e-3"]) == 0
    *numbers, block = capsys.readouterr().out.split("\n\n")
    assert [part.split("\n")[0] for part in numbers] == ["1", "-3", "nan", "1e300", "1", "-1e-3"]
    assert [line.split() for line in block.splitlines()] == [
        ["as", "one", "block"],
        ["INT8", "NF4"],
        ["1", "0.9921", "1.014"],
        ["-3", "-3", "-3"],
        ["1", "0.9921", "1.014"],
        ["-1e-3", "0", "0"],
        ["lost", "(RMS)", "0.34%", "0.59%"],
    ]


@pytest.mark.parametrize(
    "words, wrong",
    [(["abc"], "abc"), (["1", "--no-such"], "--no-such"), (["1", "a=1"], "a=1"), (["-n"], "-n")],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], words: list[str], wrong: str) -> None:
    assert cli.main(["formats", *words]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == (
        f"error: {wrong!r} is not a number: write one like 65504.1, 1e-8, -0.0, inf or nan\n"
    )


def test_dashes_of_the_user_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["formats", "--", "-inf"]) == 0
    assert capsys.readouterr().out.startswith("-inf\n")


def test_it_imports_little() -> None:
    code = (
        "import sys; from rft import cli; code = cli.main(['formats', '1', '-1e-8']); "
        "print(code, [m for m in ('torch', 'vllm', 'numpy', 'pydantic', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_the_page_has_the_numbers_of_the_code() -> None:
    page = (ROOT / "docs" / "precision.md").read_text()
    assert reference.precision(page) == page
    assert len(page.splitlines()) <= 150
    stale = page.replace("| 65504 |", "| 65535 |").replace("after 1,000 updates |", "later |")
    assert stale != page and reference.precision(stale) == page
    for broken in (page.replace("computed: masters", "computed: slaves"), page + page):
        with pytest.raises(ValueError, match="needs the markers floating, numbers, "):
            reference.precision(broken)


def test_what_the_page_says_of_masters() -> None:
    weight = torch.ones(1, dtype=torch.bfloat16)
    for _ in range(1000):
        weight += 1e-3
    rows = {row[0]: row for row in map(cells, reference.computed()["masters"].splitlines())}
    assert float(rows["BF16"][3]) == weight.item() == 1
    assert float(rows["FP32"][3]) == pytest.approx(2, abs=1e-4)
    bound = float(rows["BF16"][4].removeprefix("above "))
    lr = float(rows["format"][4].split()[2])
    for w, moves in ((bound, False), (bound * 0.99, True)):
        held = torch.tensor(w, dtype=torch.bfloat16)
        assert bool(held + lr > held) is moves


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
