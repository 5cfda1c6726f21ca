'use strict';
// What connects the parts of agentd, and its small ones: the start, the end, the heartbeat, the log, the queue, a stream.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const fsp = require('node:fs/promises');
const path = require('node:path');
const { test } = require('node:test');
const { setTimeout: delay } = require('node:timers/promises');
const { FAST, FakeMounter, FakeSystem, LIMITS, PAYLOAD, launch, makeGuest, makeLog, payload, startHost, until } = require('./helpers');
const { makeHeartbeat, readRelease, writeHeartbeat } = payload('heartbeat');
const { Log } = payload('log');
const { RequestQueue } = payload('queue');
const serial = payload('serial');
const { StreamFile } = payload('stream');
const { Supervisor } = payload('supervisor');

function makeSupervisor(t, { times = {}, ...overrides } = {}) {
  const guest = makeGuest(t, { times: { ...FAST, ...times } });
  const parts = { config: guest.config, log: makeLog(), mounter: new FakeMounter(), launch, system: new FakeSystem(), ...overrides };
  const supervisor = new Supervisor(parts);
  t.after(() => supervisor.stop('test ends'));
  return { ...guest, ...parts, supervisor };
}

/** A channel that notes its heartbeats. */
const fakeChannel = () => ({ mode: 'serial', mounted: null, beats: [], async beat(beat) { this.beats.push(beat); }, async run() {}, stop() { this.stopped = true; } }); // prettier-ignore

test('the share is tried before the port, again and again', async (t) => {
  const { mounter, supervisor, log, config } = makeSupervisor(t, { times: { portSearch: 50 } });
  const begun = performance.now();
  let tries = 0;
  mounter.mountIpc = async () => (tries += 1) === 3;
  const find = t.mock.method(serial, 'findPort', () => undefined);
  await supervisor.start();
  assert.deepEqual([tries, find.mock.callCount(), find.mock.calls[0].arguments], [3, 2, ['ipc.0']]);
  assert.ok(performance.now() - begun >= 290, 'after 100 ms, then after 200 ms');
  assert.deepEqual(log.lines, ['no share "ipc" and no port "ipc.0"; still looking', `ready: file mode, pid ${process.pid}`]);
  assert.ok(fs.existsSync(path.join(config.ipcDir, 'heartbeat')));
});

test('the port is taken where there is no share', async (t) => {
  const { mounter, supervisor, log } = makeSupervisor(t, { times: { portSearch: 10_000 } });
  mounter.mounted = false;
  const channel = fakeChannel();
  t.mock.method(serial, 'findPort', () => '/dev/vport0p1');
  const open = t.mock.method(serial, 'openSerial', () => channel);
  await supervisor.start();
  assert.equal(open.mock.calls[0].arguments[0], '/dev/vport0p1');
  assert.deepEqual(log.lines, [`ready: serial mode, pid ${process.pid}`]);
  assert.deepEqual([channel.beats[0].ipcMode, channel.beats[0].ipcMounted], ['serial', null]);
  await until('more', () => channel.beats.length > 3);
  await supervisor.stop('enough');
  const count = channel.beats.length;
  await delay(3 * FAST.heartbeat);
  assert.deepEqual([channel.stopped, channel.beats.length], [true, count]);
});

test('a share that cannot be used is reported, and found usable later', async (t) => {
  const { supervisor, log, config } = makeSupervisor(t);
  fs.rmdirSync(config.ipcDir);
  await supervisor.start();
  assert.match(log.lines[0], /^the ipc share is not usable: ENOENT/);
  assert.ok(log.lines.includes(`ready: file mode, pid ${process.pid}`));
  fs.mkdirSync(config.ipcDir);
  await until('a heartbeat', () => fs.existsSync(path.join(config.ipcDir, 'heartbeat')));
});

test('an account that is not there is an alarm at the start', async (t) => {
  const { supervisor, log, config } = makeSupervisor(t);
  fs.writeFileSync(config.passwdFile, 'root:x:0:0::/:\n');
  await supervisor.start();
  assert.deepEqual(log.lines, ['AGENT_USER agent does not exist in this image', `ready: file mode, pid ${process.pid}`]);
});

test('agentd can be stopped before it has started, and twice', async (t) => {
  const { supervisor } = makeSupervisor(t);
  supervisor.forward('SIGTERM');
  await supervisor.stop('early');
  await supervisor.stop('again');
  const host = await startHost(t);
  await host.supervisor.stop('over');
  assert.ok(!fs.existsSync(host.socket), 'nobody may ask any more');
});

