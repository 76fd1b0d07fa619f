"""Units of measure, their kinds and the words for them."""

import re

_LENGTHS = {
    "m": "m meter meters metre metres",
    "cm": "cm cms centimeter centimeters centimetre centimetres",
    "mm": "mm millimeter millimeters millimetre millimetres",
    "km": "km kilometer kilometers kilometre kilometres",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard yards",
    "mi": "mi mile miles",
}
_MASSES = {
    "kg": "kg kilogram kilograms",
    "g": "gram grams gm gms",
    "mg": "mg milligram milligrams",
    "lb": "lb lbs pound pounds",
    "oz": "oz ounce ounces",
}
_VOLUMES = {
    "l": "liter liters litre litres",
    "ml": "ml milliliter milliliters millilitre millilitres",
    "gal": "gallon gallons",
    "qt": "quart quarts",
    "pt": "pint pints",
}
_TIMES = {
    "s": "sec secs second seconds",
    "min": "min mins minute minutes",
    "h": "hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "year years yr yrs",
}
_MONEY = {"dollar": "dollar dollars usd", "cent": "cent cents", "euro": "euro euros"}
_ANGLES = {"\u00b0": "degree degrees deg", "rad": "radian radians"}
_HEATS = {"celsius": "celsius centigrade", "fahrenheit": "fahrenheit"}
_OTHERS = {
    "%": "percent percentage pct %",
    "unit": "unit units",
    "mi/h": "mph",
    "km/h": "kmh kph kmph",
    "am": "am",
    "pm": "pm",
}
KINDS = (_LENGTHS, _MASSES, _VOLUMES, _TIMES, _MONEY, _ANGLES, _HEATS)
UNITS = {
    word: unit
    for kind in (*KINDS, _OTHERS)
    for unit, words in kind.items()
    for word in words.split()
}
"""Units by the words for them. Two answers with different units of these are not called equal."""
_PER = {"h": "h", "s": "s"} | UNITS
"""Units behind a slash, where a letter is no variable."""


def unit_of(text: str) -> str | None:
    """The unit of measurement that a text names (`square inches` is `in2`), or None."""
    text = re.sub(r"\s+per\s+", "/", text.lower().replace(".", "")).replace("^", " ^")
    words = text.split()
    size, found = "", []
    for word in words:
        first, slash, per = word.partition("/")
        if word in ("square", "sq", "squared", "^2"):
            size = "2"
        elif word in ("cubic", "cu", "cubed", "^3"):
            size = "3"
        elif slash and per in _PER and (first in UNITS or not first):
            found.append(f"{UNITS[first]}/{_PER[per]}" if first else _PER[per])
        elif word in UNITS:
            found.append(UNITS[word])
    if found[:1] == ["\u00b0"] and found[-1] in _HEATS:
        del found[0]
    if (
        len(found) != 1
        or len(words) > 3
        or (words[0] == "in" and words[1:] not in ([], ["^2"], ["^3"]))
    ):
        return None
    return found[0] + size
