"""Validates documents against the schemas of the OpenAPI description.

usage: validate.py DESCRIPTION, with one JSON object per line on standard input:
{"label": TEXT, "schema": NAME or [NAME] for a list of them, "document": ANYTHING}
Prints one line for each document that does not fit, and ends with 1 then.
"""

import json
import sys

import jsonschema
import yaml

with open(sys.argv[1]) as file:
    description = yaml.safe_load(file)
missed = 0
for line in sys.stdin:
    case = json.loads(line)
    name = case["schema"]
    names = description["components"]["schemas"]
    wanted = {"components": {"schemas": names}}
    if isinstance(name, list):
        wanted |= {"type": "array", "items": {"$ref": f"#/components/schemas/{name[0]}"}}
    else:
        wanted |= {"$ref": f"#/components/schemas/{name}"}
    validator = jsonschema.Draft202012Validator(
        wanted, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    for error in validator.iter_errors(case["document"]):
        missed += 1
        print(f"{case['label']}: {error.json_path}: {error.message}")
sys.exit(1 if missed else 0)
