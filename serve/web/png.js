// Decodes PNG to the very samples in the file. A canvas cannot: it multiplies colour by alpha and rounds, and applies
// colour profiles. Needs DecompressionStream (browsers since 2023, Node 18).

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const CHANNELS = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 }; // by colour type: grey, RGB, palette, grey and alpha, RGBA
const PIXEL_CHUNKS = ["IHDR", "PLTE", "IDAT", "tRNS", "gAMA", "sRGB", "iCCP", "cICP"];
const EXIF_TEXT = "Raw profile type exif\0";
const ORIENTED = { iTXt: "XML:com.adobe.xmp\0\0", zTXt: EXIF_TEXT, tEXt: EXIF_TEXT }; // text that may hold an orientation
const MOST_TEXT = 2 ** 20; // bytes of text that are looked at for one, as Python has it
const PASSES = [ // Adam7: first column, first row, column step, row step
  [0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2],
];

export const isPng = (bytes) => SIGNATURE.every((byte, at) => bytes[at] === byte);

/**
 * Decode a PNG.
 *
 * Returns {width, height, data, orientation}: data is RGBA, 8 bits a sample, alpha not multiplied in; orientation is
 * EXIF's, 1 to 8. Throws an Error with a sentence if the PNG is damaged or of a kind that is not read.
 */
export async function decodePng(bytes, maxPixels) {
  const chunks = readChunks(bytes);
  const header = chunks.IHDR?.[0];
  if (!isPng(bytes) || header?.length !== 13 || !chunks.IDAT) throw new Error("it is damaged or incomplete");
  const view = new DataView(header.buffer, header.byteOffset);
  const [width, height] = [view.getUint32(0), view.getUint32(4)];
  const [depth, colour, , filters, interlaced] = header.subarray(8);
  const channels = CHANNELS[colour];
  const depths = { 0: [1, 2, 4, 8, 16], 3: [1, 2, 4, 8] }[colour] ?? [8, 16];
  if (!width || !height || !channels || filters || !depths.includes(depth)) throw new Error("it is damaged or incomplete");
  if (width * height > maxPixels) throw new Error(`it has more than ${maxPixels / 1e6} million pixels; scale it down first`);
  const bits = channels * depth;
  const parts = (interlaced ? PASSES : [[0, 0, 1, 1]]).map(([left, top, across, down]) => ({
    left, top, across, down,
    width: Math.ceil((width - left) / across),
    height: Math.ceil((height - top) / down),
  })).filter((part) => part.width > 0 && part.height > 0);
  const size = parts.reduce((sum, part) => sum + part.height * (1 + Math.ceil((part.width * bits) / 8)), 0);
  const raw = await inflate(chunks.IDAT, "deflate", size);
  const write = pixelWriter(chunks, depth, colour);
  const data = new Uint8ClampedArray(width * height * 4);
  let place = 0;
  for (const part of parts) {
    const length = Math.ceil((part.width * bits) / 8);
    let above = new Uint8Array(length);
    for (let y = 0; y < part.height; y++, place += length + 1) {
      const line = raw.subarray(place + 1, place + 1 + length);
      unfilter(raw[place], line, above, Math.max(1, bits >> 3));
      for (let x = 0; x < part.width; x++) {
        write(line, x, data, ((part.top + y * part.down) * width + part.left + x * part.across) * 4);
      }
      above = line;
    }
  }
  return { width, height, data, orientation: await orientationOf(chunks) };
}

