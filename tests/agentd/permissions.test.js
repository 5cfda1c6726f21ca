'use strict';

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { test } = require('node:test');
const { spawnSync } = require('node:child_process');
const { setTimeout: delay } = require('node:timers/promises');
const { FAST, PAYLOAD, startHost, until } = require('./helpers');

const BIN = path.resolve(PAYLOAD, '../../usr/local/bin');
const ASK = path.join(BIN, 'agent-ask');
/** The command's status and what it printed, as the agent sees them. */
const asking = (...words) => ['/bin/sh', '-c', '"$@"; echo "status $?"', 'sh', ...words];
const tool = (...words) => asking(ASK, '--host-tool', ...words);
const times = { ...FAST, answer: 1500 };

const question = (host, id, type) => until(`a ${type}`, () => host.events(id).find((line) => line.type === type));

test('allow: status 0 and the updated input, and the answer file is gone', async (t) => {
  const host = await startHost(t, { config: { times: { ...FAST, answer: 30_000 } } });
  host.send('p', { command: asking(ASK, 'Bash', '{"command":"ls"}') });
  const asked = await question(host, 'p', 'permission_request');
  assert.deepEqual([asked.toolName, asked.toolInput], ['Bash', { command: 'ls' }]);
  const file = host.ipc('responses', `${asked.requestId}.json`);
  fs.writeFileSync(file, '{"behavior":"al');
  await delay(100);
  assert.ok(fs.existsSync(file), 'a half-written answer is read again');
  fs.writeFileSync(file, JSON.stringify({ behavior: 'allow', updatedInput: { command: 'ls -l' } }));
  await host.result('p');
  assert.equal(host.output('p').toString(), '{"command":"ls -l"}\nstatus 0\n');
  assert.ok(!fs.existsSync(file));
});

test('deny, nonsense and silence all are status 1', async (t) => {
  const host = await startHost(t, { config: { times } });
  for (const [id, answer] of Object.entries({ deny: '{"behavior":"deny","message":"not today"}', odd: '{"behavior":"maybe"}', silent: undefined, half: '{"behavior":"allow"' })) {
    host.send(id, { command: asking(ASK, 'Bash') });
    const { requestId } = await question(host, id, 'permission_request');
    if (answer) fs.writeFileSync(host.ipc('responses', `${requestId}.json`), answer);
    await host.result(id);
    assert.equal(host.output(id).toString(), 'status 1\n', id);
    if (id === 'deny') assert.match(host.output(id, 'stderr').toString(), /not today/);
    assert.deepEqual(fs.readdirSync(host.ipc('responses')), []);
  }
});

test('silence is a no also while garbage is collected', () => {
  // In a process of its own: only there can collections be forced.
  const script = `
    const { Questions } = require(${JSON.stringify(path.join(PAYLOAD, 'lib/permissions.js'))});
    const questions = new Questions({ answer: 300 });
    const channel = { answer: (kind, id, signal) => new Promise((resolve) => signal.addEventListener('abort', () => resolve(undefined))) };
    questions.serve({ request: {}, channel, stream: { write: async () => {} }, signal: new AbortController().signal });
    setInterval(() => global.gc(), 20);
    setTimeout(() => process.exit(3), 10_000);
    questions.permission('Bash', {}).then((answer) => process.exit(answer.behavior === 'deny' ? 0 : 4));`;
  assert.equal(spawnSync(process.execPath, ['--expose-gc', '-e', script]).status, 0);
});

test('autoApprove asks nobody', async (t) => {
  const host = await startHost(t);
  await host.run('auto', { command: asking(ASK, 'Bash', '{"a":1}'), autoApprove: true });
  assert.equal(host.output('auto').toString(), '{"a":1}\nstatus 0\n');
  assert.ok(host.events('auto').every((line) => line.type === 'sdk_event'));
});

test('a host tool: its text on success, its error otherwise', async (t) => {
  const host = await startHost(t, { config: { times } });
  for (const [id, answer, text] of [
    ['good', { type: 'host_tool_response', success: true, text: 'clip' }, 'clip\nstatus 0\n'],
    ['bad', { type: 'host_tool_response', success: false, text: '', error: 'no clipboard' }, 'status 1\n'],
  ]) {
    host.send(id, { command: tool('clipboard', '{}') });
    const { requestId } = await question(host, id, 'host_tool_request');
    fs.writeFileSync(host.ipc('responses', `${requestId}.host-tool.json`), JSON.stringify(answer));
    await host.result(id);
    assert.equal(host.output(id).toString(), text);
  }
  assert.match(host.output('bad', 'stderr').toString(), /no clipboard/);
});

test('cancelling while a question is open ends the request at once', async (t) => {
  const host = await startHost(t, { config: { times: { ...FAST, answer: 60_000 } } });
  host.send('c', { command: asking(ASK, 'Bash') });
  await question(host, 'c', 'permission_request');
  fs.writeFileSync(host.ipc('requests', 'c.cancel'), '');
  assert.equal((await host.result('c', 3000)).cancelled, true);
});

test('wrong use, and no agentd, are status 2', () => {
  const run = (...words) => spawnSync(ASK, words, { encoding: 'utf8', env: { ...process.env, AGENT_SOCKET: '/nonexistent' } });
  assert.equal(run().status, 2);
  assert.equal(run('Bash', '{').status, 2);
  const alone = run('Bash', '{}');
  assert.equal(alone.status, 2);
  assert.match(alone.stderr, /agentd does not answer/);
  assert.match(fs.readFileSync(path.join(BIN, 'agent-host-tool'), 'utf8'), /--host-tool "\$@"/);
});
