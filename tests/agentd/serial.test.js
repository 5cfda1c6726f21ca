'use strict';

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { randomBytes } = require('node:crypto');
const { spawnSync } = require('node:child_process');
const { test } = require('node:test');
const { LIMITS, makeGuest, payload, until } = require('./helpers');
const { startSerial: start } = require('./serialguest');
const { LineReader } = payload('lines');
const { Port } = payload('port');
const { MAX_FILE } = payload('transfer');

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

test('requests come as objects or as text, and with an id', async (t) => {
  const guest = start(t);
  guest.send({ type: 'request', requestId: 'text', data: JSON.stringify({ command: ['true'] }) });
  assert.equal((await guest.result('text')).subtype, 'success');
  for (const [requestId, data] of Object.entries({ none: undefined, null: null, list: ['x'], number: 7, half: '{"command":' })) {
    guest.send({ type: 'request', requestId, data });
    assert.equal((await guest.result(requestId)).result, 'the request is not a JSON object', requestId);
  }
  for (const requestId of [undefined, '../x', '', 7]) guest.send({ type: 'request', requestId, data: { command: ['true'] } });
  guest.send({ type: 'request', requestId: 'last', data: { command: ['true'] } });
  await guest.result('last');
  assert.equal(guest.log.lines.filter((line) => line === 'a request without a usable requestId was ignored').length, 4);
});

test('lines that are no messages are reported once, and an unknown message not at all', async (t) => {
  const guest = start(t, makeGuest(t, { limits: { ...LIMITS, request: 100 } }));
  const line = (size) => {
    const text = JSON.stringify({ type: 'request', requestId: `r${size}`, data: { command: ['true'], prompt: '' } });
    return `${text.replace('"prompt":""', `"prompt":"${'p'.repeat(size - text.length)}"`)}\n`;
  };
  guest.port.push('{"type":"news"}\n');
  assert.equal(line(150).length, 151);
  guest.port.push(line(150));
  await guest.result('r150');
  assert.deepEqual(guest.log.lines.filter((text) => text.startsWith('a line')), []);
  for (const text of ['no\n', line(151), '[]\n', line(152)]) guest.port.push(text);
  guest.port.push(line(149).slice(0, 99));
  guest.port.push(''); // the host has disconnected
  guest.port.push(line(149));
  await guest.result('r149');
  assert.deepEqual(guest.log.lines.filter((text) => text.startsWith('a line')), ['a line from the host is not a JSON object; it is ignored', 'a line from the host was too long and was dropped']);
  assert.deepEqual([guest.events('r151'), guest.events('r152')], [[], []]);
});

test('a refused push is answered with what it was', async (t) => {
  const guest = start(t);
  guest.send({ type: 'push_file', basePath: guest.project, path: '../../x', data: '' });
  guest.send({ type: 'push_file_complete', transferId: 't' });
  guest.send({ type: 'push_files', path: 'x' });
  const errors = () => guest.port.sent.filter(({ type }) => type === 'push_error');
  await until('the answers', () => errors().length === 2);
  assert.deepEqual(errors(), [
    { type: 'push_error', path: '../../x', error: `path ../../x leaves ${guest.project}` },
    { type: 'push_error', transferId: 't', error: 'the end of an unknown transfer' },
  ]);
  assert.deepEqual(guest.log.lines, [`push_file: path ../../x leaves ${guest.project}`, 'push_file_complete: the end of an unknown transfer']);
});

test('a heartbeat is left out while the last one waits for the host', async (t) => {
  const { port, channel } = start(t);
  let release;
  const sent = [];
  port.write = async (bytes) => {
    sent.push(JSON.parse(bytes));
    await new Promise((resolve) => (release = resolve));
  };
  for (const n of [1, 2, 3]) await channel.beat({ n });
  assert.deepEqual(sent, [{ type: 'heartbeat', n: 1 }]);
  release();
  await until('the end of the first', async () => (await channel.beat({ n: 4 }), sent.length === 2));
  release();
  assert.deepEqual([channel.mode, channel.mounted, channel.ownDisk, sent[1].n], ['serial', null, true, 4]);
});

test('only an object is an answer, and the first one counts', async (t) => {
  const { channel, send } = start(t);
  const { signal } = new AbortController();
  for (const [id, result] of Object.entries({ null: null, text: 'allow', number: 7 })) {
    const answer = channel.answer('permission', id, signal);
    send({ type: 'permission_response', requestId: id, result });
    assert.equal(await answer, undefined, id);
  }
  const answer = channel.answer('permission', 'q', signal);
  for (const behavior of ['allow', 'deny']) send({ type: 'permission_response', requestId: 'q', result: { behavior } });
  assert.deepEqual(await answer, { behavior: 'allow' });
  assert.equal(await channel.answer('permission', 'q', AbortSignal.abort()), undefined);
});

