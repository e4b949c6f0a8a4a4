// Visits the page again and again in one Chromium, and prints how long each visit took, as JSON. Called by page.py with
// one argument, JSON: {modules, chromium, origin, picture (base64), visits, images}.

import { pathToFileURL } from "node:url";

const given = JSON.parse(process.argv[2]);
const { chromium } = await import(pathToFileURL(`${given.modules}/playwright-core/index.mjs`));
const browser = await chromium.launch({ executablePath: given.chromium, args: ["--no-sandbox"] }); // root has none
const context = await browser.newContext();
const page = await context.newPage();

// In the page itself: hand over a picture as soon as that is possible, and note when the answer is there.
await context.addInitScript((base64) => {
  const change = (id, attributes, then) => {
    const observer = new MutationObserver(() => then(document.getElementById(id)) && observer.disconnect());
    observer.observe(document.getElementById(id), attributes);
  };
  document.addEventListener("DOMContentLoaded", () => {
    if (!document.getElementById("file")) return;
    change("times", { childList: true }, () => (window.answered = performance.now()));
    change("file", { attributes: true }, (input) => {
      if (input.disabled) return false;
      window.ready = performance.now();
      const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
      const files = new DataTransfer();
      files.items.add(new File([bytes], "picture", { type: "image/png" }));
      input.files = files.files;
      input.dispatchEvent(new Event("change", { bubbles: true }));
      return true;
    });
  });
}, given.picture);

const visits = [];
for (let visit = 0; visit < given.visits; visit++) {
  await page.goto(`${given.origin}/start.html`);
  await page.click("a");
  await page.waitForFunction(() => window.answered, null, { timeout: 120000 });
  visits.push(
    await page.evaluate(() => ({
      ready: window.ready,
      answered: window.answered,
      badge: document.getElementById("badge").className,
      answer: document.getElementById("answer").textContent,
    })),
  );
}

// One picture after the other, as the camera gives them: preprocessing of 32x32 pixels, and the net.
const images = await page.evaluate(async (count) => {
  const { openBundle } = await import("./bundle.js");
  const { read, startRuntime } = await import("./files.js");
  const variant = document.querySelector("meta[name=edgecifar-variant]").content;
  const bundle = await openBundle((name) => read(`bundle/${name}`), await startRuntime(), variant);
  const { size } = bundle;
  const times = [];
  for (let image = 0; image < count; image++) {
    const data = Uint8Array.from({ length: size * size * 3 }, () => 256 * Math.random());
    const picture = { data, width: size, height: size };
    const began = performance.now();
    await bundle.classify(bundle.prepare(picture));
    times.push(performance.now() - began);
  }
  return times;
}, given.images);
const version = browser.version();
await browser.close();
console.log(JSON.stringify({ visits, images, version }));
