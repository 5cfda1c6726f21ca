'use strict';
// One request after it was read, and one run of its agent, with a channel, a stream and questions that only note what they are told.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { test } = require('node:test');
const { setTimeout: delay } = require('node:timers/promises');
const { FAST, FakeMounter, FakeSystem, LIMITS, launch, makeGuest, makeLog, payload, until } = require('./helpers');
const { AgentRun, launcher } = payload('agent');
const { Runner } = payload('run');

const sh = (script, ...words) => ['/bin/sh', '-c', script, 'sh', ...words];

/** A runner. `calls` is what it did in this order, `events` what is in the stream. */
function makeRunner(t, { config: overrides = {}, channel = {}, system = new FakeSystem(), log = makeLog(), ...services } = {}) {
  const guest = makeGuest(t, overrides);
  const [calls, events] = [[], []];
  const note = (name) => async (...args) => void calls.push([name, ...args]);
  const stream = { events, pending: 0, stalledSince: undefined, write: async (event) => void events.push(event), discard: () => {}, close: note('close') };
  const questions = { admit: ({ name }) => calls.push(['admit', name]), serve: (current) => calls.push(['serve', current && Object.keys(current)]) };
  const told = { ownDisk: false, history: async () => 'new', openStream: async () => stream, finish: note('finish'), beforeAgent: async () => void calls.push(['before']), afterAgent: async () => void calls.push(['after']) };
  const mounter = new FakeMounter();
  const config = { ...guest.config, socket: path.join(guest.root, 'sock') };
  const runner = new Runner({ config, log, channel: { ...told, ...channel }, mounter, system, questions, launch, ...services });
  const run = async (data, signal = new AbortController().signal) => {
    await runner.run({ id: 'r', data, signal });
    return events.at(-1)?.event;
  };
  return { ...guest, runner, run, calls, events, log, mounter, stream };
}

/** A program that answers every prompt with this text on stdout. */
function answering(guest, text, status = 0) {
  const file = path.join(guest.root, 'agent');
  fs.writeFileSync(path.join(guest.root, 'text'), text);
  fs.writeFileSync(file, `#!/bin/sh\ncat "${guest.root}/text"\nexit ${status}\n`, { mode: 0o755 });
  return { prompt: '', env: { AGENT_COMMAND: file } };
}

test('what is done for a request, in this order', async (t) => {
  const { run, calls, events, log, config } = makeRunner(t);
  const { durationMs, ...result } = await run({ command: sh('echo out') });
  assert.deepEqual(result, { type: 'result', subtype: 'success', exitCode: 0, signal: null, result: 'the agent ended with status 0' });
  assert.ok(Number.isInteger(durationMs) && durationMs >= 0 && durationMs < 60_000);
  assert.deepEqual(calls, [['before'], ['admit', 'agent'], ['serve', ['request', 'channel', 'stream', 'signal']], ['serve', undefined], ['after'], ['close'], ['finish', 'r']]);
  assert.deepEqual(events.slice(0, 2), [{ type: 'sdk_event', event: { type: 'started', requestId: 'r' } }, { type: 'sdk_event', event: { type: 'output', stream: 'stdout', data: 'out\n' } }]);
  assert.deepEqual(log.lines, ['request r: SESSION_TOKEN absent, CONTROL_PLANE_URL absent, SESSION_ID absent', `request r: success, exit code 0, signal null, ${durationMs} ms`]);
  assert.equal(fs.readFileSync(path.join(config.runDir, 'users'), 'utf8'), '1000\n');
});

test('what became of the agent is its result', async (t) => {
  for (const [script, expected] of [
    ['exit 3', { subtype: 'error', exitCode: 3, signal: null, result: 'the agent ended with status 3', errors: ['the agent ended with status 3'] }],
    ['kill -9 $$', { subtype: 'error', exitCode: null, signal: 'SIGKILL', result: 'the agent was killed by SIGKILL', errors: ['the agent was killed by SIGKILL'] }],
    ['echo \'{"type":"result","subtype":"error"}\'', { subtype: 'success', exitCode: 0, signal: null, result: 'the agent ended with status 0' }],
  ]) {
    const { durationMs, type, ...result } = await makeRunner(t).run({ command: sh(script) });
    assert.deepEqual(result, expected, script);
  }
});

