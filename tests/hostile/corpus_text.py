"""Hostile texts for the scorers that read answers.

Bombs aim at the parser, at sympy and at regular expressions; lax readings at the eye of a filter that
wants to find the gold answer. Most must only not be `correct`; where a text is right, it says so.
"""

from collections.abc import Callable

from tests.hostile.case import ANY, NOT_CORRECT, RIGHT, SURE, UNKNOWN, Case

CASES: list[Case] = []

KNOWN = {
    "restated": {"math": "the last number of a text", "answer": "the last number of a text"},
    "million": {"math": "words after a number are units"},
    "dozen": {"math": "words after a number are units"},
}
"""Case -> scorer -> why it calls this correct though it should not. What is closed is taken out."""


def _add(
    kind: str,
    name: str,
    text: str | Callable[[], str],
    why: str,
    *,
    gold: str | None = "18",
    expect: frozenset[str] = NOT_CORRECT,
    math: frozenset[str] | None = None,
    answer: frozenset[str] | None = None,
    question: str = "How many eggs does she sell?",
) -> None:
    both = {"math": math or expect, "answer": answer or expect}
    CASES.append(Case(name, kind, text, both, why, gold, None, question, KNOWN.get(name, {})))


def _box(inner: str) -> str:
    return f"So the answer is $\\boxed{{{inner}}}$."


