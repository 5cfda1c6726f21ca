'use strict';
// Whatever comes in as a request: agentd lives, and every request ends in exactly one result, which is its last line.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { test } = require('node:test');
const { isDeepStrictEqual } = require('node:util');
const { setTimeout: delay } = require('node:timers/promises');
const { startHost, payload, until } = require('./helpers');
const { LineReader } = payload('lines');
const { parseObject } = payload('files');

const SEED = Number(process.env.FUZZ_SEED ?? (process.env.CI ? 1 : Date.now() % 1_000_000));
const COUNT = Number(process.env.FUZZ_COUNT ?? 120);

/** mulberry32: small, and the same everywhere. */
function makeRandom(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

class Fuzz {
  constructor(seed) {
    this.random = makeRandom(seed);
  }
  below(limit) {
    return Math.floor(this.random() * limit);
  }
  pick(list) {
    return list[this.below(list.length)];
  }
  text() {
    return this.pick(['', 'x', '/', '..', '/workspace', '/etc', '\u0000', '\ud800', 'ü🎉', '\n', '{}', 'a'.repeat(this.below(5000)), '__proto__', '%s']);
  }
  value(depth = 0) {
    const kind = this.below(depth > 3 ? 5 : 7);
    if (kind === 5) return Array.from({ length: this.below(4) }, () => this.value(depth + 1));
    if (kind === 6) return Object.fromEntries(Array.from({ length: this.below(4) }, () => [this.text(), this.value(depth + 1)]));
    return [null, true, this.below(2 ** 31) - 2 ** 30, this.random() * 1e300, this.text()][kind];
  }
  /** A request that would be right, with some of its keys replaced, added or left out. Nothing harmful can be run. */
  request() {
    const body = { prompt: 'p', cwd: undefined, env: { A: '1' }, mounts: {}, autoApprove: true, command: ['/bin/echo', 'x'], systemPrompt: 's' };
    for (let changes = this.below(4); changes > 0; changes -= 1) {
      const key = this.pick([...Object.keys(body), 'workspaceRoot', 'confirmationMode', 'imageAttachments', '__proto__', this.text()]);
      if (key === 'command') body.command = this.pick([null, [], [''], ['/nonexistent'], ['/bin/echo', this.text()], ['/bin/false'], [['x']], 'echo', 7, { 0: 'echo' }]);
      else if (key === 'mounts' && this.below(2)) body.mounts = { work: { tag: this.value(), guestPath: this.value() } };
      else if (this.below(4) === 0) delete body[key];
      else Object.defineProperty(body, key, { value: this.value(), enumerable: true, configurable: true, writable: true });
    }
    return JSON.stringify(body);
  }
  /** Bytes of a request file: a request, one with bytes changed, a part of one, any JSON, any bytes. */
  file() {
    const text = Buffer.from(this.request());
    switch (this.below(6)) {
      case 0: return text.subarray(0, this.below(text.length));
      case 1: return this.scratched(text);
      case 2: return Buffer.from(JSON.stringify(this.value()));
      case 3: return Buffer.from(Array.from({ length: this.below(200) }, () => this.below(256)));
      case 4: return Buffer.from('['.repeat(this.below(20_000)));
      default: return text;
    }
  }
  scratched(bytes) {
    const copy = Buffer.from(bytes);
    for (let times = 1 + this.below(3); times > 0; times -= 1) copy[this.below(copy.length)] = this.below(256);
    // A changed byte must not make another program of the harmless one.
    return /\/bin\/(echo|false)|nonexistent/.test(copy) || !copy.includes('command') ? copy : Buffer.from('{');
  }
}

test('request files', async (t) => {
  t.diagnostic(`FUZZ_SEED=${SEED}`);
  const fuzz = new Fuzz(SEED);
  const host = await startHost(t);
  const sent = new Map();
  for (let number = 0; number < COUNT; number += 1) {
    const id = `fuzz-${number}`;
    sent.set(id, fuzz.file());
    fs.writeFileSync(host.ipc('requests', `${id}.json`), sent.get(id));
    if (fuzz.below(10) === 0) fs.writeFileSync(host.ipc('requests', `${id}.cancel`), '');
    if (fuzz.below(10) === 0) await delay(fuzz.below(30));
  }
  for (const [id, bytes] of sent) {
    const result = await host.result(id, 60_000).catch((error) => assert.fail(`seed ${SEED}, ${id}: ${error.message}: ${bytes.toString('utf8').slice(0, 300)}`));
    assert.ok(['success', 'error'].includes(result.subtype), `seed ${SEED}, ${id}`);
  }
  assert.equal((await host.run('after', { command: ['/bin/echo', 'alive'] })).subtype, 'success');
});

test('answer files', async (t) => {
  const fuzz = new Fuzz(SEED + 1);
  const host = await startHost(t);
  const ask = path.resolve(__dirname, '../../overlay/usr/local/bin/agent-ask');
  for (let number = 0; number < 8; number += 1) {
    const id = `ask-${number}`;
    host.send(id, { command: ['/bin/sh', '-c', '"$1" Tool "{}"; echo "status $?"', 'sh', ask] });
    const asked = await until('the question', () => host.events(id).find((line) => line.type === 'permission_request'));
    const answer = fuzz.below(2) ? fuzz.file() : JSON.stringify({ behavior: fuzz.value(), message: fuzz.value(), updatedInput: fuzz.value() });
    fs.writeFileSync(host.ipc('responses', `${asked.requestId}.json`), answer);
    await host.result(id);
    assert.match(host.output(id).toString(), /status [01]\n$/, `seed ${SEED}, ${id}`);
  }
});

test('lines of the serial port, in any pieces', () => {
  const fuzz = new Fuzz(SEED + 2);
  for (let round = 0; round < 200; round += 1) {
    const lines = Array.from({ length: fuzz.below(8) }, () => Buffer.from(fuzz.file().filter((byte) => byte !== 10)));
    const stream = Buffer.concat(lines.flatMap((line) => [line, Buffer.from('\n')]));
    const seen = [];
    const reader = new LineReader(1 << 20, (line) => seen.push(line), () => assert.fail('nothing is too long'));
    for (let at = 0; at < stream.length; ) {
      const end = at + 1 + fuzz.below(300);
      reader.push(stream.subarray(at, end));
      at = end;
    }
    const wanted = lines.map((line) => line.toString().trim());
    assert.ok(isDeepStrictEqual(seen, wanted.filter(Boolean)), `seed ${SEED}, round ${round}`);
    for (const line of seen) parseObject(line);
  }
});
