"""Sample agent: streams each message back word by word, until the run is cancelled. Requires standardwebhooks."""

import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from standardwebhooks import Webhook, WebhookVerificationError

webhook, cancelled = Webhook(os.environ["AGENT_SECRET"]), set()

class Agent(BaseHTTPRequestHandler):
    def do_POST(self):
        try:
            question = webhook.verify(self.rfile.read(int(self.headers["content-length"])), dict(self.headers))
        except WebhookVerificationError:
            return self.send_error(401)
        if self.path == "/cancel":
            cancelled.add(question["run"])
            return self.send_error(204)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        words = question["text"].split()
        events = [("text", {"delta": word + " "}) for word in words] + [("done", {})]
        for n, (event, data) in enumerate(events):
            if question["run"] in cancelled:
                return print("cancelled", question["run"], flush=True)
            if n > int(self.headers.get("last-event-id", -1)):
                self.wfile.write(f"id: {n}\nevent: {event}\ndata: {json.dumps(data)}\n\n".encode())
                time.sleep(0.05)

ThreadingHTTPServer(("", int(os.environ.get("PORT", 8000))), Agent).serve_forever()
