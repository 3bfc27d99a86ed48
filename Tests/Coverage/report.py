#!/usr/bin/env python3
"""Reads lcov from standard input, prints a table per room and the lines that no test runs.

usage: report.py SOURCES

A line in REASONS of this file's directory, `ROOM/FILE: TEXT  # why`, explains lines that contain
TEXT; what is not explained is marked. Exit 1 below 95 % of the lines of the rooms together.
"""

import collections
import pathlib
import sys

ROOMS = ["BlockModel", "ChangeTracking", "CopyOnWrite", "FreezePlanning", "CutCoordination", "EngineState",
         "SnapshotCore"]
WANTED = 95.0

sources = pathlib.Path(sys.argv[1]).resolve()
hits = collections.defaultdict(dict)
current = None
for line in sys.stdin:
    key, _, rest = line.strip().partition(":")
    if key == "SF":
        current = pathlib.Path(rest).resolve()
    elif key == "DA":
        number, count = rest.split(",")[:2]
        lines = hits[current]
        lines[int(number)] = max(lines.get(int(number), 0), int(count))

reasons = []
for line in (pathlib.Path(__file__).parent / "reasons").read_text().splitlines():
    if line and not line.startswith("#"):
        what, _, why = line.partition("  # ")
        reasons.append((what.strip(), why.strip()))

total = covered = 0
unexplained = 0
print(f"{'room':<16}{'lines':>8}{'run':>8}{'share':>9}")
missing = []
for room in ROOMS:
    room_total = room_covered = 0
    for path, lines in sorted(hits.items()):
        if not path.is_relative_to(sources / room):
            continue
        room_total += len(lines)
        room_covered += sum(1 for count in lines.values() if count)
        text = path.read_text().splitlines()
        for number, count in sorted(lines.items()):
            if not count:
                missing.append((f"{room}/{path.name}", number, text[number - 1].strip()))
    total += room_total
    covered += room_covered
    share = 100 * room_covered / max(room_total, 1)
    print(f"{room:<16}{room_total:>8}{room_covered:>8}{share:>8.1f}%")
print("\nnot run:")
for name, number, text in missing:
    if text in ("}", "} else {", "{", ")", ""):
        continue
    why = next((why for what, why in reasons if what in f"{name}: {text}"), None)
    if why is None:
        unexplained += 1
    print(f"  {name}:{number}: {text}" + (f"  ({why})" if why else ""))
share = 100 * covered / max(total, 1)
print(f"\n{unexplained} lines without a reason; see Tests/Coverage/reasons")
print(f"coverage: {share:.1f} % of lines")
sys.exit(0 if share >= WANTED else 1)
