'use strict';
// Questions of the agent: what becomes of each answer, and what the socket takes.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const net = require('node:net');
const path = require('node:path');
const { test } = require('node:test');
const { makeGuest, payload, until } = require('./helpers');
const { Questions } = payload('permissions');

/** Questions of a running request that the host answers with `answer(kind, id, signal)`. */
function running(answer, { autoApprove = false, signal = new AbortController().signal, times = { answer: 60_000 } } = {}) {
  const questions = new Questions(times);
  const events = [];
  const stream = { write: async (event) => void events.push(event) };
  questions.serve({ request: { autoApprove }, channel: { answer }, stream, signal });
  return { questions, events };
}

/** An answer that never comes; it ends with its signal, as those of the channels do. */
const never = (kind, id, signal) => new Promise((resolve) => (signal.aborted ? resolve() : signal.addEventListener('abort', () => resolve())));

test('without a running request everything is denied', async () => {
  const questions = new Questions({ answer: 1 });
  for (let round = 0; round < 2; round += 1) {
    assert.deepEqual(await questions.permission('Bash', {}), { behavior: 'deny', message: 'no request is running' });
    assert.deepEqual(await questions.hostTool('clipboard', {}), { success: false, text: '', error: 'no request is running' });
    questions.serve({ request: { autoApprove: true } });
    assert.deepEqual(await questions.permission('Bash', { a: 1 }), { behavior: 'allow', updatedInput: { a: 1 } });
    questions.serve(undefined);
  }
});

test('an agent reads its own request, without what agentd keeps to itself', async () => {
  const questions = new Questions({ answer: 1 });
  assert.equal(questions.request(), undefined);
  const own = { prompt: 'p', systemPrompt: 's', imageAttachments: [{ name: 'a.png', mimeType: 'image/png', base64Data: 'AA==' }], sessionId: 'x' };
  const told = { autoApprove: true, confirmationMode: 'text', cwd: '/workspace', workspaceRoot: '/workspace', hostWorkspaceRoot: '/home/me', memoryEnabled: false };
  questions.serve({ request: { data: { ...own, ...told, env: { SESSION_TOKEN: 't' }, mounts: { work: {} }, command: ['ls'], other: 1 } } });
  assert.deepEqual(questions.request(), { ...own, ...told });
  questions.serve({ request: { data: { prompt: 'p' } } });
  assert.deepEqual(questions.request(), { prompt: 'p' }, 'a key that the host did not send is not there');
});

test('what the host says about a permission', async () => {
  const input = { command: 'ls' };
  for (const [answer, expected] of [
    [{ behavior: 'allow' }, { behavior: 'allow', updatedInput: input }],
    [{ behavior: 'allow', updatedInput: { command: 'ls -l' }, message: 'm' }, { behavior: 'allow', updatedInput: { command: 'ls -l' }, message: 'm' }],
    [{ behavior: 'deny', message: 'not today', updatedInput: {} }, { behavior: 'deny', message: 'not today' }],
    [{ behavior: 'deny' }, { behavior: 'deny', message: 'denied' }],
    [{ behavior: 'deny', message: 7 }, { behavior: 'deny', message: 'denied' }],
    [{ behavior: 'allowed' }, { behavior: 'deny', message: 'denied' }],
    [{}, { behavior: 'deny', message: 'denied' }],
    [undefined, { behavior: 'deny', message: 'no answer from the host' }],
  ]) {
    const asked = [];
    const { questions, events } = running(async (kind, id) => (asked.push([kind, id]), answer));
    assert.deepEqual(await questions.permission('Bash', input), expected);
    assert.deepEqual(asked, [['permission', events[0].requestId]]);
    assert.deepEqual(events, [{ type: 'permission_request', requestId: events[0].requestId, toolName: 'Bash', toolInput: input }]);
    assert.match(events[0].requestId, /^[\da-f-]{36}$/);
  }
});

test('what the host says about a tool of its own, which nobody approves beforehand', async () => {
  for (const [answer, expected] of [
    [{ success: true, text: 'clip', error: 'x' }, { success: true, text: 'clip', error: undefined }],
    [{ success: true }, { success: true, text: '', error: undefined }],
    [{ success: false, text: 'half', error: 'no clipboard' }, { success: false, text: 'half', error: 'no clipboard' }],
    [{ success: false, text: 7, error: 7 }, { success: false, text: '', error: 'the host tool failed' }],
    [{ success: 'true' }, { success: false, text: '', error: 'the host tool failed' }],
    [undefined, { success: false, text: '', error: 'no answer from the host' }],
  ]) {
    const { questions, events } = running(async () => answer, { autoApprove: true });
    assert.deepEqual(await questions.hostTool('clipboard', [1]), expected);
    assert.deepEqual(events, [{ type: 'host_tool_request', requestId: events[0].requestId, toolName: 'clipboard', toolInput: [1] }]);
  }
});

test('an answer is waited for until the time is over or the request is cancelled', async () => {
  const begun = performance.now();
  const { questions } = running(never, { times: { answer: 80 } });
  assert.equal((await questions.permission('Bash')).message, 'no answer from the host');
  assert.ok(performance.now() - begun >= 75);
  const controller = new AbortController();
  const cancelled = running(never, { signal: controller.signal });
  const asked = cancelled.questions.permission('Bash');
  controller.abort();
  assert.equal((await asked).message, 'no answer from the host');
  assert.equal((await cancelled.questions.hostTool('x')).error, 'no answer from the host', 'it is over already');
});

