// Drives the page in Chromium as a person would, and prints what it showed, as JSON. Called by test_browser.py with one
// argument, JSON: {modules, chromium, origin, insecure, single, pictures, shots}.

import fs from "node:fs";
import { pathToFileURL } from "node:url";

const given = JSON.parse(process.argv[2]);
const { chromium } = await import(pathToFileURL(`${given.modules}/playwright-core/index.mjs`));
const axe = fs.readFileSync(`${given.modules}/axe-core/axe.min.js`, "utf8");
const browser = await chromium.launch({
  executablePath: given.chromium,
  args: [
    "--no-sandbox", // root has none
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    `--host-resolver-rules=MAP ${new URL(given.insecure).hostname} 127.0.0.1`,
  ],
});
const seen = { requests: [], complaints: [] };

/** Open a page in a fresh context and wait for its verdict. */
async function open(url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1000, height: 1050 }, ...options });
  const page = await context.newPage();
  page.on("request", (request) => seen.requests.push(request.url().slice(0, 200)));
  page.on("pageerror", (error) => seen.complaints.push(String(error)));
  page.on("console", (message) => seen.complaints.push(message.text()));
  if (options.offline) await context.setOffline(true);
  await page.goto(url);
  await page.waitForSelector(".badge.good, .badge.bad", { timeout: 120000 });
  return page;
}

const badge = (page) => page.evaluate(() => {
  const { className, textContent } = document.getElementById("badge");
  const facts = [...document.querySelectorAll("#badge-list li")].map((item) => item.textContent);
  return { className, text: textContent, facts };
});

const shown = (page) => page.evaluate(() => {
  const visible = (id) => (document.getElementById(id).checkVisibility() ? document.getElementById(id).textContent : null);
  const canvas = document.getElementById("seen");
  return {
    answer: visible("answer"),
    error: visible("error"),
    note: visible("camera-note"),
    times: visible("times"),
    rows: [...document.querySelectorAll("#scores tbody tr")].map((row) => [row.cells[0].textContent, row.cells[2].textContent]),
    input: [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data].filter((_, at) => at % 4 < 3),
  };
});

/** Run `action`, wait until the page shows something new about a picture, and return what it shows. */
async function after(page, action) {
  await page.evaluate(() => {
    document.getElementById("times").textContent = "";
    document.getElementById("error").textContent = "";
  });
  await action();
  await page.waitForFunction(
    () => document.getElementById("times").textContent || document.getElementById("error").textContent,
    null,
    { timeout: 60000 },
  );
  return shown(page);
}

