"""Round values for an axis, in steps of 1, 2 or 5."""

from __future__ import annotations

import math

STEPS = (1, 2, 5)


def round_ticks(low: float, high: float, most: int, *, is_log: bool = False) -> list[float]:
    """Round values from low to high: as many as there are room for, in steps of 1, 2 or 5 times a power of ten.

    On a log scale they are 1, 2 and 5 times powers of ten, or the powers alone, where at least two of them fit.

    >>> round_ticks(0.48, 2.77, 5), round_ticks(0.0003, 0.2, 4, is_log=True)
    ([0.5, 1.0, 1.5, 2.0, 2.5], [0.001, 0.01, 0.1])
    """
    if not (math.isfinite(low) and math.isfinite(high) and high > low):
        return []
    if is_log and low > 0:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for factors in (STEPS, (1,)):
            ticks = [factor * 10.0**power for power in powers for factor in factors]
            ticks = [tick for tick in ticks if low <= tick <= high]
            if 2 <= len(ticks) <= most:
                return ticks
        if len(ticks) > most:
            return ticks[:: math.ceil(len(ticks) / most)]
    power = math.floor(math.log10((high - low) / most)) - 1
    finer: list[float] = []
    for step in (factor * 10.0**each for each in range(power, power + 4) for factor in STEPS):
        # A value that is a hair beyond an end counts as within.
        first, last = math.ceil(low / step - 1e-3), math.floor(high / step + 1e-3)
        ticks = [float(f"{place * step:.12g}") for place in range(first, min(last, first + most + 2) + 1)]
        if len(ticks) <= most:
            # One alone is no scale.
            return ticks if len(ticks) > 1 or len(finer) > most + 1 else finer
        finer = ticks
    return finer


def tick_texts(values: list[float]) -> list[str]:
    """Texts of round values, all in one notation and with as many digits as they need.

    >>> tick_texts([0.0, 0.5, 1.0]), tick_texts([0.0, 2e-5, 4e-5]), tick_texts([0.01, 0.1, 1.0])
    (['0.0', '0.5', '1.0'], ['0', '2e-5', '4e-5'], ['0.01', '0.10', '1.00'])
    """
    known = [abs(value) for value in values if value]
    if not known:
        return ["0"] * len(values)
    decimals = max(_decimals(value) for value in known)
    if decimals <= 4 and max(known) < 1e5 and min(known) >= 1e-4:
        return [f"{value:.{decimals}f}" for value in values]
    digits = max(len(f"{value:.10e}".partition("e")[0].rstrip("0").rstrip(".").replace(".", "")) for value in known) - 1
    return [_power(value, digits) for value in values]


def _decimals(value: float) -> int:
    return len(f"{value:.10f}".rstrip("0").partition(".")[2])


def _power(value: float, digits: int) -> str:
    if not value:
        return "0"
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    return f"{mantissa}e{int(exponent)}"
