'use strict';
// Limits of agentd, each with the last value that is allowed and the first that is not.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { test } = require('node:test');
const { makeGuest, payload } = require('./helpers');
const { agentEnvironment } = payload('environment');
const { readSmall, parseObject } = payload('files');
const { identityFor } = payload('identity');
const { LineReader } = payload('lines');
const { Log } = payload('log');
const { isId } = payload('paths');
const { RequestQueue } = payload('queue');
const { Receiver } = payload('transfer');

test('a small file is read up to its limit', async (t) => {
  const { root } = makeGuest(t);
  const file = path.join(root, 'small');
  fs.writeFileSync(file, 'x'.repeat(10));
  const { text, size, tooLarge } = await readSmall(file, 10);
  assert.deepEqual([text, size, tooLarge], ['x'.repeat(10), 10, false]);
  const large = await readSmall(file, 9);
  assert.deepEqual([large.text, large.size, large.tooLarge], ['', 10, true]);
  assert.equal(await readSmall(path.join(root, 'none'), 9), undefined);
  assert.equal(await readSmall(root, 9), undefined, 'a folder');
  fs.symlinkSync(file, path.join(root, 'link'));
  assert.equal(await readSmall(path.join(root, 'link'), 10), undefined);
});

test('only objects are objects', () => {
  assert.deepEqual(parseObject('{"a":1}'), { a: 1 });
  for (const text of ['[]', 'null', '1', '"x"', '{', '']) assert.equal(parseObject(text), undefined, text);
});

test('a line may have as many bytes as the limit says', () => {
  const lines = [];
  let tooLong = 0;
  const reader = new LineReader(4, (line) => lines.push(line), () => (tooLong += 1)); // prettier-ignore
  for (const chunk of ['abcd\nabcde\nab', 'cd\nabc', 'de\n \n\nx\n', 'lost']) reader.push(Buffer.from(chunk));
  reader.reset();
  reader.push(Buffer.from('y\n'));
  assert.deepEqual([lines, tooLong], [['abcd', 'abcd', 'x', 'y'], 2]);
});

test('an id has up to 128 characters', () => {
  assert.ok(isId('x'.repeat(128)) && !isId('x'.repeat(129)) && isId('x'));
});

test('a variable has up to 128 KiB less 256 bytes', () => {
  const user = { name: 'agent', home: '/h', shell: '/bin/sh' };
  const MAX = 128 * 1024 - 256;
  const make = (drive, request = {}) => agentEnvironment(user, drive, { id: 'r', env: {}, autoApprove: false, confirmationMode: 'modal', ...request }, '/socket');
  assert.equal(make({ A: 'é'.repeat(MAX / 2) }).A.length, MAX / 2);
  assert.throws(() => make({ A: 'x'.repeat(MAX + 1) }), { message: `env: A is larger than ${MAX} bytes` });
  assert.throws(() => make({ A: 1 }), { message: 'env: A must be a string without NUL' });
  assert.throws(() => make({ A: 'x\0' }), { message: 'env: A must be a string without NUL' });
  for (const name of ['', 'A=B', 'A\0']) assert.throws(() => make({ [name]: 'x' }), { message: 'env: a name is empty or contains "="' });
  assert.equal(make({}, { prompt: 'x'.repeat(MAX) }).AGENT_PROMPT.length, MAX);
  assert.deepEqual(['x'.repeat(MAX + 1), 'x\0', undefined].map((prompt) => 'AGENT_PROMPT' in make({}, { prompt })), [false, false, false]);
  assert.equal(make({}, { systemPrompt: '' }).AGENT_SYSTEM_PROMPT, '');
  assert.deepEqual([make({}).AGENT_AUTO_APPROVE, make({}, { autoApprove: true }).AGENT_AUTO_APPROVE], ['0', '1']);
});

test('uids and gids that are taken over', () => {
  const user = { name: 'agent', uid: 1000, gid: 1000 };
  const tables = { passwd: 'root:x:0:0::/:\nagent:x:1000:1000::/:\nmail:x:8:12::/:\n', group: 'root:x:0:\nagent:x:1000:\ndialout:x:20:\n' };
  const take = (uid, gid) => identityFor(user, { uid, gid }, tables);
  const LAST = 2 ** 31 - 1;
  assert.deepEqual(take(1, 1), { uid: 1, gid: 1, group: 'agent' });
  assert.deepEqual(take(LAST, LAST), { uid: LAST, gid: LAST, group: 'agent' });
  assert.deepEqual(take(LAST + 1, 5), { uid: 1000, gid: 1000 });
  assert.deepEqual(take(0, 5), { uid: 1000, gid: 1000 }, 'root');
  assert.deepEqual(take(8, 5), { uid: 1000, gid: 1000 }, 'another account');
  for (const gid of [0, 12, 20, LAST + 1]) assert.deepEqual(take(501, gid), { uid: 501, gid: 1000 }, `gid ${gid}`);
});

test('the log is begun again above its limit', (t) => {
  const { config } = makeGuest(t);
  t.mock.method(process.stderr, 'write', () => true);
  const log = new Log(config);
  fs.writeFileSync(config.logFile, 'x'.repeat(config.limits.log));
  log.info('a');
  assert.equal(fs.statSync(config.logFile).size, config.limits.log);
  fs.appendFileSync(config.logFile, 'x');
  log.info('a');
  assert.deepEqual([fs.statSync(config.logFile).size, fs.statSync(`${config.logFile}.1`).size], [0, config.limits.log + 1]);
});

test('a queue holds as many requests as its limit says, besides the running one', async () => {
  const order = [];
  let release;
  const gate = new Promise((resolve) => (release = resolve));
  const queue = new RequestQueue(async ({ id, signal }) => (await gate, order.push([id, signal.reason?.message])), 2);
  for (const id of ['a', 'b', 'b', 'a']) queue.add(id, {});
  assert.ok(queue.hasRoom() && queue.has('a') && queue.has('b') && !queue.has('c'));
  queue.add('c', {});
  assert.ok(!queue.hasRoom());
  queue.cancel('b');
  queue.cancel('none');
  queue.cancel('a', 'why');
  release();
  while (order.length < 3) await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(order, [['a', 'why'], ['b', 'cancelled by the host'], ['c', undefined]]);
  await queue.close('over');
  assert.ok(!queue.hasRoom());
});

test('at most 16 pushes are open, and the oldest gives way', (t) => {
  const { config } = makeGuest(t);
  const receiver = new Receiver(config);
  const user = { uid: process.getuid(), gid: process.getgid() };
  const data = Buffer.from('x').toString('base64');
  const push = (number) => receiver.take({ type: 'push_file_chunk', transferId: `t${number}`, basePath: config.workspace, path: `f${number}`, chunkIndex: 0, data }, user);
  const partial = () => fs.readdirSync(config.workspace).filter((name) => name.startsWith('.agentd-push-')).length;
  for (let number = 0; number < 16; number += 1) push(number);
  assert.equal(partial(), 16);
  push(16);
  assert.equal(partial(), 16);
  assert.throws(() => receiver.take({ type: 'push_file_complete', transferId: 't0' }, user), { message: 'the end of an unknown transfer' });
  receiver.take({ type: 'push_file_complete', transferId: 't1', totalChunks: 1 }, user);
  assert.equal(fs.readFileSync(path.join(config.workspace, 'f1'), 'utf8'), 'x');
});
