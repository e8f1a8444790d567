// Installs an app in the simulated Slack with Slack's own OAuth library. Prints one line of JSON.
const { InstallProvider } = require("@slack/oauth");

async function main() {
  const { SLACK, CLIENT_ID, CLIENT_SECRET, REDIRECT } = process.env;
  const stored = [];
  const provider = new InstallProvider({
    clientId: CLIENT_ID,
    clientSecret: CLIENT_SECRET,
    stateSecret: "a-state-secret-of-the-test",
    authorizationUrl: `${SLACK}/oauth/v2/authorize`,
    clientOptions: { slackApiUrl: `${SLACK}/api/` },
    installationStore: {
      storeInstallation: async (installation) => void stored.push(installation),
      fetchInstallation: async () => stored.at(-1),
      deleteInstallation: async () => {},
    },
  });
  const url = await provider.generateInstallUrl({ scopes: ["chat:write", "commands"], redirectUri: REDIRECT });
  const page = await fetch(url);
  const [, action] = (await page.text()).match(/action="([^"]+)"/);
  const allowed = await fetch(`${SLACK}${action.replaceAll("&amp;", "&")}`, {
    method: "POST",
    body: new URLSearchParams({ team: "T0SDK" }),
    redirect: "manual",
  });
  const back = allowed.headers.get("location");
  const { state } = Object.fromEntries(new URL(back).searchParams);
  const finish = async (target) => {
    const outcome = {};
    const request = { url: target, headers: { host: "127.0.0.1", cookie: `slack-app-oauth-state=${state}` } };
    const response = { setHeader() {}, getHeader() {}, writeHead() {}, end() {} };
    await provider.handleCallback(request, response, {
      success: (installation) => void (outcome.installation = installation),
      failure: (error) => void (outcome.error = error.data?.error ?? error.code ?? String(error)),
    });
    return outcome;
  };
  const { installation } = await finish(back);
  const again = await finish(back);
  await provider.authorize({ teamId: "T0SDK", isEnterpriseInstall: false });
  console.log(JSON.stringify({ installation, again: again.error, stored: stored.length }));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
