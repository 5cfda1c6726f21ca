'use strict';
// What a request may say, and what its agent is started with.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { test } = require('node:test');
const { makeGuest, payload } = require('./helpers');
const { checkProgram } = payload('agent');
const { agentEnvironment, chooseAgent, describePresence, readDrive, splitArguments, splitWords } = payload('environment');
const { RequestError } = payload('errors');
const { parseRequest } = payload('request');
const { findUser } = payload('users');

test('a request without anything', () => {
  const request = parseRequest('r', {});
  assert.deepEqual(request, {
    id: 'r', prompt: undefined, cwd: undefined, workspaceRoot: undefined, hostWorkspaceRoot: undefined, env: {}, mounts: [], autoApprove: false,
    confirmationMode: 'modal', systemPrompt: undefined, awaitSystem: true, command: undefined, stdin: false, data: {},
  }); // prettier-ignore
  assert.ok(Object.isFrozen(request));
  const keys = ['prompt', 'cwd', 'workspaceRoot', 'hostWorkspaceRoot', 'env', 'mounts', 'autoApprove', 'confirmationMode', 'systemPrompt', 'awaitSystem', 'command', 'stdin'];
  const nulls = Object.fromEntries(keys.map((key) => [key, null]));
  assert.deepEqual({ ...parseRequest('r', nulls), data: {} }, request, 'null is like nothing');
});

test('a request with everything', () => {
  const data = {
    prompt: '', cwd: '/workspace/project', workspaceRoot: '/workspace/project', hostWorkspaceRoot: '/Users/x/p', env: { A: '' }, autoApprove: true,
    mounts: { work: { tag: 'w', guestPath: '/workspace/a/../project/' }, ipc: { tag: 'a.b-c_1', guestPath: '/workspace/ipc' } },
    confirmationMode: 'text', systemPrompt: '', awaitSystem: false, command: ['a', ''],
  }; // prettier-ignore
  const { mounts, ...rest } = parseRequest('r', data);
  assert.deepEqual(mounts, [{ name: 'work', tag: 'w', guestPath: '/workspace/project' }, { name: 'ipc', tag: 'a.b-c_1', guestPath: '/workspace/ipc' }]);
  assert.ok(mounts.every(Object.isFrozen));
  const { mounts: _, ...given } = data;
  assert.deepEqual(rest, { id: 'r', ...given, stdin: false, data });
  assert.equal(parseRequest('r', { cwd: '', workspaceRoot: '', hostWorkspaceRoot: '' }).cwd, undefined);
});

const WRONG = {
  'a string': { prompt: [1, [], {}, true], cwd: [1], workspaceRoot: [1], hostWorkspaceRoot: [1], confirmationMode: [1], systemPrompt: [1] },
  'an object of strings': { env: ['x', 1, [], ['x'], { A: 1 }, { A: 'x', B: null }] },
  'an object': { mounts: ['x', 1, [], true] },
  'true or false': { autoApprove: ['true', 1, 0, ''], awaitSystem: ['false', 0, 1], stdin: ['true', 1, 0] },
  'a list of strings, not empty': { command: ['ls', 1, {}, [], [''], [1], ['ls', 1], ['ls', 'a\0'], ['l\0s'], [null]] },
};

test('what a request may not say is refused by name', () => {
  for (const [what, keys] of Object.entries(WRONG)) {
    for (const [key, values] of Object.entries(keys)) {
      for (const value of values) {
        const error = { name: 'RequestError', exitCode: null, message: `request: "${key}" must be ${what}` };
        assert.throws(() => parseRequest('r', { [key]: value }), error, JSON.stringify(value));
      }
    }
  }
});

test('mounts need a tag and a place', () => {
  const parse = (mount) => parseRequest('r', { mounts: { m: mount } }).mounts[0];
  const guestPath = '/workspace/x';
  for (const tag of [undefined, 1, '', 'a b', 'a,b', '/', 'x'.repeat(65)]) assert.throws(() => parse({ tag, guestPath }), { message: 'mount "m": "tag" must be a mount tag' });
  for (const mount of [null, 'x', [], ['tag']]) assert.throws(() => parse(mount), { message: 'mount "m": "tag" must be a mount tag' });
  for (const bad of [undefined, 1, '', 'x', '/x\0']) assert.throws(() => parse({ tag: 't', guestPath: bad }), { message: 'mount "m": "guestPath" must be an absolute path' });
  assert.deepEqual(parse({ tag: 'x'.repeat(64), guestPath, more: 1 }), { name: 'm', tag: 'x'.repeat(64), guestPath });
});

