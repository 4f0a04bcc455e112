// One command of graphile_worker.py: `node graphile_worker.mjs PACKAGES install|work URL [STARTS]`.

import { openSync, writeSync } from "node:fs";
import { createRequire } from "node:module";

const [packages, command, connectionString, path] = process.argv.slice(2);
const { run, runMigrations } = createRequire(`${packages}/package.json`)("graphile-worker");

if (command === "install") {
  await runMigrations({ connectionString });
} else {
  // The file of starts.py: first, last, count, ready, and the start of each numbered message, in nanoseconds of the
  // monotonic clock, as 64-bit integers. It is written every millisecond, which costs less than at each start.
  const file = openSync(path, "r+");
  const head = new BigUint64Array(4);
  const numbered = new Map();
  const flush = () => {
    for (const [number, at] of numbered) writeSync(file, BigUint64Array.of(at), 0, 8, 8 * (4 + number));
    numbered.clear();
    writeSync(file, head, 0, 32, 0);
  };
  let isChanged = false;
  setInterval(() => {
    if (!isChanged) return;
    isChanged = false;
    flush();
  }, 1);

  const bench = async ({ number }) => {
    const now = process.hrtime.bigint();
    if (head[2] === 0n) head[0] = now;
    head[1] = now;
    head[2] += 1n;
    if (number < 65536) numbered.set(number, now);
    isChanged = true;
  };
  await run({
    connectionString,
    taskList: { bench },
    noHandleSignals: true,
    preset: { worker: { concurrentJobs: 100, localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 } },
  });
  head[3] = 1n;
  flush();
}
