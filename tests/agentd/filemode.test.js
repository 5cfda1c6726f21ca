'use strict';

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { test } = require('node:test');
const { setTimeout: delay } = require('node:timers/promises');
const { FAST, makeGuest, startHost, until } = require('./helpers');

const sh = (script, ...words) => ['/bin/sh', '-c', script, 'sh', ...words];

test('the heartbeat has the contract keys and is replaced as a whole', async (t) => {
  const guest = makeGuest(t);
  fs.writeFileSync(guest.config.releaseFile, 'IMGKIT_IMAGE="alpine"\nIMGKIT_BUILD_ID=abc\nOTHER=x\n');
  const host = await startHost(t, { guest });
  const first = JSON.parse(fs.readFileSync(host.ipc('heartbeat'), 'utf8'));
  assert.deepEqual(Object.keys(first), ['timestamp', 'pid', 'uptime', 'ipcMode', 'ipcMounted', 'protocolVersion', 'image', 'buildId', 'system']);
  assert.ok(Math.abs(first.timestamp - Date.now()) < 5000);
  assert.equal(first.pid, process.pid);
  assert.deepEqual([first.ipcMode, first.ipcMounted, first.protocolVersion, first.image, first.buildId], ['file', true, 3, 'alpine', 'abc']);
  let beats = 0;
  let last = first.timestamp;
  await until('three more', () => {
    const beat = JSON.parse(fs.readFileSync(host.ipc('heartbeat'), 'utf8')); // never half
    if (beat.timestamp !== last) beats += 1;
    last = beat.timestamp;
    return beats >= 3;
  });
});

test('ipcMounted is false when the folder is not the share', async (t) => {
  const host = await startHost(t);
  host.mounter.mounted = false;
  await until('a beat that says so', () => JSON.parse(fs.readFileSync(host.ipc('heartbeat'), 'utf8')).ipcMounted === false);
});

test('a command runs in its cwd, its output comes back, its status is the result', async (t) => {
  const host = await startHost(t);
  fs.mkdirSync(path.join(host.config.workspace, 'project'));
  const good = await host.run('a1', { command: sh('pwd; echo err >&2; cat'), cwd: path.join(host.config.workspace, 'project'), prompt: 'in' });
  assert.deepEqual([good.subtype, good.exitCode, good.signal], ['success', 0, null]);
  assert.equal(host.output('a1').toString(), `${path.join(fs.realpathSync(host.config.workspace), 'project')}\nin`);
  assert.equal(host.output('a1', 'stderr').toString(), 'err\n');
  const bad = await host.run('a2', { command: sh('exit 7') });
  assert.deepEqual([bad.subtype, bad.exitCode], ['error', 7]);
  const killed = await host.run('a3', { command: sh('kill -9 $$') });
  assert.deepEqual([killed.subtype, killed.exitCode, killed.signal], ['error', null, 'SIGKILL']);
  const missing = await host.run('a4', { command: ['no-such-program'] });
  assert.deepEqual([missing.subtype, missing.exitCode], ['error', 127]);
  assert.match(missing.result, /no-such-program/);
});

test('a half-written request is not executed and not lost', async (t) => {
  const host = await startHost(t);
  const text = JSON.stringify({ command: sh('echo done') });
  for (let end = 0; end < text.length; end += 4) {
    host.send('half', text.slice(0, end));
    await delay(5);
    assert.deepEqual(host.events('half'), []);
  }
  assert.equal((await host.run('half', text)).subtype, 'success');
});

test('a file that never becomes a request ends in an error and is kept', async (t) => {
  const host = await startHost(t);
  for (const [id, text] of Object.entries({ garbage: '{"prompt": ', empty: '', list: '[1]', number: '12', binary: '\0\u{fffd}' })) {
    host.send(id, text);
    const result = await host.result(id);
    assert.equal(result.subtype, 'error');
    assert.match(result.result, /not a JSON object/);
    assert.equal(fs.readFileSync(host.ipc('requests', `${id}.json.rejected`), 'utf8'), text);
  }
});

test('wrong types are refused by name', async (t) => {
  const host = await startHost(t);
  const wrong = { prompt: 1, cwd: [], env: { A: 1 }, mounts: [], command: [], autoApprove: 'yes' };
  for (const [key, value] of Object.entries(wrong)) {
    const result = await host.run(`w-${key}`, { command: ['true'], [key]: value });
    assert.equal(result.subtype, 'error');
    assert.match(result.result, new RegExp(`"${key}"`));
  }
  assert.equal((await host.run('unknown', { command: ['true'], whatever: 1, prompt: null })).subtype, 'success');
});

