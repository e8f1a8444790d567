"""Prints the object of this kind and name as JSON. Reads rendered manifests from standard input."""

import json
import sys

import yaml

kind, name = sys.argv[1:]
for document in yaml.safe_load_all(sys.stdin):
    if document["kind"] == kind and document["metadata"]["name"] == name:
        json.dump(document, sys.stdout)
        break
else:
    sys.exit(f"the manifests have no {kind} {name}")
