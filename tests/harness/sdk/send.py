"""Signs webhooks with Slack's SDK and sends them.

Reads a JSON line each from stdin: url, secret, content_type, body (base64), flip (change a bit after signing).
Prints a JSON line each in the same order: status, body. All are sent concurrently, since some wait for an answer.
"""

import base64
import concurrent.futures
import json
import sys
import time
import urllib.error
import urllib.request

from slack_sdk.signature import SignatureVerifier

# Bypasses a proxy that the machine is configured for: it can't reach this machine's loopback.
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def send(line):
    webhook = json.loads(line)
    body = base64.b64decode(webhook["body"])
    timestamp = str(int(time.time()))
    signature = SignatureVerifier(webhook["secret"]).generate_signature(timestamp=timestamp, body=body)
    if webhook["flip"]:
        middle = len(body) // 2
        body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
    headers = {
        "Content-Type": webhook["content_type"],
        "X-Slack-Request-Timestamp": timestamp,
        "X-Slack-Signature": signature,
    }
    request = urllib.request.Request(webhook["url"], data=body, headers=headers, method="POST")
    try:
        answer = direct.open(request, timeout=20)
    except urllib.error.HTTPError as refused:
        answer = refused
    with answer:
        return {"status": answer.status, "body": answer.read().decode()}


lines = sys.stdin.readlines()
with concurrent.futures.ThreadPoolExecutor(max_workers=16) as pool:
    for answer in pool.map(send, lines):
        print(json.dumps(answer))
