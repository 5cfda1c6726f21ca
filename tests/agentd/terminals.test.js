'use strict';
// Sessions: ports and consoles that the test plugs in, and what runs on them. The terminal itself is a file here.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { spawn } = require('node:child_process');
const { test } = require('node:test');
const { setTimeout: delay } = require('node:timers/promises');
const { FAST, FakeMounter, FakeSystem, launch, makeGuest, makeLog, payload, until } = require('./helpers');
const { listConsoles } = payload('consoles');
const { listPorts, PolledPort } = payload('port');
const { membersOf, onTerminal, sessionOf } = payload('session');
const { Terminals } = payload('terminals');

const sh = (script) => ['/bin/sh', '-c', script];
const START = { type: 'start', rows: 24, columns: 80 };

/** One port with the test as its host. */
class FakePort {
  inbox = [];
  sent = [];
  room = Infinity;
  #text = '';
  read() {
    if (this.gone) throw new Error('ENODEV');
    return this.inbox.shift();
  }
  write(bytes) {
    if (this.gone) throw new Error('ENODEV');
    const taken = bytes.subarray(0, this.room);
    this.#text += taken.toString();
    const lines = this.#text.split('\n');
    this.#text = lines.pop();
    for (const line of lines) this.sent.push(JSON.parse(line));
    return taken.length;
  }
  close() {
    this.closed = true;
  }
}

/** A machine: `plug(name)` gives it a port, `consoles` are its terminals. */
function makeMachine(t, { times = {}, ...services } = {}) {
  const guest = makeGuest(t, { times: { ...FAST, console: 2000, ...times } });
  fs.writeFileSync(guest.config.passwdFile, `agent:x:1000:1000::${guest.root}:/bin/sh\n`);
  const ports = new Map();
  const fakes = new Map();
  const machine = { ...guest, log: makeLog(), mounter: new FakeMounter(), consoles: [], calls: [], ports, fakes };
  const system = new FakeSystem();
  const settings = {
    config: guest.config, log: machine.log, channel: { ownDisk: false }, mounter: machine.mounter, system, launch,
    ports: () => new Map(ports), consoles: () => [...machine.consoles], attach: ({ file, args, options }) => ({ file: '/usr/bin/setsid', args: [file, ...args], options }),
    openPort: (device) => fakes.get(device), run: async (file, args) => void machine.calls.push([file, ...args]), ...services,
  }; // prettier-ignore
  machine.plug = (name) => {
    const fake = new FakePort();
    fakes.set(`/dev/${name}`, fake);
    ports.set(name, `/dev/${name}`);
    return fake;
  };
  machine.console = (number) => {
    const device = path.join(guest.root, `hvc${number}`);
    fs.writeFileSync(device, '');
    machine.consoles.push(device);
    return device;
  };
  machine.terminals = new Terminals(settings);
  machine.open = async (name, message) => {
    const port = machine.plug(name);
    port.inbox.push(Buffer.from(`${JSON.stringify({ ...START, ...message })}\n`));
    await until('an answer', () => port.sent.length > 0);
    return port;
  };
  t.after(() => machine.terminals.stop());
  return machine;
}

const types = (port) => port.sent.map(({ type }) => type);

test('a session: ready, a console, a program on it, its end', async (t) => {
  const machine = makeMachine(t);
  machine.terminals.start();
  const port = await machine.open('imgkit.session.1', { command: sh('echo "$TERM $HOME $AGENT_SOCKET"; exit 3'), env: { TERM: 'xterm' }, rows: 30, columns: 100 });
  assert.deepEqual(types(port), ['ready']);
  await delay(5 * FAST.poll);
  assert.deepEqual(types(port), ['ready'], 'nothing runs without a console');
  const device = machine.console(0);
  await until('the end', () => port.sent.at(-1).type === 'exit');
  assert.deepEqual(port.sent.slice(1), [{ type: 'started' }, { type: 'exit', exitCode: 3, signal: null }]);
  assert.equal(fs.readFileSync(device, 'utf8'), `xterm ${machine.root} \n`);
  assert.deepEqual(machine.calls, [['/bin/busybox', 'stty', '-F', device, 'sane', 'iutf8', 'rows', '30', 'cols', '100']]);
  assert.deepEqual(fs.readdirSync(path.join(machine.config.runDir, 'sessions')), []);
  assert.equal(fs.readFileSync(path.join(machine.config.runDir, 'users'), 'utf8'), '1000\n', 'an agentd that starts later ends them');
});

