#!/usr/bin/env node
'use strict';
// Runs commands as root for the tests' host, over the virtio-serial port imgkit.root. Only ever part of test images.
// One JSON object a line: {"id", "argv", "stdin"} → {"id", "status", "stdout", "stderr"}, streams in base64.
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');

const port = fs.openSync(process.argv[2] || '/dev/virtio-ports/imgkit.root', 'r+');
const buffer = Buffer.alloc(65536);
let pending = Buffer.alloc(0);
let last = 0; // the host repeats a call until it hears something; each runs once

function pause(milliseconds) {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, milliseconds);
}

function send(value) {
  let rest = Buffer.from(`${JSON.stringify(value)}\n`);
  while (rest.length > 0) rest = rest.subarray(fs.writeSync(port, rest));
}

function run({ id, argv, stdin }) {
  if (id <= last) return;
  last = id;
  const done = spawnSync(argv[0], argv.slice(1), { input: Buffer.from(stdin || '', 'base64'), maxBuffer: 32 << 20 });
  const error = done.error ? Buffer.from(`${done.error.message}\n`) : Buffer.alloc(0);
  const stderr = Buffer.concat([done.stderr || Buffer.alloc(0), error]).toString('base64');
  send({ id, status: done.status ?? 127, stdout: (done.stdout || Buffer.alloc(0)).toString('base64'), stderr });
}

for (;;) {
  let count = 0;
  try {
    count = fs.readSync(port, buffer);
  } catch (error) {
    if (error.code !== 'EAGAIN') throw error;
  }
  if (count === 0) pause(50); // the host has not opened its end yet
  pending = Buffer.concat([pending, buffer.subarray(0, count)]);
  for (let end = pending.indexOf(10); end >= 0; end = pending.indexOf(10)) {
    const line = pending.subarray(0, end).toString();
    pending = pending.subarray(end + 1);
    if (line.trim()) run(JSON.parse(line));
  }
}
