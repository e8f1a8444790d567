"""Connects to the simulated Slack with Slack's Socket Mode client. Prints a line of JSON per event."""

import json
import os
import threading

from slack_sdk import WebClient
from slack_sdk.socket_mode import SocketModeClient
from slack_sdk.socket_mode.response import SocketModeResponse


def show(**line):
    print(json.dumps(line), flush=True)


def on_request(client, request):
    body = request.payload
    text = (body.get("event") or body).get("text") or (body.get("actions") or [{}])[0].get("value")
    show(type=request.type, text=text, retry_num=request.retry_attempt, retry_reason=request.retry_reason)
    if text == "not now" and not request.retry_attempt:
        return
    payload = {"text": f"you said {text}"} if request.type == "slash_commands" else None
    client.send_socket_mode_response(SocketModeResponse(envelope_id=request.envelope_id, payload=payload))


client = SocketModeClient(
    app_token=os.environ["SLACK_APP_TOKEN"],
    web_client=WebClient(base_url=os.environ["SLACK_API"]),
    ping_interval=1,
)
client.socket_mode_request_listeners.append(on_request)
client.on_message_listeners.append(
    lambda message: show(state="connected") if '"hello"' in message else None
)
client.connect()
threading.Event().wait()
