'use strict';
// Files that the serial port carries: what the host pushes, and what is found and sent back after the agent.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { spawnSync } = require('node:child_process');
const { test } = require('node:test');
const { makeGuest, payload } = require('./helpers');
const { CHUNK, MAX_FILE, Receiver, changedFiles, sendFile, snapshot } = payload('transfer');

const own = { uid: process.getuid(), gid: process.getgid() };
const base64 = (text) => Buffer.from(text).toString('base64');

/** A receiver and its workspace. `push` takes one message of one kind. */
function makeReceiver(t) {
  const { root, config } = makeGuest(t);
  const receiver = new Receiver(config);
  const basePath = config.workspace;
  const push = (message) => receiver.take({ type: 'push_file', basePath, path: 'x', data: base64('x'), ...message }, own);
  const chunk = (chunkIndex, message) => push({ type: 'push_file_chunk', transferId: 't', chunkIndex, ...message });
  const complete = (message) => receiver.take({ type: 'push_file_complete', transferId: 't', ...message }, own);
  const names = () => fs.readdirSync(basePath).filter((name) => name !== 'ipc').sort();
  const read = (name) => fs.readFileSync(path.join(basePath, name), 'utf8');
  return { root, config, basePath, push, chunk, complete, names, read };
}

test('a pushed file takes the place of what has its name, and is for all to read', (t) => {
  const { root, basePath, push, names, read } = makeReceiver(t);
  fs.writeFileSync(path.join(root, 'victim'), 'untouched');
  fs.symlinkSync(path.join(root, 'victim'), path.join(basePath, 'x'));
  push({ data: base64('hello') });
  assert.deepEqual([read('x'), fs.lstatSync(path.join(basePath, 'x')).isFile()], ['hello', true]);
  assert.equal(fs.statSync(path.join(basePath, 'x')).mode & 0o777, 0o644 & ~process.umask());
  assert.equal(fs.readFileSync(path.join(root, 'victim'), 'utf8'), 'untouched');
  push({ data: '' });
  push({ path: 'a/./b//c', basePath: `${basePath}/` });
  push({ path: 'd', basePath: path.join(basePath, 'a') });
  assert.deepEqual([read('x'), read('a/b/c'), read('a/d'), names()], ['', 'x', 'x', ['a', 'x']]);
});

test('where nothing may be pushed', (t) => {
  const { root, config, basePath, push, names } = makeReceiver(t);
  fs.mkdirSync(path.join(root, 'outside'));
  fs.symlinkSync(path.join(root, 'outside'), path.join(basePath, 'link'));
  const leaves = (name, base = basePath) => `path ${name} leaves ${base}`;
  for (const [message, text] of [
    [{ basePath: 'workspace' }, `base workspace is outside ${basePath}`],
    [{ basePath: 7 }, `base 7 is outside ${basePath}`],
    [{ basePath: undefined }, `base undefined is outside ${basePath}`],
    [{ basePath: root }, `base ${root} is outside ${basePath}`],
    [{ basePath: `${basePath}x` }, `base ${basePath}x is outside ${basePath}`],
    [{ path: '../x' }, leaves('../x')],
    [{ path: '/x' }, leaves('/x')],
    [{ path: '' }, leaves('')],
    [{ path: '.' }, leaves('.')],
    [{ path: 7 }, leaves(7)],
    [{ path: 'ipc' }, leaves('ipc')],
    [{ path: 'ipc/requests/x.json' }, leaves('ipc/requests/x.json')],
    [{ basePath: config.ipcDir }, leaves('x', config.ipcDir)],
    [{ path: 'link/x' }, `path link/x: ${basePath}/link is a symbolic link`],
    [{ path: 'link/a/x' }, `path link/a/x: ${basePath}/link is a symbolic link`],
  ]) {
    assert.throws(() => push(message), { message: text });
  }
  assert.deepEqual([names(), fs.readdirSync(path.join(root, 'outside')), fs.readdirSync(config.ipcDir)], [['link'], [], []]);
  const linked = path.join(root, 'way');
  fs.symlinkSync(root, linked);
  new Receiver({ ...config, workspace: path.join(linked, 'workspace') }).take({ type: 'push_file', basePath: path.join(linked, 'workspace'), path: 'x', data: '' }, own);
  assert.deepEqual(names(), ['link', 'x'], 'links above the workspace are those of the image');
});