test('a program is found where the agent itself would find it, and only if it can be run', (t) => {
  const { root } = makeGuest(t);
  const file = (name, mode) => {
    fs.mkdirSync(path.dirname(path.join(root, name)), { recursive: true });
    fs.writeFileSync(path.join(root, name), '');
    fs.chmodSync(path.join(root, name), mode);
  };
  for (const mode of [0o100, 0o010, 0o001]) {
    file('bin/tool', mode);
    checkProgram(['tool', 'x'], { PATH: `/nowhere:${root}/bin` }, '/');
  }
  checkProgram(['tool'], { PATH: 'nowhere:bin' }, root);
  checkProgram(['bin/tool'], { PATH: '/nowhere' }, root);
  checkProgram(['../bin/tool'], {}, path.join(root, 'bin'));
  checkProgram([path.join(root, 'bin/tool')], {}, '/');
  file('bin/text', 0o666);
  const none = { '': [`${root}/bin`, root], tool: ['/nowhere', root], 'bin/none': [`${root}:${root}/bin`, root], 'bin/tool': [`${root}`, '/'], 'bin/tool/x': ['', root] };
  for (const [name, [PATH, cwd]] of Object.entries(none)) {
    assert.throws(() => checkProgram([name], { PATH }, cwd), { name: 'RequestError', message: `command not found: ${name}`, exitCode: 127 }, name);
  }
  for (const [name, [PATH, cwd]] of Object.entries({ text: [`${root}/bin:/nowhere`, root], bin: [root, root], './bin/text': ['', root] })) {
    assert.throws(() => checkProgram([name], { PATH }, cwd), { name: 'RequestError', message: `command cannot be executed: ${name}`, exitCode: 126 }, name);
  }
  assert.throws(() => checkProgram(['tool'], {}, root), { exitCode: 127 });
});

test('words and arguments', () => {
  const words = {
    ' a  b ': ['a', 'b'],
    "''": [''],
    'a"b c"d': ['ab cd'],
    '"a\\"b\\\\c\\$d\\`e\\n"': ['a"b\\c$d`e\\n'],
    "'a\\'": ['a\\'],
    '\\"a': ['"a'],
    '$HOME *': ['$HOME', '*'],
    'a\tb\nc': ['a', 'b', 'c'],
  };
  for (const [text, expected] of Object.entries(words)) assert.deepEqual(splitWords(text, 'AGENT_COMMAND'), expected, text);
  for (const text of ['"a', "a'", 'a b"', 'a\\']) assert.throws(() => splitWords(text, 'NAME'), { name: 'RequestError', message: 'NAME has an unfinished quote' }, text);
  assert.deepEqual(splitArguments(' ["a b", "c"] '), ['a b', 'c']);
  assert.deepEqual(splitArguments('[]'), []);
  assert.deepEqual(splitArguments("'[a' b]"), ['[a', 'b]']);
  assert.deepEqual(splitArguments('"a b" c'), ['a b', 'c']);
  for (const text of ['[1]', '["a", null]', '[["a"]]', '[a b]']) assert.throws(() => splitArguments(text), { name: 'RequestError', message: "AGENT_ARGS must be an array of strings, as it begins with [ (or quote that: '[')" });
});

test('the request chooses before the config drive, and that before the service', () => {
  const none = { command: [], workdir: undefined, userName: 'agent' };
  assert.deepEqual(chooseAgent({}, {}, {}), none);
  assert.deepEqual(chooseAgent({ AGENT_ARGS: 'x' }, { AGENT_WORKDIR: '', AGENT_USER: '' }, {}), none, 'arguments alone are no command');
  const [service, drive, request] = ['service', 'drive', 'request'].map((name) => ({ AGENT_COMMAND: `${name} 1`, AGENT_ARGS: `'${name} 2' 3`, AGENT_WORKDIR: `/${name}`, AGENT_USER: name }));
  const chosen = (name) => ({ command: [name, '1', `${name} 2`, '3'], workdir: `/${name}`, userName: name });
  assert.deepEqual(chooseAgent(service, {}, {}), chosen('service'));
  assert.deepEqual(chooseAgent(service, drive, {}), chosen('drive'));
  assert.deepEqual(chooseAgent(service, drive, request), chosen('request'));
  assert.deepEqual(chooseAgent({ AGENT_COMMAND: 'a' }, {}, { AGENT_ARGS: '' }).command, ['a']);
});

