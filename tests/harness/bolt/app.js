// A Slack app in the style of the documentation of Bolt for JavaScript, without code for Tidegate.
//
// Settings: PORT, SLACK_BOT_TOKEN, SLACK_SIGNING_SECRET, SLACK_API (base URL of the Web API). Prints a line for each
// message event, in order of arrival.

const { App } = require('@slack/bolt');

const app = new App({
  token: process.env.SLACK_BOT_TOKEN,
  signingSecret: process.env.SLACK_SIGNING_SECRET,
  clientOptions: { slackApiUrl: process.env.SLACK_API },
});
const PEOPLE = ['Ada', 'Alan', 'Grace'];

app.use(async ({ body, next }) => {
  if (body.event?.type === 'message') {
    console.log('heard', body.event.channel, body.event.text);
  }
  await next();
});

app.message(/^hello/, async ({ message, say }) => {
  await say({ text: `javascript heard: ${message.text}`, thread_ts: message.ts });
});

app.event('app_mention', async ({ event, say }) => {
  await say(`javascript was mentioned by <@${event.user}>`);
});

app.command('/echo', async ({ ack, command }) => {
  await ack(`javascript says: ${command.text}`);
});

app.command('/blocks', async ({ ack }) => {
  await ack({
    response_type: 'in_channel',
    text: 'javascript has blocks',
    blocks: [{ type: 'section', text: { type: 'mrkdwn', text: '*blocks*' } }],
  });
});

app.command('/later', async ({ ack, respond }) => {
  await ack();
  await respond('javascript says it later');
});

app.command('/ticket', async ({ ack, body, client }) => {
  await ack();
  await client.views.open({
    trigger_id: body.trigger_id,
    view: {
      type: 'modal',
      callback_id: 'ticket',
      title: { type: 'plain_text', text: 'New ticket' },
      submit: { type: 'plain_text', text: 'Create' },
      blocks: [
        {
          type: 'input',
          block_id: 'title',
          label: { type: 'plain_text', text: 'Title' },
          element: { type: 'plain_text_input', action_id: 'text' },
        },
        {
          type: 'input',
          block_id: 'assignee',
          label: { type: 'plain_text', text: 'Assignee' },
          element: { type: 'external_select', action_id: 'assignee', min_query_length: 1 },
        },
      ],
    },
  });
});

app.view('ticket', async ({ ack, body, client, view }) => {
  const title = view.state.values.title.text.value;
  if (title.length < 3) {
    await ack({ response_action: 'errors', errors: { title: 'javascript wants at least three letters' } });
    return;
  }
  await ack();
  await client.chat.postMessage({ channel: body.user.id, text: `javascript made a ticket: ${title}` });
});

app.options('assignee', async ({ ack, payload }) => {
  const found = PEOPLE.filter((name) => name.toLowerCase().startsWith(payload.value.toLowerCase()));
  await ack({ options: found.map((name) => ({ text: { type: 'plain_text', text: name }, value: name })) });
});

app.action('approve', async ({ ack, respond }) => {
  await ack();
  await respond({ text: 'javascript approved it', replace_original: false });
});

(async () => {
  await app.start(process.env.PORT);
})();
