// From a decoded picture to the model's input, byte for byte as docs/contract.md says. Pure: no page, no network.
//
// A picture is {width, height, data}: data holds rows from the top, and of each pixel R, G, B and, in an RGBA picture, A.

const PRECISION = 22; // bits of a filter weight's fraction

/** Lay an RGBA picture over a colour. Returns an RGB picture. */
export function flatten({ width, height, data }, [red, green, blue]) {
  const flat = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < data.length; from += 4, to += 3) {
    const alpha = data[from + 3];
    flat[to] = blend(red, data[from], alpha);
    flat[to + 1] = blend(green, data[from + 1], alpha);
    flat[to + 2] = blend(blue, data[from + 2], alpha);
  }
  return { width, height, data: flat };
}

/** Round (below * (255 - alpha) + above * alpha) / 255 to the nearest integer. */
function blend(below, above, alpha) {
  const sum = below * (255 - alpha) + above * alpha + 128;
  return (sum + (sum >> 8)) >> 8;
}

/** Turn an RGB picture upright, as its EXIF orientation (1 to 8) says. */
export function turn({ width, height, data }, orientation) {
  if (orientation < 2 || orientation > 8) return { width, height, data };
  const swapped = orientation >= 5;
  const [newWidth, newHeight] = swapped ? [height, width] : [width, height];
  const turned = new Uint8Array(data.length);
  // Where the pixel at the new (x, y) was: mirrored in its column, in its row, or both.
  const mirrorColumn = [2, 3, 7, 8].includes(orientation);
  const mirrorRow = [3, 4, 6, 7].includes(orientation);
  for (let y = 0, to = 0; y < newHeight; y++) {
    for (let x = 0; x < newWidth; x++, to += 3) {
      let [column, row] = swapped ? [y, x] : [x, y];
      if (mirrorColumn) column = width - 1 - column;
      if (mirrorRow) row = height - 1 - row;
      const from = (row * width + column) * 3;
      turned[to] = data[from];
      turned[to + 1] = data[from + 1];
      turned[to + 2] = data[from + 2];
    }
  }
  return { width: newWidth, height: newHeight, data: turned };
}

/** Make an upright RGB picture the model's input. Returns a Uint8Array of size * size * 3 bytes. */
export function toInput(picture, size, { fit, filter, padding }) {
  const { width, height } = picture;
  if (fit === "pad") {
    const longer = Math.max(width, height);
    const [w, h] = [width, height].map((side) => Math.max(1, roundHalfEven((size * side) / longer)));
    const small = scale(picture, [0, 0, width, height], w, h, filter);
    const square = new Uint8Array(size * size * 3);
    for (let at = 0; at < square.length; at++) square[at] = padding[at % 3];
    const [left, top] = [Math.floor((size - w) / 2), Math.floor((size - h) / 2)];
    for (let y = 0; y < h; y++) square.set(small.data.subarray(y * w * 3, (y + 1) * w * 3), ((top + y) * size + left) * 3);
    return square;
  }
  let box = [0, 0, width, height];
  if (fit === "crop") {
    const shorter = Math.min(width, height);
    const [left, top] = [Math.floor((width - shorter) / 2), Math.floor((height - shorter) / 2)];
    box = [left, top, left + shorter, top + shorter];
  } else if (fit !== "squash") {
    throw new Error(`this page does not know the fit ${fit}`);
  }
  return scale(picture, box, size, size, filter).data;
}

/** Round to the nearest integer, and halves to the even one, as Python does. */
function roundHalfEven(value) {
  const below = Math.floor(value);
  return value - below === 0.5 ? below + (below % 2) : Math.round(value);
}

/** Scale the part of an RGB picture inside `box` (left, top, right, bottom) to width x height. */
export function scale(picture, [left, top, right, bottom], width, height, filter) {
  if (filter.name !== "bicubic" || !filter.antialias) throw new Error(`this page does not know the filter ${filter.name}`);
  const [wide, high] = [right - left, bottom - top];
  const factorX = Math.floor(wide / width / filter.reducing_gap) || 1;
  const factorY = Math.floor(high / height / filter.reducing_gap) || 1;
  let part = average(picture, left, top, wide, high, factorX, factorY);
  // The last block may lie over the edge: then it counts for the part of it that is in the picture.
  if (part.width !== width || factorX > 1) part = across(part, weights(part.width, wide / factorX, width, filter.a));
  if (part.height !== height || factorY > 1) part = down(part, weights(part.height, high / factorY, height, filter.a));
  return part;
}

