"""Medians, intervals and verdicts.

A ratio is judged by the 95 % interval of its geometric mean over the pairs (Student's t on the
logarithms): met when the whole interval is on the good side of the limit, missed when it is wholly on
the other, undecided in between. Two runs contradict each other only if both intervals miss the truth.
"""

import math
import statistics

# Student's t, two-sided 95 %, by degrees of freedom; beyond 30 the normal distribution is close.
_T95 = [
    0, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
]


def interval(values):
    """The 95 % interval of the geometric mean of positive values; one value has none."""
    if len(values) < 2 or min(values) <= 0:
        return min(values), max(values)
    logs = [math.log(value) for value in values]
    degrees = len(logs) - 1
    t = _T95[degrees] if degrees < len(_T95) else 1.960
    half = t * statistics.stdev(logs) / math.sqrt(len(logs))
    middle = statistics.fmean(logs)
    return math.exp(middle - half), math.exp(middle + half)


def verdict(values, limit, at_least):
    """`met`, `missed` or `undecided`."""
    low, high = interval(values)
    if (low >= limit) if at_least else (high <= limit):
        return "met"
    if (high < limit) if at_least else (low > limit):
        return "missed"
    return "undecided"


def percentile(values, part):
    """The value below which `part` (0 to 1) of the values lie."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)]


def short(value):
    """A figure for people, three digits or more."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}"