test('the heartbeat names the image where the build has written it', (t) => {
  const { root } = makeGuest(t);
  const file = path.join(root, 'release');
  assert.deepEqual(readRelease(file), {});
  for (const [text, image] of Object.entries({ 'IMGKIT_IMAGE=a b\n': 'a b', "IMGKIT_IMAGE='a'\n": 'a', 'IMGKIT_IMAGE="a\'': '"a\'', 'X=1\nIMGKIT_IMAGE=a=b': 'a=b', ' IMGKIT_IMAGE=a': undefined, 'IMGKIT_IMAGE=': '' })) {
    fs.writeFileSync(file, text);
    assert.deepEqual(readRelease(file), { image, buildId: undefined }, text);
  }
  fs.writeFileSync(file, 'IMGKIT_BUILD_ID="7"\nIMGKIT_IMAGE=box\n');
  const { timestamp, uptime, ...rest } = makeHeartbeat('file', true, readRelease(file), { hostname: true });
  assert.deepEqual(rest, { pid: process.pid, ipcMode: 'file', ipcMounted: true, protocolVersion: 3, image: 'box', buildId: '7', system: { hostname: true } });
  assert.ok(Math.abs(timestamp - Date.now()) < 5000 && Math.abs(uptime - process.uptime()) < 5);
  writeHeartbeat(root, { n: 1 });
  writeHeartbeat(root, { n: 20 });
  fs.writeFileSync(path.join(root, `.heartbeat.${process.pid}`), 'left by a crash, and longer');
  writeHeartbeat(root, { n: 3 });
  assert.deepEqual([fs.readFileSync(path.join(root, 'heartbeat'), 'utf8'), fs.readdirSync(root).filter((name) => name.startsWith('.'))], ['{"n":3}', []]);
});

test('a message is a line of the log; a grave one is on the console as well', (t) => {
  const { config } = makeGuest(t);
  const { mock } = t.mock.method(process.stderr, 'write', () => true);
  const log = new Log(config);
  log.info('a');
  assert.match(mock.calls[0].arguments[0], /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z a\n$/);
  assert.equal(fs.readFileSync(config.consoleFile, 'utf8'), '');
  const open = () => fs.readdirSync('/proc/self/fd').length;
  const before = open();
  log.alarm('b');
  log.once('k', 'c');
  log.once('k', 'not again');
  log.once('l', 'd');
  log.forget('k');
  log.once('k', 'e');
  assert.equal(fs.readFileSync(config.consoleFile, 'utf8').replaceAll('\0', ''), 'agentd: e\n', 'a file is written from its start');
  assert.equal(open(), before);
  assert.equal(mock.calls.length, 5);
  fs.rmSync(config.consoleFile);
  log.alarm('f');
  assert.equal(mock.calls.length, 6);
  assert.ok(!fs.existsSync(config.consoleFile));
});

test('requests run one after the other until the queue is closed, and those that wait then are left', async () => {
  const [begun, ended] = [[], []];
  const run = ({ id, signal }) =>
    new Promise((resolve) => {
      begun.push(id);
      signal.addEventListener('abort', () => (ended.push(signal.reason.message), resolve()));
    });
  const queue = new RequestQueue(run, 2);
  for (const id of ['a', 'b', 'c']) queue.add(id, {});
  assert.deepEqual([begun, queue.has('a'), queue.has('c'), queue.hasRoom()], [['a'], true, true, false]);
  queue.cancel('a');
  await delay(1);
  assert.deepEqual([begun, ended, queue.has('a')], [['a', 'b'], ['cancelled by the host'], false]);
  const closed = queue.close('over');
  assert.deepEqual([queue.has('b'), queue.has('c'), queue.hasRoom()], [true, false, false]);
  await closed;
  await delay(1);
  assert.deepEqual([begun, ended[1], queue.has('b')], [['a', 'b'], 'over', false]);
  await new RequestQueue(run, 2).close('nothing runs');
});

