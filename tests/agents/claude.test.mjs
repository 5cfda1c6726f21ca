// The adapter of agents/claude, with a stand-in for the SDK's query. tests/test_claude_adapter.py runs it with the real SDK.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import { spawnSync } from 'node:child_process';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { MAX_LINE, lineOf } from '../../agents/claude/lib/events.js';
import { Host, NoHostError } from '../../agents/claude/lib/host.js';
import { optionsOf, promptOf } from '../../agents/claude/lib/options.js';
import { instructionsOf } from '../../agents/claude/lib/instructions.js';
import { failed, resultOf } from '../../agents/claude/lib/outcome.js';
import { canUseTool, questionOfEveryTool } from '../../agents/claude/lib/permission.js';
import { readRequest } from '../../agents/claude/lib/request.js';
import { carryOut } from '../../agents/claude/lib/run.js';

/** A request with nothing but a prompt. */
const plain = { prompt: 'do', systemPrompt: undefined, images: [], sessionId: undefined, autoApprove: false, confirmationMode: 'modal' };
const signal = new AbortController().signal;

/** A socket that answers each line with `answer(question)`; a string is sent as it is. */
async function agentd(t, answer) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'adapter-'));
  t.after(() => fs.rmSync(folder, { recursive: true }));
  const socket = path.join(folder, 'sock');
  const questions = [];
  const server = net.createServer((connection) => {
    connection.on('error', () => {});
    connection.on('data', (line) => {
      questions.push(JSON.parse(line));
      const reply = answer(questions.at(-1));
      if (reply !== undefined) connection.end(typeof reply === 'string' ? reply : `${JSON.stringify(reply)}\n`);
    });
  });
  await new Promise((resolve) => server.listen(socket, resolve));
  t.after(() => server.close());
  return { host: new Host(socket), questions };
}

/** Carry out a request whose SDK yields `messages` and then throws `error`, if there is one. */
async function carried(messages, { request = plain, error, env = {}, cancelled = false } = {}) {
  const lines = [];
  const logged = [];
  const abortController = new AbortController();
  const calls = [];
  async function* query(call) {
    calls.push(call);
    yield* messages;
    call.options.stderr('a warning\n');
    if (cancelled) abortController.abort();
    if (error) throw error;
  }
  await carryOut(request, { query, host: {}, env, cwd: '/work', abortController, write: (line) => lines.push(line), log: (text) => logged.push(text) });
  for (const line of lines) assert.ok(line.endsWith('\n'));
  const parsed = lines.map((line) => JSON.parse(line));
  assert.equal(parsed.filter(({ type }) => type === 'result').length, 1, 'exactly one result');
  return { messages: parsed.slice(0, -1), result: parsed.at(-1), calls, logged };
}

test('a request is what agentd tells', async (t) => {
  const told = {
    prompt: 'do it',
    systemPrompt: 'be brief',
    imageAttachments: [{ name: 'a.png', mimeType: 'image/png', base64Data: 'AA==' }, { name: 'no image' }, null, { mimeType: 7, base64Data: 'x' }],
    sessionId: 'id',
    autoApprove: true,
    confirmationMode: 'text',
  };
  const { host, questions } = await agentd(t, () => ({ request: told }));
  assert.deepEqual(await readRequest(host, { AGENT_SYSTEM_PROMPT: 'other' }, ['unread']), {
    prompt: 'do it',
    systemPrompt: 'be brief',
    images: [{ mimeType: 'image/png', data: 'AA==' }],
    sessionId: 'id',
    autoApprove: true,
    confirmationMode: 'text',
  });
  assert.deepEqual(questions, [{ kind: 'request' }]);
});

test('what is missing, or of another type, is left out', async (t) => {
  for (const told of [{}, { prompt: 7, systemPrompt: null, imageAttachments: 'x', sessionId: 7, autoApprove: 1, confirmationMode: 'loud' }, { sessionId: '', systemPrompt: '' }]) {
    const { host } = await agentd(t, () => ({ request: told }));
    assert.deepEqual(await readRequest(host, {}, []), { ...plain, prompt: '' });
  }
});