test('the journal has what has begun and not ended; a thousand ids that ended are not run again', async (t) => {
  const guest = start(t);
  const { channel, config, port } = guest;
  const journal = () => fs.readdirSync(path.join(config.runDir, 'journal'));
  assert.equal(await channel.history('a'), 'new');
  const stream = await channel.openStream('a');
  assert.deepEqual([await channel.history('a'), journal()], ['begun', ['a']]);
  port.pending = 7;
  assert.deepEqual([stream.pending, stream.stalledSince], [7, undefined]);
  stream.discard();
  await stream.write({ n: 1 });
  await stream.close();
  assert.deepEqual(port.sent, [{ type: 'stream', requestId: 'a', line: '{"n":1}' }]);
  await channel.finish('a');
  await channel.finish('a');
  assert.deepEqual(journal(), []);
  for (let number = 1; number < 1000; number += 1) await channel.finish(`n${number}`);
  guest.send({ type: 'request', requestId: 'a', data: { command: ['true'] } });
  guest.send({ type: 'request', requestId: 'b', data: { command: ['true'] } });
  await guest.result('b');
  assert.deepEqual(guest.events('a').length, 1, 'the one of before');
  await until('its end', () => journal().length === 0); // b is the one more that is remembered
  guest.send({ type: 'request', requestId: 'a', data: { command: ['true'] } });
  await until('the result', () => guest.events('a').some((line) => line.event?.type === 'result'));
});

test('the folder whose changed files are sent is the one that the request names', async (t) => {
  const { channel, config, project, port, root } = start(t);
  const user = { uid: process.getuid() || 1000, gid: process.getgid() || 1000 };
  const other = path.join(config.workspace, 'other');
  fs.mkdirSync(other, { mode: 0o777 });
  const events = [];
  const stream = { write: async (event) => void events.push(event) };
  const names = async (request) => {
    port.sent.length = 0;
    await channel.beforeAgent({ id: 'r', ...request }, user);
    for (const dir of [project, other, root]) fs.writeFileSync(path.join(dir, path.basename(dir)), String(Math.random()));
    await channel.afterAgent({ id: 'r', ...request }, user, stream);
    return port.sent.map((message) => [message.requestId, message.path]);
  };
  assert.deepEqual(await names({}), [['r', 'project']]);
  assert.deepEqual(await names({ cwd: other }), [['r', 'other']]);
  assert.deepEqual(await names({ cwd: other, workspaceRoot: project }), [['r', 'project']]);
  assert.deepEqual(await names({ workspaceRoot: config.workspace }), [['r', 'other/other'], ['r', 'project/project']]);
  assert.deepEqual(await names({ workspaceRoot: root }), []);
  await channel.afterAgent({ id: 'r' }, user, stream);
  assert.deepEqual(events, []);
  await channel.beforeAgent({ id: 'r' }, user);
  fs.writeFileSync(path.join(project, 'large'), '');
  fs.truncateSync(path.join(project, 'large'), MAX_FILE + 1);
  await channel.afterAgent({ id: 'r' }, user, stream);
  assert.deepEqual(events, [{ type: 'sdk_event', event: { type: 'file_sync_error', path: 'large', error: `larger than ${MAX_FILE} bytes` } }]);
});

test('a port is read and written at once, and what it does not take yet is counted', async (t) => {
  const { root } = makeGuest(t);
  const device = path.join(root, 'port');
  spawnSync('mkfifo', [device]);
  const port = new Port(device);
  const bytes = randomBytes(300_000);
  const parts = [];
  const writing = [port.write(bytes.subarray(0, 100_000)), port.write(bytes.subarray(100_000))];
  assert.equal(port.pending, 300_000);
  for (let length = 0; length < bytes.length; length += parts.at(-1).length) parts.push(Buffer.from(await port.read()));
  await Promise.all(writing);
  assert.deepEqual([Buffer.concat(parts).equals(bytes), port.pending], [true, 0]);
  assert.ok(Math.max(...parts.map(({ length }) => length)) <= 65_536);
  fs.writeFileSync(path.join(root, 'empty'), '');
  const begun = performance.now();
  assert.equal((await new Port(path.join(root, 'empty')).read()).length, 0);
  assert.ok(performance.now() - begun >= 190, 'it is not asked all the time');
  assert.throws(() => new Port(path.join(root, 'none')), { code: 'ENOENT' });
});
