'use strict';

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { execFileSync } = require('node:child_process');
const { test } = require('node:test');
const { FakeSystem, LIMITS, FAST, payload, startHost, makeGuest, until } = require('./helpers');
const { launcher } = payload('agent');
const { readDrive, splitArguments, splitWords } = payload('environment');
const { findUser } = payload('users');

const sh = (script, ...words) => ['/bin/sh', '-c', script, 'sh', ...words];
const HIDDEN = ['SESSION_TOKEN', 'CONTROL_PLANE_URL', 'SESSION_ID', 'AGENT_COMMAND', 'AGENT_ARGS', 'AGENT_WORKDIR', 'AGENT_USER'];

function agentScript(guest, body) {
  const file = path.join(guest.root, 'agent');
  fs.writeFileSync(file, `#!/bin/sh\n${body}\n`, { mode: 0o755 });
  return file;
}

test('without a configured agent the result says so', async (t) => {
  const host = await startHost(t);
  const result = await host.run('p', { prompt: 'hello' });
  assert.deepEqual([result.subtype, result.exitCode], ['error', null]);
  assert.match(result.result, /AGENT_COMMAND/);
});

test('the configured agent gets the prompt on stdin and in its environment; its events are passed on', async (t) => {
  const guest = makeGuest(t);
  guest.config.choices = { AGENT_COMMAND: agentScript(guest, 'cat; echo; echo "$AGENT_PROMPT"; echo "{\\"type\\":\\"note\\",\\"args\\":\\"$*\\"}"'), AGENT_ARGS: '-a "b c"' };
  const host = await startHost(t, { guest });
  const result = await host.run('p', { prompt: 'hello' });
  assert.equal(host.output('p').toString(), 'hello\nhello\n');
  assert.deepEqual(host.events('p').map((line) => line.event).filter((event) => event.type === 'note'), [{ type: 'note', args: '-a b c' }]);
  assert.deepEqual([result.subtype, result.result], ['success', 'hello\nhello\n']);
});

test('an agent cannot make a result of its own', async (t) => {
  const guest = makeGuest(t);
  const own = JSON.stringify({ type: 'result', subtype: 'error', result: 'no luck', cost: 3 });
  guest.config.choices = { AGENT_COMMAND: agentScript(guest, `echo '${own}'; echo '${own}'; echo after`) };
  const host = await startHost(t, { guest });
  const result = await host.run('p', { prompt: '' });
  assert.deepEqual([result.subtype, result.exitCode, result.result, result.agentResult.cost], ['error', 0, 'no luck', 3]);
});

test('control-plane values never reach the agent, other secrets do, and nothing is logged', async (t) => {
  const guest = makeGuest(t);
  const drive = Object.fromEntries(HIDDEN.map((name) => [name, `hidden-${name}`]));
  delete drive.AGENT_USER;
  drive.AGENT_WORKDIR = guest.config.workspace;
  fs.writeFileSync(path.join(guest.config.configDir, 'env.json'), JSON.stringify({ ...drive, PLAIN: 'plain' }));
  fs.mkdirSync(path.join(guest.config.configDir, 'secrets'));
  fs.writeFileSync(path.join(guest.config.configDir, 'secrets', 'API_KEY'), 'sk-123');
  const host = await startHost(t, { guest });
  const env = { SESSION_ID: 'hidden-too', OWN: 'own' };
  assert.equal((await host.run('e', { command: sh('cat /proc/self/environ'), env })).subtype, 'success');
  const seen = new Map(host.output('e').toString().split('\0').map((line) => line.split(/=(.*)/s)));
  for (const name of HIDDEN) assert.ok(!seen.has(name), name);
  assert.deepEqual([seen.get('PLAIN'), seen.get('OWN'), seen.get('API_KEY')], ['plain', 'own', 'sk-123']);
  assert.ok(!seen.has('NODE_OPTIONS') && !seen.has('AGENTD_WORKDIR'));
  const log = host.log.lines.join('\n');
  assert.match(log, /SESSION_TOKEN present, CONTROL_PLANE_URL present, SESSION_ID present/);
  assert.doesNotMatch(log, /hidden|sk-123|plain/);
});

test("the result's text is what the agent has written to stdout as text", async (t) => {
  for (const [id, body, text] of [
    ['t1', 'echo out; echo err >&2', 'out\n'],
    ['t2', "echo '{\"type\":\"note\",\"stream\":\"stdout\",\"data\":\"event\"}'; echo out", 'out\n'],
    ['t3', "printf '\\377\\376'", 'the agent ended with status 0'],
    ['t4', 'echo err >&2', 'the agent ended with status 0'],
  ]) {
    const guest = makeGuest(t);
    guest.config.choices = { AGENT_COMMAND: agentScript(guest, body) };
    const host = await startHost(t, { guest });
    const result = await host.run(id, { prompt: '' });
    assert.deepEqual([result.subtype, result.result], ['success', text], id);
  }
});

