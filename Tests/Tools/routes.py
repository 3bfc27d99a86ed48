"""Prints every method and path of the OpenAPI description, one a line.

usage: routes.py DESCRIPTION
"""

import sys

import yaml

with open(sys.argv[1]) as file:
    description = yaml.safe_load(file)
for path, operations in description["paths"].items():
    for method in operations:
        if method in ("get", "put", "post", "delete", "options", "head", "patch", "trace"):
            print(method.upper(), path)
