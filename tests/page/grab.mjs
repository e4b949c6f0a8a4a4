// Reads a picture through the page's `grab` with a canvas whose sides have a limit, beyond which it reads as transparent
// black, as browsers' do. Standard input: JSON, {width, height, limit}; the pixel at (x, y) is (x, x >> 8, y).
// Prints JSON: whether every pixel is right, or {error}.

import fs from "node:fs";
import { grab } from "../../serve/web/decode.js";

const { width, height, limit } = JSON.parse(fs.readFileSync(0, "utf8"));

class Context {
  constructor(canvas) {
    this.canvas = canvas;
  }
  fillRect() {
    this.left = this.top = null;
  }
  drawImage(_, x, y) {
    [this.left, this.top] = [-x, -y];
  }
  getImageData(x, y, across, down) {
    const data = new Uint8ClampedArray(across * down * 4);
    if (Math.max(this.canvas.width, this.canvas.height) > limit) return { width: across, height: down, data };
    for (let at = 0; at < across * down; at++) {
      const [column, row] = [this.left + (at % across), this.top + Math.floor(at / across)];
      data.set([column & 255, column >> 8, row & 255, 255], 4 * at);
    }
    return { width: across, height: down, data };
  }
}

globalThis.document = {
  createElement() {
    const canvas = { getContext: () => new Context(canvas) };
    return canvas;
  },
};

try {
  const picture = grab({}, width, height, [255, 255, 255]);
  let right = picture.width === width && picture.height === height && picture.data.length === width * height * 3;
  for (let at = 0; at < width * height; at++) {
    const [column, row] = [at % width, Math.floor(at / width)];
    const [red, green, blue] = picture.data.subarray(3 * at, 3 * at + 3);
    right &&= red === (column & 255) && green === column >> 8 && blue === (row & 255);
  }
  console.log(JSON.stringify({ right }));
} catch (error) {
  console.log(JSON.stringify({ error: error.message }));
}
