// Operates the console in a browser. Prints one line of JSON with the contents of the pages.
const { chromium } = require("playwright-core");

async function main() {
  const { CHROMIUM, BASE, KEY, FOREIGN, REFERENCE } = process.env;
  const browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox", "--disable-gpu"] });
  const seen = { complaints: [], pages: {} };
  const open = async (options) => {
    const context = await browser.newContext({ javaScriptEnabled: process.env.SCRIPTS === "on", ...options });
    const page = await context.newPage();
    page.on("console", (message) => seen.complaints.push(message.text()));
    return page;
  };
  const login = async (page, key, to) => {
    await page.goto(BASE + to);
    await page.fill("#key", key);
    await page.click("button[type=submit]");
    await page.waitForSelector("nav");
  };
  const text = (page) => page.innerText("main");

  const page = await open({});
  await login(page, KEY, "/");
  seen.pages.overview = await text(page);
  await page.fill("input[name=q]", REFERENCE);
  await page.click("main button[type=submit]");
  await page.waitForSelector("#reveal");
  seen.pages.webhook = await text(page);
  seen.bars = await page.locator("svg rect").count();
  await page.click("#reveal");
  await page.waitForSelector("pre");
  seen.pages.revealed = await page.innerText("pre");
  await page.click("text=Redrive");
  await page.click("#confirm");
  await page.waitForSelector("[role=status]");
  seen.pages.redriven = await page.innerText("[role=status]");
  await page.click("nav >> text=Connections");
  await page.click("td >> text=Disable");
  await page.click("#confirm");
  await page.waitForSelector("[role=status]");
  seen.pages.stopped = await page.innerText("[role=status]");

  // With the keyboard only: the first element that Tab reaches skips the navigation.
  await page.keyboard.press("Tab");
  seen.skip = await page.evaluate(() => document.activeElement.textContent).catch(() => "no scripts");
  const phone = await open({ viewport: { width: 360, height: 640 }, colorScheme: "dark" });
  await login(phone, KEY, "/connections");
  const width = await phone.$eval("body", (body) => body.scrollWidth).catch(() => 0);
  const back = await phone.$eval("body", (body) => getComputedStyle(body).backgroundColor).catch(() => "");
  seen.phone = { width, back };
  const foreign = await open({});
  await login(foreign, FOREIGN, "/");
  await foreign.goto(`${BASE}/webhooks?q=${encodeURIComponent(REFERENCE)}`);
  seen.pages.foreign = await text(foreign);
  console.log(JSON.stringify(seen));
  await browser.close();
}

main().catch((error) => {
  console.error(String(error));
  process.exit(1);
});