test('without agentd, or with one that tells nothing, the prompt is on standard input', async (t) => {
  const old = await agentd(t, () => ({ behavior: 'deny', message: 'toolName must be a string' }));
  const env = { AGENT_SYSTEM_PROMPT: 'be brief', AGENT_AUTO_APPROVE: '1', AGENT_CONFIRMATION_MODE: 'text' };
  const euro = Buffer.from('€ please');
  for (const host of [new Host(undefined), old.host]) {
    const request = await readRequest(host, env, [euro.subarray(0, 2), euro.subarray(2)]);
    assert.deepEqual(request, { ...plain, prompt: '€ please', systemPrompt: 'be brief', autoApprove: true, confirmationMode: 'text' });
    assert.equal((await readRequest(host, { AGENT_AUTO_APPROVE: '0' }, [])).autoApprove, false);
  }
  const broken = { request: () => Promise.reject(new TypeError('a bug')) };
  await assert.rejects(readRequest(broken, {}, []), TypeError);
});

test('a host that does not answer is an error that says so', async (t) => {
  await assert.rejects(new Host(undefined).permission('Bash', {}), { constructor: NoHostError, message: /^there is no agentd to ask/ });
  await assert.rejects(new Host('/no/such/socket').request(), { constructor: NoHostError, message: /^agentd does not answer: .*ENOENT/ });
  for (const text of ['', '7\n', '{', 'null\n']) {
    const { host } = await agentd(t, () => text);
    await assert.rejects(host.request(), { constructor: NoHostError, message: 'agentd does not answer: it hung up' });
  }
  const { host } = await agentd(t, () => undefined);
  await assert.rejects(host.permission('Bash', {}, AbortSignal.timeout(50)), NoHostError);
});

test('the options of a plain request', () => {
  const log = () => {};
  const abortController = new AbortController();
  const env = { PATH: '/bin', HOME: '/h', ANTHROPIC_API_KEY: 'sk-x\n', ANTHROPIC_AUTH_TOKEN: ' t ', OTHER: ' x ', AGENT_SOCKET: '/s', AGENT_PROMPT: 'do' };
  const { canUseTool: decide, hooks, tools, ...options } = optionsOf(plain, { host: {}, env, cwd: '/work', abortController, log });
  assert.deepEqual(options, {
    cwd: '/work',
    abortController,
    stderr: log,
    env: {
      CLAUDE_AGENT_SDK_CLIENT_APP: 'imgkit',
      CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: '1',
      PATH: '/bin',
      HOME: '/h',
      ANTHROPIC_API_KEY: 'sk-x',
      ANTHROPIC_AUTH_TOKEN: 't',
      OTHER: ' x ',
    },
    systemPrompt: { type: 'preset', preset: 'claude_code' },
    includePartialMessages: true,
    permissionMode: 'default',
    settingSources: [],
    strictMcpConfig: true,
  });
  assert.equal(typeof decide, 'function');
  assert.deepEqual(hooks, { PreToolUse: [{ hooks: [questionOfEveryTool] }] });
  assert.ok(tools.includes('AskUserQuestion') && tools.includes('Bash') && tools.includes('Grep'));
});

test('the options that a request and its environment change', () => {
  const made = (request, env = {}) => optionsOf({ ...plain, ...request }, { host: {}, env, cwd: '/no/such/folder' });
  assert.equal(made({ systemPrompt: 'be brief' }).systemPrompt, 'be brief');
  assert.equal(made({ sessionId: 'id' }).resume, 'id');
  assert.equal('resume' in made({}), false);
  assert.equal(made({}, { CLAUDE_MAX_TURNS: '3' }).maxTurns, 3);
  assert.equal('maxTurns' in made({}, { CLAUDE_MAX_TURNS: '' }), false);
  for (const turns of ['0', '-1', '1.5', 'many']) assert.throws(() => made({}, { CLAUDE_MAX_TURNS: turns }), { message: `CLAUDE_MAX_TURNS is ${turns}, not a number of turns` });
  assert.equal(made({}, { CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: '0' }).env.CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC, '0', 'the environment beats the defaults');
  assert.deepEqual(made({ autoApprove: true }).hooks, {});
  for (const request of [{ autoApprove: true }, { confirmationMode: 'text' }]) assert.ok(!made(request).tools.includes('AskUserQuestion'), 'nobody would answer');
});

