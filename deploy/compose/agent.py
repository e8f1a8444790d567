"""Sample agent that repeats each message. An agent is one HTTP handler, in any language; this one needs no package.

Tidegate POSTs {"type":"message","text":…,…} and sends the "text" of the response to Slack. It retries a request whose response was lost
with the same idempotency-key, so an agent with side effects must store the keys that it has processed.
"""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Agent(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        question = json.loads(self.rfile.read(int(self.headers["content-length"])))
        answer = json.dumps({"text": f"I heard: {question.get('text', '')}"}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


if __name__ == "__main__":
    ThreadingHTTPServer(("", 8000), Agent).serve_forever()