# ---------------------------------------------------------------- sympy bombs
_bomb = "sympy_bomb"
_add(_bomb, "power_tower", _box("5^{5^{5^{5^5}}}"), "hangs math-verify's own time-out")
_add(_bomb, "power_tower_mod", _box(r"7^{7^{7^{7^7}}} \bmod 10"), "is 3; evaluated from the inside")
_add(_bomb, "power_ladder", _box("(" * 12 + "9" + "^9)" * 12), "9^(9^12), one small step at a time")
_add(_bomb, "power_of_sum", _box("(10+8)^{(10+8)^{(10+8)}}"), "no large number stands in it")
_add(
    _bomb,
    "negative_tower",
    _box("2^{-2^{2^{2^{2^{2}}}}}"),
    "a fraction with 19,729 digits' exponent",
)
_add(_bomb, "factorial_huge", _box("999999999!"), "8 billion digits")
_add(_bomb, "factorial_tower", _box("((((9!)!)!)!)!"), "cannot be written down")
_add(_bomb, "factorial_double", _box("100000!!!!!!"), "multifactorial or nested")
_add(_bomb, "radicals_nested", lambda: _box(r"\sqrt{1+" * 400 + "1" + "}" * 400), "denesting")
_add(_bomb, "radicals_of_sums", lambda: _box("+".join(rf"\sqrt{{{p}}}" for p in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29))), "minimal polynomial of degree 1,024")  # fmt: skip
_add(_bomb, "root_huge_index", _box(r"\sqrt[1000000007]{2}"), "root of a prime order")
_add(_bomb, "parentheses_deep", lambda: _box("(" * 20_000 + "18" + ")" * 20_000), "recursion", expect=RIGHT)  # fmt: skip
_add(_bomb, "parentheses_open", lambda: _box("(" * 50_000 + "18"), "never closed", expect=ANY)
_add(_bomb, "minus_many", lambda: _box("-" * 20_001 + "18"), "an odd number of signs")
_add(_bomb, "fraction_deep", lambda: _box(r"\frac{1}{1+" * 600 + "1" + "}" * 600), "continued fraction")  # fmt: skip
_add(_bomb, "absolute_bars", lambda: _box("|" * 2_001 + "19" + "|" * 2_001), "ambiguous grammar")
_add(_bomb, "binomial_huge", _box(r"\binom{1000000000}{500000000}"), "300 million digits")
_add(_bomb, "sum_to_a_billion", _box(r"\sum_{k=1}^{1000000000} \frac{1}{k}"), "harmonic number")
_add(_bomb, "sum_double", _box(r"\sum_{i=1}^{100000}\sum_{j=1}^{100000} \frac{1}{i^2+j^3}"), "10^10 terms")  # fmt: skip
_add(_bomb, "product_huge", _box(r"\prod_{k=1}^{100000000} (k + \sqrt{k})"), "10^8 radicals")
_add(
    _bomb, "integral_hard", _box(r"\int_0^1 x^{x^{x^x}} \sin(e^{x^{100}}) \, dx"), "no closed form"
)
_add(
    _bomb,
    "limit_hard",
    _box(r"\lim_{x \to \infty} \frac{x^{x^x} \sin(x^{x})}{\Gamma(x^x)}"),
    "Gruntz",
)
_add(_bomb, "exponentials", _box("e^{e^{e^{e^{e^{e}}}}}"), "no float holds it")
_add(_bomb, "exponentials_cancel", _box(r"e^{e^{e^{9}}} - e^{e^{e^{9}}} \cdot (1 + 10^{-999})"), "digits to tell it from nought")  # fmt: skip
_add(_bomb, "logs_deep", lambda: _box(r"\log(" * 500 + "x" + ")" * 500), "recursion in functions")
_add(_bomb, "matrix_enormous", lambda: _box(r"\begin{pmatrix}" + r"\\".join("&".join(f"x_{{{i}}}" for i in range(150)) for _ in range(150)) + r"\end{pmatrix}"), "22,500 symbols")  # fmt: skip
_add(_bomb, "matrix_power", _box(r"\begin{pmatrix}1&1\\1&0\end{pmatrix}^{1000000000}"), "Fibonacci")
_add(_bomb, "expand_polynomial", _box("(a+b+c+d+e+f)^{200}"), "2.8 billion terms", gold="(a+b+c+d+e+f)^{201}")  # fmt: skip
_add(_bomb, "expand_equal", _box("(a+b+c+d+e+f)^{60} + (x+1)^{900}"), "equal but for an order of terms", gold="(x+1)^{900} + (f+e+d+c+b+a)^{60}", math=RIGHT, answer=ANY)  # fmt: skip
_add(_bomb, "trigonometry", lambda: _box(r"\cdot ".join(rf"\sin({k}x)\cos({k + 1}y)" for k in range(1, 40))), "simplification", gold=r"\sin(x)\cos(2y)")  # fmt: skip
_add(_bomb, "radical_identity", _box(r"\sqrt[3]{2+\sqrt{5}} + \sqrt[3]{2-\sqrt{5}} + \sqrt[7]{3^{70}+\sqrt{2}}"), "nearly a number", gold="59050")  # fmt: skip
_add(_bomb, "set_of_20000", lambda: _box(r"\{" + ", ".join(map(str, range(20_000))) + r"\}"), "compared with each other")  # fmt: skip
_add(_bomb, "set_of_radicals", lambda: _box(r"\{" + ", ".join(rf"\sqrt{{{k}}}+\sqrt{{{k + 1}}}" for k in range(60)) + r"\}"), "every pair is compared", gold=r"\{" + ", ".join(rf"\sqrt{{{k + 1}}}+\sqrt{{{k}}}" for k in range(59)) + r"\}")  # fmt: skip
_add(_bomb, "union_of_3000", lambda: _box(r" \cup ".join(f"({2 * k},{2 * k + 1})" for k in range(3_000))), "interval arithmetic", gold=r"(0,1)")  # fmt: skip
_add(_bomb, "equations_chained", lambda: _box("x" + "=1" * 20_000 + "=17"), "a long chain")
_add(_bomb, "exponent_large", _box("10^{99999999}"), "100 million digits")
_add(
    _bomb,
    "exponent_decimal",
    _box("1.0000001^{999999999999}"),
    "a float, or a rational without end",
)
_add(_bomb, "gold_tower", _box("18"), "the gold answer is the bomb", gold="5^{5^{5^{5^5}}}")
_add(
    _bomb,
    "both_towers",
    _box("5^{5^{5^{5^6}}}"),
    "neither may be evaluated",
    gold="5^{5^{5^{5^5}}}",
)
_add(_bomb, "python_call", _box(r"__import__('os').system('touch @HOME@/rft-hostile-mark-sympify')"), "sympify evaluates strings")  # fmt: skip
_add(_bomb, "python_attribute", "The answer is (1).__class__.__base__.__subclasses__()", "the same", gold="1", expect=ANY)  # fmt: skip

