'use strict';
// NoCloud drives: what they ask for is done or refused, and any text is read or refused in a short time.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { test } = require('node:test');

const { spawnSync } = require('node:child_process');
const { readConfig } = require('../../overlay/usr/local/lib/imgkit/cloudconfig');
const { ConfigError, USER_DATA, apply } = require('../../overlay/usr/local/lib/imgkit/nocloud');

const PROGRAM = path.resolve(__dirname, '../../overlay/usr/local/lib/imgkit/nocloud.js');

const SEED = Number(process.env.FUZZ_SEED ?? (process.env.CI ? 1 : Date.now() % 1_000_000));
const SECONDS = Number(process.env.FUZZ_SECONDS ?? 1);
const CORPUS = path.resolve(__dirname, '../../fuzz/corpus/nocloud');

const WHOLE = `#cloud-config
hostname: box-1 # of the machine
ssh_authorized_keys:
  - ssh-ed25519 AAAA user@host
  - "quoted: \\"text\\"" # more
write_files:
- path: /tmp/a
  content: |
    one
      two

    three
  permissions: '0644'
  owner: root:root
- path: /tmp/b
  encoding: b64
  content: >-
    aGVs
    bG8=
`;
const WORDS = ['\n', '  ', '- ', '-\n', ': ', ':\n', '#', ' #', '"', "'", "''", '\\', '|', '>-', '|+\n', '[', '{', '&a', '*a', '!', '---\n', '\t',
  '\r\n', '__proto__: ', 'constructor: ', 'toString:\n', '\u0000', '\u2028', 'ü🎉', 'a'.repeat(500), ' '.repeat(500), '\n'.repeat(500)]; // prettier-ignore

/** mulberry32: small, and the same everywhere. */
function makeRandom(seed) {
  let state = seed >>> 0;
  return (limit) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * limit);
  };
}

function mutated(random) {
  let text = WHOLE;
  for (let times = 1 + random(8); times > 0; times -= 1) {
    const [start, end] = [random(text.length + 1), random(text.length + 1)].sort((a, b) => a - b);
    const piece = [WORDS[random(WORDS.length)], '', text.slice(start, end).repeat(1 + random(4)), String.fromCharCode(random(128))][random(4)];
    text = (text.slice(0, start) + piece + text.slice(random(2) ? start : end)).slice(0, 50_000);
  }
  return text;
}

/** The values of the text, or null if it is refused with the right error. */
function parse(text) {
  const started = process.cpuUsage();
  try {
    return readConfig(text, USER_DATA).values;
  } catch (error) {
    assert.ok(error instanceof ConfigError, `seed ${SEED}: ${error.stack}\n${JSON.stringify(text)}`);
    return null;
  } finally {
    const { user } = process.cpuUsage(started);
    assert.ok(user < 2e6, `seed ${SEED}: ${user} µs\n${JSON.stringify(text).slice(0, 500)}`);
    assert.equal({}.polluted, undefined);
  }
}

test('any text is read or refused, in short time', (t) => {
  t.diagnostic(`FUZZ_SEED=${SEED}`);
  const random = makeRandom(SEED);
  const end = Date.now() + SECONDS * 1000;
  let count = 0;
  for (; Date.now() < end; count += 1) parse(mutated(random));
  t.diagnostic(`${count} texts`);
});

test('what was found stays mended', () => {
  for (const name of fs.readdirSync(CORPUS)) parse(fs.readFileSync(path.join(CORPUS, name), 'utf8'));
});

const LARGE = 400_000;
for (const [name, text] of Object.entries({
  'blanks in a value': `hostname: b${' '.repeat(LARGE)}c`,
  'blanks at the end of a value': `hostname: b${' '.repeat(LARGE)}`,
  'blanks in double quotes': `hostname: "b${' '.repeat(LARGE)}c"`,
  'blanks in single quotes': `hostname: 'b'${' '.repeat(LARGE)}c`,
  'escapes in double quotes': `hostname: "${'\\n'.repeat(LARGE / 2)}"`,
  'signs of comments': `hostname: b${'#'.repeat(LARGE)} c`,
  'comments that are none': `hostname: "${' #'.repeat(LARGE / 2)}`,
  'newlines in a block': `hostname: |-\n  b${'\n'.repeat(LARGE)}  c`,
  'newlines in folded text': `hostname: >-\n  b${'\n'.repeat(LARGE)}  c`,
  'newlines in quotes': `hostname: "b${'\n'.repeat(LARGE)}  c"`,
  'newlines at the end': `hostname: b${'\n'.repeat(LARGE)}`,
  'many keys': 'hostname: b\n'.repeat(LARGE / 5),
  'many unknown keys': Array.from({ length: LARGE / 10 }, (_, at) => `k${at}: b\n`).join(''),
  'many items': `ssh_authorized_keys:\n${'- a\n'.repeat(LARGE / 4)}`,
  'many files': `write_files:\n${'- path: a\n  content: b\n'.repeat(LARGE / 20)}`,
})) {
  test(`linear time: ${name}`, () => {
    assert.notEqual(parse(text), undefined);
  });
}

