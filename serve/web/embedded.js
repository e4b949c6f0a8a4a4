// The page's files inside it: elements of the page that hold them as Base64 of gzip. Takes the place of files.js.

/** Return a file's content as a Uint8Array. Throws an Error if it is not there. */
export async function read(name) {
  const holder = document.getElementById(`file:${name}`);
  if (!holder) throw new Error(`the file ${name} is missing in the page`);
  const packed = Uint8Array.from(atob(holder.textContent), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Start onnxruntime-web, whose source stands before this in the same script, on one thread. */
export async function startRuntime() {
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = await read("ort.wasm");
  return ort;
}