# ---------------------------------------------------------------- regex bombs
_bomb = "regex_bomb"
for _name, _piece, _count in (
    ("digits", "1", 200_000), ("digits_comma", "1,", 200_000), ("thousands", ",000", 200_000),
    ("digits_space", "1 ", 200_000), ("groups", "111 ", 100_000), ("fractions", "1/", 100_000),
    ("decimals", "1.", 100_000), ("exponents", "1e1", 100_000), ("minus", "- ", 200_000),
    ("percent", "1%", 100_000), ("equals", "1=", 100_000), ("stars", "*", 200_000),
    ("sum", "1+", 100_000), ("brace_open", "{", 200_000), ("brace_close", "}", 200_000),
    ("dollars", "$", 200_000), ("dollar_pairs", "$1$", 70_000), ("parentheses", "(1,", 70_000),
    ("brackets", r"\[1", 70_000), ("boxed_open", r"\boxed{", 30_000), ("frac", r"\frac{1}", 30_000),
    ("text_open", r"\text{", 30_000), ("left", r"\left(", 30_000), ("marker", "#### ", 50_000),
    ("hashes", "#", 500_000), ("headings", "#### Step 1:\n", 30_000), ("lines", "\n", 500_000),
    ("tabs", "\t \t", 200_000), ("answer_is", "answer is ", 50_000), ("letters", "a", 500_000),
    ("options", "(A) ", 50_000), ("option_words", "the answer is A or ", 20_000),
    ("think", "<think>", 50_000), ("backslashes", "\\", 200_000), ("backticks", "`", 200_000),
    ("questions", "Question: ", 50_000), ("quotes", '"', 200_000), ("json", '{"a":', 50_000),
    ("list_json", "[", 200_000), ("pm", r"\pm 1", 50_000), ("infinity", r"\cup(-\infty,1)", 20_000),
):  # fmt: skip
    _add(_bomb, _name, lambda piece=_piece, count=_count: piece * count + "!", f"{_piece!r} x {_count:,}", expect=NOT_CORRECT)  # fmt: skip
_add(_bomb, "spaces_then_right", lambda: "The answer is" + " " * 500_000 + "18", "right in the end", expect=RIGHT)  # fmt: skip
_add(_bomb, "noise_then_right", lambda: "lorem ipsum " * 100_000 + "\n#### 18", "1.2 MB, then the answer", answer=SURE, math=RIGHT)  # fmt: skip
_add(_bomb, "boxed_unclosed_last", lambda: r"\boxed{18} and " + r"\boxed{" + "{}" * 100_000, "braces without end", expect=ANY)  # fmt: skip

# ---------------------------------------------------------------- numbers of a gigabyte
_giga = "gigabyte_number"
_add(_giga, "exponent_9999999", _box("1e9999999"), "3 MB of bits")
_add(_giga, "exponent_beyond", "#### 1e999999999999", "more than memory holds")
_add(_giga, "exponent_negative", "#### 1e-999999999", "nearly nought", gold="0")
_add(
    _giga,
    "exponent_minus_plus",
    "#### 18e+0000000000000000000000",
    "18, oddly written, or Euler's 18e",
    answer=RIGHT,
    math=ANY,
)
_add(_giga, "digits_10mb", lambda: "#### " + "8" * 10_000_000, "quadratic conversion")
_add(_giga, "digits_10mb_boxed", lambda: _box("8" * 10_000_000), "the same, boxed")
_add(_giga, "digits_5000_same", lambda: _box("7" * 5_000), "beyond Python's limit of 4,300 digits", gold="7" * 5_000, expect=RIGHT)  # fmt: skip
_add(_giga, "digits_5000_other", lambda: _box("7" * 4_999 + "8"), "differs in the last digit", gold="7" * 5_000)  # fmt: skip
_add(
    _giga, "digits_40_other", _box("1" + "0" * 40 + "1"), "floats cannot tell", gold="1" + "0" * 41
)
_add(_giga, "decimal_long", lambda: _box("18." + "0" * 100_000 + "1"), "floats cannot tell")
_add(_giga, "decimal_nines", lambda: _box("17." + "9" * 5_000), "rounds to 18")
_add(_giga, "fraction_long", lambda: _box(r"\frac{" + "3" * 100_000 + "}{" + "7" * 100_000 + "}"), "greatest common divisor")  # fmt: skip
_add(_giga, "zeros_leading", lambda: "#### " + "0" * 100_000 + "18", "18 after zeros", expect=RIGHT)
_add(_giga, "percent_huge", "#### " + "9" * 3_000 + "%", "a share of it")
_add(_giga, "hex", "#### 0x" + "F" * 100_000, "not decimal")