/** Average blocks of factorX x factorY pixels; blocks over the right and the lower edge average what they have. */
function average(picture, left, top, wide, high, factorX, factorY) {
  if (factorX === 1 && factorY === 1 && wide === picture.width && high === picture.height) return picture;
  const [width, height] = [Math.ceil(wide / factorX), Math.ceil(high / factorY)];
  const data = new Uint8Array(width * height * 3);
  for (let y = 0, to = 0; y < height; y++) {
    const rows = Math.min(factorY, high - y * factorY);
    for (let x = 0; x < width; x++, to += 3) {
      const columns = Math.min(factorX, wide - x * factorX);
      const count = rows * columns;
      const multiplier = Math.floor(2 ** 24 / count); // the division in 24-bit fixed point
      let [red, green, blue] = [count >> 1, count >> 1, count >> 1];
      for (let row = 0; row < rows; row++) {
        let from = ((top + y * factorY + row) * picture.width + left + x * factorX) * 3;
        for (let column = 0; column < columns; column++, from += 3) {
          red += picture.data[from];
          green += picture.data[from + 1];
          blue += picture.data[from + 2];
        }
      }
      data[to] = (red * multiplier) / 2 ** 24;
      data[to + 1] = (green * multiplier) / 2 ** 24;
      data[to + 2] = (blue * multiplier) / 2 ** 24;
    }
  }
  return { width, height, data };
}

/** For each of `out` pixels: the first of `size` pixels that it is made of, and their weights in fixed point. */
function weights(size, extent, out, a) {
  const ratio = Math.fround(extent) / out; // the edge of the picture in float32
  const spread = Math.max(ratio, 1); // wider where the picture shrinks: antialiasing
  const reach = 2 * spread;
  return Array.from({ length: out }, (_, index) => {
    const centre = (index + 0.5) * ratio;
    const first = Math.max(Math.trunc(centre - reach + 0.5), 0);
    const end = Math.min(Math.trunc(centre + reach + 0.5), size);
    const values = [];
    let sum = 0;
    for (let at = first; at < end; at++) {
      const value = cubic((at - centre + 0.5) * (1 / spread), a);
      values.push(value);
      sum += value;
    }
    const whole = values.map((value) => Math.trunc((value / (sum || 1)) * 2 ** PRECISION + (value < 0 ? -0.5 : 0.5)));
    return { first, values: Int32Array.from(whole) };
  });
}

/** The cubic convolution kernel of Keys (1981). */
function cubic(x, a) {
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

const clip = (sum) => Math.min(Math.max(sum >> PRECISION, 0), 255);

function across({ width, height, data }, columns) {
  const made = new Uint8Array(columns.length * height * 3);
  for (let y = 0, to = 0; y < height; y++) {
    for (const { first, values } of columns) {
      let [red, green, blue] = Array(3).fill(1 << (PRECISION - 1));
      let from = (y * width + first) * 3;
      for (const weight of values) {
        red += data[from++] * weight;
        green += data[from++] * weight;
        blue += data[from++] * weight;
      }
      made[to++] = clip(red);
      made[to++] = clip(green);
      made[to++] = clip(blue);
    }
  }
  return { width: columns.length, height, data: made };
}

function down({ width, data }, rows) {
  const made = new Uint8Array(width * rows.length * 3);
  const stride = width * 3;
  rows.forEach(({ first, values }, y) => {
    for (let at = 0; at < stride; at++) {
      let sum = 1 << (PRECISION - 1);
      for (let row = 0; row < values.length; row++) sum += data[(first + row) * stride + at] * values[row];
      made[y * stride + at] = clip(sum);
    }
  });
  return { width, height: rows.length, data: made };
}
