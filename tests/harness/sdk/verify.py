"""Asks Slack's SDK, as an app would, whether Slack signed something.

In: a JSON line each on stdin: secret, body (base64), headers. Out: in the same order a JSON line each: valid.
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