test('the folder says something to the model', (t) => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'adapter-'));
  t.after(() => fs.rmSync(folder, { recursive: true }));
  const file = path.join(folder, 'CLAUDE.md');
  const made = (systemPrompt) => optionsOf({ ...plain, systemPrompt }, { host: {}, env: {}, cwd: folder }).systemPrompt;
  const none = () => {
    assert.equal(instructionsOf(folder), undefined);
    assert.deepEqual(made(undefined), { type: 'preset', preset: 'claude_code' });
    assert.equal(made('be brief'), 'be brief');
  };
  none();
  fs.writeFileSync(file, ' \n');
  none();
  const said = '# CLAUDE.md\n\nThe folder in which you work has this file with instructions for you:\n\nSing: é';
  fs.writeFileSync(file, '\nSing: é\n');
  assert.equal(instructionsOf(folder), said);
  assert.deepEqual(made(undefined), { type: 'preset', preset: 'claude_code', append: said });
  assert.equal(made('be brief'), `be brief\n\n${said}`);
  fs.writeFileSync(file, 'x'.repeat(100_000));
  assert.ok(instructionsOf(folder).endsWith('xxx'));
  fs.writeFileSync(file, 'x'.repeat(100_001));
  assert.ok(instructionsOf(folder).endsWith('xxx\n… (the file is longer than 100000 bytes)'));
  fs.rmSync(file);
  fs.mkdirSync(file);
  none();
  fs.rmdirSync(file);
  spawnSync('mkfifo', [file]);
  none();
});

test('the prompt is one message, with the images behind the text', async () => {
  const messages = async (request) => {
    const all = [];
    for await (const message of promptOf({ ...plain, ...request })) all.push(message);
    return all;
  };
  const message = (content) => [{ type: 'user', message: { role: 'user', content }, parent_tool_use_id: null, session_id: '' }];
  assert.deepEqual(await messages({}), message([{ type: 'text', text: 'do' }]));
  const image = { type: 'image', source: { type: 'base64', media_type: 'image/png', data: 'AA==' } };
  const images = [{ mimeType: 'image/png', data: 'AA==' }];
  assert.deepEqual(await messages({ images }), message([{ type: 'text', text: 'do' }, image]));
  assert.deepEqual(await messages({ prompt: '', images }), message([image]));
});

test('every use of a tool is asked about, but for those that touch nothing', async () => {
  const asked = { hookSpecificOutput: { hookEventName: 'PreToolUse', permissionDecision: 'ask' } };
  for (const name of ['Bash', 'Read', 'Write', 'Grep', 'WebFetch', 'mcp__x__y', 'AskUserQuestion']) assert.deepEqual(await questionOfEveryTool({ tool_name: name }), asked, name);
  for (const name of ['Agent', 'Task', 'Skill']) assert.deepEqual(await questionOfEveryTool({ tool_name: name }), {}, name);
});

