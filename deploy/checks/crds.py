"""Prints the custom resources of rendered manifests as a JSON array, for crds.mjs.

Reads YAML from standard input. Validates objects of Envoy Gateway itself, against envoy_gateway.json, and does not print them: their
schemas are in no package registry.
"""

import json
import pathlib
import sys

import jsonschema
import yaml

CUSTOM = {"gateway.networking.k8s.io/v1", "keda.sh/v1alpha1", "monitoring.coreos.com/v1"}
ENVOY = "gateway.envoyproxy.io/v1alpha1"

schemas = json.loads(pathlib.Path(__file__).with_name("envoy_gateway.json").read_text())
documents = [document for document in yaml.safe_load_all(sys.stdin) if document]
custom = [document for document in documents if document["apiVersion"] in CUSTOM]
if not custom:
    sys.exit("the manifests have no custom resources")
problems = []
for document in documents:
    if document["apiVersion"] == ENVOY:
        kind, name = document["kind"], document["metadata"]["name"]
        schema = {"$defs": schemas["$defs"], "$ref": f"#/$defs/{kind}"}
        errors = jsonschema.Draft202012Validator(schema).iter_errors(document["spec"])
        problems += [f"{kind} {name}: {error.json_path}: {error.message}" for error in errors]
if problems:
    sys.exit("\n".join(problems))
json.dump(custom, sys.stdout)
