// Installs an app in a browser, from the install link to the last page. Prints one line of JSON with the contents of
// the pages.
const { chromium } = require("playwright-core");

async function main() {
  const { CHROMIUM, LINK, BUTTON } = process.env;
  const browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox", "--disable-gpu"] });
  const context = await browser.newContext({ javaScriptEnabled: process.env.SCRIPTS === "on" });
  const page = await context.newPage();
  const complaints = [];
  page.on("console", (message) => {
    if (!message.location().url.endsWith("/favicon.ico")) complaints.push(message.text());
  });
  await page.goto(LINK);
  const start = { title: await page.title(), text: await page.innerText("main") };
  const color = await page.$eval("#add-to-slack", (e) => getComputedStyle(e).backgroundColor).catch(() => "unknown");
  await page.click("#add-to-slack");
  await page.waitForSelector(BUTTON);
  await page.click(BUTTON);
  await page.waitForURL(/oauth\/callback/);
  const end = { title: await page.title(), text: await page.innerText("main") };
  const cookies = (await context.cookies()).map(({ name, secure, httpOnly, sameSite }) => ({ name, secure, httpOnly, sameSite }));
  console.log(JSON.stringify({ start, end, color, cookies, complaints }));
  await browser.close();
}

main().catch((error) => {
  console.error(String(error));
  process.exit(1);
});