test('the log learns which values of the control plane are there, and nothing else', () => {
  assert.equal(describePresence({ SESSION_ID: 'secret', SESSION_TOKEN: '' }), 'SESSION_TOKEN absent, CONTROL_PLANE_URL absent, SESSION_ID present');
});

test('secrets of the config drive are files, which come before its object', (t) => {
  const { config } = makeGuest(t);
  fs.mkdirSync(path.join(config.configDir, 'secrets'));
  fs.writeFileSync(path.join(config.configDir, 'secrets/KEY'), 'from the file\n');
  assert.deepEqual(readDrive(config.configDir), { KEY: 'from the file\n' });
  fs.writeFileSync(path.join(config.configDir, 'env.json'), '{"KEY": "x", "A": "1"}');
  assert.deepEqual(readDrive(config.configDir), { KEY: 'from the file\n', A: '1' });
});

test('the whole environment of an agent', () => {
  const user = { name: 'u', home: '/home/u', shell: '/bin/ash' };
  const request = { id: 'r', env: { B: 'request', C: 'request', LANG: 'de', AGENT_SOCKET: '/tmp/other', SESSION_ID: 'x' }, autoApprove: true, confirmationMode: 'text', prompt: 'p', systemPrompt: 's' };
  assert.deepEqual(agentEnvironment(user, { A: 'drive', B: 'drive', AGENT_ARGS: 'x' }, request, '/socket'), {
    PATH: '/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin', HOME: '/home/u', USER: 'u', LOGNAME: 'u', SHELL: '/bin/ash', LANG: 'de',
    A: 'drive', B: 'request', C: 'request', AGENT_REQUEST_ID: 'r', AGENT_SOCKET: '/socket', AGENT_AUTO_APPROVE: '1', AGENT_CONFIRMATION_MODE: 'text',
    AGENT_PROMPT: 'p', AGENT_SYSTEM_PROMPT: 's',
  }); // prettier-ignore
  const plain = agentEnvironment(user, {}, { id: 'r', env: {}, autoApprove: false, confirmationMode: 'modal' }, '/socket');
  assert.deepEqual([plain.LANG, 'AGENT_PROMPT' in plain, 'AGENT_SYSTEM_PROMPT' in plain], ['C.UTF-8', false, false]);
});

test('the account of the agent', (t) => {
  const { config } = makeGuest(t);
  const lines = ['root:x:0:0::/root:/bin/sh', 'short', 'odd:x:x:5::/:', 'odd:x:5:x::/:', 'agents:x:7:7::/s:/s', 'agent:x:1000:1001:Agent:/home/agent:/bin/ash', 'agent:x:2:2::/:/', 'bare:x:6:6:::', 'wheel:x:9:0::/:/', 'toor:x:0:9::/:/', 'huge:x:4294967295:9::/:/', 'huge:x:9:2147483648::/:/', 'long:x:00000000001:9::/:/', 'last:x:2147483647:2147483647::/:/'];
  fs.writeFileSync(config.passwdFile, `${lines.join('\n')}\n`);
  assert.deepEqual(findUser('agent', config.passwdFile), { name: 'agent', uid: 1000, gid: 1001, home: '/home/agent', shell: '/bin/ash' });
  assert.deepEqual(findUser('bare', config.passwdFile), { name: 'bare', uid: 6, gid: 6, home: '/', shell: '/bin/sh' });
  assert.equal(findUser('last', config.passwdFile).gid, 2 ** 31 - 1);
  for (const name of ['root', 'wheel', 'toor']) {
    assert.throws(() => findUser(name, config.passwdFile), { name: 'RequestError', message: `AGENT_USER ${name} is root or in root's group: the agent never runs as root` });
  }
  for (const name of ['', 'odd', 'short', 'none', 'x', 'huge', 'long', '1000']) assert.throws(() => findUser(name, config.passwdFile), { message: `AGENT_USER ${name} does not exist in this image` });
  assert.ok(new RequestError('x') instanceof Error);
});
