// Decodes a file, or a frame of a video, to RGB, as docs/pictures.md says where a browser can.

import { decodePng, isPng } from "./png.js";
import { flatten, turn } from "./pixels.js";

export const MAX_PIXELS = 64e6; // width times height, as `load_picture` has it
export const MAX_BYTES = 256 * 2 ** 20;

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
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d", { willReadFrequently: true, alpha: false });
  context.fillStyle = `rgb(${behind.join()})`;
  context.fillRect(0, 0, width, height);
  context.drawImage(source, 0, 0);
  return flatten(context.getImageData(0, 0, width, height), behind);
}
