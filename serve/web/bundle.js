// A bundle in the browser: its manifest, one of its models, and the proof that this device computes what it should.

import { decodePicture } from "./decode.js";
import { readNpz } from "./npz.js";
import { toInput } from "./pixels.js";

const KNOWN = { schema: 2, decoding: 1, orientation: "exif", colour: "srgb" };

/**
 * Open a bundle.
 *
 * read: async function from a file's name to its content, a Uint8Array. ort: onnxruntime-web. variant: its name.
 * Throws an Error with a sentence.
 */
export async function openBundle(read, ort, variantName) {
  const manifest = JSON.parse(new TextDecoder().decode(await read("manifest.json")));
  const steps = manifest.contract?.preprocessing;
  if (manifest.schema !== KNOWN.schema) throw new Error(`this page does not read schema ${manifest.schema}`);
  for (const step of ["decoding", "orientation", "colour"]) {
    if (steps[step] !== KNOWN[step]) throw new Error(`this page does not know ${step} ${steps[step]}`);
  }
  const variant = manifest.variants.find(({ name }) => name === variantName);
  const model = await read(variant.file);
  const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  return new Bundle(read, ort, manifest, variant, session);
}

/** So many times the golden tolerance may a familiarity differ: it is in the unit of logits, not 0 to 1. */
const FAMILIARITY_TOLERANCE = 20;

class Bundle {
  constructor(read, ort, manifest, variant, session) {
    Object.assign(this, { read, ort, manifest, variant, session });
    const { labels, input, outputs, preprocessing } = manifest.contract;
    const [probabilities, , familiarity] = outputs.map(({ name }) => name);
    Object.assign(this, { labels, size: input.shape[1], preprocessing, names: { input: input.name, probabilities, familiarity } });
  }

  /** Make an upright RGB picture the model's input, bytes in rows of R, G, B. */
  prepare(picture) {
    return toInput(picture, this.size, this.preprocessing);
  }

  decode(blob) {
    return decodePicture(blob, this.preprocessing.transparency);
  }

  /** Run the model on one or more inputs that lie one after the other. Returns rows of probabilities, familiarities. */
  async run(input) {
    const count = input.length / (this.size * this.size * 3);
    const tensor = new this.ort.Tensor("uint8", input, [count, this.size, this.size, 3]);
    const { input: name, probabilities, familiarity } = this.names;
    const outputs = await this.session.run({ [name]: tensor });
    const flat = outputs[probabilities].data;
    const rows = Array.from({ length: count }, (_, row) => flat.slice(row * this.labels.length, (row + 1) * this.labels.length));
    return { rows, familiarity: familiarity ? outputs[familiarity].data : null };
  }

  /** Classify one input. `known` is whether the picture is like those the net was trained on; null if nothing says. */
  async classify(input) {
    const { rows: [probabilities], familiarity } = await this.run(input);
    const threshold = this.variant.familiarity?.threshold;
    return { probabilities, known: familiarity && threshold !== undefined ? familiarity[0] >= threshold : null };
  }

  /**
   * Hold this device against the golden pictures and vectors.
   *
   * Returns {differences: sentences, pictures, vectors, largestPixel, largestProbability}; no differences means that
   * the device is verified.
   */
  async verify() {
    const { pictures } = JSON.parse(new TextDecoder().decode(await this.read("golden.json")));
    const found = { differences: [], pictures: pictures.length, vectors: 0, largestPixel: 0, largestProbability: 0 };
    for (const golden of pictures) {
      const input = this.prepare(await this.decode(new Blob([await this.read(golden.file)])));
      const pixel = largest(input, golden.array);
      found.largestPixel = Math.max(found.largestPixel, pixel);
      if (!(pixel <= golden.tolerance)) {
        found.differences.push(`${golden.file} is read differently: pixels differ by up to ${pixel} of 255, more than ${golden.tolerance}`);
      }
      const expected = golden.probabilities[this.variant.name];
      const { rows: [own, exact], familiarity } = await this.run(Uint8Array.from([...input, ...golden.array]));
      this.compare(golden.file, exact, expected, found);
      const score = golden.familiarity?.[this.variant.name];
      if (familiarity && score !== undefined && !(Math.abs(familiarity[1] - score) <= FAMILIARITY_TOLERANCE * this.variant.golden_tolerance)) {
        found.differences.push(`${golden.file}: its familiarity is ${familiarity[1]}, not ${score}`);
      }
      if (best(own) !== best(expected)) found.differences.push(`${golden.file} gets another class`);
    }
    const arrays = await readNpz(await this.read("golden.npz"));
    const { data } = arrays[this.names.input];
    const { rows } = await this.run(data);
    const expected = arrays[this.variant.name].data;
    found.vectors = rows.length;
    rows.forEach((row, at) => this.compare(`golden vector ${at}`, row, expected.slice(at * row.length, (at + 1) * row.length), found));
    return found;
  }

  compare(name, row, expected, found) {
    const difference = largest(row, expected);
    found.largestProbability = Math.max(found.largestProbability, difference);
    if (!(difference <= this.variant.golden_tolerance)) {
      found.differences.push(`${name}: probabilities differ by up to ${difference.toPrecision(2)}, more than ${this.variant.golden_tolerance}`);
    }
  }
}

/** The largest difference; NaN if a value is, or the lengths differ. */
function largest(one, other) {
  if (one.length !== other.length) return NaN;
  return one.reduce((most, value, at) => Math.max(most, Math.abs(value - other[at])), 0);
}

export const best = (row) => row.reduce((top, value, at) => (value > row[top] ? at : top), 0);
