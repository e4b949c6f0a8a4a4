// Classify PNG pictures with a bundle in Node: onnxruntime-web and Node's own zlib, nothing of edgecifar.
//
//   npm install onnxruntime-web@1.30.0
//   node classify.mjs BUNDLE PICTURE.png...    print the class of each picture
//   node classify.mjs BUNDLE                   prove the preprocessing on the bundle's golden PNG pictures
//
// docs/contract.md has the formulas. Reads PNG of 8 bits a sample, not interlaced; of others, use a PNG library.

import fs from "node:fs";
import path from "node:path";
import zlib from "node:zlib";
import * as ort from "onnxruntime-web";

const BITS = 22; // of a filter weight's fraction
const refuse = (sentence) => (console.error(sentence), process.exit(1));
process.on("uncaughtException", (error) => refuse(`classify.mjs: ${error.message}`)); // a file is missing, or damaged
const clip = (value) => Math.min(Math.max(value, 0), 255);

/** Decode a PNG over `behind`. Returns {width, height, data}, data R, G, B of each pixel. */
function decode(file, behind) {
  const bytes = fs.readFileSync(file);
  const chunks = {};
  if (bytes.toString("latin1", 0, 8) !== "\x89PNG\r\n\x1a\n") refuse(`${file} is no PNG, which is all that this example reads.`);
  for (let at = 8; at < bytes.length && !chunks.IEND; at += 12 + bytes.readUInt32BE(at)) {
    const type = bytes.toString("latin1", at + 4, at + 8);
    (chunks[type] ??= []).push(bytes.subarray(at + 8, at + 8 + bytes.readUInt32BE(at)));
  }
  const [header] = chunks.IHDR;
  const [width, height] = [header.readUInt32BE(0), header.readUInt32BE(4)];
  const channels = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 }[header[9]];
  const turned = chunks.eXIf || /Raw profile type exif\0|tiff:Orientation/.test(bytes.toString("latin1"));
  const curved = chunks.gAMA || chunks.cICP || (chunks.tRNS && header[9] !== 3);
  if (header[8] !== 8 || header[11] || header[12] || !channels || turned || curved) {
    refuse(`${file} is a kind of PNG that this example does not read.`);
  }
  const [raw, stride] = [zlib.inflateSync(Buffer.concat(chunks.IDAT)), width * channels];
  if (raw.length < height * (stride + 1)) refuse(`${file} is damaged: it lacks pixels.`);
  const data = new Uint8Array(width * height * 3);
  let above = new Uint8Array(stride);
  for (let y = 0; y < height; y++) {
    const filter = raw[y * (stride + 1)];
    const line = raw.subarray(y * (stride + 1) + 1, (y + 1) * (stride + 1));
    for (let at = 0; at < stride; at++) {
      const [a, b] = [at < channels ? 0 : line[at - channels], above[at]];
      const c = at < channels ? 0 : above[at - channels];
      const [pa, pb, pc] = [Math.abs(b - c), Math.abs(a - c), Math.abs(a + b - 2 * c)];
      const paeth = pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
      line[at] += [0, a, b, (a + b) >> 1, paeth][filter] ?? refuse(`${file} is damaged: it has an unknown filter.`);
    }
    for (let x = 0; x < width; x++) {
      const s = line.subarray(x * channels, (x + 1) * channels);
      let rgba = [s[0], s[0], s[0], s[1] ?? 255];
      if (channels >= 3) rgba = [s[0], s[1], s[2], s[3] ?? 255];
      if (header[9] === 3) rgba = [...chunks.PLTE[0].subarray(3 * s[0], 3 * s[0] + 3), chunks.tRNS?.[0][s[0]] ?? 255];
      for (let band = 0; band < 3; band++) {
        const sum = behind[band] * (255 - rgba[3]) + rgba[band] * rgba[3] + 128;
        data[(y * width + x) * 3 + band] = (sum + (sum >> 8)) >> 8; // divided by 255 and rounded
      }
    }
    above = line;
  }
  return { width, height, data };
}

/** Make a picture of width x height, whose pixel (x, y) has `value(x, y, band)`. */
function make(width, height, value) {
  const data = new Uint8Array(width * height * 3);
  for (let at = 0; at < data.length; at++) {
    data[at] = value(Math.floor(at / 3) % width, Math.floor(at / 3 / width), at % 3);
  }
  return { width, height, data };
}

const pixel = ({ width, data }, x, y, band) => data[(y * width + x) * 3 + band];