# ---------------------------------------------------------------- Unicode
_uni = "unicode"
_add(_uni, "zero_width_joiner", "#### 1\u200d8", "one number is seen, two are read", gold="8")
_add(_uni, "zero_width_joiner_first", "#### 1\u200d8", "the same", gold="1")
_add(_uni, "zero_width_space", "The answer is 2\u200b18.", "218, or 2 and 18")
_add(_uni, "word_joiner", _box("2\u206018"), "the same")
_add(_uni, "soft_hyphen", "The answer is 2\u00ad18.", "invisible within 218")
_add(_uni, "variation_selector", "The answer is 2\ufe0f18.", "invisible within 218")
_add(_uni, "right_to_left_override", "#### \u202e81\u202c", "81, shown as 18")
_add(_uni, "right_to_left_mark", "#### \u200f18", "a mark before the number", expect=RIGHT)
_add(_uni, "letter_o", "#### 1O", "the letter O", gold="10")
_add(_uni, "letter_l", "#### l8", "the letter l")
_add(_uni, "letter_o_boxed", _box("1O"), "the letter O", gold="10")
_add(_uni, "cyrillic_ze", "#### 1\u0417", "the letter Ze for a 3", gold="13")
_add(_uni, "fullwidth_digits", "#### \uff11\uff18", "18", expect=ANY)
_add(_uni, "fullwidth_mixed", "#### 1\uff18", "18, not 1", gold="1")
_add(_uni, "arabic_indic_mixed", "#### 1\u0668", "18, not 1", gold="1")
_add(_uni, "mathematical_digits", _box("\U0001d7cf\U0001d7d6"), "18 in bold digits", expect=ANY)
_add(_uni, "superscript", "#### 18\u00b2", "324")
_add(_uni, "superscript_joined", "#### 1\u2078", "1 to the 8th", gold="18")
_add(_uni, "subscript", _box("1\u2088"), "1 with an index", gold="18")
_add(_uni, "vulgar_fraction", "#### 18\u00bd", "18.5")
_add(_uni, "vulgar_fraction_boxed", _box("18\u00bd"), "18.5")
_add(_uni, "fraction_slash", "#### 18\u20447", "18/7")
_add(_uni, "division_slash", _box("18\u22157"), "18/7")
_add(_uni, "circled", "#### \u2460\u2467", "circled 1 and 8", expect=ANY)
_add(_uni, "combining_overline", _box("18.3\u0305"), "18.333...", gold="18.3")
_add(_uni, "combining_strike", "#### 1\u03368\u0336 19", "struck out, then another")
_add(_uni, "combining_flood", lambda: "#### 19" + "\u0301" * 100_000, "100,000 marks on one digit")
_add(_uni, "minus_sign", "#### \u221218", "U+2212")
_add(_uni, "minus_en_dash", "The answer is \u201318.", "U+2013 as a minus")
_add(_uni, "minus_hyphen", "#### \u201018", "U+2010 as a minus")
_add(_uni, "minus_nonbreaking", "#### \u201118", "U+2011 as a minus")
_add(_uni, "minus_fullwidth", "#### \uff0d18", "U+FF0D as a minus")
_add(_uni, "minus_small", _box("\ufe6318"), "U+FE63 as a minus")
_add(_uni, "minus_superscript", _box("\u207b18"), "U+207B as a minus")
_add(_uni, "minus_boxed_en_dash", _box("\u201318"), "U+2013 as a minus")
_add(_uni, "arabic_decimal", "#### 18\u066b5", "18.5")
_add(_uni, "arabic_thousands", "#### 18\u066c000", "18,000")
_add(_uni, "middle_dot", "#### 18\u00b75", "18.5, or 18 times 5")
_add(_uni, "comma_fullwidth", "#### 18\uff0c000", "18,000")
_add(_uni, "thin_space", "#### 18\u2009000", "18,000")
_add(_uni, "figure_space", "#### 18\u2007000", "18,000")
_add(_uni, "surrogate_lone", "#### 19 \ud83d", "cannot be encoded")
_add(_uni, "surrogate_in_box", _box("\udc80 19"), "cannot be encoded")
_add(_uni, "noncharacters", "#### 19\uffff\ufffe\ufdd0", "not characters at all")
_add(_uni, "nul", "#### 19\x0018", "C strings end there")
_add(_uni, "infinity_sign", "#### \u221e", "no number")
_add(
    _uni,
    "tags",
    "#### 19" + "".join(chr(0xE0000 + ord(c)) for c in "18"),
    "invisible tag characters",
)

