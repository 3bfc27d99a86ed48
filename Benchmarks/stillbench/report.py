"""The report: JSON for programs, Markdown for a README, one HTML page with pictures for people, and
the picture that says most by itself."""

import html
import io
import json
import re
import statistics

from .numbers import short
from .results import span

_COLOURS = {"met": "#2e7d32", "missed": "#c62828", "undecided": "#8d6e00"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #ddd; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
code { font-size: .85em; background: #f4f4f4; padding: .1em .3em; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; }
.note { color: #666; }
"""


def write(results, machine, command, stem):
    """Writes `stem`.json, .md, .html and, when peers were compared with, .svg; returns their paths."""
    document = {
        "machine": machine, "command": command, "rows": results.rows,
        "targets": results.targets, "failures": results.failures,
        "commands": [{"what": what, "command": line} for what, line in results.commands],
    }
    texts = {
        "json": json.dumps(document, indent=1) + "\n",
        "md": _markdown(results, machine, command),
        "html": _page(results, machine, command),
    }
    compared = _compared(results)
    if compared:
        texts["svg"] = _svg(draw_comparison(compared))
    paths = []
    for extension, text in texts.items():
        path = f"{stem}.{extension}"
        with open(path, "w") as file:
            file.write(text)
        paths.append(path)
    return paths


def _machine_line(machine):
    versions = ", ".join(f"{name}: {text}" for name, text in machine["versions"].items())
    return (
        f"{machine['processor']}, {machine['cpus']} CPUs, {machine['memory_gibibytes']} GiB, Linux "
        f"{machine['kernel']}, load {machine['load']} at the start; {versions}")


def _span(values):
    return f"{short(statistics.median(values))} ({short(min(values))} to {short(max(values))})"


def _markdown(results, machine, command):
    lines = [
        f"Measured by `{command}` on {_machine_line(machine)}. Medians (least to most).", "",
        "| target | measured | 95 % interval | wanted | verdict |", "| --- | --- | --- | --- | --- |",
    ]
    for entry in results.targets:
        sign = "at least" if entry["at_least"] else "at most"
        unit = entry["unit"]
        lines.append(
            f"| {entry['what']} | {short(entry['measured'])}{unit} | {span(entry, 'to')} | {sign} "
            f"{short(entry['limit'])}{unit} | **{entry['verdict']}** |")
    for row in results.rows:
        lines += ["", f"**{row['section']}: {row['workload']}** [{row['unit']}]", ""]
        details = list(row["details"])
        lines.append("| | " + " | ".join([row["unit"], *details]) + " |")
        lines.append("| --- |" + " --- |" * (1 + len(details)))
        for name, values in row["values"].items():
            cells = [_span(values)]
            for label in details:
                found = row["details"][label].get(name)
                cells.append(short(statistics.median(found)) if found else "")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if results.failures:
        lines += ["", "Failed:", ""]
        lines += [
            f"- {entry['section']}, {entry['contender']}: {entry['message']}"
            for entry in results.failures]
    return "\n".join(lines) + "\n"


def _page(results, machine, command):
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'>",
        f"<title>Stillpoint beside its peers</title><style>{_STYLE}</style>",
        "<h1>Stillpoint beside its peers</h1>",
        f"<p class=note>Measured by <code>{html.escape(command)}</code> on "
        f"{html.escape(_machine_line(machine))}. Bars are medians, whiskers least and most; runs "
        "alternated.</p>",
        "<h2>Targets</h2>", _target_table(results),
    ]
    section = None
    for row in results.rows:
        if row["section"] != section:
            section = row["section"]
            parts.append(f"<h2>{html.escape(section)}</h2>")
        parts += [_picture(row), _row_table(row)]
    if results.failures:
        parts.append("<h2>Failed</h2><ul>")
        parts += [
            f"<li>{html.escape(e['section'])}, {html.escape(e['contender'])}: "
            f"<code>{html.escape(e['message'])}</code></li>" for e in results.failures]
        parts.append("</ul>")
    parts.append("<h2>Commands</h2><ul>")
    parts += [
        f"<li>{html.escape(what)}: <code>{html.escape(line)}</code></li>"
        for what, line in results.commands]
    return "\n".join(parts) + "</ul></html>\n"


def _target_table(results):
    rows = [
        "<table><tr><th>target<th class=number>measured<th class=number>95 % interval"
        "<th class=number>wanted<th>verdict"]
    for entry in results.targets:
        sign = "&ge;" if entry["at_least"] else "&le;"
        rows.append(
            f"<tr><td>{html.escape(entry['what'])}<td class=number>{short(entry['measured'])}"
            f"{entry['unit']}<td class=number>{span(entry, '..')}"
            f"<td class=number>{sign} {short(entry['limit'])}{entry['unit']}"
            f"<td style='color:{_COLOURS[entry['verdict']]};font-weight:600'>{entry['verdict']}")
    return "".join(rows) + "</table>"


def _row_table(row):
    details = list(row["details"])
    rows = [
        "<table><tr><th><th class=number>" + html.escape(row["unit"])
        + "".join(f"<th class=number>{html.escape(label)}" for label in details)]
    for name, values in row["values"].items():
        rows.append(f"<tr><td>{html.escape(name)}<td class=number>{_span(values)}")
        for label in details:
            found = row["details"][label].get(name)
            rows.append(
                f"<td class=number>{short(statistics.median(found)) if found else ''}")
    return "".join(rows) + "</table>"


def draw(row, width=8.0):
    """A row as a matplotlib figure."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    names = list(row["values"])
    medians = [statistics.median(row["values"][name]) for name in names]
    spans = [
        [median - min(row["values"][name]) for name, median in zip(names, medians)],
        [max(row["values"][name]) - median for name, median in zip(names, medians)],
    ]
    figure, axes = pyplot.subplots(figsize=(width, 0.7 + 0.32 * len(names)))
    colours = [
        "#1565c0" if name.startswith(("stillpoint", "storage", "image")) else "#b0bec5"
        for name in names]
    axes.barh(names, medians, xerr=spans, color=colours, ecolor="#455a64", capsize=2, height=0.7)
    axes.invert_yaxis()
    better = "more is better" if row["higher_is_better"] else "less is better"
    axes.set_title(f"{row['workload']} [{row['unit']}, {better}]", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(
        matplotlib.ticker.FuncFormatter(lambda value, _: short(value)))
    axes.tick_params(labelsize=8)
    for place, median in enumerate(medians):
        axes.annotate(
            short(median), (median, place), xytext=(6, 0), textcoords="offset points",
            va="center", fontsize=8)
    figure.tight_layout()
    return figure


def _picture(row):
    return f"<figure>{_svg(draw(row))}</figure>" if row["values"] else ""


def _compared(results):
    """Targets that are rates of Stillpoint as ratios to those of a peer."""
    return [
        entry for entry in results.targets
        if entry["at_least"] and re.search(r"ratio to (nbdkit|qemu|QEMU)", entry["what"])]


def draw_comparison(entries, width=9.0):
    """How many times the peer's rate each is, with the 95 % interval and the target."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(width, 1.0 + 0.34 * len(entries)))
    middles = [entry["measured"] for entry in entries]
    spans = [
        [max(entry["measured"] - entry["low"], 0) for entry in entries],
        [max(entry["high"] - entry["measured"], 0) for entry in entries],
    ]
    axes.barh(
        [entry["what"].replace(", ratio to ", " / ") for entry in entries], middles, xerr=spans, color="#1565c0",
        ecolor="#455a64", capsize=2, height=0.6)
    axes.scatter(
        [entry["limit"] for entry in entries], range(len(entries)), marker="|", s=180,
        color="#c62828", zorder=3, label="target")
    axes.axvline(1, color="#9e9e9e", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(left=0.5)
    axes.xaxis.set_major_formatter(
        matplotlib.ticker.FuncFormatter(lambda value, _: f"{short(value)}x"))
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.invert_yaxis()
    axes.set_title("Stillpoint's rate, in times the peer's (more is better)", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    for place, middle in enumerate(middles):
        axes.annotate(
            f"{short(middle)}x", (middle, place), xytext=(6, 6), textcoords="offset points",
            va="center", fontsize=8)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    figure.tight_layout()
    return figure


def _svg(figure):
    from matplotlib import pyplot

    text = io.StringIO()
    # Text stays text: a tenth of the size of outlines, and it can be searched.
    with pyplot.rc_context({"svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None}, bbox_inches="tight")
    pyplot.close(figure)
    svg = text.getvalue()
    return svg[svg.index("<svg"):]
