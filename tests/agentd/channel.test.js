'use strict';
// The channel over the share, without the rest of agentd: what it asks of the queue and of the mounter, and when it reads what.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const fsp = require('node:fs/promises');
const path = require('node:path');
const { test } = require('node:test');
const { setTimeout: delay } = require('node:timers/promises');
const { FAST, FakeMounter, LIMITS, makeGuest, makeLog, payload, until } = require('./helpers');
const { FileChannel } = payload('filemode');

/** A channel whose queue only notes what it is told. */
function makeChannel(t, { times = {}, limits = {} } = {}) {
  const { config } = makeGuest(t, { times: { ...FAST, poll: 1, ...times }, limits: { ...LIMITS, ...limits } });
  const [log, mounter] = [makeLog(), new FakeMounter()];
  const channel = new FileChannel(config, log, mounter);
  channel.makeFolders();
  t.after(() => channel.stop());
  const queue = { calls: [], room: Infinity, held: new Set() };
  queue.hasRoom = () => queue.added().length < queue.room;
  queue.has = (id) => queue.held.has(id);
  queue.add = (id, data) => queue.calls.push(['add', id, data]);
  queue.cancel = (id) => queue.calls.push(['cancel', id]);
  queue.added = () => queue.calls.filter(([what]) => what === 'add').map(([, id]) => id);
  const reads = t.mock.method(fsp, 'readdir').mock;
  /** Wait until the folder has been read twice: the second time from its start on. */
  const turn = async () => {
    reads.resetCalls();
    await until('the folder to be read', () => reads.callCount() > 2);
  };
  const file = (...parts) => path.join(config.ipcDir, ...parts);
  const write = (name, text = '{}') => fs.writeFileSync(file('requests', name), text);
  /** Read the requests exactly once. */
  const scan = async () => {
    const over = channel.run(queue);
    channel.stop();
    await over;
  };
  return { config, channel, log, mounter, queue, reads, file, write, scan, turn };
}

/** How many descriptors lead into a folder. */
function heldIn(folder) {
  const real = fs.realpathSync(folder);
  return fs.readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return fs.readlinkSync(`/proc/self/fd/${fd}`).startsWith(real);
    } catch {
      return false; // the descriptor of this very reading
    }
  }).length;
}

test('folders are made in the share only, not in place of it', (t) => {
  const { channel, config } = makeChannel(t);
  assert.deepEqual(fs.readdirSync(config.ipcDir).sort(), ['requests', 'responses', 'streams']);
  channel.makeFolders();
  const none = new FileChannel({ ...config, ipcDir: path.join(config.workspace, 'none') }, makeLog(), new FakeMounter());
  assert.throws(() => none.makeFolders(), { code: 'ENOENT' });
  assert.deepEqual(fs.readdirSync(config.workspace), ['ipc']);
});

test('every third heartbeat in a row that cannot be written mounts the share again, and only the first is reported', async (t) => {
  const { channel, config, file, log, mounter } = makeChannel(t);
  fs.mkdirSync(file('heartbeat')); // no file can take its name
  for (let count = 1; count <= 7; count += 1) {
    await channel.beat({ ipcMounted: true });
    assert.equal(mounter.remounts, Math.floor(count / 3));
    assert.equal(heldIn(config.ipcDir), count % 3 === 0 ? 0 : 1, 'what is held could not be mounted again');
  }
  assert.equal(log.lines.length, 1);
  assert.match(log.lines[0], /^the heartbeat cannot be written: E/);
  fs.rmdirSync(file('heartbeat'));
  await channel.beat({ ipcMounted: true });
  fs.rmSync(file('heartbeat'));
  fs.mkdirSync(file('heartbeat'));
  for (const remounts of [2, 2, 3]) {
    await channel.beat({ ipcMounted: true });
    assert.equal(mounter.remounts, remounts, 'counted anew');
  }
  assert.equal(log.lines.length, 2);
});

