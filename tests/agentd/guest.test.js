'use strict';

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { test } = require('node:test');
const { PAYLOAD, makeGuest, makeLog, payload } = require('./helpers');
const { Mounter, findMount, isShare } = payload('mounts');
const { findLink, isId, isInside, joinInside } = payload('paths');
const { Log } = payload('log');
const { findPort } = payload('port');
const { Yaml, YamlError, apply } = require(path.resolve(PAYLOAD, '../../usr/local/lib/imgkit/nocloud.js'));

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

const USER_DATA = `#cloud-config
# a comment
hostname: "box"   # why not
ssh_authorized_keys:
  - ssh-ed25519 AAAA user@host
  - 'ssh-rsa BBBB'
write_files:
- path: /etc/one
  content: |
    first

      second
  permissions: '0640'
-   encoding: b64
    content: aGk=
    path: /srv/two
packages:
  - ignored
`;

test('NoCloud: hostname, keys and files', (t) => {
  const { root } = makeGuest(t);
  const [drive, target, system] = ['drive', 'target', 'system'].map((name) => path.join(root, name));
  for (const dir of [drive, target, path.join(system, 'etc')]) fs.mkdirSync(dir, { recursive: true });
  fs.writeFileSync(path.join(system, 'etc/passwd'), 'root:x:0:0::/root:/bin/sh\nagent:x:1000:1000::/home/agent:/bin/sh\n');
  fs.writeFileSync(path.join(system, 'etc/group'), 'root:x:0:\n');
  fs.writeFileSync(path.join(drive, 'meta-data'), 'instance-id: i-1\nlocal-hostname: meta\n');
  fs.writeFileSync(path.join(drive, 'user-data'), USER_DATA);
  const said = t.mock.method(process.stderr, 'write', () => true);
  apply(drive, target, system);
  assert.equal(fs.readFileSync(path.join(target, 'hostname'), 'utf8'), 'box\n');
  assert.equal(fs.readFileSync(path.join(system, 'home/agent/.ssh/authorized_keys'), 'utf8'), 'ssh-ed25519 AAAA user@host\nssh-rsa BBBB\n');
  assert.equal(fs.readFileSync(path.join(system, 'etc/one'), 'utf8'), 'first\n\n  second\n');
  assert.equal(fs.statSync(path.join(system, 'etc/one')).mode & 0o7777, 0o640);
  assert.equal(fs.readFileSync(path.join(system, 'srv/two'), 'utf8'), 'hi');
  assert.match(said.mock.calls[0].arguments[0], /"packages" is not understood/);
});

test('NoCloud: what is not understood is refused, not guessed', () => {
  for (const text of ['a: [1]', 'a: {b: c}', 'a: &x y', '- just\n  odd: x\nrest', 'a: 1\n   b: 2', 'no colon']) assert.throws(() => new Yaml(text).parse(), YamlError, text);
  assert.deepEqual(new Yaml('').parse(), {});
  assert.deepEqual(new Yaml('a:\nb: >-\n  x\n  y\nc:\n- 1\n').parse(), { a: null, b: 'x y', c: ['1'] });
});

test('NoCloud: links that an agent left in its folder are refused by name, what has a second name is replaced', (t) => {
  const { root } = makeGuest(t);
  const [drive, target, system] = ['drive', 'target', 'system'].map((name) => path.join(root, name));
  const home = path.join(system, 'workspace');
  for (const dir of [drive, target, path.join(system, 'etc'), path.join(system, 'real'), path.join(home, 'safe')]) fs.mkdirSync(dir, { recursive: true, mode: 0o755 });
  fs.chmodSync(home, 0o777); // somebody else may write here
  fs.writeFileSync(path.join(system, 'etc/passwd'), 'root:x:0:0::/root:/bin/sh\nagent:x:1000:1000::/workspace:/bin/sh\n');
  fs.writeFileSync(path.join(system, 'etc/group'), 'root:x:0:\n');
  const victim = path.join(system, 'etc/victim');
  fs.writeFileSync(victim, 'untouched', { mode: 0o600 });
  fs.symlinkSync(victim, path.join(home, 'file'));
  fs.symlinkSync(path.join(system, 'etc'), path.join(home, 'folder'));
  fs.linkSync(victim, path.join(home, 'second'));
  fs.symlinkSync('real', path.join(system, 'roots'));
  const carryOut = (lines) => {
    fs.writeFileSync(path.join(drive, 'user-data'), `#cloud-config\n${lines}`);
    apply(drive, target, system);
  };
  const write = (name) => carryOut(`write_files:\n- path: ${name}\n  content: new\n`);
  for (const name of ['/workspace/file', '/workspace/folder/victim', '/workspace/folder/more']) assert.throws(() => write(name), { name: 'Error', message: /workspace\/f\w+ is a symbolic link/ }, name);
  fs.mkdirSync(path.join(home, '.ssh'), { mode: 0o777 });
  fs.chmodSync(path.join(home, '.ssh'), 0o777);
  fs.symlinkSync(victim, path.join(home, '.ssh/authorized_keys'));
  assert.throws(() => carryOut('ssh_authorized_keys:\n- key\n'), /authorized_keys is a symbolic link/);
  fs.rmSync(path.join(home, '.ssh'), { recursive: true });
  fs.symlinkSync(path.join(system, 'etc'), path.join(home, '.ssh'));
  assert.throws(() => carryOut('ssh_authorized_keys:\n- key\n'), /\.ssh is a symbolic link/);
  write('/workspace/second');
  assert.equal(fs.readFileSync(path.join(home, 'second'), 'utf8'), 'new');
  assert.equal(fs.readFileSync(victim, 'utf8'), 'untouched');
  assert.deepEqual(fs.readdirSync(path.join(system, 'etc')).sort(), ['group', 'passwd', 'victim']);
  write('/roots/file');
  assert.equal(fs.readFileSync(path.join(system, 'real/file'), 'utf8'), 'new', "root's own links lead where they lead");
});