test('deep texts are read or refused', () => {
  const deep = Array.from({ length: 5000 }, (_, level) => `${' '.repeat(level)}write_files:\n`).join('');
  assert.deepEqual(readConfig(deep, { other: 'text' }), { values: {}, unknown: ['write_files'] });
  assert.throws(() => readConfig(deep, USER_DATA), { message: 'line 2: not an item of the list' });
  assert.throws(() => readConfig(`write_files: ${'['.repeat(100_000)}`, USER_DATA), ConfigError);
});

// ---- drives ---------------------------------------------------------------------------------------------------------

/** A drive and an empty system with the users root and agent; `carryOut` writes the drive's files and applies them. */
function makeDrive(t) {
  const root = fs.mkdtempSync(path.join(os.tmpdir(), 'imgkit-nocloud-'));
  t.after(() => fs.rmSync(root, { recursive: true }));
  const [drive, target, system] = ['drive', 'target', 'system'].map((name) => path.join(root, name));
  for (const dir of [drive, target, path.join(system, 'etc')]) fs.mkdirSync(dir, { recursive: true });
  fs.writeFileSync(path.join(system, 'etc/passwd'), 'root:x:0:0::/root:/bin/sh\nagentx:x:7:8::/x:/bin/sh\nagent:x:1000:1001::/home/agent:/bin/sh\n');
  fs.writeFileSync(path.join(system, 'etc/group'), 'root:x:0:\nagent:x:1001:\nwheel:x:10:root\n');
  const { mock } = t.mock.method(process.stderr, 'write', () => true);
  const messages = () => mock.calls.map(({ arguments: [text] }) => text);
  const carryOut = (files) => {
    for (const name of fs.readdirSync(drive)) fs.rmSync(path.join(drive, name), { recursive: true });
    for (const [name, text] of Object.entries(files)) fs.writeFileSync(path.join(drive, name), text);
    apply(drive, target, system);
  };
  const content = (name) => fs.readFileSync(path.join(system, name), 'utf8');
  const facts = () => Object.fromEntries(fs.readdirSync(target).map((name) => [name, fs.readFileSync(path.join(target, name), 'utf8')]));
  return { drive, system, carryOut, content, facts, messages };
}

/** Drives in the form in which these programs write them. */
const HOSTS = {
  'cloud-localds, with the example of cloud-init\'s documentation': {
    'meta-data': 'instance-id: iid-1\nlocal-hostname: box\n',
    'user-data': '#cloud-config\npassword: passw0rd\nchpasswd: { expire: False }\nssh_pwauth: True\nssh_authorized_keys:\n  - ssh-ed25519 AAAA user@host\n',
    unknown: ['password', 'chpasswd', 'ssh_pwauth'],
  },
  'KubeVirt, whose meta-data is JSON': {
    'meta-data': '{"instance-id":"iid-1","local-hostname":"box","instance-type":"x"}',
    'user-data': '#cloud-config\nssh_authorized_keys: ["ssh-ed25519 AAAA user@host"]\n',
    unknown: [],
  },
  'Proxmox': {
    'meta-data': 'instance-id: iid-1\n',
    'user-data': '#cloud-config\nhostname: box\nmanage_etc_hosts: true\nfqdn: box.example\nuser: somebody\nssh_authorized_keys:\n  - ssh-ed25519 AAAA user@host\nchpasswd:\n  expire: False\nusers:\n  - default\npackage_upgrade: true\n',
    unknown: ['manage_etc_hosts', 'fqdn', 'user', 'chpasswd', 'users', 'package_upgrade'],
  },
  'Terraform\'s yamlencode': {
    'meta-data': '"instance-id": "iid-1"\n"local-hostname": "box"\n',
    'user-data': '#cloud-config\n"ssh_authorized_keys":\n- "ssh-ed25519 AAAA user@host"\n"users": []\n',
    unknown: ['users'],
  },
  'Terraform\'s jsonencode': {
    'meta-data': '{"instance-id":"iid-1"}',
    'user-data': '#cloud-config\n{"hostname":"box","ssh_authorized_keys":["ssh-ed25519 AAAA user@host"],"runcmd":[["sh","-c","true"]]}',
    unknown: ['runcmd'],
  },
  'PyYAML, which breaks long lines': {
    'meta-data': 'instance-id: iid-1\nlocal-hostname: box\n',
    'user-data': '#cloud-config\nssh_authorized_keys:\n- ssh-ed25519\n  AAAA\n  user@host\n',
    unknown: [],
  },
}; // prettier-ignore

