"""A Bolt app with a listener of each kind. Prints the verification token and the kind of each webhook that reaches a listener.

Settings: PORT, SLACK_BOT_TOKEN, SLACK_SIGNING_SECRET, SLACK_API (base URL of the Web API), EVENT_TYPES.
"""

import os
import re

from slack_bolt import App
from slack_sdk import WebClient

app = App(
    client=WebClient(token=os.environ["SLACK_BOT_TOKEN"], base_url=os.environ["SLACK_API"]),
    signing_secret=os.environ["SLACK_SIGNING_SECRET"],
)
ANY = re.compile(".*")


def report(body, *words):
    # One write, since listeners run in threads.
    os.write(1, (" ".join(["kind", body["token"], *words]) + "\n").encode())


def event_listener(event_type):
    def listener(body, event):
        subtype = [event["subtype"]] if event_type == "message" and "subtype" in event else []
        report(body, "event", event_type, *subtype)

    return listener


def listener(kind):
    def acknowledge(ack, body):
        report(body, kind)
        ack()

    return acknowledge


def options_listener(kind):
    def answer(ack, body):
        report(body, kind)
        ack(options=[])

    return answer


@app.command(ANY)
def command(ack, body):
    report(body, "command", body["command"])
    ack()


for event_type in os.environ["EVENT_TYPES"].split(","):
    app.event(event_type)(event_listener(event_type))
app.block_action(ANY)(listener("block_actions"))
app.attachment_action(ANY)(listener("interactive_message"))
app.dialog_submission(ANY)(listener("dialog_submission"))
app.dialog_cancellation(ANY)(listener("dialog_cancellation"))
app.action({"type": "workflow_step_edit", "callback_id": ANY})(listener("workflow_step_edit"))
app.global_shortcut(ANY)(listener("shortcut"))
app.message_shortcut(ANY)(listener("message_action"))
app.view_submission(ANY)(listener("view_submission"))
app.view_closed(ANY)(listener("view_closed"))
app.block_suggestion(ANY)(options_listener("block_suggestion"))
app.dialog_suggestion(ANY)(options_listener("dialog_suggestion"))

if __name__ == "__main__":
    app.start(port=int(os.environ["PORT"]), http_server_logger_enabled=False)