test('the host decides, and nobody is a no', async (t) => {
  const input = { command: 'ls' };
  for (const [answer, expected] of [
    [{ behavior: 'allow', updatedInput: { command: 'ls -l' } }, { behavior: 'allow', updatedInput: { command: 'ls -l' } }],
    [{ behavior: 'allow' }, { behavior: 'allow', updatedInput: input }],
    [{ behavior: 'allow', updatedInput: [1] }, { behavior: 'allow', updatedInput: input }],
    [{ behavior: 'deny', message: 'not today', updatedInput: {} }, { behavior: 'deny', message: 'not today' }],
    [{ behavior: 'deny' }, { behavior: 'deny', message: 'denied' }],
    [{ behavior: 'allowed' }, { behavior: 'deny', message: 'denied' }],
    ['', { behavior: 'deny', message: 'agentd does not answer: it hung up' }],
  ]) {
    const { host, questions } = await agentd(t, () => answer);
    assert.deepEqual(await canUseTool(host, plain)('Bash', input, { signal }), expected);
    assert.deepEqual(questions, [{ kind: 'permission', toolName: 'Bash', toolInput: input }]);
  }
  const nobody = { permission: () => assert.fail('nobody is asked') };
  assert.deepEqual(await canUseTool(nobody, { autoApprove: true })('Bash', input, { signal }), { behavior: 'allow', updatedInput: input });
});

test('a question of the model needs an answer, not a permission', async (t) => {
  const input = { questions: [] };
  for (const [updatedInput, expected] of [
    [{ ...input, answers: { 'Which?': 'B' } }, { behavior: 'allow', updatedInput: { ...input, answers: { 'Which?': 'B' } } }],
    [input, { behavior: 'deny', message: 'nobody answered the question' }],
    [undefined, { behavior: 'deny', message: 'nobody answered the question' }],
  ]) {
    const { host } = await agentd(t, () => ({ behavior: 'allow', updatedInput }));
    assert.deepEqual(await canUseTool(host, plain)('AskUserQuestion', input, { signal }), expected);
  }
});

test('a line that agentd would not take is cut where its strings are longest', () => {
  assert.equal(lineOf({ type: 'a', text: '\n€' }), '{"type":"a","text":"\\n€"}\n');
  const fits = { type: 'a', text: 'x'.repeat(MAX_LINE - '{"type":"a","text":""}\n'.length) };
  assert.equal(lineOf(fits), `${JSON.stringify(fits)}\n`);
  const cut = JSON.parse(lineOf({ type: 'a', text: `${fits.text}x`, other: 'short' }));
  assert.deepEqual(cut, { type: 'a', text: `${'x'.repeat(100_000)}… (${fits.text.length + 1 - 100_000} characters more)`, other: 'short' });
  const many = lineOf({ type: 'a', texts: Array.from({ length: 500 }, () => 'é'.repeat(5000)) });
  assert.ok(Buffer.byteLength(many) <= MAX_LINE);
  assert.equal(JSON.parse(many).texts[0], `${'é'.repeat(100)}… (4900 characters more)`);
  const numbers = { type: 'a', subtype: 'b', uuid: 'u', session_id: 's', numbers: Array(MAX_LINE).fill(1) };
  assert.deepEqual(JSON.parse(lineOf(numbers)), { type: 'a', subtype: 'b', uuid: 'u', session_id: 's', cut: true });
  const pair = JSON.parse(lineOf({ type: 'a', text: `${'x'.repeat(99_999)}${'😀'.repeat(500_000)}` }));
  assert.ok(pair.text.startsWith(`${'x'.repeat(99_999)}�… (`), 'no half of a character');
});

