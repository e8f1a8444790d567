"""Rendered manifests on standard input; as JSON, those whose kinds are not Kubernetes's own on standard output."""

import json
import sys

import yaml

FOREIGN = {"keda.sh/v1alpha1", "monitoring.coreos.com/v1"}

documents = [document for document in yaml.safe_load_all(sys.stdin) if document]
foreign = [document for document in documents if document["apiVersion"] in FOREIGN]
if not foreign:
    sys.exit("no object of a foreign kind was rendered")
json.dump(foreign, sys.stdout)