for (const [host, { unknown, ...files }] of Object.entries(HOSTS)) {
  test(`what hosts send: ${host}`, (t) => {
    const { carryOut, content, facts, messages } = makeDrive(t);
    carryOut(files);
    assert.deepEqual(facts(), { hostname: 'box\n', 'instance-id': 'iid-1\n' });
    assert.equal(content('home/agent/.ssh/authorized_keys'), 'ssh-ed25519 AAAA user@host\n');
    assert.deepEqual(
      messages(),
      unknown.map((key) => `imgkit-config: user-data: "${key}" is not understood and was ignored\n`),
    );
  });
}

test('a drive without anything asks for nothing', (t) => {
  for (const files of [{}, { 'meta-data': '', 'user-data': '' }, { 'user-data': '\n' }, { 'user-data': '#cloud-config\nhostname:\nwrite_files:\nssh_authorized_keys:\n' }]) {
    const { carryOut, facts, system } = makeDrive(t);
    carryOut(files);
    assert.deepEqual(facts(), {});
    assert.deepEqual(fs.readdirSync(system), ['etc']);
    t.mock.restoreAll();
  }
});

test('the host name of user-data comes before that of meta-data', (t) => {
  const { carryOut, facts } = makeDrive(t);
  carryOut({ 'meta-data': 'local-hostname: meta\n', 'user-data': '#cloud-config\nhostname: user\n' });
  assert.deepEqual(facts(), { hostname: 'user\n' });
});

test('files: contents, modes and encodings', (t) => {
  const { carryOut, content, system, messages } = makeDrive(t);
  const mode = (name) => fs.statSync(path.join(system, name)).mode & 0o7777;
  const user = `#cloud-config
write_files:
- path: /etc/one
  content: |
    first

      second
  permissions: '0640'
-   encoding: b64
    content: aGk=
    path: /srv/new/two
    append: true
- { "path": "/three", "encoding": "base64", "content": "aG8=", "permissions": "4711" }
- path: /four
  encoding: text/plain
  content: aG8=
- path: /five
`;
  carryOut({ 'user-data': user });
  assert.equal(content('etc/one'), 'first\n\n  second\n');
  assert.equal(mode('etc/one'), 0o640);
  assert.equal(content('srv/new/two'), 'hi');
  assert.equal(mode('srv/new/two'), 0o644);
  assert.equal(mode('srv/new'), 0o755);
  assert.equal(content('three'), 'ho');
  assert.equal(mode('three'), 0o4711);
  assert.equal(content('four'), 'aG8=');
  assert.equal(content('five'), '');
  assert.deepEqual(messages(), ['imgkit-config: user-data: "write_files.append" is not understood and was ignored\n']);
  carryOut({ 'user-data': '#cloud-config\nwrite_files:\n- path: /etc/one\n  content: x\n' });
  assert.equal(content('etc/one'), 'x', 'what was there before is gone');
  assert.equal(mode('etc/one'), 0o644);
});

test('files and keys get their owners', (t) => {
  const { carryOut, system } = makeDrive(t);
  t.mock.method(process, 'getuid', () => 0);
  const given = {};
  t.mock.method(fs, 'fchownSync', (fd, uid, gid) => (given[fs.readlinkSync(`/proc/self/fd/${fd}`).replace(system, '')] = `${uid}:${gid}`));
  t.mock.method(fs, 'chownSync', (name, uid, gid) => (given[name.replace(system, '')] = `${uid}:${gid}`));
  const wanted = { a: ['', '0:0'], b: ['agent', '1000:1001'], c: ['agent:wheel', '1000:10'], d: ['12:13', '12:13'], e: ['root:agent', '0:1001'], f: ['14', '14:14'] };
  const files = Object.entries(wanted).map(([name, [owner]]) => (owner ? { path: `/${name}`, owner } : { path: `/${name}` }));
  carryOut({ 'user-data': `#cloud-config\n${JSON.stringify({ write_files: files, ssh_authorized_keys: ['k1', 'k2'] })}` });
  for (const [name, [, owner]] of Object.entries(wanted)) assert.equal(given[`/${name}`], owner, name);
  assert.equal(given['/home/agent/.ssh'], '1000:1001');
  assert.equal(given['/home/agent/.ssh/authorized_keys'], '1000:1001');
  assert.equal(fs.statSync(path.join(system, 'home/agent/.ssh')).mode & 0o777, 0o700);
  assert.equal(fs.statSync(path.join(system, 'home/agent/.ssh/authorized_keys')).mode & 0o777, 0o600);
  assert.equal(fs.readFileSync(path.join(system, 'home/agent/.ssh/authorized_keys'), 'utf8'), 'k1\nk2\n');
});