test('only base64 is data', (t) => {
  const { push, names, chunk, read } = makeReceiver(t);
  for (const data of ['e', 'eA', 'eA=', 'e===', 'eA==eA==', '=eA=', 'e A=', 'eA-_', 'eA==\n\n\n\n', undefined, 7, ['eA==']]) {
    assert.throws(() => push({ data }), { message: '"data" is not base64' }, String(data));
    assert.throws(() => chunk(0, { data }), { message: '"data" is not base64' }, String(data));
  }
  assert.deepEqual(names(), []);
  for (const [data, text] of Object.entries({ 'eA==': 'x', 'eHg=': 'xx', eHh4: 'xxx', 'Pz8/Pj4+': '???>>>' })) {
    push({ data });
    assert.equal(read('x'), text);
  }
});

test('a file in chunks is there when the last has come, and only then', (t) => {
  const { chunk, complete, names, read } = makeReceiver(t);
  for (const totalChunks of [2, undefined]) {
    chunk(0, { data: base64('a'), path: `new${totalChunks}` });
    chunk(1, { data: base64('b'), path: 'this is in the first' });
    assert.equal(names().filter((name) => name.startsWith('new')).length, totalChunks ? 0 : 1);
    assert.match(names()[0], /^\.agentd-push-/);
    complete({ totalChunks });
    assert.equal(read(`new${totalChunks}`), 'ab');
    assert.deepEqual(names().filter((name) => name.startsWith('.')), []);
  }
});

test('a transfer with a fault is forgotten, and leaves nothing', (t) => {
  const { chunk, complete, names } = makeReceiver(t);
  for (const transferId of [undefined, 7, '', '../x', '.x']) assert.throws(() => chunk(0, { transferId }), { message: '"transferId" is not an id' });
  for (const index of [1, -1, '0', undefined]) assert.throws(() => chunk(index), { message: `chunk ${index} of an unknown transfer` });
  for (const index of [0, 2, '1', undefined]) {
    chunk(0);
    assert.throws(() => chunk(index), { message: `chunk ${index} came in place of 1` });
    assert.throws(() => complete(), { message: 'the end of an unknown transfer' });
  }
  for (const totalChunks of [0, 2, '1', null]) {
    chunk(0);
    assert.throws(() => complete({ totalChunks }), { message: `1 chunks came, not ${totalChunks}` });
    assert.throws(() => complete({ totalChunks: 1 }), { message: 'the end of an unknown transfer' });
  }
  assert.throws(() => chunk(0, { path: '..' }), { message: /leaves/ });
  assert.throws(() => chunk(1), { message: 'chunk 1 of an unknown transfer' });
  assert.deepEqual(names(), []);
});

test('a pushed file has up to 100 MiB', (t) => {
  const { chunk, complete, names } = makeReceiver(t);
  t.mock.method(fs, 'appendFileSync', () => {}); // what counts is what came
  const data = Buffer.alloc(20 * 2 ** 20).toString('base64');
  for (let index = 0; index < 5; index += 1) chunk(index, { data });
  assert.throws(() => chunk(5), { message: 'a file may have 104857600 bytes' });
  assert.throws(() => complete(), { message: 'the end of an unknown transfer' });
  assert.deepEqual([names(), MAX_FILE], [[], 104_857_600]);
});

// ---- from the guest ---------------------------------------------------------------------------------------------------

test('every regular file is found, but not what is skipped', (t) => {
  const { config } = makeGuest(t);
  const at = (...parts) => path.join(config.workspace, ...parts);
  for (const name of ['a', 'ipc/requests', 'z/deep']) fs.mkdirSync(at(name), { recursive: true });
  for (const name of ['a/1', 'ipc/2', 'ipc/requests/3', 'jpc', 'z/4', 'z/deep/5', 'z/ipc']) fs.writeFileSync(at(name), '');
  fs.symlinkSync('jpc', at('link'));
  fs.symlinkSync('z', at('folder'));
  spawnSync('mkfifo', [at('pipe')]);
  assert.deepEqual([...snapshot(config.workspace, own, config.ipcDir).keys()].sort(), ['a/1', 'jpc', 'z/4', 'z/deep/5', 'z/ipc']);
  assert.deepEqual([...snapshot(at('none'), own, config.ipcDir)], []);
});

