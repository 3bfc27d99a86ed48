"""Medians, intervals and verdicts.

A ratio is judged by the 95 % interval of its middle over the pairs: met when the whole interval is on
the good side of the limit, missed when it is wholly on the other, undecided in between. Two runs
contradict each other only if both intervals miss the truth.

The interval is Wilcoxon's (signed ranks of the logarithms, with the means of all pairs: Hodges and
Lehmann, 1963): on shared machines a neighbour halves one run in twenty, which a mean would follow. Below
six values it cannot tell 95 %, and Student's t takes its place.

A percentile is judged by the interval between two of the ordered values, whatever their distribution:
how many lie below the true percentile is binomial. Few values have no upper end: the 99th percentile of
less than 368 may be anything.
"""

import math
import statistics

_SIGNED_RANK_COUNT_MIN = 6

# Student's t, two-sided 95 %, by degrees of freedom.
_T95 = [0, 12.706, 4.303, 3.182, 2.776]


def interval(values):
    """The 95 % interval of the middle of positive values; one value has none."""
    if len(values) < 2 or min(values) <= 0:
        return min(values), max(values)
    logs = [math.log(value) for value in values]
    if len(logs) < _SIGNED_RANK_COUNT_MIN:
        half = _T95[len(logs) - 1] * statistics.stdev(logs) / math.sqrt(len(logs))
        middle = statistics.fmean(logs)
        return math.exp(middle - half), math.exp(middle + half)
    means = sorted(
        (logs[first] + logs[second]) / 2
        for first in range(len(logs)) for second in range(first, len(logs)))
    outside = _signed_rank_quantile(len(logs))
    return math.exp(means[outside - 1]), math.exp(means[-outside])


def _signed_rank_quantile(count):
    """The interval begins with this mean, counted from 1, and ends with that from the end: the largest
    c with P(W < c) at most 2.5 %, where W sums a random subset of the ranks 1 to count."""
    ways = [1]
    for rank in range(1, count + 1):
        longer = ways + [0] * rank
        for total, number in enumerate(ways):
            longer[total + rank] += number
        ways = longer
    below, total = 0, 2**count
    for rank_sum, number in enumerate(ways):
        below += number
        if below * 40 > total:
            return rank_sum
    raise AssertionError("the distribution ends before its first fortieth")


def percentile_interval(values, part):
    """The 95 % interval of the value below which `part` (0 to 1) of all lie; infinite where there are
    too few values to tell."""
    count = len(values)
    ordered = [-math.inf] + sorted(values) + [math.inf]
    below = [
        math.exp(
            math.lgamma(count + 1) - math.lgamma(number + 1) - math.lgamma(count - number + 1)
            + number * math.log(part) + (count - number) * math.log(1 - part))
        for number in range(count + 1)]
    low = max(rank for rank in range(count + 1) if sum(below[:rank]) <= 0.025)
    high = min(rank for rank in range(1, count + 2) if sum(below[rank:]) <= 0.025)
    return ordered[low], ordered[high]


def verdict(low, high, limit, at_least):
    """`met`, `missed` or `undecided`, by the ends of an interval."""
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