test('a signal that ended the program is named, and the terminal can be resized', async (t) => {
  const machine = makeMachine(t);
  machine.terminals.start();
  const port = await machine.open('imgkit.session.1', { command: sh('sleep 60') });
  const device = machine.console(0);
  await until('the start', () => types(port).includes('started'));
  port.inbox.push(Buffer.from('{"type":"resize","rows":10,"columns":20}\n{"type":"resize","rows":0,"columns":20}\nnonsense\n'));
  await until('the size', () => machine.calls.length > 1);
  assert.deepEqual(machine.calls.at(-1), ['/bin/busybox', 'stty', '-F', device, 'rows', '10', 'cols', '20']);
  const [journal] = fs.readdirSync(path.join(machine.config.runDir, 'sessions'));
  process.kill(Number(fs.readFileSync(path.join(machine.config.runDir, 'sessions', journal), 'utf8')), 'SIGTERM');
  await until('the end', () => port.sent.at(-1).type === 'exit');
  assert.deepEqual(port.sent.at(-1), { type: 'exit', exitCode: null, signal: 'SIGTERM' });
  assert.equal(machine.calls.length, 2, 'a size that is none is not set');
});

test('what is refused', async (t) => {
  const machine = makeMachine(t, { times: { console: 50 } });
  machine.terminals.start();
  let number = 0;
  for (const [message, expected] of [
    [{ rows: 0 }, 'a terminal has rows and columns, 1 to 9999'],
    [{ columns: 10_000 }, 'a terminal has rows and columns, 1 to 9999'],
    [{ rows: '24' }, 'a terminal has rows and columns, 1 to 9999'],
    [{ command: ['no-such-program'] }, 'command not found: no-such-program'],
    [{ command: [] }, /command/],
    [{ cwd: '/etc' }, /cwd \/etc is outside/],
    [{ env: { AGENT_USER: 'nobody-here' } }, 'AGENT_USER nobody-here does not exist in this image'],
    [{ root: true, env: { A: 1 } }, /env/],
  ]) {
    const port = await machine.open(`imgkit.session.${(number += 1)}`, message);
    assert.equal(port.sent[0].type, 'error');
    if (expected instanceof RegExp) assert.match(port.sent[0].message, expected);
    else assert.equal(port.sent[0].message, expected);
  }
  const port = await machine.open('imgkit.session.100', { command: sh('true') });
  await until('the refusal', () => port.sent.length === 2);
  assert.deepEqual(port.sent, [{ type: 'ready' }, { type: 'error', message: 'the host has plugged in no console for the session' }]);
});

test('without protected links no agent gets a terminal', async (t) => {
  const machine = makeMachine(t);
  fs.writeFileSync(path.join(machine.config.kernelSettings, 'protected_symlinks'), '0\n');
  machine.terminals.start();
  const port = await machine.open('imgkit.session.1', {});
  assert.match(port.sent[0].message, /protected_symlinks is not in force/);
});

test('root gets a shell of its own: no variable of the agent, and nothing is mounted', async (t) => {
  const machine = makeMachine(t, { launch: () => assert.fail('the agent is launched, root is not') });
  fs.writeFileSync(path.join(machine.config.configDir, 'env.json'), '{"SECRET":"s"}');
  machine.terminals.start();
  const port = await machine.open('imgkit.session.1', { root: true, command: sh('echo "$USER $SECRET $TERM"'), mounts: { a: { tag: 'a', guestPath: '/mnt/a' } }, env: { TERM: 'vt' } });
  const device = machine.console(0);
  await until('the end', () => types(port).includes('exit'));
  assert.equal(fs.readFileSync(device, 'utf8'), 'root  vt\n');
  assert.deepEqual(machine.mounter.wanted, []);
  assert.ok(machine.log.lines.includes(`imgkit.session.1: root on ${device}, pid ${machine.log.lines.join().match(/pid (\d+)/)[1]}`));
});