test('a share that is full is not mounted again', async (t) => {
  const { channel, log, mounter } = makeChannel(t);
  t.mock.method(fs, 'writeFileSync', () => {
    throw Object.assign(new Error('no space left'), { code: 'ENOSPC' });
  });
  for (let count = 1; count <= 6; count += 1) await channel.beat({ ipcMounted: true });
  assert.deepEqual([mounter.remounts, log.lines], [0, ['the heartbeat cannot be written: no space left']]);
});

test('a share that is away is mounted with the next heartbeat, which says so', async (t) => {
  const { channel, config, file, mounter } = makeChannel(t);
  const beat = () => JSON.parse(fs.readFileSync(file('heartbeat'), 'utf8'));
  mounter.mounted = false;
  await channel.beat({ ipcMounted: false, n: 1 });
  assert.deepEqual([beat(), heldIn(config.ipcDir)], [{ ipcMounted: false, n: 1 }, 0]);
  mounter.mounted = true;
  await channel.beat({ ipcMounted: false, n: 2 });
  assert.deepEqual(beat(), { ipcMounted: true, n: 2 });
  mounter.mounted = false; // it went away after the beat was made
  await channel.beat({ ipcMounted: true, n: 3 });
  assert.deepEqual([beat().n, heldIn(config.ipcDir)], [2, 0]);
});

test('only files that are named like requests are read, the oldest first, and of the same age by name', async (t) => {
  const { queue, file, scan, write } = makeChannel(t);
  for (const name of ['b.json', 'c.json', 'a.json', 'old.json', '.hidden.json', '-x.json', 'x.txt', 'x', 'x.json.tmp', 'y.json.rejected']) {
    write(name, JSON.stringify({ name }));
    fs.utimesSync(file('requests', name), 1000, name === 'old.json' ? 999 : 1000);
  }
  await scan();
  assert.deepEqual(queue.calls, ['old', 'a', 'b', 'c'].map((id) => ['add', id, { name: `${id}.json` }]));
});

test('a request that is cancelled before it is read is cancelled when it is queued', async (t) => {
  const { queue, file, scan, write } = makeChannel(t);
  for (const name of ['a.json', 'b.json', 'b.cancel', '-x.cancel']) write(name);
  fs.utimesSync(file('requests/b.json'), 1000, 1000);
  await scan();
  assert.deepEqual(queue.calls, [['cancel', 'b'], ['add', 'b', {}], ['cancel', 'b'], ['add', 'a', {}]]);
  assert.equal(heldIn(file('requests')), 0, 'nothing is held when it has stopped');
});

test('what the queue has no room for stays in the share', async (t) => {
  const { channel, queue, turn, write } = makeChannel(t);
  queue.room = 2;
  for (const name of ['a.json', 'b.json', 'c.json']) write(name);
  void channel.run(queue);
  await turn();
  assert.equal(queue.added().length, 2);
  queue.room = 3;
  await turn();
  assert.deepEqual(queue.added().sort(), ['a', 'b', 'c']);
});

test('an id is taken once, until its file and its request are gone', async (t) => {
  const { channel, queue, file, turn, write } = makeChannel(t);
  queue.held.add('a');
  write('a.json');
  void channel.run(queue);
  await turn();
  fs.rmSync(file('requests/a.json'));
  await turn();
  write('a.json');
  await turn();
  assert.equal(queue.added().length, 1, 'it is still running');
  fs.rmSync(file('requests/a.json'));
  queue.held.clear();
  await turn();
  write('a.json');
  await turn();
  assert.equal(queue.added().length, 2);
  await channel.finish('a');
  assert.deepEqual(fs.readdirSync(file('requests')), []);
  write('a.json');
  await turn();
  assert.equal(queue.added().length, 3);
});