test('what waits for a stream is counted, and can be dropped but for what is being written', async (t) => {
  const { root } = makeGuest(t);
  const file = path.join(root, 'x.log');
  const failures = [];
  let away = true;
  const where = () => {
    if (away) throw new Error('away');
    return file;
  };
  const stream = new StreamFile(where, { retry: 5 }, ({ message }) => failures.push(message));
  assert.equal(stream.stalledSince, undefined);
  const writes = [1, 2, 3].map((n) => stream.write({ n }));
  assert.equal(stream.pending, 24);
  await until('two failures', () => failures.length > 1);
  assert.ok(performance.now() - stream.stalledSince < 60_000);
  const since = stream.stalledSince;
  await until('two more', () => failures.length > 3);
  assert.equal(stream.stalledSince, since, 'the first one counts');
  stream.discard();
  await Promise.all(writes.slice(1));
  assert.equal(stream.pending, 8);
  away = false;
  await writes[0];
  await stream.write({ n: 4 });
  assert.deepEqual([stream.pending, stream.stalledSince], [0, undefined]);
  await stream.close();
  await stream.close();
  await stream.write({ n: 5 });
  await stream.close();
  assert.equal(fs.readFileSync(file, 'utf8'), '{"n":1}\n{"n":4}\n{"n":5}\n');
  assert.equal(fs.statSync(file).mode & 0o777, 0o644 & ~process.umask());
  assert.ok(failures.every((message) => message === 'away'));
});

test('a stream is opened anew after a failure', async (t) => {
  const { root } = makeGuest(t);
  const open = fsp.open;
  let [opened, closed] = [0, 0];
  t.mock.method(fsp, 'open', async (...args) => {
    const handle = await open(...args);
    opened += 1;
    const close = handle.close.bind(handle);
    handle.close = () => ((closed += 1), close());
    if (opened === 1) handle.write = async () => Promise.reject(new Error('stale'));
    return handle;
  });
  const stream = new StreamFile(() => path.join(root, 'x.log'), { retry: 1 });
  await stream.write({ n: 1 });
  await stream.write({ n: 2 });
  assert.deepEqual([opened, closed], [2, 1]);
  await stream.close();
  assert.equal(closed, 2);
  assert.ok(LIMITS.backlog > 0);
});

test('the program: what it does at its start, with signals, and with faults', async (t) => {
  const [told, handlers] = [[], {}];
  const [logs, supervisors] = [payload('log'), payload('supervisor')];
  const note = (name) => (...args) => void told.push([name, ...args]);
  t.mock.method(process, 'on', (name, handler) => (handlers[name] = handler));
  t.mock.method(process, 'kill', note('kill'));
  t.mock.method(process, 'umask', note('umask'));
  t.mock.method(process, 'setgroups', note('setgroups'));
  const getuid = t.mock.method(process, 'getuid', () => 0);
  const log = { info: note('info'), alarm: note('alarm') };
  const supervisor = { start: async () => note('start')(), stop: async (reason) => note('stop')(reason), forward: note('forward') };
  t.mock.method(logs, 'Log', function () { return log; }); // prettier-ignore
  t.mock.method(supervisors, 'Supervisor', function (parts) { return Object.assign(supervisor, { parts }); }); // prettier-ignore
  const index = path.join(PAYLOAD, 'index.js');
  const load = () => {
    delete require.cache[index];
    require(index);
    return told.splice(0);
  };
  assert.deepEqual(load(), [['umask', 0o022], ['setgroups', []], ['start']]);
  assert.deepEqual([Object.keys(supervisor.parts), supervisor.parts.log], [['config', 'log', 'mounter'], log]);
  getuid.mock.mockImplementation(() => 1000);
  assert.deepEqual(load(), [['umask', 0o022], ['start']]);
  assert.deepEqual(Object.keys(handlers).sort(), ['SIGHUP', 'SIGINT', 'SIGTERM', 'SIGUSR1', 'SIGUSR2', 'uncaughtException', 'unhandledRejection']);
  for (const signal of ['SIGHUP', 'SIGUSR1', 'SIGUSR2']) handlers[signal]();
  assert.deepEqual(told.splice(0), [['forward', 'SIGHUP'], ['forward', 'SIGUSR1'], ['forward', 'SIGUSR2']]);
  const killed = ['kill', process.pid, 'SIGKILL'];
  for (const signal of ['SIGTERM', 'SIGINT']) {
    handlers[signal]();
    await delay(1);
    assert.deepEqual(told.splice(0), [['info', `${signal}: ending`], ['stop', 'agentd is being stopped'], killed]);
  }
  supervisor.stop = async () => Promise.reject(new Error('no end'));
  handlers.SIGTERM();
  await delay(1);
  const [, [, message], end] = told.splice(0);
  assert.match(message, /^crashed: Error: no end\n +at /);
  assert.deepEqual(end, killed);
  for (const name of ['uncaughtException', 'unhandledRejection']) {
    handlers[name]('a text');
    assert.deepEqual(told.splice(0), [['alarm', 'crashed: a text'], killed]);
  }
});
