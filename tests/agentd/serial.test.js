'use strict';

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { randomBytes } = require('node:crypto');
const { test } = require('node:test');
const { FAST, FakeMounter, FakeSystem, launch, makeGuest, makeLog, payload, until } = require('./helpers');
const { SerialChannel } = payload('serial');
const { LineReader } = payload('lines');
const { RequestQueue } = payload('queue');
const { Runner } = payload('run');
const { Questions } = payload('permissions');
const { MAX_FILE } = payload('transfer');

/** The port with the test at its other end. */
class FakePort {
  pending = 0;
  sent = [];
  #inbox = [];
  #wake = () => {};
  push(bytes) {
    this.#inbox.push(Buffer.from(bytes));
    this.#wake();
  }
  async read() {
    while (this.#inbox.length === 0) await new Promise((resolve) => (this.#wake = resolve));
    return this.#inbox.shift();
  }
  async write(bytes) {
    for (const line of bytes.toString().split('\n').filter(Boolean)) this.sent.push(JSON.parse(line));
  }
}

function start(t, guest = makeGuest(t)) {
  fs.writeFileSync(guest.config.passwdFile, `agent:x:${process.getuid() || 1000}:${process.getgid() || 1000}::${guest.root}:/bin/sh\n`);
  fs.chmodSync(guest.root, 0o755);
  fs.mkdirSync(path.join(guest.config.workspace, 'project'), { recursive: true });
  for (const dir of ['', 'project']) fs.chmodSync(path.join(guest.config.workspace, dir), 0o777);
  const [port, log] = [new FakePort(), makeLog()];
  const channel = new SerialChannel(port, guest.config, log);
  const runner = new Runner({ config: { ...guest.config, socket: path.join(guest.root, 'sock') }, log, channel, mounter: new FakeMounter(), system: new FakeSystem(), questions: new Questions(FAST), launch });
  void channel.run(new RequestQueue((entry) => runner.run(entry), 16));
  t.after(() => channel.stop());
  const send = (message) => port.push(`${JSON.stringify(message)}\n`);
  const events = (id) => port.sent.filter((message) => message.type === 'stream' && message.requestId === id).map((message) => JSON.parse(message.line));
  const result = (id) => until(`the result of ${id}`, () => events(id).map((line) => line.event).find((event) => event.type === 'result'));
  return { ...guest, port, log, channel, send, events, result, project: path.join(guest.config.workspace, 'project') };
}

const sh = (script, ...words) => ['/bin/sh', '-c', script, 'sh', ...words];

test('a request, its stream, and the files that it changed', async (t) => {
  const guest = start(t);
  fs.writeFileSync(path.join(guest.project, 'same'), 'same');
  fs.writeFileSync(path.join(guest.project, 'old'), 'old');
  const big = 512 * 1024 * 2 + 5;
  const script = 'echo out; echo new > old; mkdir -p sub; printf x > sub/made; : > empty; ln -s /etc/passwd link; head -c "$1" /dev/zero > big';
  guest.send({ type: 'request', requestId: 'r1', data: { command: sh(script, String(big)), cwd: guest.project } });
  assert.equal((await guest.result('r1')).subtype, 'success');
  const whole = guest.port.sent.filter((message) => message.type === 'file_sync');
  assert.deepEqual(whole.map(({ path: name, data }) => [name, Buffer.from(data, 'base64').toString()]).sort(), [['empty', ''], ['old', 'new\n'], ['sub/made', 'x']]);
  const chunks = guest.port.sent.filter((message) => message.type === 'file_sync_chunk');
  assert.deepEqual(chunks.map((message) => [message.path, message.chunkIndex, message.totalChunks]), [['big', 0, 3], ['big', 1, 3], ['big', 2, 3]]);
  assert.equal(chunks.reduce((size, message) => size + Buffer.from(message.data, 'base64').length, 0), big);
  assert.equal(guest.port.sent.filter((message) => message.type === 'file_sync_complete').length, 1);
  const last = guest.port.sent.at(-1);
  assert.equal(JSON.parse(last.line).event.type, 'result', 'files come before the result');
});

test('pushed files, in one message and in chunks', async (t) => {
  const guest = start(t);
  const basePath = guest.project;
  guest.send({ type: 'push_file', basePath, path: 'dir/a.txt', data: Buffer.from('hello').toString('base64') });
  await until('the file', () => fs.existsSync(path.join(basePath, 'dir/a.txt')));
  assert.equal(fs.readFileSync(path.join(basePath, 'dir/a.txt'), 'utf8'), 'hello');
  const bytes = randomBytes(300_000);
  for (let i = 0; i < 3; i += 1) guest.send({ type: 'push_file_chunk', basePath, path: 'b', transferId: 't', chunkIndex: i, totalChunks: 3, data: bytes.subarray(i * 100_000, (i + 1) * 100_000).toString('base64') });
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.ok(!fs.existsSync(path.join(basePath, 'b')), 'not before the end');
  guest.send({ type: 'push_file_complete', transferId: 't', totalChunks: 3 });
  await until('the file', () => fs.existsSync(path.join(basePath, 'b')));
  assert.deepEqual(fs.readFileSync(path.join(basePath, 'b')), bytes);
});

test('pushes that leave their folder or are broken are refused, and leave nothing', async (t) => {
  const guest = start(t);
  const basePath = guest.project;
  const outside = path.join(guest.root, 'outside');
  fs.mkdirSync(outside);
  fs.symlinkSync(outside, path.join(basePath, 'link'));
  const data = 'eA==';
  const bad = [
    { basePath, path: '../../outside/x', data }, { basePath, path: path.join(outside, 'x'), data }, { basePath, path: 'link/x', data },
    { basePath: outside, path: 'x', data }, { basePath: 'project', path: 'x', data }, { basePath: guest.config.ipcDir, path: 'x', data },
    { basePath, path: '', data }, { basePath, path: '.', data }, { basePath, path: 'a\0b', data }, { basePath, path: 7, data },
    { basePath, path: 'x', data: 'not base64!' }, { basePath, path: 'x' },
  ];
  for (const message of bad) guest.send({ type: 'push_file', ...message });
  guest.send({ type: 'push_file_chunk', basePath, path: 'x', transferId: 't', chunkIndex: 1, totalChunks: 2, data });
  guest.send({ type: 'push_file_chunk', basePath, path: 'x', transferId: '../t', chunkIndex: 0, totalChunks: 2, data });
  guest.send({ type: 'push_file_complete', transferId: 'unknown' });
  guest.send({ type: 'push_file_chunk', basePath, path: 'x', transferId: 'u', chunkIndex: 0, totalChunks: 2, data });
  guest.send({ type: 'push_file_chunk', basePath, path: 'x', transferId: 'u', chunkIndex: 0, totalChunks: 2, data });
  guest.send({ type: 'push_file_chunk', basePath, path: 'x', transferId: 'v', chunkIndex: 0, totalChunks: 2, data });
  guest.send({ type: 'push_file_complete', transferId: 'v', totalChunks: 2 });
  await until('the refusals', () => guest.port.sent.filter((message) => message.type === 'push_error').length === bad.length + 5);
  assert.deepEqual(fs.readdirSync(basePath), ['link']);
  assert.deepEqual(fs.readdirSync(outside), []);
  assert.ok(MAX_FILE === 104_857_600);
});

test('questions are answered over the line', async (t) => {
  const guest = start(t);
  const controller = new AbortController();
  const allowed = guest.channel.answer('permission', 'q1', controller.signal);
  const tool = guest.channel.answer('host_tool', 'q2', controller.signal);
  const never = guest.channel.answer('permission', 'q3', controller.signal);
  guest.send({ type: 'permission_response', requestId: 'q1', result: { behavior: 'allow' } });
  guest.send({ type: 'host_tool_response', requestId: 'q2', success: true, text: 't' });
  assert.deepEqual(await allowed, { behavior: 'allow' });
  assert.equal((await tool).text, 't');
  controller.abort();
  assert.equal(await never, undefined);
});

test('what the last agentd began is answered as failed and not run again; an ended id is not run twice', async (t) => {
  const guest = makeGuest(t);
  fs.mkdirSync(path.join(guest.config.runDir, 'journal'), { recursive: true });
  fs.writeFileSync(path.join(guest.config.runDir, 'journal', 'crashed'), '');
  const host = start(t, guest);
  assert.match((await host.result('crashed')).result, /not run again/);
  const request = { type: 'request', requestId: 'twice', data: { command: sh('echo x >> "$1"', path.join(host.project, 'runs')) } };
  host.send(request);
  await host.result('twice');
  host.send(request);
  host.send({ type: 'request', requestId: 'last', data: { command: ['true'] } });
  await host.result('last');
  assert.equal(fs.readFileSync(path.join(host.project, 'runs'), 'utf8'), 'x\n');
  assert.deepEqual(fs.readdirSync(path.join(guest.config.runDir, 'journal')), []);
});

test('cancel and garbage', async (t) => {
  const guest = start(t);
  for (const garbage of ['', 'null', '[1]', '{"type":', '\0\0', '{"type":"nothing"}', '{"type":"request"}', '{"type":"request","requestId":"../x","data":{}}', '{"type":"permission_response"}']) guest.port.push(`${garbage}\n`);
  guest.send({ type: 'request', requestId: 'wrong', data: [] });
  assert.match((await guest.result('wrong')).result, /not a JSON object/);
  guest.send({ type: 'request', requestId: 'long', data: { command: sh('exec sleep 100') } });
  await until('the start', () => guest.events('long').length > 0);
  guest.send({ type: 'cancel', requestId: 'long' });
  assert.equal((await guest.result('long')).cancelled, true);
});

test('lines in any pieces; a line that is too long is dropped alone', () => {
  const lines = ['a', 'é'.repeat(30), '{"x":1}', 'b'.repeat(60)];
  const bytes = Buffer.from(`${lines.join('\n')}\n${'c'.repeat(200)}\nend\n`);
  for (let size = 1; size < 80; size += 1) {
    const seen = [];
    let dropped = 0;
    const reader = new LineReader(64, (line) => seen.push(line), () => (dropped += 1));
    for (let at = 0; at < bytes.length; at += size) reader.push(bytes.subarray(at, at + size));
    assert.deepEqual(seen, [...lines, 'end']);
    assert.equal(dropped, 1);
    reader.push(Buffer.from('half'));
    reader.reset();
    reader.push(Buffer.from('whole\n'));
    assert.equal(seen.at(-1), 'whole');
  }
});