test('how often a folder is read depends on when it has changed', { timeout: 20_000 }, async (t) => {
  const RESCAN = 1000;
  const { channel, queue, file, reads, turn, write } = makeChannel(t, { times: { rescan: RESCAN, garbage: Infinity } });
  let now = 0;
  t.mock.method(performance, 'now', () => now);
  const quiet = async () => {
    await delay(10); // what is under way
    reads.resetCalls();
    await delay(20);
    return reads.callCount() === 0;
  };
  void channel.run(queue);
  await turn();
  now = RESCAN - 1;
  await turn(); // it has changed not long ago
  now = RESCAN;
  assert.ok(await quiet());
  now = 2 * RESCAN - 2;
  assert.ok(await quiet());
  now = 2 * RESCAN - 1; // so long after it was read
  await delay(20);
  assert.ok(await quiet());
  write('half.json', '{');
  t.mock.method(fs, 'fstatSync', () => ({ mtimeNs: 1n, nlink: 1n })); // of a host that keeps no times
  await turn();
  now += 10 * RESCAN;
  await turn(); // a file is half-written
  write('half.json', '{}');
  await turn();
  now += 10 * RESCAN;
  await turn(); // a request is taken
  await channel.finish('half');
  now += RESCAN;
  await delay(20);
  assert.ok(await quiet());
  assert.deepEqual([queue.added(), fs.readdirSync(file('requests'))], [['half'], []]);
});

test('a folder that gets another in its place is read', async (t) => {
  const { channel, queue, file, log } = makeChannel(t, { times: { rescan: 50 } });
  void channel.run(queue);
  await delay(150);
  fs.renameSync(file('requests'), file('moved'));
  fs.mkdirSync(file('requests'));
  fs.writeFileSync(file('requests/a.json'), '{}');
  await until('the request', () => queue.added().length === 1);
  fs.rmSync(file('requests'), { recursive: true });
  await until('the folder', () => fs.existsSync(file('requests')));
  assert.match(log.lines.join('\n'), /^requests cannot be read: ENOENT/);
  assert.equal(log.lines.length, 1);
  fs.writeFileSync(file('requests/b.json'), '{}');
  await until('the next', () => queue.added().length === 2);
  fs.rmSync(file('requests'), { recursive: true });
  await until('the message', () => log.lines.length === 2);
  assert.ok(heldIn(file()) <= 2, 'no descriptor stays open');
});

test('a request may have as many bytes as the limit says; a larger one is refused at once, and kept', async (t) => {
  const { queue, file, scan, write } = makeChannel(t, { limits: { request: 10 } });
  write('a.json', '{"a":1234}');
  write('b.json', '{"a":12345}');
  fs.writeFileSync(file('requests/b.json.rejected'), 'an earlier one');
  await scan();
  assert.deepEqual(queue.added(), ['a', 'b']);
  assert.deepEqual(queue.calls[0][2], { a: 1234 });
  assert.equal(queue.calls[1][2].message, 'the request is too large');
  assert.equal(fs.readFileSync(file('requests/b.json.rejected'), 'utf8'), '{"a":12345}');
  assert.ok(!fs.existsSync(file('requests/a.json.rejected')));
});

test('what is no request is refused when it has not changed for as long as the limit says', { timeout: 20_000 }, async (t) => {
  const { channel, queue, file, turn, write } = makeChannel(t, { times: { garbage: 100 } });
  let now = 0;
  t.mock.method(performance, 'now', () => now);
  write('a.json', '{');
  void channel.run(queue);
  await turn();
  now = 99;
  await turn();
  assert.deepEqual(queue.calls, []);
  write('a.json', '{"');
  await turn();
  now = 198;
  await turn();
  assert.deepEqual(queue.calls, [], 'counted anew');
  now = 199;
  await turn();
  assert.deepEqual(queue.added(), ['a']);
  assert.equal(queue.calls[0][2].message, 'the request is not a JSON object');
  assert.equal(fs.readFileSync(file('requests/a.json.rejected'), 'utf8'), '{"');
});

