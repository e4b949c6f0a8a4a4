// The page: takes pictures, shows what the net says of them, and whether this device is to be trusted with it.

import { best, openBundle } from "./bundle.js";
import { grab } from "./decode.js";
import { read, startRuntime } from "./files.js";

const ROWS = 10; // classes shown
const at = (id) => document.getElementById(id);
const size = (bytes) => (bytes < 1e5 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
const milliseconds = (time) => `${time < 10 ? time.toFixed(1) : time.toFixed(0)} ms`;

let bundle;
let camera = null; // the running stream
let turnOf = 0; // what was asked for last: an older answer that comes late is dropped

async function start() {
  const began = performance.now();
  const ort = await startRuntime();
  const variant = document.querySelector("meta[name=edgecifar-variant]").content;
  bundle = await openBundle((name) => read(`bundle/${name}`), ort, variant);
  const { dataset } = bundle.manifest;
  at("about").textContent =
    `Variant ${bundle.variant.name} (${bundle.variant.precision}, ${size(bundle.variant.bytes)}), ` +
    `trained on ${dataset}, ${bundle.labels.length} classes; onnxruntime-web ${ort.env.versions.web} (WebAssembly).`;
  showVerdict(await bundle.verify(), performance.now() - began);
  at("file").disabled = false;
  const why = noCamera();
  at("camera").disabled = Boolean(why);
  if (why) showNote(why);
}

function noCamera() {
  if (!window.isSecureContext) return "The camera needs a page from https or localhost.";
  return navigator.mediaDevices?.getUserMedia ? "" : "This browser offers no camera.";
}

function showNote(sentence) {
  at("camera-note").textContent = sentence;
  at("camera-note").hidden = !sentence;
}

function showVerdict(found, time) {
  const good = found.differences.length === 0;
  at("badge").className = `badge ${good ? "good" : "bad"}`;
  at("badge").textContent = good
    ? "✓ Verified on this device"
    : `✗ Not verified: ${found.differences[0]}. Don't trust the answers.`;
  const facts = good
    ? [
        `${found.pictures} golden pictures: pixels differ by at most ${found.largestPixel} of 255`,
        `${found.pictures + found.vectors} golden answers: probabilities differ by at most ${found.largestProbability.toExponential(0)}`,
        `ready after ${milliseconds(time)}`,
      ]
    : found.differences;
  at("badge-list").replaceChildren(...facts.map((fact) => element("li", fact)));
  at("badge-more").hidden = false;
}

function element(name, text) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  return made;
}

async function classifyFile(file) {
  stopCamera();
  const turn = ++turnOf;
  const name = file.name || "pasted picture";
  at("error").hidden = true; // so that the same sentence is read aloud again
  try {
    const began = performance.now();
    const picture = await bundle.decode(file);
    const time = performance.now() - began;
    if (turn !== turnOf) return;
    const url = URL.createObjectURL(file);
    at("shown").onload = at("shown").onerror = () => URL.revokeObjectURL(url);
    at("shown").src = url;
    at("shown").alt = `The picture ${name}`;
    at("original").hidden = false;
    at("shown-name").textContent = name;
    await show(picture, turn, time);
    if (turn === turnOf) announce(`${name}: ${at("answer").textContent}`);
  } catch (error) {
    if (turn !== turnOf) return;
    at("error").textContent = `${name} cannot be classified: ${error.message}.`;
    at("error").hidden = false;
    at("result").hidden = true;
  }
}

/** Have a screen reader say a sentence, also if it is the one that it said last. */
function announce(sentence) {
  const turn = turnOf;
  at("announced").textContent = "";
  setTimeout(() => {
    if (turn === turnOf) at("announced").textContent = sentence;
  }, 100); // milliseconds, within which screen readers notice that it was empty
}

