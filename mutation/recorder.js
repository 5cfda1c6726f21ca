'use strict';
// Preloaded into a file of tests: records what each of its tests executes. The folder of the records is in RECORDS. Records are
// numbered, and 0 is what loading the file executes. The processes that a test starts write theirs beside its own.

const { mkdirSync, writeFileSync } = require('node:fs'); // tests may replace those of the module
const path = require('node:path');
const { Session } = require('node:inspector');
const { afterEach, beforeEach } = require('node:test');

const session = new Session();
const tests = [];
let begun;

/** Call a method that answers before it returns. */
function call(method, parameters) {
  let answer;
  session.post(method, parameters, (error, result) => (answer = result));
  return answer;
}

/** Write what has been executed since the last call. */
function record() {
  const folder = path.join(process.env.RECORDS, String(tests.length));
  mkdirSync(folder, { recursive: true });
  const result = call('Profiler.takePreciseCoverage').result.filter((script) => script.url.includes('/overlay/'));
  writeFileSync(path.join(folder, 'own.json'), JSON.stringify({ result }));
}

session.connect();
call('Profiler.enable');
call('Profiler.startPreciseCoverage', { callCount: true, detailed: true });

beforeEach(({ name }) => {
  if (tests.length === 0) record();
  tests.push({ name, seconds: 0 });
  process.env.NODE_V8_COVERAGE = path.join(process.env.RECORDS, String(tests.length));
  begun = process.hrtime.bigint(); // tests may move the clock of performance.now
});

afterEach(() => {
  tests.at(-1).seconds = Number(process.hrtime.bigint() - begun) / 1e9;
  record();
});

process.on('exit', () => writeFileSync(path.join(process.env.RECORDS, 'tests.json'), JSON.stringify(tests)));
