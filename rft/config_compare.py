"""The settings of the comparison and its report."""

from typing import Annotated

from pydantic import Field

from rft.section import Positive, Section

Amount = Annotated[float, Field(ge=0)]


class Cost(Section):
    """What the run's hours are worth, for the report's table of costs; figures left at null are left out."""

    watts: Amount | None = None
    """What the machine draws while it works, in watts: hours times this are the energy. An estimate,
    unless it was measured at the plug."""
    price_per_kwh: Amount = 0.0
    """Price of a kilowatt-hour, in `currency`."""
    price_per_hour: Amount = 0.0
    """Price of an hour of the machine besides energy (rent), in `currency`."""
    currency: str = "EUR"
    """Name of the money, for the table's heading."""


class Compare(Section):
    """The comparison of arms on the same held-out problems."""

    baseline: str = "sft"
    """Arm that the others are compared with."""
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Confidence level of the intervals."""
    resamples: Positive = 10_000
    """Bootstrap resamples and random sign flips."""
    margin: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Largest loss of accuracy that would not matter, a fraction (0.01 is one point): the report then
    says whether an arm is shown to be no worse than the baseline by more, and whether they are
    equivalent. To be chosen before the results are known; null asks neither."""
    examples: Annotated[int, Field(ge=0, le=100)] = 5
    """Held-out problems that the report shows of each kind: those that the headline arm gets right and the
    baseline does not, the other way round, and those that both get wrong. Drawn from a fixed seed."""
    cost: Cost = Cost()