/** The chunks that count, by type, as `runtime/png.py` keeps them: damaged metadata is left out. */
function readChunks(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const chunks = {};
  let ended = false; // whether another chunk that counts has followed IDAT, which then goes on no more
  for (let place = 8; place + 8 <= bytes.length; ) {
    const size = view.getUint32(place);
    const type = String.fromCharCode(...bytes.subarray(place + 4, place + 8));
    const end = place + 12 + size;
    if (type === "CgBI") throw new Error("it is a PNG that Xcode changed, which is not read");
    if ((type === "IHDR") !== (place === 8)) throw new Error("it is damaged or incomplete");
    const body = bytes.subarray(place + 8, place + 8 + size);
    const ofPixels = PIXEL_CHUNKS.includes(type);
    if (ofPixels || type === "eXIf" || isOriented(type, body)) {
      const whole = end <= bytes.length;
      const intact = whole && crc32(bytes.subarray(place + 4, end - 4)) === view.getUint32(end - 4);
      if (ofPixels && !intact && (whole || type !== "IDAT")) { // of an IDAT without its end the pixels may be complete
        throw new Error(`it is damaged: the checksum of ${type} is wrong`);
      }
      const again = ofPixels && (chunks[type] || (type === "PLTE" && chunks.IDAT)); // the first counts
      if (type === "IDAT" ? !ended : ofPixels ? !again : intact) (chunks[type] ??= []).push(body);
      if (chunks.IDAT && type !== "IDAT" && type !== "iCCP" && (ofPixels || intact)) ended = true;
    }
    if (type === "IEND") break;
    place = end;
  }
  const short = { gAMA: 4, sRGB: 1, tRNS: { 0: 2, 2: 6 }[chunks.IHDR?.[0][9]] ?? 0 };
  const lacks = ([type, least]) => chunks[type]?.some((body) => body.length < least);
  if (Object.entries(short).some(lacks)) throw new Error("it is damaged or incomplete");
  return chunks;
}

function isOriented(type, body) {
  const keyword = ORIENTED[type];
  return Boolean(keyword) && body.length <= MOST_TEXT && latin1(body.subarray(0, keyword.length)) === keyword;
}

const latin1 = (bytes) => new TextDecoder("latin1").decode(bytes);

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? 0xedb88320 ^ (byte >>> 1) : byte >>> 1;
  return byte;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** Yield what `parts` unpack to, piece by piece. */
