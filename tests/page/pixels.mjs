// Makes PNG files the model's input with the page's own modules. Standard input: JSON, a list of {file, size, steps}.
// Prints a list of Base64, or of {error}.

import fs from "node:fs";
import { decodePng } from "../../serve/web/png.js";
import { flatten, toInput, turn } from "../../serve/web/pixels.js";

const made = [];
for (const { file, size, steps } of JSON.parse(fs.readFileSync(0, "utf8"))) {
  try {
    const picture = await decodePng(new Uint8Array(fs.readFileSync(file)), 64e6);
    const input = toInput(turn(flatten(picture, steps.transparency), picture.orientation), size, steps);
    made.push(Buffer.from(input).toString("base64"));
  } catch (error) {
    made.push({ error: error.message });
  }
}
console.log(JSON.stringify(made));
