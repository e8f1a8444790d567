// Connects to the simulated Slack with Slack's Socket Mode client. Prints a line of JSON per event.
const { SocketModeClient } = require("@slack/socket-mode");

const client = new SocketModeClient({
  appToken: process.env.SLACK_APP_TOKEN,
  clientPingTimeout: 500,
  clientOptions: { slackApiUrl: process.env.SLACK_API },
});
const print = (line) => console.log(JSON.stringify(line));
for (const state of ["connected", "reconnecting"]) client.on(state, () => print({ state }));
client.on("slack_event", async ({ type, body, ack, retry_num, retry_reason }) => {
  const text = body.event?.text ?? body.text ?? body.actions?.[0]?.value;
  print({ type, text, retry_num, retry_reason });
  if (text === "not now" && !retry_num) return;
  await ack(type === "slash_commands" ? { text: `you said ${text}` } : undefined);
});
client.start().catch((error) => {
  console.error(error);
  process.exit(1);
});