test('a hundred requests at once run one after the other, oldest first, each once', async (t) => {
  const host = await startHost(t);
  const trace = path.join(host.root, 'trace');
  const ids = Array.from({ length: 100 }, (_, i) => `r${String(i).padStart(3, '0')}`);
  for (const [i, id] of ids.entries()) {
    const file = host.ipc('requests', `.${id}`);
    fs.writeFileSync(file, JSON.stringify({ command: sh('echo "+$1" >> "$2"; echo "-$1" >> "$2"', id, trace) }));
    fs.utimesSync(file, 1000, 1000 + i);
    fs.renameSync(file, host.ipc('requests', `${id}.json`));
  }
  for (const id of ids) assert.equal((await host.result(id, 30_000)).subtype, 'success');
  const lines = fs.readFileSync(trace, 'utf8').trim().split('\n');
  assert.equal(lines.length, 200);
  for (let i = 0; i < 200; i += 2) assert.equal(lines[i].slice(1), lines[i + 1].slice(1), 'two requests overlapped');
  assert.equal(new Set(lines).size, 200);
});

test('a request that an earlier agentd began is not run again, one that it ended is only removed', async (t) => {
  const guest = makeGuest(t);
  const dir = (name) => path.join(guest.config.ipcDir, name);
  for (const name of ['requests', 'streams', 'responses']) fs.mkdirSync(dir(name));
  const request = JSON.stringify({ command: sh('touch "$1"', path.join(guest.root, 'ran')) });
  for (const id of ['begun', 'ended', 'forged']) fs.writeFileSync(path.join(dir('requests'), `${id}.json`), request);
  const line = (event) => `${JSON.stringify({ type: 'sdk_event', event })}\n`;
  fs.writeFileSync(path.join(dir('streams'), 'begun.log'), `${line({ type: 'started' })}{"type":"sdk_ev`);
  fs.writeFileSync(path.join(dir('streams'), 'ended.log'), line({ type: 'started' }) + line({ type: 'result', subtype: 'success' }));
  fs.writeFileSync(path.join(dir('streams'), 'forged.log'), line({ type: 'x', a: { type: 'sdk_event', event: { type: 'result' } } }));
  const host = await startHost(t, { guest });
  await until('all three', () => fs.readdirSync(dir('requests')).length === 0);
  assert.ok(!fs.existsSync(path.join(guest.root, 'ran')));
  const lines = fs.readFileSync(path.join(dir('streams'), 'begun.log'), 'utf8').trim().split('\n');
  assert.match(JSON.parse(lines.at(-1)).event.result, /not run again/);
  assert.equal(host.results('ended').length, 1);
  assert.equal(host.results('forged').length, 1);
  assert.equal((await host.run('next', { command: ['true'] })).subtype, 'success');
});

test('an id that is written again at once is only removed', async (t) => {
  const host = await startHost(t);
  for (let round = 0; round < 5; round += 1) {
    await host.run('same', { command: ['/bin/sh', '-c', 'echo ran'] });
    assert.equal(host.output('same').toString(), 'ran\n');
  }
});

test('cancelling ends the whole process group, and what waits', async (t) => {
  const host = await startHost(t);
  const pids = path.join(host.root, 'pids');
  host.send('long', { command: sh('trap "" TERM; sleep 100 & echo $! $$ > "$1"; echo up; wait; sleep 100', pids) });
  await until('the agent', () => host.output('long').toString() === 'up\n');
  host.send('waits', { command: ['true'] });
  fs.writeFileSync(host.ipc('requests', 'waits.cancel'), '');
  fs.writeFileSync(host.ipc('requests', 'long.cancel'), '');
  const result = await host.result('long');
  assert.deepEqual([result.subtype, result.cancelled], ['error', true]);
  assert.equal((await host.result('waits')).subtype, 'error');
  const alive = fs.readFileSync(pids, 'utf8').trim().split(' ').filter((pid) => fs.existsSync(`/proc/${pid}/status`) && !/State:\tZ/.test(fs.readFileSync(`/proc/${pid}/status`, 'utf8')));
  assert.deepEqual(alive, []);
  await until('the cancel files to go', () => fs.readdirSync(host.ipc('requests')).length === 0);
});

test('a background process that keeps the pipes does not hold up the result', async (t) => {
  const host = await startHost(t);
  const start = performance.now();
  const result = await host.run('bg', { command: sh('setsid sleep 60 & echo out') });
  assert.equal(result.subtype, 'success');
  assert.equal(host.output('bg').toString(), 'out\n');
  assert.ok(performance.now() - start < 30_000);
});