test('the result that an agent reports counts beside its status', async (t) => {
  const own = (fields) => `${JSON.stringify({ type: 'result', ...fields })}\n`;
  for (const [text, status, subtype, result] of [
    ['text', 0, 'success', 'text'],
    ['', 0, 'success', 'the agent ended with status 0'],
    ['text', 3, 'error', 'the agent ended with status 3'],
    [own({ subtype: 'success', result: 'done' }), 0, 'success', 'done'],
    [own({ subtype: 'success', result: 'done' }), 3, 'error', 'the agent ended with status 3'],
    [own({ subtype: 'error_max_turns', result: 'sorry' }), 0, 'error', 'sorry'],
    [`text\n${own({})}`, 0, 'success', 'text\n'],
    [own({ result: { an: 'object' } }), 0, 'success', 'the agent ended with status 0'],
    [own({ result: '' }), 0, 'success', 'the agent ended with status 0'],
    [`${own({ result: 'first' })}${own({ result: 'last' })}`, 0, 'success', 'last'],
  ]) {
    const guest = makeRunner(t);
    const outcome = await guest.run(answering(guest, text, status));
    assert.deepEqual([outcome.subtype, outcome.result, 'agentResult' in outcome], [subtype, result, text.includes('"type"')], text);
    assert.equal(guest.events.filter((line) => line.event.type === 'result').length, 1);
  }
});

test('of a long text the end is the result', async (t) => {
  const guest = makeRunner(t, { config: { limits: { ...LIMITS, resultText: 5, chunk: 4 } } });
  assert.equal((await guest.run(answering(guest, '123456789'))).result, '56789');
});

test('a request that an earlier agentd began or ended is not run', async (t) => {
  const begun = makeRunner(t, { channel: { history: async () => 'begun' } });
  assert.equal((await begun.run({ command: ['true'] })).result, 'agentd ended while this request was running; it is not run again');
  assert.deepEqual([begun.events.length, begun.calls], [1, [['close'], ['finish', 'r']]]);
  const ended = makeRunner(t, { channel: { history: async () => 'ended' } });
  assert.equal(await ended.run({ command: ['true'] }), undefined);
  assert.deepEqual(ended.calls, [['finish', 'r']]);
});

test('what is wrong with a request is its result, without a start', async (t) => {
  const failed = (result, exitCode = null) => ({ subtype: 'error', exitCode, signal: null, result, errors: [result] });
  for (const [data, expected] of [
    [new Error('the request is too large'), failed('the request is too large')],
    [{ command: [] }, failed('request: "command" must be a list of strings, not empty')],
  ]) {
    const { run, events } = makeRunner(t);
    const { durationMs, type, ...result } = await run(data);
    assert.deepEqual([result, events.length], [expected, 1]);
  }
  const { run, events } = makeRunner(t);
  const { durationMs, type, ...result } = await run({ command: ['no-such-program'] });
  assert.deepEqual([result, events.length], [failed('command not found: no-such-program', 127), 2]);
  const { runner, run: again } = makeRunner(t);
  runner.signal('SIGTERM'); // there is no agent
  assert.match((await again({ prompt: 'x' })).result, /^no agent is configured: set AGENT_COMMAND in /);
});

test('a request is cancelled before its agent starts', async (t) => {
  const cancelled = { type: 'result', subtype: 'error', exitCode: null, signal: null, cancelled: true, result: 'why', errors: ['why'] };
  const { run, events, calls } = makeRunner(t);
  const { durationMs, ...result } = await run({ command: ['true'] }, AbortSignal.abort(new Error('why')));
  assert.deepEqual([result, events.length, calls], [cancelled, 1, [['close'], ['finish', 'r']]]);
  const controller = new AbortController();
  const system = Object.assign(new FakeSystem(), { settled: async () => controller.abort(new Error('why')) });
  const waiting = makeRunner(t, { system });
  const { durationMs: _, ...second } = await waiting.run({ command: ['true'] }, controller.signal);
  assert.deepEqual([second, waiting.events.length, waiting.calls], [cancelled, 2, [['before'], ['close'], ['finish', 'r']]]);
  assert.doesNotMatch(waiting.log.lines.join('\n'), /before the system is up/);
});

