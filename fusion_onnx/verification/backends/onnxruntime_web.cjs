// Runs models in onnxruntime-web for onnxruntime_web.py: frames as in _protocol.py, in on stdin and out on stdout.
// node onnxruntime_web.cjs FOLDER_OF_THE_PACKAGE
"use strict";
const fs = require("node:fs");

console.log = console.info = console.debug = console.error; // stdout belongs to the frames
const ort = require(process.argv[2]);
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";

// numpy's name, onnxruntime's name, what holds it
const TYPES = [
  ["float32", "float32", Float32Array],
  ["float64", "float64", Float64Array],
  ["float16", "float16", Uint16Array],
  ["int64", "int64", BigInt64Array],
  ["uint64", "uint64", BigUint64Array],
  ["int32", "int32", Int32Array],
  ["uint32", "uint32", Uint32Array],
  ["int16", "int16", Int16Array],
  ["uint16", "uint16", Uint16Array],
  ["int8", "int8", Int8Array],
  ["uint8", "uint8", Uint8Array],
  ["bool", "bool", Uint8Array],
];

function exactly(size) {
  const data = Buffer.alloc(size);
  let at = 0;
  while (at < size) {
    let got = 0;
    try {
      got = fs.readSync(0, data, at, size - at, null);
    } catch (error) {
      if (error.code === "EAGAIN") continue;
      if (error.code !== "EOF") throw error;
    }
    if (got === 0) process.exit(0);
    at += got;
  }
  return data;
}

function put(data) {
  let at = 0;
  while (at < data.length) {
    try {
      at += fs.writeSync(1, data, at, data.length - at);
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
    }
  }
}

function receive() {
  const header = JSON.parse(exactly(exactly(4).readUInt32LE(0)).toString());
  const blob = exactly(header.blob);
  const tensors = header.arrays.map(({ dtype, shape }) => {
    const known = TYPES.find(([name]) => name === dtype);
    if (known === undefined) throw new Error(`onnxruntime-web has no tensors of ${dtype}`);
    const [, type, Holder] = known;
    const bytes = exactly(shape.reduce((a, b) => a * b, 1) * Holder.BYTES_PER_ELEMENT);
    return new ort.Tensor(type, new Holder(new Uint8Array(bytes).buffer), shape); // a copy, for its alignment
  });
  return { header, blob, tensors };
}

function send(header, tensors) {
  const datas = tensors.map(({ data }) => Buffer.from(data.buffer, data.byteOffset, data.byteLength));
  const arrays = tensors.map(({ type, dims }) => ({ dtype: TYPES.find(([, name]) => name === type)[0], shape: dims }));
  const text = Buffer.from(JSON.stringify({ ...header, blob: 0, arrays }));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(text.length);
  put(Buffer.concat([length, text, ...datas]));
}

async function main() {
  let session = null;
  for (;;) {
    const { header, blob, tensors } = receive();
    try {
      if (header.do === "load") {
        if (session !== null) await session.release();
        session = null;
        session = await ort.InferenceSession.create(blob);
        send({}, []);
      } else {
        const feeds = Object.fromEntries(session.inputNames.map((name, i) => [name, tensors[i]]));
        const outputs = await session.run(feeds);
        send({}, session.outputNames.map((name) => outputs[name]));
      }
    } catch (error) {
      send({ error: String(error.message ?? error) }, []);
    }
  }
}

main();
