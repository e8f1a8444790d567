"""A Slack app in the style of the documentation of Bolt for Python, without code for Tidegate.

Settings: PORT, SLACK_BOT_TOKEN, SLACK_SIGNING_SECRET, SLACK_API (base URL of the Web API). Prints a line for each
message event, in order of arrival.
"""

import os

from slack_bolt import App
from slack_sdk import WebClient

app = App(
    client=WebClient(token=os.environ["SLACK_BOT_TOKEN"], base_url=os.environ["SLACK_API"]),
    signing_secret=os.environ["SLACK_SIGNING_SECRET"],
)
PEOPLE = ["Ada", "Alan", "Grace"]


@app.middleware
def log_message(body, next):
    event = body.get("event", {})
    if event.get("type") == "message":
        print("heard", event.get("channel"), event.get("text"), flush=True)
    next()


@app.event("message")
def answer(event, say):
    if event["text"].startswith("hello"):
        say(text=f"python heard: {event['text']}", thread_ts=event["ts"])


@app.event("app_mention")
def mentioned(event, say):
    say(f"python was mentioned by <@{event['user']}>")


@app.command("/echo")
def echo(ack, command):
    ack(f"python says: {command['text']}")


@app.command("/blocks")
def blocks(ack):
    ack(
        response_type="in_channel",
        text="python has blocks",
        blocks=[{"type": "section", "text": {"type": "mrkdwn", "text": "*blocks*"}}],
    )


@app.command("/later")
def later(ack, respond):
    ack()
    respond("python says it later")


@app.command("/ticket")
def ticket(ack, body, client):
    ack()
    client.views_open(
        trigger_id=body["trigger_id"],
        view={
            "type": "modal",
            "callback_id": "ticket",
            "title": {"type": "plain_text", "text": "New ticket"},
            "submit": {"type": "plain_text", "text": "Create"},
            "blocks": [
                {
                    "type": "input",
                    "block_id": "title",
                    "label": {"type": "plain_text", "text": "Title"},
                    "element": {"type": "plain_text_input", "action_id": "text"},
                },
                {
                    "type": "input",
                    "block_id": "assignee",
                    "label": {"type": "plain_text", "text": "Assignee"},
                    "element": {"type": "external_select", "action_id": "assignee", "min_query_length": 1},
                },
            ],
        },
    )


@app.view("ticket")
def submitted(ack, body, client, view):
    title = view["state"]["values"]["title"]["text"]["value"]
    if len(title) < 3:
        ack(response_action="errors", errors={"title": "python wants at least three letters"})
        return
    ack()
    client.chat_postMessage(channel=body["user"]["id"], text=f"python made a ticket: {title}")


@app.options("assignee")
def people(ack, payload):
    found = [name for name in PEOPLE if name.lower().startswith(payload["value"].lower())]
    ack(options=[{"text": {"type": "plain_text", "text": name}, "value": name} for name in found])


@app.action("approve")
def approve(ack, respond):
    ack()
    respond(text="python approved it", replace_original=False)


if __name__ == "__main__":
    app.start(port=int(os.environ["PORT"]), http_server_logger_enabled=False)