async function* unpacked(parts, format) {
  const reader = new Blob(parts).stream().pipeThrough(new DecompressionStream(format)).getReader();
  try {
    for (let read = await reader.read(); !read.done; read = await reader.read()) yield read.value;
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Unpack `parts` into exactly `size` bytes; what comes after them is ignored, and never kept. */
export async function inflate(parts, format, size) {
  const out = new Uint8Array(size);
  let filled = 0;
  try {
    for await (const piece of unpacked(parts, format)) {
      out.set(piece.subarray(0, size - filled), filled);
      filled += piece.length;
      if (filled >= size) break;
    }
  } catch {
    filled = 0;
  }
  if (filled < size) throw new Error("it is damaged or incomplete");
  return out;
}

/** Unpack text. Returns null if it is damaged, or longer than what is looked at. */
async function inflateText(part) {
  const pieces = [];
  let size = 0;
  try {
    for await (const piece of unpacked([part], "deflate")) {
      size += piece.length;
      if (size > MOST_TEXT) return null;
      pieces.push(latin1(piece));
    }
  } catch {
    return null;
  }
  return pieces.join("");
}

/** Undo a row's filter in place; `above` is the row before it, `step` the bytes of a pixel. */
function unfilter(filter, line, above, step) {
  if (filter > 4) throw new Error("it is damaged or incomplete");
  const { length } = line;
  if (filter === 1) for (let at = step; at < length; at++) line[at] += line[at - step];
  if (filter === 2) for (let at = 0; at < length; at++) line[at] += above[at];
  if (filter === 3) for (let at = 0; at < length; at++) line[at] += ((at < step ? 0 : line[at - step]) + above[at]) >> 1;
  if (filter === 4) {
    for (let at = 0; at < length; at++) {
      line[at] += at < step ? above[at] : paeth(line[at - step], above[at], above[at - step]);
    }
  }
}

function paeth(left, up, corner) {
  const [byLeft, byUp, byCorner] = [Math.abs(up - corner), Math.abs(left - corner), Math.abs(left + up - 2 * corner)];
  if (byLeft <= byUp && byLeft <= byCorner) return left;
  return byUp <= byCorner ? up : corner;
}

/** Return what reads sample number `number` of a row, each of `depth` bits. */
function sampleReader(depth) {
  if (depth === 8) return (line, number) => line[number];
  if (depth === 16) return (line, number) => (line[2 * number] << 8) | line[2 * number + 1];
  const most = (1 << depth) - 1;
  return (line, number) => (line[(number * depth) >> 3] >> (8 - depth - ((number * depth) & 7))) & most;
}

/** Return what writes pixel `x` of a row as RGBA at `to`: palette, depth, the transparent colour and gamma. */
function pixelWriter(chunks, depth, colour) {
  const clear = chunks.tRNS?.[0];
  const curve = toSrgb(chunks);
  const sample = sampleReader(depth);
  if (colour === 3) {
    const palette = chunks.PLTE?.[0];
    if (!palette?.length || palette.length % 3 || palette.length > 768) throw new Error("it is damaged or incomplete");
    return (line, x, data, to) => {
      const index = sample(line, x);
      for (let at = 0; at < 3; at++) data[to + at] = curve[palette[3 * index + at] ?? 0];
      data[to + 3] = clear?.[index] ?? 255;
    };
  }
  const [channels, most] = [CHANNELS[colour], 2 ** depth - 1];
  const [green, blue] = colour & 2 ? [1, 2] : [0, 0];
  const hasAlpha = colour >= 4;
  let key = null; // the colour that is transparent, compared at the file's own depth
  if (clear && !hasAlpha) {
    const view = new DataView(clear.buffer, clear.byteOffset, clear.length);
    key = Array.from({ length: channels }, (_, at) => view.getUint16(2 * at) & most);
  }
  let to8 = (value) => value;
  if (depth < 8) to8 = (value) => (value * 255) / most; // whole: 255 is a multiple of 1, 3 and 15
  if (depth === 16) to8 = (value) => value >> 8;
  return (line, x, data, to) => {
    const first = x * channels;
    data[to] = curve[to8(sample(line, first))];
    data[to + 1] = curve[to8(sample(line, first + green))];
    data[to + 2] = curve[to8(sample(line, first + blue))];
    if (hasAlpha) data[to + 3] = to8(sample(line, first + channels - 1));
    else data[to + 3] = key?.every((value, at) => value === sample(line, first + at)) ? 0 : 255;
  };
}

/** The table from the file's samples to sRGB's: cICP and gAMA change them; ICC profiles are ignored. */
function toSrgb(chunks) {
  const gamma = gammaOf(chunks);
  return Uint8Array.from({ length: 256 }, (_, value) => {
    if (gamma === null) return value;
    const light = (value / 255) ** (1 / gamma);
    return Math.round(255 * (light <= 0.0031308 ? 12.92 * light : 1.055 * light ** (1 / 2.4) - 0.055));
  });
}

/** The exponent of the samples' encoding; null if it is sRGB's, or near it. */
function gammaOf(chunks) {
  if (chunks.cICP) {
    const [, transfer, matrix, full] = chunks.cICP[0];
    if (chunks.cICP[0].length !== 4) throw new Error("it is damaged or incomplete");
    const power = { 4: 1 / 2.2, 5: 1 / 2.8, 8: 1 }[transfer];
    const likeSrgb = [1, 2, 6, 13, 14, 15].includes(transfer);
    if (matrix || !full || !(power || likeSrgb)) throw new Error("its colours are of a kind that is not read; convert it to sRGB");
    return power ?? null;
  }
  if (chunks.iCCP || chunks.sRGB || !chunks.gAMA) return null;
  const bytes = chunks.gAMA[0];
  const gamma = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0) / 100000;
  return gamma === 0 || Math.abs(gamma * 2.2 - 1) <= 0.05 ? null : gamma;
}

/**
 * The orientation, 1 to 8, as Python finds it: EXIF's, or else XMP's. EXIF is that of eXIf; without one that can be read
 * at all, that of a text. Of several chunks of a kind the last counts.
 */
async function orientationOf(chunks) {
  let found = null;
  if (chunks.eXIf) found = exifOrientation(withoutPrefix(chunks.eXIf.at(-1)));
  if (found === null) {
    const exif = await exifText(chunks);
    if (exif) found = exifOrientation(withoutPrefix(withoutPrefix(exif)));
  }
  found ||= xmpOrientation(chunks.iTXt ?? []);
  return found >= 1 && found <= 8 ? found : 1;
}

const withoutPrefix = (exif) => (latin1(exif.subarray(0, 6)) === "Exif\0\0" ? exif.subarray(6) : exif);

/** The EXIF data in text, where ImageMagick stores it: three lines, then hexadecimal digits. Null without any. */
async function exifText({ tEXt = [], zTXt = [] }) {
  let text = null;
  for (const chunk of [...tEXt, ...zTXt].sort((one, other) => one.byteOffset - other.byteOffset)) {
    const content = chunk.subarray(EXIF_TEXT.length);
    text = (zTXt.includes(chunk) ? await inflateText(content.subarray(1)) : latin1(content)) ?? text;
  }
  const groups = text?.split("\n").slice(3).join("").split(/[ \t-\r]+/) ?? [];
  if (text === null || !groups.every((group) => group.length % 2 === 0 && /^[0-9a-f]*$/i.test(group))) return null;
  return Uint8Array.from(groups.join("").match(/../g) ?? [], (digits) => parseInt(digits, 16));
}

/** The first orientation that XMP names, 0 to 9; 1 if it names none. */
function xmpOrientation(texts) {
  let xmp = "";
  for (const chunk of texts) {
    const language = chunk.indexOf(0, ORIENTED.iTXt.length + 1);
    const start = chunk.indexOf(0, language + 1) + 1;
    if (language > 0 && start > 0) xmp = latin1(chunk.subarray(start)) || xmp;
  }
  return Number(/tiff:Orientation(?:="|>)([0-9])/.exec(xmp)?.[1] ?? 1);
}

const TIFF_SIZES = { 1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8 }; // by type
const TIFF_NUMBERS = { 3: "getUint16", 4: "getUint32", 6: "getInt8", 8: "getInt16", 9: "getInt32", 13: "getUint32" };

/**
 * The orientation in EXIF data (a TIFF header and its first directory), read as Pillow reads it.
 *
 * Returns a number that is no orientation, such as -1, if it is stored as one; 0 if there is none; null if these are no
 * EXIF data at all. A directory that ends too early counts up to there.
 */
function exifOrientation(exif) {
  if (!exif.length) return 0;
  const view = new DataView(exif.buffer, exif.byteOffset, exif.length);
  if (exif.length < 8 || !/^(MM\0\*|II\*\0|MM\*\0|II\0\*|MM\0\+)/.test(latin1(exif.subarray(0, 4)))) return null;
  const little = exif[0] === 0x49;
  const start = view.getUint32(4, little);
  if (start + 2 > exif.length) return 0;
  let away = 0; // bytes of values that are stored apart
  for (let entry = start + 2, left = view.getUint16(start, little); left > 0 && entry + 12 <= exif.length; left--, entry += 12) {
    const type = view.getUint16(entry + 2, little);
    const size = TIFF_SIZES[type] * view.getUint32(entry + 4, little);
    if (!size) continue; // of an unknown type, or empty
    let place = entry + 8;
    if (size > 4) {
      away += size;
      if (away > exif.length) continue;
      place = view.getUint32(place, little);
      if (place + size > exif.length) return 0;
    }
    if (view.getUint16(entry, little) !== 0x0112) continue;
    return (TIFF_NUMBERS[type] && view[TIFF_NUMBERS[type]](place, little)) || -1;
  }
  return 0;
}