test('only "true" makes a session root', async (t) => {
  const machine = makeMachine(t);
  machine.terminals.start();
  const port = await machine.open('imgkit.session.1', { root: 'yes', command: sh('echo $USER') });
  const device = machine.console(0);
  await until('the end', () => types(port).includes('exit'));
  assert.equal(fs.readFileSync(device, 'utf8'), 'agent\n');
});

test('ports of other names are left alone', async (t) => {
  const machine = makeMachine(t);
  const others = ['ipc.0', 'imgkit.root', 'imgkit.session.', 'imgkit.session.x', 'ximgkit.session.1', 'imgkit.session.1x', 'imgkit.console.1'];
  for (const name of others) machine.plug(name);
  machine.terminals.start();
  const port = await machine.open('imgkit.session.7', { rows: -1 });
  assert.equal(port.sent[0].type, 'error');
  for (const name of others) assert.deepEqual(machine.fakes.get(`/dev/${name}`).sent, [], name);
});

test('each session takes the console that appears for it, one after the other', async (t) => {
  const machine = makeMachine(t);
  const foreign = machine.console(0); // was there before agentd
  machine.terminals.start();
  const first = await machine.open('imgkit.session.1', { command: sh('echo first; sleep 60') });
  const second = machine.plug('imgkit.session.2');
  second.inbox.push(Buffer.from(`${JSON.stringify({ ...START, command: sh('echo second') })}\n`));
  await delay(10 * FAST.poll);
  assert.deepEqual(second.sent, [], 'its turn comes when the first has its console');
  const one = machine.console(1);
  await until('its turn', () => types(second).includes('ready'));
  const two = machine.console(2);
  await until('its end', () => types(second).includes('exit'));
  assert.deepEqual([foreign, one, two].map((device) => fs.readFileSync(device, 'utf8')), ['', 'first\n', 'second\n']);
  // The console of a session that is over is not given away before the host has unplugged both of its ports.
  const third = await machine.open('imgkit.session.3', { command: sh('echo third') });
  await delay(10 * FAST.poll);
  assert.deepEqual(types(third), ['ready']);
  machine.ports.delete('imgkit.session.2'); // and a new console has got the number of the one that is gone
  await until('the end', () => types(third).includes('exit'));
  assert.match(fs.readFileSync(two, 'utf8'), /^third\n/);
  assert.deepEqual(types(first), ['ready', 'started']);
});

test('a console of before is forgotten when it is gone', async (t) => {
  const machine = makeMachine(t);
  const device = machine.console(0);
  machine.terminals.start();
  machine.consoles.pop(); // the host has unplugged it
  const port = machine.plug('imgkit.session.1');
  const write = port.write.bind(port);
  port.write = (bytes) => {
    if (machine.consoles.length === 0) machine.consoles.push(device); // and the next one comes as soon as it is asked for
    return write(bytes);
  };
  port.inbox.push(Buffer.from(`${JSON.stringify({ ...START, command: sh('echo here') })}\n`));
  await until('the end', () => types(port).includes('exit'));
  assert.equal(fs.readFileSync(device, 'utf8'), 'here\n');
});

test('a program ends with its port', async (t) => {
  for (const end of [(machine) => machine.ports.delete('imgkit.session.1'), (machine) => (machine.fakes.get('/dev/imgkit.session.1').gone = true), (machine) => machine.fakes.get('/dev/imgkit.session.1').inbox.push(Buffer.alloc(0)), (machine) => machine.terminals.stop()]) {
    const machine = makeMachine(t);
    machine.terminals.start();
    const port = await machine.open('imgkit.session.1', { command: sh("trap '' HUP; echo begun; sleep 60 & wait; wait") });
    const device = machine.console(0);
    await until('its output', () => fs.readFileSync(device, 'utf8') === 'begun\n');
    const journal = path.join(machine.config.runDir, 'sessions', 'imgkit.session.1');
    const leader = Number(fs.readFileSync(journal, 'utf8'));
    assert.equal(membersOf(leader).length, 2);
    end(machine);
    await until('its end', () => membersOf(leader).every((pid) => /^State:\s*Z/m.test(fs.readFileSync(`/proc/${pid}/status`, 'utf8'))));
    assert.equal(port.closed, true);
    machine.terminals.stop();
  }
});