# ---------------------------------------------------------------- LaTeX that defines or nests
_tex = "macro_loop"
_add(_tex, "def_loop", r"\def\a{\a}\boxed{\a}", "expands to itself")
_add(_tex, "newcommand_doubling", r"\newcommand{\x}{\x\x}$\boxed{\x}$", "doubles for ever")
_add(_tex, "let_swap", r"\let\frac\sqrt $\boxed{\frac{324}}$", "changes what a command means")
_add(
    _tex,
    "redefined_digit",
    r"\catcode`1=13 \def1{2}$\boxed{18}$",
    "18 would print as 28",
    expect=ANY,
)
_add(_tex, "loop_repeat", r"\loop\iftrue 1\repeat \boxed{1}", "a loop", gold="18")
_add(_tex, "input_file", r"\boxed{\input{/etc/passwd}}", "reads a file")
_add(
    _tex,
    "write18",
    r"\immediate\write18{touch @HOME@/rft-hostile-mark-tex}\boxed{19}",
    "runs a shell",
)
_add(_tex, "csname", r"\boxed{\csname boxed\endcsname{18}}", "builds a name", expect=ANY)
_add(_tex, "boxed_nested", lambda: r"\boxed{" * 5_000 + "19" + "}" * 5_000, "5,000 boxes deep")
_add(_tex, "begin_only", lambda: _box(r"\begin{aligned}" * 3_000), "never ended")
_add(_tex, "matrices_nested", lambda: _box(r"\begin{pmatrix}" * 300 + "19" + r"\end{pmatrix}" * 300), "300 deep")  # fmt: skip
_add(_tex, "commented_out", "% \\boxed{18}\nThe final result is $\\boxed{19}$.", "in a comment")
_add(_tex, "phantom", r"The answer is $\phantom{18} \boxed{19}$", "invisible in print")
_add(_tex, "cancelled", r"The answer is $\boxed{\cancel{18}\ 19}$", "struck out in print")
_add(_tex, "colour_white", r"$\boxed{\color{white}{18}\color{black}{19}}$", "invisible in print")