/** Classify an RGB picture and show everything about it. `decoding`: milliseconds that it took, null for a camera. */
async function show(picture, turn, decoding) {
  const began = performance.now();
  const input = bundle.prepare(picture);
  const prepared = performance.now();
  const { probabilities, known } = await bundle.classify(input);
  const done = performance.now();
  if (turn !== turnOf) return;
  const top = best(probabilities);
  const answer =
    known === false
      ? `Unknown: unlike the pictures that the net was trained on (nearest: ${bundle.labels[top]})`
      : camera // whose answers would be read aloud ten times a second
        ? bundle.labels[top]
        : `${bundle.labels[top]}, ${percent(probabilities[top])}`;
  if (camera && at("answer").textContent !== answer) announce(answer);
  at("answer").textContent = answer;
  drawInput(input);
  drawScores(probabilities);
  const times = [["preprocessing", prepared - began], ["net", done - prepared]];
  if (decoding !== null) times.unshift(["decoding", decoding]);
  at("times").textContent = `On this device: ${times.map(([step, time]) => `${step} ${milliseconds(time)}`).join(", ")}.`;
  at("result").hidden = false;
}

const percent = (value) => `${(100 * value).toFixed(1)} %`;

function drawInput(input) {
  const canvas = at("seen");
  canvas.width = canvas.height = bundle.size;
  const image = new ImageData(bundle.size, bundle.size);
  for (let from = 0, to = 0; from < input.length; from += 3, to += 4) image.data.set([...input.subarray(from, from + 3), 255], to);
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function drawScores(probabilities) {
  const order = [...probabilities.keys()].sort((one, other) => probabilities[other] - probabilities[one]);
  const rows = order.slice(0, ROWS).map((index) => {
    const row = element("tr");
    const label = element("th", bundle.labels[index]);
    label.scope = "row";
    const track = element("div");
    track.className = "track";
    const fill = element("div");
    fill.className = "fill";
    fill.style.width = `${100 * probabilities[index]}%`;
    track.append(fill);
    const bar = element("td");
    bar.append(track);
    row.append(label, bar, element("td", percent(probabilities[index])));
    return row;
  });
  at("scores").tBodies[0].replaceChildren(...rows);
}

async function startCamera() {
  const turn = ++turnOf;
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    if (turn !== turnOf) return stream.getTracks().forEach((track) => track.stop());
    camera = stream;
  } catch (error) {
    const reason = error.name === "NotAllowedError" ? "it was not allowed" : "there is none, or another program has it";
    return showNote(`The camera cannot be used: ${reason}.`);
  }
  showNote("");
  at("error").hidden = true;
  at("camera").textContent = "Stop the camera";
  at("original").hidden = true;
  at("video").hidden = false;
  at("video").srcObject = camera;
  camera.getVideoTracks()[0].onended = () => {
    stopCamera();
    showNote("The camera has stopped.");
  };
  await at("video").play().catch(() => {});
  while (camera && turn === turnOf) {
    const { videoWidth, videoHeight } = at("video");
    if (videoWidth) {
      const picture = grab(at("video"), videoWidth, videoHeight, bundle.preprocessing.transparency);
      await show(picture, turn, null);
    }
    await new Promise((resume) => setTimeout(resume, 100));
  }
}

function stopCamera() {
  camera?.getTracks().forEach((track) => track.stop());
  camera = null;
  at("video").srcObject = null;
  at("video").hidden = true;
  at("camera").textContent = "Start the camera";
}

function take(data, event) {
  const file = [...(data?.files ?? [])][0];
  if (!file || !bundle) return;
  event.preventDefault();
  classifyFile(file);
}

at("file").addEventListener("change", (event) => {
  if (event.target.files[0]) classifyFile(event.target.files[0]);
  event.target.value = ""; // so that the same file may be chosen again
});
at("camera").addEventListener("click", () => {
  if (camera) {
    turnOf++;
    stopCamera();
    return;
  }
  startCamera().catch((error) => {
    stopCamera();
    showNote(`The camera's picture cannot be classified: ${error.message}.`);
  });
});
document.addEventListener("paste", (event) => take(event.clipboardData, event));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
document.addEventListener("dragleave", () => at("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault(); // or the browser would leave the page
  at("drop").classList.remove("over");
  take(event.dataTransfer, event);
});

start().catch((error) => {
  at("badge").className = "badge bad";
  at("badge").textContent = `✗ This page does not work here: ${error.message}.`;
});
