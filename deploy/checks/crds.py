"""Rendered manifests on standard input; as JSON, those whose kinds are neither Kubernetes's own nor Envoy Gateway's on standard output.

Envoy Gateway publishes its schemas in no package registry: its kinds are validated here, by envoy_gateway.json.
"""

import json
import pathlib
import sys

import jsonschema
import yaml

FOREIGN = {"gateway.networking.k8s.io/v1", "keda.sh/v1alpha1", "monitoring.coreos.com/v1"}
ENVOY = "gateway.envoyproxy.io/v1alpha1"

schemas = json.loads(pathlib.Path(__file__).with_name("envoy_gateway.json").read_text())
documents = [document for document in yaml.safe_load_all(sys.stdin) if document]
foreign = [document for document in documents if document["apiVersion"] in FOREIGN]
if not foreign:
    sys.exit("no object of a foreign kind was rendered")
wrong = []
for document in documents:
    if document["apiVersion"] == ENVOY:
        kind, name = document["kind"], document["metadata"]["name"]
        schema = {"$defs": schemas["$defs"], "$ref": f"#/$defs/{kind}"}
        errors = jsonschema.Draft202012Validator(schema).iter_errors(document["spec"])
        wrong += [f"{kind} {name}: {error.json_path}: {error.message}" for error in errors]
if wrong:
    sys.exit("\n".join(wrong))
json.dump(foreign, sys.stdout)