/** Average blocks of columns x rows pixels; those over an edge average the pixels that they have. */
function average(picture, columns, rows) {
  return make(Math.ceil(picture.width / columns), Math.ceil(picture.height / rows), (x, y, band) => {
    const [right, bottom] = [Math.min((x + 1) * columns, picture.width), Math.min((y + 1) * rows, picture.height)];
    const count = (right - x * columns) * (bottom - y * rows);
    let sum = count >> 1;
    for (let v = y * rows; v < bottom; v++) for (let u = x * columns; u < right; u++) sum += pixel(picture, u, v, band);
    return Math.floor((sum * Math.floor(2 ** 24 / count)) / 2 ** 24);
  });
}

/** For each of `out` pixels: the first of `length` pixels, of which `extent` count, and the weights from it on. */
function weights(length, extent, out, a) {
  const ratio = Math.fround(extent) / out;
  const spread = Math.max(ratio, 1);
  return Array.from({ length: out }, (_, index) => {
    const centre = (index + 0.5) * ratio;
    const first = Math.max(Math.trunc(centre - 2 * spread + 0.5), 0);
    const end = Math.min(Math.trunc(centre + 2 * spread + 0.5), length);
    const values = Array.from({ length: end - first }, (_, at) => {
      const x = Math.abs((first + at - centre + 0.5) * (1 / spread));
      return x < 1 ? ((a + 2) * x - (a + 3)) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
    });
    const sum = values.reduce((one, other) => one + other);
    return [first, values.map((value) => Math.trunc((value / sum) * 2 ** BITS + Math.sign(value) * 0.5))];
  });
}

/** Scale by the contract's filter: blocks first, then across, then down, each rounded to 8 bits. */
function scale(picture, width, height, { filter: { a, reducing_gap: gap } }) {
  const [columns, rows] = [picture.width / width, picture.height / height].map((ratio) => Math.floor(ratio / gap) || 1);
  const small = average(picture, columns, rows);
  const across = weights(small.width, picture.width / columns, width, a);
  const down = weights(small.height, picture.height / rows, height, a);
  const dot = (values, at) => clip(values.reduce((sum, value, k) => sum + value * at(k), 1 << (BITS - 1)) >> BITS);
  const wide = small.width === width && columns === 1 ? small
    : make(width, small.height, (x, y, band) => dot(across[x][1], (k) => pixel(small, across[x][0] + k, y, band)));
  return wide.height === height && rows === 1 ? wide
    : make(width, height, (x, y, band) => dot(down[y][1], (k) => pixel(wide, x, down[y][0] + k, band)));
}

/** Decode a picture and make it the model's input. */
function prepare(file, { input, preprocessing: steps }) {
  const known = steps.decoding === 1 && steps.fit === "crop" && steps.filter.name === "bicubic";
  if (!known) throw new Error("this example does not know the bundle's preprocessing");
  const whole = decode(file, steps.transparency);
  const side = Math.min(whole.width, whole.height);
  const [left, top] = [(whole.width - side) >> 1, (whole.height - side) >> 1];
  const square = make(side, side, (x, y, band) => pixel(whole, left + x, top + y, band));
  return scale(square, input.shape[1], input.shape[1], steps).data;
}

const [bundle = refuse("usage: node classify.mjs BUNDLE [PICTURE.png...]"), ...files] = process.argv.slice(2);
const json = (name) => JSON.parse(fs.readFileSync(path.join(bundle, name), "utf8"));
const { schema, contract, variants, default_variant: chosen } = json("manifest.json");
if (schema !== 2) refuse(`This example reads bundles of schema 2, not ${schema}.`);
const variant = variants.find(({ name }) => name === chosen);
const session = await ort.InferenceSession.create(fs.readFileSync(path.join(bundle, variant.file)));
const largest = (one, other) => one.reduce((most, value, at) => Math.max(most, Math.abs(value - other[at])), 0);
const golden = json("golden.json").pictures.filter(({ file }) => file.endsWith(".png"));
for (const file of files.length ? files : golden.map(({ file }) => path.join(bundle, file))) {
  const input = prepare(file, contract);
  const tensor = new ort.Tensor("uint8", input, [1, ...contract.input.shape.slice(1)]);
  const found = await session.run({ [contract.input.name]: tensor });
  const [row, , familiarity] = contract.outputs.map(({ name }) => found[name].data);
  const top = row.indexOf(Math.max(...row));
  const proof = files.length ? null : golden.find((entry) => path.join(bundle, entry.file) === file);
  const unknown = familiarity?.[0] < variant.familiarity?.threshold; // false where the model cannot tell
  console.log(`${file}: ${contract.labels[top]} ${(100 * row[top]).toFixed(1)}%${unknown ? ", but unlike the training pictures" : ""}`);
  if (!proof) continue;
  const [pixels, difference] = [largest(input, proof.array), largest(row, proof.probabilities[chosen])];
  console.log(`  pixels differ by ${pixels}, probabilities by ${difference.toExponential(0)}`);
  if (!(pixels <= proof.tolerance && difference <= variant.golden_tolerance)) process.exitCode = 1;
}
