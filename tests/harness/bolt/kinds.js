// A Bolt app with a listener of each kind. Prints the verification token and the kind of each webhook that reaches a
// listener.
//
// Settings: PORT, SLACK_BOT_TOKEN, SLACK_SIGNING_SECRET, SLACK_API (base URL of the Web API), EVENT_TYPES.

const { App } = require('@slack/bolt');

const app = new App({
  token: process.env.SLACK_BOT_TOKEN,
  signingSecret: process.env.SLACK_SIGNING_SECRET,
  clientOptions: { slackApiUrl: process.env.SLACK_API },
});
const ANY = /.*/;

const report = (body, ...words) => console.log('kind', body.token, ...words);
const listener = (kind) => async ({ ack, body }) => {
  report(body, kind);
  await ack();
};
const optionsListener = (kind) => async ({ ack, body }) => {
  report(body, kind);
  await ack({ options: [] });
};

for (const type of process.env.EVENT_TYPES.split(',').filter((type) => type !== 'function_executed')) {
  app.event(type, async ({ body, event }) => {
    report(body, 'event', type, ...(type === 'message' && event.subtype ? [event.subtype] : []));
  });
}
// The only event that Bolt for JavaScript does not acknowledge by itself, except for such a listener.
app.function('report_tide', async ({ body }) => report(body, 'event', 'function_executed'));
app.command(ANY, async ({ ack, body }) => {
  report(body, 'command', body.command);
  await ack();
});
app.action({ type: 'block_actions', action_id: ANY }, listener('block_actions'));
app.action({ type: 'interactive_message', callback_id: ANY }, listener('interactive_message'));
app.action({ type: 'dialog_submission', callback_id: ANY }, listener('dialog_submission'));
app.shortcut({ type: 'shortcut', callback_id: ANY }, listener('shortcut'));
app.shortcut({ type: 'message_action', callback_id: ANY }, listener('message_action'));
app.view({ type: 'view_submission', callback_id: ANY }, listener('view_submission'));
app.view({ type: 'view_closed', callback_id: ANY }, listener('view_closed'));
app.options({ type: 'block_suggestion', action_id: ANY }, optionsListener('block_suggestion'));
app.options({ type: 'dialog_suggestion', callback_id: ANY }, optionsListener('dialog_suggestion'));
app.options({ type: 'interactive_message', callback_id: ANY }, optionsListener('interactive_message options'));

(async () => {
  await app.start(process.env.PORT);
})();
