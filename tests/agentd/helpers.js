'use strict';

const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { spawnSync } = require('node:child_process');
const { setTimeout: delay } = require('node:timers/promises');

const PAYLOAD = path.resolve(__dirname, '../../overlay/opt/agent-runner');
const payload = (name) => require(path.join(PAYLOAD, 'lib', name));
const { LIMITS, TIMES } = payload('config');

/** Times short enough for tests; the relations between them are the product's. */
const FAST = { ...TIMES, poll: 10, heartbeat: 50, answer: 400, garbage: 200, kill: 200, drain: 100, retry: 20, stall: 600 };

/** A launcher without privileges: the test's own user takes the agent's part. */
const launch = (plan) => ({ file: plan.command[0], args: plan.command.slice(1), options: { cwd: plan.cwd, env: plan.env } });

/** A folder that the test removes, laid out like a guest. */
function makeGuest(t, overrides = {}) {
  const root = fs.mkdtempSync(path.join(os.tmpdir(), 'agentd-'));
  t.after(() => spawnSync('rm', ['-rf', root])); // Node 20's own gives up where paths are too long
  const workspace = path.join(root, 'workspace');
  const config = {
    workspace,
    ipcDir: path.join(workspace, 'ipc'),
    runDir: path.join(root, 'run'),
    configDir: path.join(root, 'config'),
    releaseFile: path.join(root, 'release'),
    passwdFile: path.join(root, 'passwd'),
    groupFile: path.join(root, 'group'),
    kernelSettings: path.join(root, 'kernel'),
    scratchFolders: [path.join(root, 'tmp')],
    consoleFile: path.join(root, 'console'),
    logFile: path.join(root, 'log'),
    portName: 'ipc.0',
    choices: {},
    times: FAST,
    limits: LIMITS,
    ...overrides,
  };
  for (const dir of [config.ipcDir, config.runDir, config.configDir]) fs.mkdirSync(dir, { recursive: true, mode: 0o755 });
  fs.mkdirSync(config.kernelSettings, { recursive: true });
  for (const name of ['protected_hardlinks', 'protected_symlinks']) fs.writeFileSync(path.join(config.kernelSettings, name), '1\n');
  fs.writeFileSync(config.consoleFile, '');
  fs.writeFileSync(config.groupFile, 'root:x:0:root\ndialout:x:20:root\nagent:x:1000:\nnogroup:x:65533:\n');
  fs.writeFileSync(config.passwdFile, `root:x:0:0:root:/root:/bin/sh\nagent:x:1000:1000::${root}:/bin/sh\n`);
  return { root, config };
}

/** Lines for people, kept. */
function makeLog() {
  const lines = [];
  const seen = new Set();
  return {
    lines,
    info: (text) => lines.push(text),
    alarm: (text) => lines.push(text),
    once: (key, text) => seen.has(key) || (seen.add(key), lines.push(text)),
    forget: (key) => seen.delete(key),
  };
}

/** Mounts nothing; remembers what was wanted, fails when told to. */
class FakeMounter {
  wanted = [];
  remounts = 0;
  mounted = true;
  failure;
  ipcMounted() {
    return this.mounted;
  }
  holdsIpc() {
    return this.mounted;
  }
  async mountIpc() {
    return this.mounted;
  }
  async remountIpc() {
    this.remounts += 1;
    return true;
  }
  async prepare(wanted, user) {
    this.wanted.push(...wanted);
    if (this.failure) throw this.failure;
    return user;
  }
}

/** A machine that has come up, until told otherwise. */
class FakeSystem {
  state = { hostname: true, loopback: true, network: true };
  read() {
    return this.state;
  }
  get complete() {
    return Object.values(this.state).every((value) => value !== false);
  }
  async settled(signal) {
    while (!this.complete && !signal.aborted) await delay(5);
    return this.complete;
  }
}

/** Wait until `probe` gives something true; says what was waited for when it does not come. */
async function until(what, probe, limit = 60_000) {
  const end = performance.now() + limit;
  for (;;) {
    const value = await probe();
    if (value) return value;
    if (performance.now() > end) throw new Error(`waited ${limit} ms for ${what}`);
    await delay(5);
  }
}

/** Starts agentd on a temporary share and plays the host. */
async function startHost(t, options = {}) {
  const { Supervisor } = payload('supervisor');
  const guest = options.guest ?? makeGuest(t, options.config);
  const log = options.log ?? makeLog();
  const mounter = options.mounter ?? new FakeMounter();
  const supervisor = new Supervisor({ config: guest.config, log, mounter, launch: options.launch ?? launch, system: options.system ?? new FakeSystem() });
  await supervisor.start();
  t.after(() => supervisor.stop('test ends'));
  return new Host(guest, log, mounter, supervisor);
}

class Host {
  constructor(guest, log, mounter, supervisor) {
    Object.assign(this, { ...guest, log, mounter, supervisor });
    this.socket = path.join(guest.config.runDir, 'agent.sock');
  }
  ipc(...parts) {
    return path.join(this.config.ipcDir, ...parts);
  }
  send(id, data) {
    fs.writeFileSync(this.ipc('requests', `${id}.json`), typeof data === 'string' ? data : JSON.stringify(data));
  }
  events(id) {
    const file = this.ipc('streams', `${id}.log`);
    if (!fs.existsSync(file)) return [];
    return fs.readFileSync(file, 'utf8').split('\n').slice(0, -1).map((line) => JSON.parse(line));
  }
  results(id) {
    return this.events(id).filter((line) => line.type === 'sdk_event' && line.event.type === 'result').map((line) => line.event);
  }
  /** The request's result, once its file is gone; exactly one, and the last line. */
  async result(id, limit) {
    await until(`the end of ${id}`, () => this.results(id).length > 0 && !fs.existsSync(this.ipc('requests', `${id}.json`)), limit);
    const results = this.results(id);
    if (results.length !== 1) throw new Error(`${results.length} results`);
    if (this.events(id).at(-1).event !== undefined && this.events(id).at(-1).event.type !== 'result') throw new Error('the result is not last');
    return results[0];
  }
  async run(id, data, limit) {
    this.send(id, data);
    return this.result(id, limit);
  }
  output(id, stream = 'stdout') {
    const parts = this.events(id).filter((line) => line.event?.type === 'output' && line.event.stream === stream);
    return Buffer.concat(parts.map(({ event }) => Buffer.from(event.data, event.encoding ?? 'utf8')));
  }
}

module.exports = { FAST, FakeMounter, FakeSystem, Host, LIMITS, PAYLOAD, launch, makeGuest, makeLog, payload, startHost, until };