// The texts are those of the SDK, as tests/test_claude_adapter.py has them come.
test('a result that failed says why, and is no success', () => {
  const done = { type: 'result', subtype: 'success', is_error: false, result: 'done', num_turns: 1 };
  assert.equal(resultOf(done, undefined), done);
  const error = { ...done, is_error: true };
  for (const [message, failure, result] of [
    [{ ...error, result: 'API Error: 529 Overloaded.\n\n Try again.' }, 'server_error', 'API Error: 529 Overloaded. Try again.'],
    [{ ...error, result: 'Invalid API key', api_error_status: 401 }, 'authentication_failed', 'the API does not accept the key (401: Invalid API key)'],
    [{ ...error, result: 'Not logged in · Please run /login', api_error_status: null }, 'authentication_failed', 'there is no API key: give one with --secret ANTHROPIC_API_KEY=FILE, or in the request\'s "env"'],
    [{ ...error, stop_reason: 'refusal', result: 'flagged' }, 'invalid_request', 'the model refused: flagged'],
  ]) {
    assert.deepEqual(resultOf(message, failure), { ...message, subtype: 'error_during_execution', result });
  }
  const turns = { type: 'result', subtype: 'error_max_turns', is_error: true, errors: ['Reached maximum number of turns (2)'] };
  assert.equal(resultOf(turns).result, 'Reached maximum number of turns (2): CLAUDE_MAX_TURNS allows no more');
  assert.equal(resultOf(turns).subtype, 'error_max_turns');
  const unknown = { type: 'result', subtype: 'error_during_execution', is_error: true, errors: ['No conversation found with session ID: x'] };
  assert.equal(resultOf(unknown).result, 'No conversation found with session ID: x. A session ends with its machine, unless CLAUDE_CONFIG_DIR is in a share');
  assert.equal(resultOf({ type: 'result', subtype: 'error_during_execution', errors: ['a', 'b'] }).result, 'a; b');
  assert.equal(resultOf({ type: 'result', subtype: 'error_during_execution', errors: [] }).result, 'the agent ended with error_during_execution');
  assert.equal(resultOf({ ...done, subtype: 'error_max_budget_usd', result: undefined, errors: ['x'] }).subtype, 'error_max_budget_usd', 'is_error need not be set');
  assert.deepEqual(failed('a\n b '), { type: 'result', subtype: 'error_during_execution', is_error: true, result: 'a b' });
});

test('messages are reported as they come, and the result at the end', async () => {
  const result = { type: 'result', subtype: 'success', is_error: false, result: 'done' };
  const messages = [{ type: 'system', subtype: 'init' }, result, { type: 'assistant', message: {} }];
  const run = await carried(messages, { env: { HOME: '/h' } });
  assert.deepEqual(run.messages, [messages[0], messages[2]]);
  assert.deepEqual(run.result, result);
  assert.deepEqual(run.logged, ['a warning\n']);
  const [{ prompt, options }] = run.calls;
  assert.deepEqual([(await prompt.next()).value.message.content, options.cwd, options.env.HOME], [[{ type: 'text', text: 'do' }], '/work', '/h']);
});

test('the kind of an error is that of the last message of the agent itself', async () => {
  const result = { type: 'result', subtype: 'success', is_error: true, result: 'Invalid API key', api_error_status: 401 };
  const own = { type: 'assistant', error: 'authentication_failed', parent_tool_use_id: null };
  const below = { type: 'assistant', error: 'rate_limit', parent_tool_use_id: 'toolu_1' };
  assert.match((await carried([own, below, result], { error: new Error('again') })).result.result, /^the API does not accept the key/);
  assert.equal((await carried([own, { ...own, error: undefined }, result])).result.result, 'Invalid API key');
});

test('a run that fails, is cancelled, or has no result', async () => {
  assert.equal((await carried([], { error: new Error('it broke') })).result.result, 'it broke: a warning');
  assert.equal((await carried([], { error: new Error('it broke: a warning!') })).result.result, 'it broke: a warning!');
  assert.equal((await carried([], { error: new Error('aborted by user'), cancelled: true })).result.result, 'the request was cancelled');
  assert.equal((await carried([])).result.result, 'the SDK ended without a result');
  const turns = await carried([], { env: { CLAUDE_MAX_TURNS: 'x' } });
  assert.deepEqual([turns.result.result, turns.calls], ['CLAUDE_MAX_TURNS is x, not a number of turns', []]);
});

test('there must be something to do', async () => {
  for (const prompt of ['', ' \n']) {
    const { result, calls } = await carried([], { request: { ...plain, prompt } });
    assert.deepEqual([result.result, calls], ['there is no prompt', []]);
  }
  const { calls } = await carried([], { request: { ...plain, prompt: '', images: [{ mimeType: 'image/png', data: 'AA==' }] } });
  assert.equal(calls.length, 1);
});
