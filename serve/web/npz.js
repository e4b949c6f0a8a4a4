// Reads the arrays of a golden.npz: a ZIP file of NumPy's .npy files.

import { inflate } from "./png.js";

/** Return {name: {shape, data}} of the uint8 and float32 arrays. Throws an Error if the file is damaged. */
export async function readNpz(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const text = (from, length) => new TextDecoder().decode(bytes.subarray(from, from + length));
  let end = bytes.length - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw new Error("golden.npz is damaged");
  const arrays = {};
  let entry = view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left > 0; left--) {
    const [packed, size] = [view.getUint32(entry + 20, true), view.getUint32(entry + 24, true)];
    const nameLength = view.getUint16(entry + 28, true);
    const local = view.getUint32(entry + 42, true);
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    const content = bytes.slice(start, start + packed);
    const file = view.getUint16(entry + 10, true) === 0 ? content : await inflate([content], "deflate-raw", size);
    arrays[text(entry + 46, nameLength).replace(/\.npy$/, "")] = readNpy(file);
    entry += 46 + nameLength + view.getUint16(entry + 30, true) + view.getUint16(entry + 32, true);
  }
  return arrays;
}

function readNpy(file) {
  const headerLength = new DataView(file.buffer).getUint16(8, true);
  const header = new TextDecoder().decode(file.subarray(10, 10 + headerLength));
  const shape = /'shape': \(([^)]*)\)/.exec(header)[1].split(",").filter((part) => part.trim()).map(Number);
  const body = file.slice(10 + headerLength);
  const type = /'descr': '([^']*)'/.exec(header)[1];
  if (type === "|u1") return { shape, data: body };
  if (type === "<f4") return { shape, data: new Float32Array(body.buffer) };
  throw new Error(`golden.npz holds ${type}, which is not read`);
}