test('the config drive has an object of values, or none', (t) => {
  const { config } = makeGuest(t);
  assert.deepEqual(readDrive(config.configDir), {});
  for (const text of ['["x"]', '"x"', '1', 'null', '{', '']) {
    fs.writeFileSync(path.join(config.configDir, 'env.json'), text);
    assert.throws(() => readDrive(config.configDir), { name: 'RequestError', message: 'config drive: env.json is not a JSON object' }, text);
  }
});

test('a user that is missing or root is an error, never a fallback', async (t) => {
  const host = await startHost(t);
  for (const name of ['nobody-there', 'root']) {
    const result = await host.run(`u-${name}`, { command: ['true'], env: { AGENT_USER: name } });
    assert.equal(result.subtype, 'error');
    assert.match(result.result, new RegExp(`AGENT_USER ${name}`));
  }
  assert.equal(findUser('agent', host.config.passwdFile).uid, 1000);
});

test('environment that the kernel cannot take is refused by name', async (t) => {
  const host = await startHost(t);
  assert.match((await host.run('e1', { command: ['true'], env: { 'A=B': 'x' } })).result, /"="/);
  assert.match((await host.run('e2', { command: ['true'], env: { BIG: 'x'.repeat(200_000) } })).result, /BIG/);
  const long = await host.run('e3', { command: sh('wc -c; test -z "$AGENT_PROMPT"'), prompt: 'p'.repeat(300_000) });
  assert.deepEqual([long.subtype, host.output('e3').toString().trim()], ['success', '300000']);
});

test('megabytes without a newline, binary, and both streams arrive complete', async (t) => {
  const host = await startHost(t);
  assert.equal((await host.run('big', { command: sh('head -c 5000000 /dev/zero | tr "\\0" x; printf "\\377\\376" >&2') }, 20_000)).subtype, 'success');
  assert.equal(host.output('big').length, 5_000_000);
  assert.deepEqual(host.output('big', 'stderr'), Buffer.from([0xff, 0xfe]));
  const sizes = host.events('big').filter((line) => line.event.type === 'output').map((line) => line.event.data.length);
  assert.ok(Math.max(...sizes) <= LIMITS.chunk);
});

test('words of a command line', () => {
  assert.deepEqual(splitWords(` a "b c" d\\ e 'f "g' h"i"'j' `), ['a', 'b c', 'd e', 'f "g', 'hij']);
  assert.deepEqual(splitWords(''), []);
  assert.deepEqual(splitArguments('["a b", ""]'), ['a b', '']);
  assert.throws(() => splitWords('a "b'), /quote/);
  assert.throws(() => splitArguments('[1]'), /strings/);
});

test('as root: uid, gid, groups and capabilities are gone, and no_new_privs is set', { skip: process.getuid() !== 0 && 'needs root to give privileges up' }, () => {
  const probe = "process.stdout.write(require('fs').readFileSync('/proc/self/status'))";
  const plan = { command: [process.execPath, '-e', probe], cwd: '/', env: { PATH: '/usr/bin:/bin' }, user: { uid: 1000, gid: 1000 } };
  const { file, args, options } = launcher(plan);
  const setpriv = fs.existsSync(file) ? file : '/usr/bin/setpriv';
  const status = execFileSync(setpriv, args, { ...options, encoding: 'utf8' });
  const field = (name) => new RegExp(`^${name}:[ \\t]*(.*?)[ \\t]*$`, 'm').exec(status)[1];
  assert.equal(field('Uid'), '1000\t1000\t1000\t1000');
  assert.equal(field('Gid'), '1000\t1000\t1000\t1000');
  assert.equal(field('Groups'), '');
  assert.equal(field('NoNewPrivs'), '1');
  for (const name of ['CapInh', 'CapPrm', 'CapEff', 'CapAmb']) assert.match(field(name), /^0+$/);
});

test('a folder that has become a link since it was looked at is not entered, as root would', async (t) => {
  const guest = makeGuest(t);
  const [project, elsewhere] = [path.join(guest.config.workspace, 'project'), path.join(guest.root, 'elsewhere')];
  for (const dir of [project, elsewhere]) fs.mkdirSync(dir);
  const system = new FakeSystem();
  system.settled = async () => {
    fs.renameSync(project, path.join(guest.config.workspace, 'moved'));
    fs.symlinkSync(elsewhere, project);
    return true;
  };
  const host = await startHost(t, { guest, system });
  host.send('linked', { command: sh(': >here'), cwd: project });
  assert.match((await host.result('linked')).result, /^cwd .*project cannot be reached/);
  assert.deepEqual(fs.readdirSync(elsewhere), []);
});

test('signals to agentd reach the agent', async (t) => {
  const host = await startHost(t);
  host.send('s', { command: sh('trap "echo got; exit 3" USR1; echo up; while :; do sleep 0.05; done') });
  await until('the agent', () => host.output('s').toString() === 'up\n');
  host.supervisor.forward('SIGUSR1');
  assert.equal((await host.result('s')).exitCode, 3);
  assert.ok(FAST.kill < 5000);
});
