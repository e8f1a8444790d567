// Sample agent: streams each message back word by word, until the run is cancelled. Requires the package standardwebhooks.

const { createServer } = require("node:http");
const { setTimeout: sleep } = require("node:timers/promises");
const { Webhook } = require("standardwebhooks");

const webhook = new Webhook(process.env.AGENT_SECRET);
const cancelled = new Set();

createServer(async (request, response) => {
  let question;
  try {
    question = webhook.verify(Buffer.concat(await request.toArray()), request.headers);
  } catch {
    return response.writeHead(401).end();
  }
  if (request.url === "/cancel") {
    cancelled.add(question.run);
    return response.writeHead(204).end();
  }
  response.writeHead(200, { "content-type": "text/event-stream" });
  const words = question.text.split(/\s+/).map((word) => ["text", { delta: `${word} ` }]);
  for (const [n, [event, data]] of [...words, ["done", {}]].entries()) {
    if (cancelled.has(question.run)) return console.log("cancelled", question.run), response.end();
    if (n <= Number(request.headers["last-event-id"] ?? -1)) continue;
    response.write(`id: ${n}\nevent: ${event}\ndata: ${JSON.stringify(data)}\n\n`);
    await sleep(50);
  }
  response.end();
}).listen(process.env.PORT ?? 8000);
