"""Verifies signatures with Slack's SDK, as an app does.

Reads a JSON line each from stdin: secret, body (base64), headers. Prints a JSON line each in the same order: valid.
"""

import base64
import json
import sys

from slack_sdk.signature import SignatureVerifier

for line in sys.stdin:
    webhook = json.loads(line)
    body = base64.b64decode(webhook["body"])
    valid = SignatureVerifier(webhook["secret"]).is_valid_request(body, webhook["headers"])
    print(json.dumps({"valid": valid}))
