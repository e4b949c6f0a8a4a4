// The page's files beside it: fetched from where the page came from, and from nowhere else.

/** Return a file's content as a Uint8Array. Throws an Error if it is not there. */
export async function read(name) {
  const response = await fetch(name).catch(() => null);
  if (!response?.ok) throw new Error(`the file ${name} is missing beside the page`);
  return new Uint8Array(await response.arrayBuffer());
}

/** Load onnxruntime-web, on one thread: more need headers that few servers send. */
export async function startRuntime() {
  const ort = await import("./ort.js").catch(() => {
    throw new Error("onnxruntime-web is not beside it: make the page with --wasm");
  });
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = { wasm: new URL("ort.wasm", document.baseURI).href };
  return ort;
}
