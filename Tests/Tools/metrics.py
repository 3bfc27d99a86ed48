"""Reads metrics with the parser of prometheus_client and prints the samples as JSON.

Standard input: the document. Output: [{"name", "labels", "value", "type"}]. Ends with 1 when a
convention is broken: names and units, one family once, buckets that only rise.
"""

import json
import sys

from prometheus_client.parser import text_string_to_metric_families

problems = []
samples = []
seen = set()
for family in text_string_to_metric_families(sys.stdin.read()):
    if family.name in seen:
        problems.append(f"{family.name} comes twice")
    seen.add(family.name)
    if not family.documentation:
        problems.append(f"{family.name} has no help")
    if family.type not in ("counter", "gauge", "histogram"):
        problems.append(f"{family.name} is of type {family.type}")
    for unit in ("milliseconds", "microseconds", "kibibytes", "megabytes"):
        if unit in family.name:
            problems.append(f"{family.name} is not in base units")
    rising = {}
    for sample in family.samples:
        if family.type == "counter" and not sample.name.endswith("_total"):
            problems.append(f"counter {sample.name} does not end in _total")
        if family.type == "histogram" and sample.name.endswith("_bucket"):
            key = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le"))
            if sample.value < rising.get(key, 0):
                problems.append(f"{sample.name} {key} falls")
            rising[key] = sample.value
        samples.append({"name": sample.name, "labels": sample.labels, "value": sample.value,
                        "type": family.type})
if problems:
    print("\n".join(problems), file=sys.stderr)
    sys.exit(1)
json.dump(samples, sys.stdout)
