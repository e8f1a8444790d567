"""Rendered manifests on standard input; the one of this kind and name as JSON on standard output."""

import json
import sys

import yaml

kind, name = sys.argv[1:]
for document in yaml.safe_load_all(sys.stdin):
    if document["kind"] == kind and document["metadata"]["name"] == name:
        json.dump(document, sys.stdout)
        break
else:
    sys.exit(f"no {kind} {name} was rendered")