test('what became of a request is in the last four lines of its stream', async (t) => {
  const { channel, file } = makeChannel(t);
  const result = '{"type":"sdk_event","event":{"type":"result"}}\n';
  const long = `${'x'.repeat(4 * 2 ** 20)}\n`;
  const cases = {
    new: [undefined, ''],
    begun: ['x', 'x\n', `x${result}`, `${result}a\nb\nc\n`, result + long, result.slice(1)],
    ended: [result, `x\n${result}`, `${result}a\nb\n`, long + result],
  };
  for (const [expected, texts] of Object.entries(cases)) {
    for (const text of texts) {
      fs.rmSync(file('streams/a.log'), { force: true });
      if (text !== undefined) fs.writeFileSync(file('streams/a.log'), text);
      assert.equal(await channel.history('a'), expected, text?.slice(0, 99));
    }
  }
  fs.rmSync(file('streams/a.log'));
  fs.symlinkSync('/etc/passwd', file('streams/a.log'));
  await assert.rejects(channel.history('a'), { code: 'ELOOP' });
  assert.equal(heldIn(file('streams')), 0);
});

test('a line that was torn is ended before the next one begins', async (t) => {
  const { channel, file } = makeChannel(t);
  for (const [before, after] of Object.entries({ '': '', 'a\n': 'a\n', '{"a': '{"a\n', 'a\nb': 'a\nb\n' })) {
    fs.writeFileSync(file('streams/a.log'), before);
    const stream = await channel.openStream('a');
    await stream.write({ n: 1 });
    await stream.close();
    assert.equal(fs.readFileSync(file('streams/a.log'), 'utf8'), `${after}{"n":1}\n`);
  }
  assert.equal(heldIn(file('streams')), 0);
});

test('the folder of the streams is made again, and its loss reported once for each request', async (t) => {
  const { channel, file, log } = makeChannel(t);
  for (const count of [1, 2]) {
    fs.rmSync(file('streams'), { recursive: true });
    const stream = await channel.openStream('a');
    await stream.write({ n: 1 });
    await stream.close();
    assert.equal(fs.readFileSync(file('streams/a.log'), 'utf8'), '{"n":1}\n');
    assert.equal(log.lines.filter((line) => line.startsWith('a stream cannot be written: ENOENT')).length, count);
    await channel.finish('a');
  }
  assert.equal(log.lines.length, 2);
});

test('a file that cannot be removed is reported, and the others are removed', async (t) => {
  const { channel, file, log, write } = makeChannel(t);
  fs.mkdirSync(file('requests/a.json'));
  write('a.cancel');
  await channel.finish('a');
  assert.deepEqual(fs.readdirSync(file('requests')), ['a.json']);
  assert.equal(log.lines.length, 1);
  assert.match(log.lines[0], /^a\.json cannot be removed: /);
});

test('an answer is read until it is an object, and its file is removed whatever becomes of it', async (t) => {
  const { channel, file } = makeChannel(t, { limits: { answer: 10 } });
  const never = new AbortController();
  const answer = (name, text) => fs.writeFileSync(file('responses', name), text);
  answer('a.json', '{"n":1');
  const asked = channel.answer('permission', 'a', never.signal);
  const tool = channel.answer('host_tool', 'a', never.signal);
  answer('a.host-tool.json', '{"n":23456}');
  assert.equal(await tool, undefined, 'it is too large');
  assert.deepEqual(fs.readdirSync(file('responses')), ['a.json']);
  answer('a.json', '{"n":1234}');
  assert.deepEqual(await asked, { n: 1234 });
  answer('b.json', '[]');
  const given = channel.answer('permission', 'b', never.signal);
  await delay(10);
  never.abort();
  assert.equal(await given, undefined);
  assert.deepEqual(fs.readdirSync(file('responses')), []);
});
