'use strict';

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { test } = require('node:test');
const { makeGuest, makeLog, payload, startHost } = require('./helpers');
const { loadConfig } = payload('config');
const { Mounter, findMount, isShare } = payload('mounts');
const { findLink, isId, isInside, joinInside } = payload('paths');
const { Log } = payload('log');
const { findPort } = payload('port');

test('paths: inside is decided by components, not by prefix', () => {
  assert.ok(isInside('/a', '/a/b') && isInside('/a', '/a') && isInside('/a', '/a/..b'));
  assert.ok(!isInside('/a', '/ab') && !isInside('/a', '/a/../b') && !isInside('/a/b', '/a'));
  assert.equal(joinInside('/a', 'b/./c'), '/a/b/c');
  for (const bad of ['', '.', '/b', '../b', 'b/../../c', 'b/..', 'a\0', undefined, 3]) assert.equal(joinInside('/a', bad), undefined);
  assert.ok(isId('0e4b-1') && !isId('../x') && !isId('.x') && !isId('') && !isId('x'.repeat(200)) && !isId('a/b'));
});

test('mount table: the last mount counts, escapes are undone', (t) => {
  const { root } = makeGuest(t);
  const table = path.join(root, 'mounts');
  const lines = ['20 1 8:1 / /w rw - ext4 disk rw', '21 20 0:9 / /w rw,nosuid shared:1 master:2 - 9p ipc rw', '22 1 0:10 / /a\\040b rw - 9p work rw', '23 1 0:11 / /v rw - virtiofs x rw'];
  fs.writeFileSync(table, `${lines.join('\n')}\n`);
  assert.deepEqual(findMount('/w', table), { id: '21', where: '/w', source: 'ipc', type: '9p' });
  assert.ok(isShare('/a b', table) && isShare('/v', table) && !isShare('/none', table));
});

test('shares are mounted only where the agent lives, and not through links', async (t) => {
  const { config } = makeGuest(t);
  const mounter = new Mounter(config);
  const user = { uid: 1000, gid: 1000, home: '/home/agent' };
  fs.symlinkSync('/etc', path.join(config.workspace, 'link'));
  const places = ['/', '/etc', '/usr/x', config.workspace, config.ipcDir, path.join(config.ipcDir, 'x'), path.join(config.workspace, 'link/x'), '/home/agent', '/mnt'];
  for (const guestPath of places) await assert.rejects(mounter.prepare([{ name: 'n', tag: 't', guestPath }], user), /mount "n"/, guestPath);
  assert.equal(findLink(path.join(config.workspace, 'link/x')), path.join(config.workspace, 'link'));
});

test('a tag that does not exist is an error that names it, and nothing stays mounted', async (t) => {
  const { config } = makeGuest(t);
  const guestPath = path.join(config.workspace, 'project');
  const user = { uid: process.getuid(), gid: process.getgid(), home: '/home/agent' };
  await assert.rejects(new Mounter(config).prepare([{ name: 'work', tag: 'nosuchtag', guestPath }], user), /nosuchtag/);
  assert.equal(findMount(guestPath), undefined);
});

test('the log is kept below its limit and the console hears what is grave', (t) => {
  const { config } = makeGuest(t);
  fs.writeFileSync(config.logFile, 'x'.repeat(config.limits.log + 1));
  const log = new Log(config);
  t.mock.method(process.stderr, 'write', () => true);
  log.once('k', 'grave');
  log.once('k', 'grave');
  assert.equal(fs.readFileSync(config.consoleFile, 'utf8'), 'agentd: grave\n');
  assert.equal(fs.statSync(config.logFile).size, 0);
  assert.ok(makeLog().lines.length === 0);
});

test('the serial port is found by the name that the kernel knows', (t) => {
  const { root } = makeGuest(t);
  for (const [port, name] of [['vport0p1', 'other'], ['vport0p2', 'ipc.0']]) {
    fs.mkdirSync(path.join(root, port));
    fs.writeFileSync(path.join(root, port, 'name'), `${name}\n`);
  }
  assert.equal(findPort('ipc.0', root, '/dev'), '/dev/vport0p2');
  assert.equal(findPort('none', root), undefined);
  assert.equal(findPort('ipc.0', path.join(root, 'missing')), undefined);
});

test('the settings come from the service, and where it says nothing from here', () => {
  const { times, limits, ...config } = loadConfig({});
  assert.deepEqual(config, {
    workspace: '/workspace', ipcDir: '/workspace/ipc', runDir: '/run/agentd', configDir: '/run/imgkit', releaseFile: '/etc/imgkit-release',
    passwdFile: '/etc/passwd', groupFile: '/etc/group', kernelSettings: '/proc/sys/fs', scratchFolders: ['/tmp', '/var/tmp', '/dev/shm'],
    consoleFile: '/dev/console', logFile: '/var/log/agentd.log', portName: 'ipc.0', choices: {},
  }); // prettier-ignore
  const chosen = loadConfig({ AGENTD_WORKDIR: '/srv/work/', AGENTD_LOG: '/tmp/log', AGENT_COMMAND: 'x y', AGENT_ARGS: '', AGENT_USER: 'u', HOME: '/h' });
  assert.deepEqual([chosen.workspace, chosen.ipcDir, chosen.logFile], ['/srv/work', '/srv/work/ipc', '/tmp/log']);
  assert.deepEqual(chosen.choices, { AGENT_COMMAND: 'x y', AGENT_USER: 'u' });
});

test('times and limits are those that docs/reference/agentd.md promises', () => {
  const { times, limits } = loadConfig({});
  assert.ok(times.poll <= 300 && times.rescan <= 2000);
  assert.deepEqual([times.heartbeat, times.answer, times.garbage, times.kill, times.drain, times.stall, times.settle], [5000, 60_000, 30_000, 5000, 1000, 60_000, 30_000]);
  assert.deepEqual([times.retry, times.portSearch, times.console], [500, 120_000, 10_000]);
  const MIB = 2 ** 20;
  assert.deepEqual(limits, { request: 64 * MIB, answer: 4 * MIB, input: MIB, chunk: 65_536, jsonLine: MIB, resultText: 65_536, backlog: MIB, queue: 16, log: MIB });
});

test('processes that an earlier agentd left are ended and reported', async (t) => {
  const users = payload('users');
  for (const [left, expected] of [[3, ['restarted; 3 processes of agents killed']], [0, []]]) {
    const end = t.mock.method(users, 'endAgents', async () => left);
    const { log } = await startHost(t);
    assert.deepEqual(log.lines.filter((line) => line.includes('restarted')), expected); // prettier-ignore
    end.mock.restore();
  }
  const broken = t.mock.method(users, 'endAgents', async () => {
    throw new Error('processes of uid 7 cannot be ended');
  });
  const { log } = await startHost(t);
  assert.ok(log.lines.includes('processes of uid 7 cannot be ended'));
  broken.mock.restore();
});