test('what a drive must not ask for is refused by name', (t) => {
  const { carryOut, system, facts } = makeDrive(t);
  const cases = {
    'hostname: a b': 'hostname is not a host name',
    'hostname: -x': 'hostname is not a host name',
    [`hostname: ${'x'.repeat(65)}`]: 'hostname is not a host name',
    'ssh_authorized_keys: key': 'user-data: line 2: not an item of the list',
    'ssh_authorized_keys:\n- k\n-': 'ssh_authorized_keys: a key is empty',
    'write_files:\n- content: x': 'write_files: "path" must be absolute',
    'write_files:\n-': 'write_files: "path" must be absolute',
    'write_files:\n- path:': 'write_files: "path" must be absolute',
    'write_files:\n- path: x': 'write_files: "path" must be absolute',
    'write_files:\n- path: /x/../y': 'write_files: "path" must be absolute',
    'write_files:\n- path: /x\n  encoding: gzip': 'write_files: encoding gzip is not understood',
    'write_files:\n- path: /x\n  permissions: rw': 'write_files: "permissions" must be octal',
    'write_files:\n- path: /x\n  permissions: 77': 'write_files: "permissions" must be octal',
    'write_files:\n- path: /x\n  permissions: "00644"': 'write_files: "permissions" must be octal',
    'write_files:\n- path: /x\n  permissions: 0648': 'write_files: "permissions" must be octal',
    'write_files:\n- path: /x\n  owner: nobody': 'write_files: owner nobody does not exist',
    'write_files:\n- path: /x\n  owner: root:nobody': 'write_files: owner root:nobody does not exist',
    'write_files:\n- path: /x\n  owner: a!gent': 'write_files: owner a!gent does not exist',
    'write_files:\n- path: /x\n  owner: .gent': 'write_files: owner .gent does not exist',
    '\ta: b': 'user-data: line 2: unexpected indentation',
  };
  for (const [text, message] of Object.entries(cases)) assert.throws(() => carryOut({ 'user-data': `#cloud-config\n${text}\n` }), { message }, text);
  assert.throws(() => carryOut({ 'meta-data': 'x' }), { message: 'meta-data: line 1: not "key: value"' });
  for (const text of ['#!/bin/sh\n', ' #cloud-config\n', 'hostname: x\n']) assert.throws(() => carryOut({ 'user-data': text }), { message: 'user-data must begin with "#cloud-config"' });
  fs.writeFileSync(path.join(system, 'etc/passwd'), 'root:x:0:0::/root:/bin/sh\n');
  assert.throws(() => carryOut({ 'user-data': '#cloud-config\nssh_authorized_keys:\n- k\n' }), { message: 'ssh_authorized_keys: needs the user "agent"' });
  assert.deepEqual(fs.readdirSync(system), ['etc']);
  assert.deepEqual(facts(), {});
  carryOut({ 'user-data': `#cloud-config\nhostname: ${'x'.repeat(64)}\n` });
});

test('the program says what is wrong, and never a value', (t) => {
  const { drive, system } = makeDrive(t);
  const run = (text) => {
    fs.writeFileSync(path.join(drive, 'user-data'), text);
    return spawnSync(process.execPath, [PROGRAM, drive, system], { encoding: 'utf8' });
  };
  assert.deepEqual([run('#cloud-config\nhostname: box\n').status, fs.readFileSync(path.join(system, 'hostname'), 'utf8')], [0, 'box\n']);
  for (const text of ['#cloud-config\n{"hostname": secret}', '#cloud-config\nhostname: "secret\n', '#cloud-config\nsecret\n']) {
    const { status, stderr } = run(text);
    assert.equal(status, 1);
    assert.match(stderr, /^imgkit-config: user-data: line 2: .+\n$/);
    assert.ok(!stderr.includes('secret'), stderr);
  }
  const missing = spawnSync(process.execPath, [PROGRAM, drive, path.join(system, 'none')], { encoding: 'utf8', input: '' });
  assert.equal(missing.status, 1);
  fs.writeFileSync(path.join(drive, 'user-data'), '#cloud-config\nhostname: box\n');
  assert.equal(spawnSync(process.execPath, [PROGRAM, drive, path.join(system, 'none')], { encoding: 'utf8' }).stderr, 'imgkit-config: the NoCloud drive cannot be read\n');
});

