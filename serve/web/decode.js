// Decodes a file, or a frame of a video, to RGB, as docs/pictures.md says where a browser can.

import { decodePng, isPng } from "./png.js";
import { flatten, turn } from "./pixels.js";

export const MAX_PIXELS = 64e6; // width times height, as `load_picture` has it
export const MAX_BYTES = 256 * 2 ** 20;
const TILE = 4096; // the longest side of a square canvas that every browser has, those of phones included

/** Decode a Blob to an upright RGB picture over `behind`. Throws an Error with a sentence if that cannot be done. */
export async function decodePicture(blob, behind) {
  if (blob.size > MAX_BYTES) throw new Error("it is larger than 256 MB");
  const bytes = new Uint8Array(await blob.arrayBuffer());
  if (isPng(bytes)) {
    const picture = await decodePng(bytes, MAX_PIXELS);
    return turn(flatten(picture, behind), picture.orientation);
  }
  let bitmap;
  try {
    // The browser turns the picture upright; its colour profile is ignored, as the contract says.
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  } catch {
    throw new Error("it is not a picture that this browser reads; PNG, JPEG and WebP are");
  }
  try {
    return grab(bitmap, bitmap.width, bitmap.height, behind);
  } finally {
    bitmap.close();
  }
}

/** Read the pixels of what a canvas draws: an ImageBitmap, or a video's present frame. Returns an RGB picture. */
export function grab(source, width, height, behind) {
  if (width * height > MAX_PIXELS) throw new Error(`it has more than ${MAX_PIXELS / 1e6} million pixels; scale it down first`);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [Math.min(width, TILE), Math.min(height, TILE)];
  const context = canvas.getContext("2d", { willReadFrequently: true, alpha: false });
  context.fillStyle = `rgb(${behind.join()})`;
  const data = new Uint8Array(width * height * 3);
  for (let top = 0; top < height; top += TILE) {
    for (let left = 0; left < width; left += TILE) {
      const [across, down] = [Math.min(TILE, width - left), Math.min(TILE, height - top)];
      context.fillRect(0, 0, across, down);
      context.drawImage(source, -left, -top);
      const tile = context.getImageData(0, 0, across, down);
      // A canvas that is too large for the browser is no error: it reads as transparent, though it was filled.
      if (tile.data[3] !== 255 || tile.data.at(-1) !== 255) {
        throw new Error("this browser cannot show a picture of so many pixels; scale it down first");
      }
      const flat = flatten(tile, behind).data;
      for (let y = 0; y < down; y++) {
        data.set(flat.subarray(y * across * 3, (y + 1) * across * 3), ((top + y) * width + left) * 3);
      }
    }
  }
  return { width, height, data };
}