async function violations(page) {
  await page.evaluate(axe);
  const { violations: found } = await page.evaluate(() => window.axe.run());
  return found.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(" ")}`);
}

const choose = (page, file) => after(page, () => page.setInputFiles("#file", file));
const shot = (page, name) => page.screenshot({ path: `${given.shots}/${name}.png`, fullPage: true });

// A computer: choose, drop, paste, a bad file, camera, offline.
const { cat, ship, oriented, bad } = given.pictures;
let page = await open(`${given.origin}/intact/`);
seen.badge = await badge(page);
seen.chosen = await choose(page, cat);
seen.oriented = await choose(page, oriented);

// What a screen reader is given to say, when the same picture is chosen twice.
await page.waitForFunction(() => document.getElementById("announced").textContent.startsWith("oriented.jpg"));
await page.evaluate(() => {
  const region = document.getElementById("announced");
  window.said = [];
  new MutationObserver(() => window.said.push(region.textContent)).observe(region, { childList: true });
});
seen.said = [];
for (let time = 0; time < 2; time++) {
  await choose(page, cat);
  await page.waitForFunction(() => window.said.at(-1));
  seen.said.push(...(await page.evaluate(() => window.said.splice(0))));
}
const devtools = await page.context().newCDPSession(page);
seen.dropped = await after(page, async () => {
  const data = { items: [], files: [ship], dragOperationsMask: 1 };
  for (const type of ["dragEnter", "dragOver", "drop"]) {
    await devtools.send("Input.dispatchDragEvent", { type, x: 300, y: 250, data });
  }
});
await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
seen.pasted = await after(page, async () => {
  const content = fs.readFileSync(cat).toString("base64");
  await page.evaluate(async (base64) => {
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    await navigator.clipboard.write([new ClipboardItem({ "image/png": new Blob([bytes], { type: "image/png" }) })]);
  }, content);
  await page.keyboard.press("Control+V");
});
await shot(page, "wide");
seen.violations = { wide: await violations(page) };
seen.bad = await choose(page, bad);
await shot(page, "error");
seen.violations.error = await violations(page);
seen.again = await choose(page, ship);
seen.wider = await choose(page, given.pictures.wider);

// A picture whose reading takes so long that another was chosen meanwhile.
await page.evaluate(() => {
  const [read, make, end] = [Blob.prototype.arrayBuffer, URL.createObjectURL, URL.revokeObjectURL];
  window.held = new Set();
  URL.createObjectURL = (blob) => (window.held.add(make(blob)), [...window.held].at(-1));
  URL.revokeObjectURL = (url) => (window.held.delete(url), end(url));
  Blob.prototype.arrayBuffer = async function () {
    Blob.prototype.arrayBuffer = read;
    await new Promise((resume) => setTimeout(resume, 500));
    window.late = true;
    return read.call(this);
  };
});
await page.setInputFiles("#file", cat);
await choose(page, ship);
await page.waitForFunction(() => window.late);
await page.waitForTimeout(500);
seen.overtaken = { ...(await shown(page)), held: await page.evaluate(() => window.held.size) };

// By keyboard alone: from the top to the camera's button; then Enter.
await page.evaluate(() => {
  document.activeElement?.blur();
  window.getSelection()?.removeAllRanges();
  document.body.setAttribute("tabindex", "-1");
  document.body.focus();
  document.body.removeAttribute("tabindex");
});
seen.focus = [];
for (let step = 0; step < 3; step++) {
  await page.keyboard.press("Tab");
  seen.focus.push(await page.evaluate(() => document.activeElement.id || document.activeElement.tagName));
  if (seen.focus.at(-1) === "file") {
    seen.outline = await page.evaluate(() => getComputedStyle(document.querySelector("label[for=file]")).outlineStyle);
  }
}
seen.camera = await after(page, () => page.keyboard.press("Enter"));
await page.waitForFunction(() => document.getElementById("video").currentTime > 0.3);
await shot(page, "camera");
await page.keyboard.press("Enter");
seen.cameraStopped = await page.evaluate(() => !document.getElementById("video").checkVisibility());

await page.context().setOffline(true);
seen.offline = await choose(page, cat);
await page.context().close();

// A phone in the dark.
page = await open(`${given.origin}/intact/`, { viewport: { width: 360, height: 740 }, colorScheme: "dark", hasTouch: true });
await choose(page, cat);
seen.overflow = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
await shot(page, "phone-dark");
seen.violations.phone = await violations(page);
await page.context().close();

// Pages that are broken: each must say so.
seen.broken = {};
for (const name of given.broken) {
  page = await open(`${given.origin}/${name}/`);
  seen.broken[name] = await badge(page);
  if (name === "filter") {
    await choose(page, cat);
    await shot(page, "broken");
    seen.violations.broken = await violations(page);
  }
  await page.context().close();
}

// Other labels, another size and fit, and a familiarity score: a picture that is known and one that is not.
page = await open(`${given.origin}/three/`);
seen.three = { badge: await badge(page), known: await choose(page, given.pictures.known) };
seen.three.unknown = await choose(page, given.pictures.unknown);
await shot(page, "unknown");
seen.violations.unknown = await violations(page);
await page.context().close();

// Not https, not localhost: no camera, and the page says why.
page = await open(`${given.insecure}/intact/`);
seen.insecure = { ...(await shown(page)), disabled: await page.isDisabled("#camera"), badge: await badge(page) };
await page.context().close();

// One file from the disk, never online.
page = await open(pathToFileURL(given.single).href, { offline: true });
seen.single = { badge: await badge(page), shown: await choose(page, cat) };
await page.context().close();

await browser.close();
console.log(JSON.stringify(seen));