test('links that an agent left in its folder are refused by name, what has a second name is replaced', (t) => {
  const { system, carryOut } = makeDrive(t);
  const home = path.join(system, 'workspace');
  for (const dir of [path.join(system, 'real'), path.join(home, 'safe')]) fs.mkdirSync(dir, { recursive: true, mode: 0o755 });
  fs.writeFileSync(path.join(system, 'etc/passwd'), 'root:x:0:0::/root:/bin/sh\nagent:x:1000:1000::/workspace:/bin/sh\n');
  const victim = path.join(system, 'etc/victim');
  fs.writeFileSync(victim, 'untouched', { mode: 0o600 });
  fs.symlinkSync(victim, path.join(home, 'file'));
  fs.symlinkSync(path.join(system, 'etc'), path.join(home, 'folder'));
  fs.linkSync(victim, path.join(home, 'second'));
  fs.symlinkSync('real', path.join(system, 'roots'));
  const write = (name) => carryOut({ 'user-data': `#cloud-config\nwrite_files:\n- path: ${name}\n  content: new\n` });
  const writeKey = () => carryOut({ 'user-data': '#cloud-config\nssh_authorized_keys:\n- key\n' });
  for (const mode of [0o777, 0o775, 0o757]) {
    fs.chmodSync(home, mode); // somebody else may write here
    for (const name of ['/workspace/file', '/workspace/folder/victim', '/workspace/folder/more']) assert.throws(() => write(name), { name: 'Error', message: /workspace\/f\w+ is a symbolic link in a folder that is not root's$/ }, name);
  }
  fs.mkdirSync(path.join(home, '.ssh'), { mode: 0o777 });
  fs.chmodSync(path.join(home, '.ssh'), 0o777);
  fs.symlinkSync(victim, path.join(home, '.ssh/authorized_keys'));
  assert.throws(writeKey, /authorized_keys is a symbolic link/);
  fs.rmSync(path.join(home, '.ssh'), { recursive: true });
  fs.symlinkSync(path.join(system, 'etc'), path.join(home, '.ssh'));
  assert.throws(writeKey, /\.ssh is a symbolic link/);
  write('/workspace/second');
  assert.equal(fs.readFileSync(path.join(home, 'second'), 'utf8'), 'new');
  assert.equal(fs.readFileSync(victim, 'utf8'), 'untouched');
  assert.deepEqual(fs.readdirSync(path.join(system, 'etc')).sort(), ['group', 'passwd', 'victim']);
  write('/roots/file');
  assert.equal(fs.readFileSync(path.join(system, 'real/file'), 'utf8'), 'new', "root's own links lead where they lead");
});

test("root's own links are followed, up to the kernel's limit", (t) => {
  const { system, carryOut, content } = makeDrive(t);
  const write = (name) => carryOut({ 'user-data': `#cloud-config\nwrite_files:\n- path: ${name}\n  content: new\n` });
  fs.mkdirSync(path.join(system, 'end'));
  for (let at = 0; at <= 41; at += 1) fs.symlinkSync(at === 0 ? 'end' : `link${at - 1}`, path.join(system, `link${at}`));
  fs.symlinkSync('loop', path.join(system, 'loop'));
  write('/link39/x/y');
  assert.equal(content('end/x/y'), 'new');
  for (const name of ['/link40/z', '/loop/z']) assert.throws(() => write(name), { message: /: too many symbolic links$/ });
});

test('a drive that is too large, or no drive, is refused', (t) => {
  const drive = fs.mkdtempSync(path.join(os.tmpdir(), 'imgkit-nocloud-'));
  t.after(() => fs.rmSync(drive, { recursive: true }));
  fs.writeFileSync(path.join(drive, 'meta-data'), 'local-hostname: x\n');
  fs.writeFileSync(path.join(drive, 'user-data'), '');
  fs.truncateSync(path.join(drive, 'user-data'), (16 << 20) + 1);
  assert.throws(() => apply(drive, drive, drive), /user-data: more than 16 MiB/);
  fs.rmSync(path.join(drive, 'user-data'));
  fs.mkdirSync(path.join(drive, 'user-data'));
  assert.throws(() => apply(drive, drive, drive), /no regular file/);
});