test('a request is cancelled while its agent runs, and while it starts', async (t) => {
  const controller = new AbortController();
  const { run, events, runner } = makeRunner(t);
  const running = run({ command: sh('trap "echo got" USR1; echo up; n=0; while [ $((n += 1)) -lt 9999 ]; do sleep 0.01; done') }, controller.signal);
  await until('the agent', () => events.length === 2);
  runner.signal('SIGUSR1');
  await until('the signal', () => events.some(({ event }) => event.data === 'got\n'));
  controller.abort(new Error('why'));
  const { durationMs, ...result } = await running;
  assert.deepEqual(result, { type: 'result', subtype: 'error', exitCode: null, signal: 'SIGTERM', cancelled: true, result: 'why', errors: ['why'] });
  const early = new AbortController();
  const questions = { admit: () => early.abort(new Error('early')), serve: () => {} };
  const second = await makeRunner(t, { questions }).run({ command: sh('sleep 60') }, early.signal);
  assert.deepEqual([second.cancelled, second.result, second.signal], [true, 'early', 'SIGTERM']);
});

test('a request waits for the system, and begins without it in the end', async (t) => {
  const system = new FakeSystem();
  system.state = { hostname: true, network: false };
  let asked = 0;
  system.settled = async () => (asked += 1) < 0;
  const { run, log } = makeRunner(t, { system });
  assert.equal((await run({ command: ['true'] })).subtype, 'success');
  assert.ok(log.lines.includes('request r: begins before the system is up: {"hostname":true,"network":false}'));
  assert.equal((await run({ command: ['true'], awaitSystem: false })).subtype, 'success');
  assert.equal(asked, 1);
});

test('what the channel cannot do yet is tried again', async (t) => {
  let failures = 4;
  const twice = (value) => async () => {
    failures -= 1;
    if (failures % 2 !== 0) throw new Error('away');
    return value;
  };
  const events = [];
  const stream = { write: async (event) => void events.push(event), close: async () => {} };
  const { run } = makeRunner(t, { config: { times: { ...FAST, retry: 30 } }, channel: { history: twice('begun'), openStream: twice(stream) } });
  const start = performance.now();
  await run({});
  assert.deepEqual([failures, events.length], [0, 1]);
  assert.ok(performance.now() - start >= 55, 'after a pause');
});

test('a fault of agentd itself ends the request, and is an alarm', async (t) => {
  const stream = { write: () => { throw new Error('a bug'); } }; // prettier-ignore
  const { run, log, calls } = makeRunner(t, { channel: { openStream: async () => stream } });
  await run({});
  assert.match(log.lines[0], /^request r: Error: a bug\n +at /);
  assert.deepEqual(calls, [['finish', 'r']]);
});

test('the folder in which the agent starts', async (t) => {
  const guest = makeRunner(t);
  const { config, events } = guest;
  const at = (...parts) => path.join(fs.realpathSync(config.workspace), ...parts);
  for (const name of ['project', 'other']) fs.mkdirSync(at(name));
  fs.symlinkSync('project', at('link'));
  fs.symlinkSync('/usr', at('out'));
  fs.symlinkSync('ipc', at('door'));
  fs.writeFileSync(at('file'), '');
  const where = async (data) => {
    events.length = 0;
    const { result } = await guest.run({ command: ['pwd'], ...data });
    return events.length === 3 ? events[1].event.data.trim() : result;
  };
  const workspace = config.workspace;
  assert.equal(await where({}), at());
  assert.equal(await where({ cwd: path.join(workspace, 'link') }), at('project'));
  assert.equal(await where({ env: { AGENT_WORKDIR: path.join(workspace, 'other') } }), at('other'));
  assert.equal(await where({ cwd: path.join(workspace, 'project'), env: { AGENT_WORKDIR: '/etc' } }), at('project'));
  assert.equal(await where({ cwd: '/tmp' }), fs.realpathSync('/tmp'));
  assert.equal(await where({ cwd: guest.root }), fs.realpathSync(guest.root), 'the home of the agent');
  assert.equal(await where({ cwd: '/usr/bin' }), `cwd /usr/bin is outside ${workspace}`);
  assert.equal(await where({ cwd: '/usr/bin', mounts: { m: { tag: 'm', guestPath: '/usr' } } }), fs.realpathSync('/usr/bin'));
  assert.equal(await where({ cwd: 'project' }), `cwd project is outside ${workspace}`);
  assert.equal(await where({ cwd: `${workspace}/none` }), `cwd ${workspace}/none is not a folder`);
  assert.equal(await where({ cwd: `${workspace}/file` }), `cwd ${workspace}/file is not a folder`);
  assert.equal(await where({ cwd: `${workspace}/out` }), `cwd ${workspace}/out leads outside ${workspace}`);
  for (const name of ['ipc', 'door']) assert.equal(await where({ cwd: `${workspace}/${name}` }), `cwd ${workspace}/${name} is agentd's own folder`);
});