test('what an agentd left that has crashed is ended, and the host learns of it', async (t) => {
  const machine = makeMachine(t);
  const left = spawn('/usr/bin/setsid', ['-w', 'sleep', '60'], { stdio: 'ignore', detached: true });
  t.after(() => left.kill('SIGKILL'));
  const journal = path.join(machine.config.runDir, 'sessions');
  fs.mkdirSync(journal);
  const leader = await until('a session', () => fs.readdirSync('/proc').filter((name) => /^\d+$/.test(name)).find((pid) => sessionOf(pid) === Number(pid) && parentOf(pid) === left.pid)); // prettier-ignore
  fs.writeFileSync(path.join(journal, 'imgkit.session.1'), `${leader}\n`);
  const [old, fresh] = [machine.plug('imgkit.session.1'), machine.plug('imgkit.session.2')];
  machine.terminals.start();
  assert.deepEqual(old.sent, [{ type: 'error', message: 'agentd has ended during the session' }]);
  await until('its end', () => membersOf(Number(leader)).length === 0);
  assert.deepEqual(fs.readdirSync(journal), []);
  assert.deepEqual(fresh.sent, []);
});

function parentOf(pid) {
  try {
    return Number(/^PPid:\s*(\d+)/m.exec(fs.readFileSync(`/proc/${pid}/status`, 'utf8'))[1]);
  } catch {
    return undefined;
  }
}

test('a port that takes little at a time gets everything', async (t) => {
  const machine = makeMachine(t);
  machine.terminals.start();
  const port = machine.plug('imgkit.session.1');
  port.room = 1;
  port.inbox.push(Buffer.from(`${JSON.stringify({ ...START, rows: 0 })}\n`));
  await until('the message', () => port.sent.length > 0);
  assert.deepEqual(port.sent, [{ type: 'error', message: 'a terminal has rows and columns, 1 to 9999' }]);
});

test('a line without end is refused', async (t) => {
  const machine = makeMachine(t);
  machine.terminals.start();
  const port = machine.plug('imgkit.session.1');
  port.inbox.push(Buffer.alloc(300 * 1024, 'x'), Buffer.from('\n'));
  await until('the refusal', () => port.sent.length > 0);
  assert.deepEqual(port.sent, [{ type: 'error', message: 'a message of the host is too long' }]);
});

test('the agent is launched without privileges, behind a new session with the terminal', () => {
  const { file, args } = onTerminal({ file: '/bin/setpriv', args: ['--nnp', '--', 'sh'], options: {} });
  assert.deepEqual([file, ...args], ['/usr/bin/setsid', '-c', '/bin/setpriv', '--nnp', '--', 'sh']);
});

test('ports and consoles as the kernel lists them', (t) => {
  const { root } = makeGuest(t);
  for (const [port, name] of [['vport0p1', 'ipc.0\n'], ['vport1p30', 'imgkit.session.1\n'], ['vport1p29', undefined]]) {
    fs.mkdirSync(path.join(root, 'sys', port), { recursive: true });
    if (name) fs.writeFileSync(path.join(root, 'sys', port, 'name'), name);
  }
  assert.deepEqual([...listPorts(path.join(root, 'sys'), '/dev')], [['ipc.0', '/dev/vport0p1'], ['imgkit.session.1', '/dev/vport1p30']]);
  assert.deepEqual([...listPorts(path.join(root, 'none'))], []);
  for (const name of ['hvc0', 'hvc7', 'hvcx', 'tty0']) fs.writeFileSync(path.join(root, name), '');
  assert.deepEqual(listConsoles(root), [path.join(root, 'hvc0'), path.join(root, 'hvc7')]);
});

test('a polled port', (t) => {
  const { root } = makeGuest(t);
  const fifo = path.join(root, 'fifo');
  require('node:child_process').execFileSync('mkfifo', [fifo]);
  const port = new PolledPort(fifo);
  assert.equal(port.read(), undefined, 'nothing is there');
  assert.equal(port.write(Buffer.from('abc')), 3);
  assert.equal(port.read().toString(), 'abc');
  let written = 0;
  for (let count = 1; count > 0; written += count) count = port.write(Buffer.alloc(4096));
  assert.equal(written, 65536, 'a full pipe takes nothing more');
  port.close();
  assert.throws(() => port.read(), { code: 'EBADF' });
});
