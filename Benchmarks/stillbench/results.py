"""What was measured: rows of a table, targets with their verdicts, failures, notes."""

import math
import statistics

from .numbers import interval, percentile, percentile_interval, short, verdict


def span(entry, word):
    """The interval of a target, its ends with `word` between them."""
    ends = ["?" if entry[end] is None else short(entry[end]) for end in ("low", "high")]
    return f"{ends[0]} {word} {ends[1]}"


class Results:
    """Collects everything a run found; sections add, reports read."""

    def __init__(self):
        self.rows = []
        self.targets = []
        self.failures = []
        self.commands = []

    def row(self, section, workload, unit, values, higher_is_better=True, details=None):
        """One workload: `values` are the runs of each contender by name."""
        values = {name: runs for name, runs in values.items() if runs}
        row = {
            "section": section, "workload": workload, "unit": unit, "values": values,
            "higher_is_better": higher_is_better, "details": details or {},
        }
        self.rows.append(row)
        print(f"\n{workload} [{unit}; median (min .. max)]")
        for name, runs in values.items():
            more = "".join(
                f"   {label} {short(statistics.median(by_name[name]))}"
                for label, by_name in row["details"].items() if by_name.get(name)
            )
            print(
                f"  {name:24} {short(statistics.median(runs)):>10}"
                f" ({short(min(runs))} .. {short(max(runs))}){more}", flush=True,
            )

    def target(self, what, values, limit, at_least=True, unit="", part=None):
        """Judges figures against a target: their middle, or with `part` (0 to 1)
        that percentile of them."""
        if not values:
            return
        low, high = interval(values) if part is None else percentile_interval(values, part)
        entry = {
            "what": what, "values": values,
            "measured": statistics.median(values) if part is None else percentile(values, part),
            # JSON has no infinity.
            "low": low if math.isfinite(low) else None,
            "high": high if math.isfinite(high) else None,
            "limit": limit, "at_least": at_least, "unit": unit,
            "verdict": verdict(low, high, limit, at_least),
        }
        self.targets.append(entry)
        print(f"  {self.sentence(entry)}", flush=True)

    @staticmethod
    def sentence(entry):
        sign = "at least" if entry["at_least"] else "at most"
        return (
            f"{entry['what']}: {short(entry['measured'])}{entry['unit']} (95 %: "
            f"{span(entry, '..')}), target {sign} "
            f"{short(entry['limit'])}{entry['unit']}: {entry['verdict']}"
        )

    def failure(self, section, contender, message):
        """A contender or a section that did not work is shown, not left out."""
        self.failures.append({"section": section, "contender": contender, "message": message})
        print(f"  {contender} failed: {message}", flush=True)

    def command(self, what, command):
        """An exact command, once."""
        line = (what, " ".join(command))
        if line not in self.commands:
            self.commands.append(line)


def middle(runs):
    """The run of several with the middle rate."""
    return sorted(runs, key=lambda run: run["iops"])[len(runs) // 2]


def ratios(ours, theirs):
    """Pairs of runs of one round, as ratios."""
    return [mine / other for mine, other in zip(ours, theirs)]