test('an agent is paused while more than the limit waits to be written', async (t) => {
  for (const [pending, expected] of [[LIMITS.backlog, ['1\n', '2\n']], [LIMITS.backlog + 1, ['1\n']]]) {
    let release;
    const written = new Promise((resolve) => (release = resolve));
    const seen = [];
    const write = ({ event }) => (event.type === 'output' ? (seen.push(event.data), written) : Promise.resolve());
    const stream = { pending, write, close: async () => {} };
    const { run } = makeRunner(t, { channel: { openStream: async () => stream } });
    const running = run({ command: sh('echo 1; sleep 0.1; echo 2; sleep 0.3') });
    await delay(300);
    assert.deepEqual(seen, expected);
    stream.pending = 0;
    release();
    await running;
    assert.deepEqual(seen, ['1\n', '2\n']);
  }
});

// ---- one run of an agent ---------------------------------------------------------------------------------------------

/** An agent and its events. */
function start(t, command, { times = {}, ...plan } = {}) {
  const events = [];
  const agent = new AgentRun({ command, cwd: '/', env: { PATH: process.env.PATH }, user: {}, events: false, ...plan }, { limits: LIMITS, times: { ...FAST, ...times }, launch }, (event) => events.push(event));
  agent.finished.catch(() => {});
  t.after(() => agent.stop('SIGKILL'));
  const text = (name = 'stdout') => events.filter((event) => event.stream === name).map((event) => event.data).join('');
  return { agent, events, text };
}

const isAlive = (pid) => fs.existsSync(`/proc/${pid}/status`) && !/^State:\tZ/m.test(fs.readFileSync(`/proc/${pid}/status`, 'utf8'));

test('an agent is started through setpriv, with the ids and the environment of the plan', () => {
  const env = { A: '1' };
  const plan = { command: ['ls', '-l'], cwd: '/c', env, user: { uid: 7, gid: 8 } };
  assert.deepEqual(launcher(plan), { file: '/bin/setpriv', args: ['--nnp', '--', 'ls', '-l'], options: { cwd: '/c', env, uid: 7, gid: 8 } });
});

test('the kernel takes the agent before agentd, and the agent has a session of its own', async (t) => {
  const { agent } = start(t, ['sleep', '60']);
  assert.equal(fs.readFileSync(`/proc/${agent.pid}/oom_score_adj`, 'utf8'), '500\n');
  const [, , group, session] = fs.readFileSync(`/proc/${agent.pid}/stat`, 'utf8').replace(/.*\)/s, '').trim().split(' ').map(Number);
  assert.deepEqual([group, session], [agent.pid, agent.pid]);
  agent.stop();
  assert.deepEqual(await agent.finished, { exitCode: null, signal: 'SIGTERM' });
});