test('of very many files two hundred thousand are looked at', (t) => {
  const { config } = makeGuest(t);
  const [readdir, lstat] = [fs.readdirSync, fs.lstatSync];
  t.after(() => Object.assign(fs, { readdirSync: readdir, lstatSync: lstat }));
  const entry = (name) => ({ name, isDirectory: () => name === 'folder', isFile: () => name !== 'folder' });
  const names = ['folder', ...Array.from({ length: 199_999 }, (_, at) => String(at))];
  fs.readdirSync = (folder) => (folder.endsWith('folder') ? [entry('1'), entry('2')] : [...names, 'more'].map(entry));
  fs.lstatSync = () => ({ ino: 1, size: 1, mtimeMs: 1, ctimeMs: 1 });
  const files = snapshot(config.workspace, own, config.ipcDir);
  assert.deepEqual([files.size, files.has('folder/2'), files.has('199997'), files.has('199998')], [200_000, true, true, false]);
});

test('a file has changed if its content, its time or its number has', (t) => {
  const { config } = makeGuest(t);
  const names = ['same', 'size', 'time', 'number', 'gone', 'hidden'];
  const at = (name) => path.join(config.workspace, name);
  for (const name of names) fs.writeFileSync(at(name), 'x');
  const before = snapshot(config.workspace, own, config.ipcDir);
  const { atime, mtime } = fs.statSync(at('size'));
  fs.writeFileSync(at('size'), 'xy');
  fs.utimesSync(at('time'), 1000, 1000);
  fs.writeFileSync(at('hidden'), 'y');
  fs.utimesSync(at('hidden'), atime, mtime);
  fs.writeFileSync(at('other'), 'x');
  fs.renameSync(at('other'), at('number'));
  fs.rmSync(at('gone'));
  fs.writeFileSync(at('new'), 'x');
  const after = snapshot(config.workspace, own, config.ipcDir);
  assert.deepEqual(changedFiles(before, after).sort(), ['hidden', 'new', 'number', 'size', 'time']);
  assert.deepEqual(changedFiles(after, after), []);
});

/** The messages with which a file is sent. */
async function messagesOf(root, name) {
  const messages = [];
  await sendFile(root, name, own, 'r', async (message) => void messages.push(message));
  return messages;
}

test('a file is sent in one message or in chunks, which together are the file', async (t) => {
  const { root } = makeGuest(t);
  for (const size of [0, 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1]) {
    const bytes = Buffer.from(Array.from({ length: 251 }, (_, at) => at));
    const content = Buffer.alloc(size, bytes);
    fs.writeFileSync(path.join(root, 'file'), content);
    const messages = await messagesOf(root, 'file');
    if (size <= CHUNK) {
      assert.deepEqual(messages, [{ type: 'file_sync', requestId: 'r', path: 'file', data: content.toString('base64') }]);
      continue;
    }
    const totalChunks = size <= 2 * CHUNK ? 2 : 3;
    const { transferId } = messages[0];
    const common = { requestId: 'r', transferId, path: 'file', totalChunks };
    const chunks = messages.slice(0, -1).map(({ data, ...rest }) => rest);
    assert.deepEqual(chunks, Array.from({ length: totalChunks }, (_, chunkIndex) => ({ type: 'file_sync_chunk', ...common, chunkIndex })));
    assert.deepEqual(messages.at(-1), { type: 'file_sync_complete', ...common });
    assert.ok(Buffer.concat(messages.slice(0, -1).map(({ data }) => Buffer.from(data, 'base64'))).equals(content));
    assert.match(transferId, /^[\da-f-]{36}$/);
  }
  assert.equal(CHUNK, 512 * 1024);
});

test('what is too large, a link, or no file any more is not sent', async (t) => {
  const { root } = makeGuest(t);
  const descriptors = fs.readdirSync('/proc/self/fd').length;
  fs.writeFileSync(path.join(root, 'large'), '');
  fs.truncateSync(path.join(root, 'large'), MAX_FILE + 1);
  await assert.rejects(messagesOf(root, 'large'), { message: 'larger than 104857600 bytes' });
  fs.symlinkSync('large', path.join(root, 'link'));
  await assert.rejects(messagesOf(root, 'link'), { code: 'ELOOP' });
  await assert.rejects(messagesOf(root, 'none'), { code: 'ENOENT' });
  spawnSync('mkfifo', [path.join(root, 'pipe')]);
  assert.deepEqual(await messagesOf(root, 'pipe'), []);
  fs.truncateSync(path.join(root, 'large'), MAX_FILE);
  let sent = 0;
  await sendFile(root, 'large', own, 'r', async ({ type }) => (type === 'file_sync_chunk' && (sent += 1) === 2 ? Promise.reject(new Error('enough')) : undefined)).catch(({ message }) => assert.equal(message, 'enough'));
  assert.deepEqual([sent, fs.readdirSync('/proc/self/fd').length], [2, descriptors]);
});