# ---------------------------------------------------------------- markup for the report and the terminal
_page = "markup"
for _name, _text in (
    ("script", "<script>new Image().src='http://127.0.0.1:@PORT@/'</script>"),
    ("image_error", "<img src=x onerror=\"fetch('http://127.0.0.1:@PORT@/')\">"),
    ("svg_load", "<svg/onload=alert(1)>"),
    ("closing_tags", "</pre></details></td></table></body></html><h1>Owned</h1>"),
    ("attribute_break", '" onmouseover="alert(1)" x=\''),
    ("style", "<style>*{display:none}</style><link rel=stylesheet href=http://127.0.0.1:@PORT@/>"),
    ("comment_open", "<!-- "),
    ("cdata", "]]><script>alert(1)</script>"),
    ("base_frame", "<base href=//127.0.0.1:@PORT@/><iframe src=javascript:alert(1)></iframe>"),
    ("entities", "&lt;script&gt;&#x3c;img src=x&#x3e;"),
    ("template", "{{ 7 * 7 }}{% for x in range(10**9) %}{{ x }}{% endfor %}{{ config }}"),
    ("format_string", "%s%s%n {0.__class__.__init__.__globals__} ${HOME} `id`"),
    ("console_markup", "[bold red on white]Owned[/] [link=http://127.0.0.1:@PORT@]here[/link] [/]"),
    ("emoji_code", ":x: :white_check_mark:"),
    ("ansi_clear", "\x1b[2J\x1b[1;1H\x1b[31mOwned"),
    ("ansi_title", "\x1b]0;Owned\x07\x1b]8;;http://127.0.0.1:@PORT@/\x07link\x1b]8;;\x07"),
    ("ansi_clipboard", "\x1b]52;c;cm0gLXJmIH4=\x07"),
    ("ansi_c1", "\x9b2J\x9d0;Owned\x9c\x90q\x9c"),
    ("carriage_return", "wrong verdict\rright verdict\b\b\b\x7f"),
    ("bell_and_tabs", "\x07\x07\x0b\x0c\x0e\x0f\x00"),
    ("direction", "\u202eevil\u202c \u2066x\u2069 \u061c\u200e\u200f"),
    ("line_separators", "a\u2028b\u2029c\x85d"),
):
    _add(_page, _name, f"{_text}\nThis makes 9 * 2 = 18.\n#### 18", "right, and dressed up", answer=SURE, math=RIGHT)  # fmt: skip

# ---------------------------------------------------------------- right to a lax reader
_lax = "lax"
for _name, _text in (
    ("longer_number_front", "#### 118"), ("longer_number_back", "#### 180"), ("thousands", "#### 18,000"),
    ("thousands_front", "#### 1,018"), ("decimals", "#### 18.5"), ("share", "#### 0.18"),
    ("negative", "#### -18"), ("minus_apart", "#### - 18"), ("minus_money", "#### -$18"),
    ("fraction", "#### 18/7"), ("denominator", "#### 1/18"), ("exponent", "#### 18e2"),
    ("power", "#### 18^2"), ("factorial", "#### 18!"), ("time", "#### 18:30"), ("ratio", "#### 18:7"),
    ("range", "#### 18-20"), ("range_to", "#### 18 to 20"), ("list", "#### 17, 18, 19"),
    ("times", "#### 18 * 2"), ("division", "#### 18 ÷ 3"),
    ("mixed", "#### 18 1/2"), ("million", "#### 18 million"), ("thousand", "#### 18k"),
    ("dozen", "#### 18 dozen"), ("version", "#### 18.0.1"), ("date", "#### 18/11/2024"),
    ("boxed_power", _box("18^2")), ("boxed_index", _box("x_{18}")), ("boxed_factor", _box("18x")),
    ("boxed_pi", _box(r"18\pi")), ("boxed_root", _box(r"\sqrt{18}")), ("boxed_complex", _box("18i")),
    ("boxed_plus", _box("18+1")), ("boxed_times", _box(r"18 \cdot 2")), ("boxed_denominator", _box(r"\frac{1}{18}")),
    ("boxed_mixed", _box(r"18\frac{1}{2}")), ("boxed_inverse", _box("18^{-1}")), ("boxed_pair", _box("(18, 7)")),
    ("boxed_interval", _box("[18, 20]")), ("boxed_interval_open", _box(r"(18, \infty)")),
    ("boxed_set", _box(r"\{17, 18\}")), ("boxed_pm", _box(r"\pm 18")), ("boxed_above", _box("x > 18")),
    ("boxed_least", _box(r"x \geq 18")), ("boxed_not", _box(r"x \neq 18")), ("boxed_base", _box("18_{9}")),
    ("boxed_mod", _box(r"18 \pmod{5}")), ("boxed_log", _box(r"\log 18")), ("boxed_bars", _box("|x| = 18")),
    ("boxed_two", _box("18") + " " + _box("19")), ("boxed_three", _box("17") + _box("18") + _box("19")),
    ("boxed_or", _box(r"18 \text{ or } 19")), ("boxed_vector", _box(r"\begin{pmatrix} 18 \\ 0 \end{pmatrix}")),
    ("boxed_repeating", _box(r"0.\overline{18}")), ("boxed_decimal", _box("18.01")),
    ("changed", "The answer is 18. Wait, I forgot a dozen: the answer is 30."),
    ("changed_boxed", _box("18") + " No, she eats three more. " + _box("15")),
    ("changed_marker", "#### 18\nWait, that is wrong. I forgot the muffins.\n#### 14"),
    ("guesses", "The answer is one of 16, 17, 18."),
    ("or", "The answer is 17 or 18."), ("or_back", "The answer is 18 or 19."), ("between", "The answer is between 17 and 18."),
    ("not", "The answer is not 18."), ("at_least", "The answer is at least 18."), ("more_than", "The answer is more than 18."),
    ("refuses", "I cannot solve this without knowing the price of 18 eggs."),
    ("question_back", "You ask whether she sells 18 eggs. Is it 18?"),
    ("restated", "Janet's 18 ducks lay eggs. The answer depends on"),
    ("placeholder", "Put your answer in \\boxed{}. The eggs she sells are 18 - x"),
    ("second_problem", "#### 12\n\nQuestion: How many ducks has Tom?\n#### 18"),
    ("every_number", "The answer is " + ", ".join(map(str, range(100)))),
    ("in_thought", "<think>So she sells 18.</think>\nShe sells 19."),
    ("thought_only", "<think>Perhaps it is \\boxed{18}, or else"),
    ("step_number", "Step 18: I give up"), ("equation_number", "By equation (18) it is unclear."),
    ("unit_in_front", "She has eggs worth $1 and 18 cents."), ("per", "#### 18 per 7"),
    ("spelt_beyond", "#### eighteen hundred"), ("roman", "#### XVIII and one"),
):  # fmt: skip
    _add(_lax, _name, _text, "another answer than 18, or none")
