'use strict';
// Standard input of a command: as files of the share, and as messages of the serial port.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const { randomBytes } = require('node:crypto');
const { test } = require('node:test');
const { setTimeout: delay } = require('node:timers/promises');
const { LIMITS, payload, startHost, until } = require('./helpers');
const { startSerial } = require('./serialguest');
const { parseRequest } = payload('request');

const sh = (script, ...words) => ['/bin/sh', '-c', script, 'sh', ...words];

/** Write a piece of input as the host does: whole, under its final name. */
function give(host, id, index, bytes) {
  fs.mkdirSync(host.ipc('inputs'), { recursive: true });
  fs.writeFileSync(host.ipc('inputs', '.temporary'), bytes);
  fs.renameSync(host.ipc('inputs', '.temporary'), host.ipc('inputs', `${id}.${index}`));
}

test('input is for a command, and only without a prompt', () => {
  const error = { name: 'RequestError', message: 'request: "stdin" needs a "command", and no "prompt"' };
  for (const data of [{ stdin: true }, { stdin: true, prompt: '' }, { stdin: true, command: ['cat'], prompt: '' }]) assert.throws(() => parseRequest('r', data), error);
  assert.equal(parseRequest('r', { stdin: true, command: ['cat'], prompt: null }).stdin, true);
  assert.equal(parseRequest('r', { stdin: false, prompt: 'x' }).stdin, false);
});

test('every byte of the files arrives, in their order, and their end', async (t) => {
  const host = await startHost(t);
  const pieces = [randomBytes(LIMITS.input), Buffer.from('a\0\r\n\xff', 'latin1'), randomBytes(70_000)];
  pieces.forEach((piece, index) => give(host, 'r', index, piece)); // before the request, as a slow guest sees them
  give(host, 'r', 3, '');
  const result = await host.run('r', { command: ['cat'], stdin: true });
  assert.equal(result.exitCode, 0);
  assert.ok(host.output('r').equals(Buffer.concat(pieces)));
  assert.deepEqual(fs.readdirSync(host.ipc('inputs')), []);
});

test('input that comes late, one piece after the other', async (t) => {
  const host = await startHost(t);
  host.send('r', { command: sh('while read -r line; do echo "got $line"; done; echo end'), stdin: true });
  for (const [index, text] of ['one\n', 'two\n'].entries()) {
    give(host, 'r', index, text);
    await until(text, () => host.output('r').toString().endsWith(`got ${text}`));
    await until('the file to be gone', () => !fs.existsSync(host.ipc('inputs', `r.${index}`)));
  }
  give(host, 'r', 2, '');
  await host.result('r');
  assert.equal(host.output('r').toString(), 'got one\ngot two\nend\n');
});

test('a command that reads nothing leaves the files, and ends', async (t) => {
  const host = await startHost(t);
  for (let index = 0; index < 3; index += 1) give(host, 'r', index, randomBytes(LIMITS.input)); // more than a pipe takes
  assert.equal((await host.run('r', { command: sh('sleep 0.3; exit 3'), stdin: true })).exitCode, 3);
  assert.deepEqual(fs.readdirSync(host.ipc('inputs')).sort(), ['r.0', 'r.1', 'r.2'], 'the first was not taken as a whole');
  give(host, 's', 0, 'unread');
  assert.equal((await host.run('s', { command: sh('exec <&-; sleep 0.2; echo here'), stdin: true })).exitCode, 0);
  assert.equal(host.output('s').toString(), 'here\n');
});

test('a command that waits for input that never comes is cancelled like any other', async (t) => {
  const host = await startHost(t);
  host.send('r', { command: sh('echo started; cat'), stdin: true });
  await until('the command', () => host.output('r').length > 0);
  fs.writeFileSync(host.ipc('requests', 'r.cancel'), '');
  assert.equal((await host.result('r')).cancelled, true);
});

test('a piece that is too large, a folder and a link are not taken', async (t) => {
  const host = await startHost(t);
  fs.mkdirSync(host.ipc('inputs', 'r.0'), { recursive: true });
  host.send('r', { command: ['cat'], stdin: true });
  await delay(60);
  fs.rmdirSync(host.ipc('inputs', 'r.0'));
  fs.symlinkSync('/etc/passwd', host.ipc('inputs', 'r.0'));
  await delay(60);
  fs.unlinkSync(host.ipc('inputs', 'r.0'));
  give(host, 'r', 0, Buffer.alloc(LIMITS.input + 1));
  await delay(60);
  assert.equal(host.output('r').length, 0);
  give(host, 'r', 0, 'right');
  give(host, 'r', 1, '');
  await host.result('r');
  assert.equal(host.output('r').toString(), 'right');
});

test('without "stdin" a command has an empty standard input, whatever the host sends', async (t) => {
  const host = await startHost(t);
  give(host, 'r', 0, 'unasked');
  assert.equal((await host.run('r', { command: ['cat'] })).exitCode, 0);
  assert.equal(host.output('r').length, 0);
  assert.deepEqual(fs.readdirSync(host.ipc('inputs')), ['r.0']);
});

test('over the port: bytes, their end, and a note for each piece that was taken', async (t) => {
  const guest = startSerial(t);
  const pieces = [randomBytes(100_000), Buffer.from('a\0\r\n\xff', 'latin1'), Buffer.alloc(0)];
  guest.send({ type: 'request', requestId: 'r', data: { command: ['cat'], stdin: true } });
  for (const piece of pieces) guest.send({ type: 'input', requestId: 'r', data: piece.toString('base64') });
  assert.equal((await guest.result('r')).exitCode, 0);
  const parts = guest.events('r').filter((line) => line.event.type === 'output');
  const bytes = Buffer.concat(parts.map(({ event }) => Buffer.from(event.data, event.encoding ?? 'utf8')));
  assert.ok(bytes.equals(Buffer.concat(pieces)));
  const taken = guest.port.sent.filter((message) => message.type === 'input_taken');
  assert.deepEqual(taken, [0, 1, 2].map((index) => ({ type: 'input_taken', requestId: 'r', index })));
});

test('over the port: a slow reader is not told of, and what nobody reads is dropped with its request', async (t) => {
  const guest = startSerial(t);
  guest.send({ type: 'input', requestId: 'r', data: 'eA==' }); // of no request
  guest.send({ type: 'request', requestId: 'r', data: { command: sh('sleep 0.3; head -c 1; exit 4'), stdin: true } });
  for (let index = 0; index < 3; index += 1) guest.send({ type: 'input', requestId: 'r', data: Buffer.alloc(1_000_000, 'y').toString('base64') });
  guest.send({ type: 'input', requestId: 'r', data: 'not base64!' });
  assert.equal((await guest.result('r')).exitCode, 4);
  assert.equal(guest.events('r').find((line) => line.event.type === 'output').event.data, 'y');
  assert.ok(guest.port.sent.filter((message) => message.type === 'input_taken').length < 2);
  assert.deepEqual(guest.log.lines.filter((line) => line.startsWith('input')), ['input: "data" is not base64']);
  guest.send({ type: 'request', requestId: 's', data: { command: ['cat'] } });
  assert.equal((await guest.result('s')).exitCode, 0);
});