test('an agent that cannot be started', async (t) => {
  const { agent } = start(t, ['/none/such']);
  assert.equal(agent.pid, undefined);
  agent.signal('SIGTERM');
  agent.stop();
  await assert.rejects(agent.finished, { name: 'RequestError', message: /^the agent cannot be started: spawn \/none\/such ENOENT/ });
  const cwd = path.join(makeGuest(t).root, 'none');
  assert.throws(() => start(t, ['true'], { cwd }), { name: 'RequestError', message: new RegExp(`^cwd ${cwd} cannot be reached: ENOENT`) });
});

test('input is given and need not be read; only lines of stdout are events', async (t) => {
  const reading = start(t, sh('cat; echo \'{"type":"a"}\'; echo \'{"type":"b"}\' >&2'), { input: 'in\n', events: true });
  assert.deepEqual(await reading.agent.finished, { exitCode: 0, signal: null });
  assert.deepEqual(reading.events.filter(({ type }) => type !== 'output'), [{ type: 'a' }]);
  assert.deepEqual([reading.text(), reading.text('stderr')], ['in\n', '{"type":"b"}\n']);
  const without = start(t, sh('cat; echo end; exit 4'), { input: undefined });
  assert.equal((await without.agent.finished).exitCode, 4);
  assert.equal(without.text(), 'end\n');
  const deaf = start(t, ['true'], { input: 'x'.repeat(1_000_000) });
  assert.equal((await deaf.agent.finished).exitCode, 0);
});

test('an unfinished line is shown while the agent waits', async (t) => {
  const { agent, text } = start(t, sh('printf "Name? "; exec sleep 60'));
  await until('the question', () => text() === 'Name? ');
  agent.stop('SIGKILL');
  assert.equal((await agent.finished).signal, 'SIGKILL');
  assert.equal(text(), 'Name? ');
});

test('what does not end is killed after a while, however often it is stopped', async (t) => {
  const { agent, text } = start(t, sh('trap "echo term" TERM; echo up; while :; do sleep 0.02; done'), { times: { kill: 150 } });
  await until('the agent', () => text() === 'up\n');
  const begun = performance.now();
  agent.stop();
  await until('the first signal', () => text() === 'up\nterm\n');
  agent.stop();
  assert.deepEqual(await agent.finished, { exitCode: null, signal: 'SIGKILL' });
  assert.ok(performance.now() - begun >= 140);
  assert.equal(text(), 'up\nterm\n', 'the second stop changes nothing');
  agent.stop();
  agent.signal('SIGKILL'); // its number may be another's by now
});

test('what an agent leaves in its group is killed with its end', async (t) => {
  const { agent, text } = start(t, sh('sleep 60 & echo $!'));
  assert.equal((await agent.finished).exitCode, 0);
  await until('its end', () => !isAlive(text().trim()));
});

test('output that comes after the end is waited for as long as some comes', async (t) => {
  const marker = path.join(makeGuest(t).root, 'marker'); // its own session has begun: from now on the end of the agent spares it
  const script = 'setsid sh -c ": >$1; sleep 0.1; echo 1; sleep 0.1; echo 2; until [ -e $1.2 ]; do sleep 0.02; done; echo 3; >$1.3" & until [ -e "$1" ]; do sleep 0.01; done; echo out';
  const { agent, text } = start(t, sh(script, marker), { times: { drain: 700 } });
  const begun = performance.now();
  assert.equal((await agent.finished).exitCode, 0);
  assert.equal(text(), 'out\n1\n2\n');
  assert.ok(performance.now() - begun < 20_000, 'and not longer');
  fs.writeFileSync(`${marker}.2`, '');
  await until('what is too late', () => fs.existsSync(`${marker}.3`) || !isAlive(agent.pid));
  await delay(50);
  assert.equal(text(), 'out\n1\n2\n');
});

test('an agent whose output is not read waits, and none of it is lost', async (t) => {
  const { agent, text } = start(t, sh('echo up; head -c 1000000 /dev/zero | tr "\\0" x; printf y >&2'), { times: { drain: 50 } });
  agent.pause();
  await delay(200);
  assert.deepEqual([text(), text('stderr'), isAlive(agent.pid)], ['', '', true]);
  agent.resume();
  assert.equal((await agent.finished).exitCode, 0);
  assert.deepEqual([text().length, text('stderr')], [1_000_003, 'y']);
});