test('stopping agentd ends the running request and leaves the waiting ones', async (t) => {
  const host = await startHost(t);
  host.send('one', { command: sh('echo up; exec sleep 100') });
  await until('the agent', () => host.output('one').length > 0);
  host.send('two', { command: ['true'] });
  await delay(5 * FAST.poll);
  await host.supervisor.stop('the end');
  assert.equal(host.results('one').length, 1, 'agentd waits for it');
  assert.equal((await host.result('one')).result, 'the end');
  assert.deepEqual(fs.readdirSync(host.ipc('requests')), ['two.json']);
  assert.deepEqual(host.events('two'), []);
});

test('paths outside are refused before anything runs', async (t) => {
  const host = await startHost(t);
  fs.symlinkSync('/etc', path.join(host.config.workspace, 'link'));
  const touch = sh('touch "$1"', path.join(host.root, 'ran'));
  const paths = ['/etc', 'relative', `${host.config.workspace}/../../etc`, `${host.config.workspace}/link`, `${host.config.workspace}/none`, host.config.ipcDir];
  for (const [i, cwd] of paths.entries()) {
    const result = await host.run(`c${i}`, { command: touch, cwd });
    assert.equal(result.subtype, 'error', cwd);
    assert.match(result.result, /cwd/);
  }
  assert.ok(!fs.existsSync(path.join(host.root, 'ran')));
});

test('a mount that fails ends the request before the agent', async (t) => {
  const host = await startHost(t);
  host.mounter.failure = new Error('mount "work": no');
  const mounts = { work: { tag: 'work', guestPath: path.join(host.config.workspace, 'project') } };
  const result = await host.run('m', { command: sh('touch "$1"', path.join(host.root, 'ran')), mounts });
  assert.deepEqual([result.subtype, result.result], ['error', 'mount "work": no']);
  assert.deepEqual(host.mounter.wanted.map(({ name, tag }) => [name, tag]), [['work', 'work']]);
  assert.ok(!fs.existsSync(path.join(host.root, 'ran')));
});

test('the share may lose its folders and get them back', async (t) => {
  const host = await startHost(t);
  for (const name of ['requests', 'streams', 'responses']) fs.rmSync(host.ipc(name), { recursive: true });
  await until('the folders', () => fs.existsSync(host.ipc('requests')) && fs.existsSync(host.ipc('streams')));
  assert.equal((await host.run('after', { command: ['true'] })).subtype, 'success');
  fs.rmSync(host.config.ipcDir, { recursive: true });
  await until('a new mount to be tried', () => host.mounter.remounts > 0);
  fs.mkdirSync(host.config.ipcDir, { mode: 0o755 });
  await until('the folders', () => fs.existsSync(host.ipc('requests')) && fs.existsSync(host.ipc('streams')));
  assert.equal((await host.run('again', { command: ['true'] })).subtype, 'success');
});

test('a quiet folder is only asked for its time, and what is new is found at once', async (t) => {
  const guest = makeGuest(t, { times: { ...FAST, rescan: 60_000 } });
  const host = await startHost(t, { guest });
  assert.equal((await host.run('first', { command: sh('true') })).subtype, 'success');
  const now = performance.now.bind(performance);
  const reads = t.mock.method(require('node:fs/promises'), 'readdir');
  let later = 0;
  t.mock.method(performance, 'now', () => now() + later);
  const quiet = async () => {
    later += 61_000; // the clock is moved, not waited for
    await delay(50);
    reads.mock.resetCalls();
    await delay(100);
    return reads.mock.callCount() === 0;
  };
  await until('it is quiet', quiet, 1_000_000); // of the moved clock: some 16 tries
  assert.equal((await host.run('second', { command: sh('true') })).subtype, 'success');
  assert.ok(reads.mock.callCount() > 0);
});

test('a folder whose time does not change is read all the same', async (t) => {
  const guest = makeGuest(t, { times: { ...FAST, rescan: 100 } });
  const host = await startHost(t, { guest });
  await delay(250);
  const { atime, mtime } = fs.statSync(host.ipc('requests'));
  t.mock.method(fs, 'fstatSync', () => ({ mtimeNs: 1n, nlink: 2n }));
  await delay(250);
  host.send('hidden', { command: sh('true') });
  fs.utimesSync(host.ipc('requests'), atime, mtime);
  assert.equal((await host.result('hidden')).subtype, 'success');
});