test('an answer counts before the question could be written', async () => {
  const questions = new Questions({ answer: 60_000 });
  const stream = { write: () => new Promise(() => {}) };
  questions.serve({ request: {}, channel: { answer: async () => ({ behavior: 'allow' }) }, stream, signal: new AbortController().signal });
  assert.equal((await questions.permission('Bash')).behavior, 'allow');
});

/** A socket of questions that are answered with what was asked. */
async function listening(t) {
  const { config } = makeGuest(t);
  const socket = path.join(config.runDir, 'deep/agent.sock');
  fs.mkdirSync(path.dirname(socket));
  fs.writeFileSync(socket, 'left over');
  const questions = new Questions({ answer: 60_000 });
  questions.permission = async (name, input) => ({ permission: [name, input] });
  questions.hostTool = async (name, input) => ({ tool: [name, input] });
  const server = await questions.listen(socket);
  t.after(() => server.close());
  /** Everything that comes back for these pieces. */
  const send = async (pieces, end = false) => {
    const connection = net.connect(socket).setEncoding('utf8');
    t.after(() => connection.destroy());
    let text = '';
    connection.on('data', (chunk) => (text += chunk)).on('error', () => {});
    for (const piece of pieces) {
      connection.write(piece);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    if (end) connection.end();
    await until('the end', () => connection.readableEnded || connection.destroyed, 10_000);
    return text;
  };
  return { socket, questions, send };
}

test('a line is answered with a line, in however many pieces it comes', async (t) => {
  const { send } = await listening(t);
  const ask = (fields) => `${JSON.stringify({ toolName: 'Bash', toolInput: { a: 'é' }, ...fields })}\n`;
  const answer = (kind) => `${JSON.stringify({ [kind]: ['Bash', { a: 'é' }] })}\n`;
  assert.equal(await send([ask()]), answer('permission'));
  assert.equal(await send([ask({ kind: 'permission' })], true), answer('permission'));
  assert.equal(await send([ask({ kind: 'host_tool' })]), answer('tool'));
  assert.equal(await send([...ask({ kind: 'host_tool' }).matchAll(/.{1,9}/gs)].map(([piece]) => piece)), answer('tool'));
  assert.equal(await send([ask() + ask({ kind: 'host_tool' }), 'more']), answer('permission'), 'one question for each connection');
});

test('a request is told to the agent that asks for it', async (t) => {
  const { send, questions } = await listening(t);
  assert.equal(await send(['{"kind":"request"}\n']), '{}\n', 'no request is running');
  questions.serve({ request: { data: { prompt: 'é\n', env: { A: 'b' } } } });
  assert.equal(await send(['{"kind":"request"}\n']), `${JSON.stringify({ request: { prompt: 'é\n' } })}\n`);
});

test('what is no question is denied with the reason', async (t) => {
  const { send, questions } = await listening(t);
  const denied = (message) => ({ behavior: 'deny', success: false, text: '', error: message, message });
  for (const text of ['{}', '{"toolName":7}', '[]']) assert.deepEqual(JSON.parse(await send([`${text}\n`])), denied('toolName must be a string'));
  for (const text of ['', '{', 'null']) assert.equal(JSON.parse(await send([`${text}\n`])).behavior, 'deny', text);
  questions.permission = async () => {
    throw new Error('the stream is gone');
  };
  assert.deepEqual(JSON.parse(await send(['{"toolName":"x"}\n'])), denied('the stream is gone'));
});

test('a question may have 4 MiB', async (t) => {
  const { send } = await listening(t);
  const line = (size) => `{"toolName":"${'x'.repeat(size - 16)}"}\n`;
  assert.equal(line(20).length, 20);
  assert.equal(JSON.parse(await send([line(4 * 2 ** 20)])).permission[0].length, 4 * 2 ** 20 - 16);
  assert.equal(await send([line(4 * 2 ** 20 + 1)]), '');
});

test('the socket takes the place of an old one, and one that cannot be made is an error', async (t) => {
  const { socket, questions } = await listening(t);
  assert.deepEqual([fs.statSync(socket).isSocket(), fs.statSync(socket).mode & 0o777], [true, 0o660]);
  const remove = t.mock.method(fs, 'rmSync', () => {});
  await assert.rejects(questions.listen(socket), { code: 'EADDRINUSE' });
  remove.mock.restore();
});

test('only root gives the socket to the group of the agent', async (t) => {
  const { socket, questions } = await listening(t);
  const chown = t.mock.method(fs, 'chownSync', () => {});
  const getuid = t.mock.method(process, 'getuid', () => 1000);
  questions.admit({ uid: 7, gid: 8 });
  getuid.mock.mockImplementation(() => 0);
  new Questions({}).admit({ uid: 7, gid: 8 }); // it has no socket yet
  assert.equal(chown.mock.callCount(), 0);
  questions.admit({ uid: 7, gid: 8 });
  assert.deepEqual(chown.mock.calls[0].arguments, [socket, 0, 8]);
});