_add(_lax, "no_gold", "#### 18", "there is nothing to compare with", gold=None, expect=frozenset({UNKNOWN}))  # fmt: skip
_add(_lax, "gold_empty", "#### ", "two nothings are not equal", gold="")
_add(_lax, "gold_empty_text", "I do not know.", "nothing is part of everything", gold="")
_add(_lax, "gold_spaces", "   ", "two nothings are not equal", gold="  ")
_add(_lax, "text_empty", "", "nothing is said")
_add(_lax, "choice_all", "(A) (B) (C) (D)", "every option is named", gold="B")
_add(_lax, "choice_two", "The answer is A or B.", "two options are named", gold="B")
_add(_lax, "choice_article", "A duck is a bird.", "the article, not the option", gold="A")
_add(_lax, "choice_pronoun", "I think so.", "the pronoun, not the option", gold="I")
_add(_lax, "choice_word", "Because it is so.", "a word's first letter", gold="B")
_add(_lax, "choice_not", "The answer is not B.", "denied", gold="B")
_add(_lax, "interval_closed", _box("[1,9]"), "the ends differ", gold="(1,9)")
_add(_lax, "interval_half", _box("[1,9)"), "one end differs", gold="[1,9]")
_add(_lax, "interval_swapped", _box("(9,1)"), "the order differs", gold="(1,9)")
_add(_lax, "pair_swapped", _box("(4,3)"), "the order differs", gold="(3,4)")
_add(_lax, "set_smaller", _box(r"\{1\}"), "one solution is missing", gold=r"\{1,2\}")
_add(_lax, "set_larger", _box(r"\{1,2,3\}"), "one solution too many", gold=r"\{1,2\}")
_add(_lax, "pm_one_sign", _box(r"\sqrt{2}"), "one sign is missing", gold=r"\pm\sqrt{2}")
_add(_lax, "percent_share", _box("0.5\\%"), "half a percent", gold="50\\%")
_add(_lax, "string_longer", _box(r"\text{not even}"), "denied", gold=r"\text{even}")
_add(_lax, "string_part", "The answer is Tuesday or Friday.", "two days", gold="Tuesday")
_add(_lax, "variable", _box("y+1"), "another variable", gold="x+1")
_add(_lax, "constant", _box("x+1+C"), "a constant more", gold="x+1")
