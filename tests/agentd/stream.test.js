'use strict';

const assert = require('node:assert/strict');
const fs = require('node:fs');
const fsp = require('node:fs/promises');
const path = require('node:path');
const { test } = require('node:test');
const { FAST, makeGuest, payload, startHost, until } = require('./helpers');
const { StreamFile } = payload('stream');

const NO_SPACE = Object.assign(new Error('no space left'), { code: 'ENOSPC' });

/** From now on files opened by node:fs/promises write at most three bytes at a time, and fail every second time. */
function flaky(t, failing = () => true) {
  const open = fsp.open;
  let turn = 0;
  t.mock.method(fsp, 'open', async (...args) => {
    const handle = await open(...args);
    if (!(args[1] & fs.constants.O_APPEND)) return handle;
    const write = handle.write.bind(handle);
    handle.write = async (buffer, offset, length) => {
      turn += 1;
      if (turn % 2 === 0 && failing()) throw NO_SPACE;
      return write(buffer, offset, Math.min(3, length));
    };
    return handle;
  });
}

test('writes that fail and writes that are short tear no line and lose none', async (t) => {
  const { root } = makeGuest(t);
  flaky(t);
  const file = path.join(root, 'x.log');
  const stream = new StreamFile(() => file, { retry: 1 });
  const events = Array.from({ length: 10 }, (_, n) => ({ n, text: 'ü'.repeat(n) }));
  await Promise.all(events.map((event) => stream.write(event)));
  await stream.close();
  assert.deepEqual(fs.readFileSync(file, 'utf8').trim().split('\n').map((line) => JSON.parse(line)), events);
  assert.equal(stream.pending, 0);
});

test('a stream that cannot be written for long costs the agent its life, not the request its result', async (t) => {
  const host = await startHost(t, { config: { times: { ...FAST, stall: 300 } } });
  let full = false;
  const open = fsp.open;
  t.mock.method(fsp, 'open', async (...args) => {
    const handle = await open(...args);
    const write = handle.write.bind(handle);
    handle.write = async (...words) => {
      if (full) throw NO_SPACE;
      return write(...words);
    };
    return handle;
  });
  host.send('full', { command: ['/bin/sh', '-c', 'echo up; exec cat /dev/zero'] });
  await until('the agent', () => host.output('full').length > 0);
  full = true;
  await new Promise((resolve) => setTimeout(resolve, 2000));
  assert.deepEqual(host.results('full'), []);
  full = false;
  const result = await host.result('full', 10_000);
  assert.equal(result.subtype, 'error');
  assert.match(result.result, /stream could not be written/);
  assert.equal((await host.run('next', { command: ['true'] })).subtype, 'success');
});

test('a slow stream slows the agent instead of filling the memory', async (t) => {
  const host = await startHost(t, { config: { times: { ...FAST, stall: 60_000 } } });
  const write = StreamFile.prototype.write;
  let most = 0;
  t.mock.method(StreamFile.prototype, 'write', async function (event) {
    const done = write.call(this, event);
    most = Math.max(most, this.pending);
    await new Promise((resolve) => setTimeout(resolve, 5));
    return done;
  });
  const result = await host.run('slow', { command: ['/bin/sh', '-c', 'head -c 20000000 /dev/zero | tr "\\0" x'] }, 60_000);
  assert.equal(result.subtype, 'success');
  assert.equal(host.output('slow').length, 20_000_000);
  assert.ok(most < 4 * 1024 * 1024, `${most} bytes waited`);
});
