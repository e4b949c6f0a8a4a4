// Decodes a file, or a frame of a video, to RGB, as docs/pictures.md says where a browser can.

import { decodePng, exifOrientation, isPng } from "./png.js";
import { flatten, turn } from "./pixels.js";

export const MAX_PIXELS = 64e6; // width times height, as `load_picture` has it
export const MAX_BYTES = 256 * 2 ** 20;

/**
 * Decode a Blob.
 *
 * Returns {picture, orientation}: an RGB picture over `behind`, as it is stored, and the EXIF orientation by which it is
 * turned when it is scaled. Throws an Error with a sentence if that cannot be done.
 */
export async function decodePicture(blob, behind) {
  if (blob.size > MAX_BYTES) throw new Error("it is larger than 256 MB");
  const bytes = new Uint8Array(await blob.arrayBuffer());
  if (isPng(bytes)) {
    const picture = await decodePng(bytes, MAX_PIXELS);
    return { picture: flatten(picture, behind), orientation: picture.orientation };
  }
  let bitmap;
  try {
    // The browser turns the picture upright; its colour profile is ignored, as the contract says.
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  } catch {
    throw new Error("it is not a picture that this browser reads; PNG, JPEG and WebP are");
  }
  try {
    const orientation = jpegOrientation(bytes);
    const back = { 6: 8, 8: 6 }[orientation] ?? orientation; // the others undo themselves
    return { picture: turn(grab(bitmap, bitmap.width, bitmap.height, behind), back), orientation };
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

/** The EXIF orientation in a JPEG, 1 to 8; 1 for anything else, which the browser has turned as it had to be. */
export function jpegOrientation(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (bytes.length < 4 || view.getUint16(0) !== 0xffd8) return 1;
  for (let place = 2; place + 10 <= bytes.length && bytes[place] === 0xff && bytes[place + 1] !== 0xda; ) {
    const length = view.getUint16(place + 2);
    const isExif = bytes[place + 1] === 0xe1 && view.getUint32(place + 4) === 0x45786966; // "Exif"
    if (isExif) return exifOrientation(bytes.subarray(place + 10, place + 2 + length));
    place += 2 + length;
  }
  return 1;
}
