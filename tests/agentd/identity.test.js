'use strict';

// The agent's account takes over the uid and gid of whoever owns the folder it works in.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { test } = require('node:test');
const { makeGuest, payload } = require('./helpers');
const { explainOwner, handOver, identityFor, takeOver } = payload('identity');
const { Mounter } = payload('mounts');

const ROOT = process.getuid() === 0;
const asRoot = { skip: !ROOT && 'needs root' };
const AGENT = { name: 'agent', uid: 1000, gid: 1000, home: '/workspace' };
const TABLES = {
  passwd: 'root:x:0:0:root:/root:/bin/sh\nmail:x:8:12:mail:/var/mail:/sbin/nologin\nnobody:x:65534:65534::/:/sbin/nologin\nagent:x:1000:1000::/workspace:/bin/sh\n',
  group: 'root:x:0:root\ndialout:x:20:root\nusers:x:100:games\nagent:x:1000:\nnogroup:x:65533:\nnobody:x:65534:\n',
};

const identity = (uid, gid, user = AGENT, tables = TABLES) => identityFor(user, { uid, gid }, tables);

test("an ordinary owner's uid is taken over, and the gid where it names no group", () => {
  assert.deepEqual(identity(1001, 1001), { uid: 1001, gid: 1001, group: 'agent' });
  assert.deepEqual(identity(501, 20), { uid: 501, gid: 1000 }, "macOS: 20 is Alpine's dialout");
  assert.deepEqual(identity(65533, 65533), { uid: 65533, gid: 1000 }, '65533 names a group, and no account');
  assert.deepEqual(identity(1001, 0), { uid: 1001, gid: 1000 });
  assert.deepEqual(identity(1001, 12), { uid: 1001, gid: 1000 }, "another account's primary group, in no line of /etc/group");
  assert.deepEqual(identity(1000, 1000), { uid: 1000, gid: 1000, group: 'agent' });
  assert.deepEqual(identity(2 ** 32 - 2, 2 ** 32 - 2), { uid: 2 ** 32 - 2, gid: 2 ** 32 - 2, group: 'agent' });
});

test('neither root nor another account of the image is ever taken over', () => {
  for (const uid of [0, 8, 65534, 2 ** 32 - 1, -1]) assert.deepEqual(identity(uid, 4711), { uid: 1000, gid: 1000 }, String(uid));
});

test('a group that other accounts have, too, keeps its number', () => {
  const shared = { ...TABLES, passwd: `${TABLES.passwd}other:x:1005:1000::/:/bin/sh\n` };
  assert.deepEqual(identity(1001, 1001, AGENT, shared), { uid: 1001, gid: 1000 });
});

test('a second owner after the first, and one whose take-over was interrupted between the two files', () => {
  const first = { passwd: TABLES.passwd.replace('1000:1000', '1001:1001'), group: TABLES.group.replace('agent:x:1000', 'agent:x:1001') };
  assert.deepEqual(identity(1002, 1002, { ...AGENT, uid: 1001, gid: 1001 }, first), { uid: 1002, gid: 1002, group: 'agent' });
  const torn = { ...TABLES, group: first.group };
  assert.deepEqual(identity(1001, 1001, AGENT, torn), { uid: 1001, gid: 1001, group: 'agent' });
});

test('what can be done about a folder is said', () => {
  assert.match(explainOwner(AGENT, { uid: 0 }, TABLES.passwd), /belongs to root.*let an ordinary user own it/);
  assert.match(explainOwner(AGENT, { uid: 8 }, TABLES.passwd), /uid 8 is the account mail of this image/);
  for (const uid of [1000, 1001]) assert.match(explainOwner(AGENT, { uid }, TABLES.passwd), /its owner/);
});

/** A guest with files of the agent's and of others. */
function inhabited(t) {
  const { root, config } = makeGuest(t);
  const scratch = config.scratchFolders[0];
  fs.mkdirSync(path.join(config.workspace, 'deep/er'), { recursive: true });
  fs.mkdirSync(scratch);
  const bytes = Buffer.concat([Buffer.from(`${config.workspace}/deep/`), Buffer.from([0xff, 0xfe])]);
  for (const file of [path.join(config.workspace, 'deep/er/file'), path.join(scratch, 'left'), bytes]) fs.writeFileSync(file, 'x');
  fs.writeFileSync(path.join(config.workspace, 'roots'), 'x');
  fs.symlinkSync('/etc/passwd', path.join(config.workspace, 'deep/link'));
  const mine = [config.workspace, path.join(config.workspace, 'deep'), path.join(config.workspace, 'deep/er'), path.join(config.workspace, 'deep/er/file'), path.join(config.workspace, 'deep/link'), path.join(scratch, 'left'), bytes];
  if (ROOT) for (const file of mine) fs.lchownSync(file, 1000, 1000);
  return { root, config, mine, roots: [scratch, config.ipcDir, path.join(config.workspace, 'roots')] };
}

const ownerOf = (file) => [fs.lstatSync(file).uid, fs.lstatSync(file).gid];

test('what is the agent\'s goes with it, links and odd names too; what is not, and other file systems, stay', asRoot, async (t) => {
  const { config, mine, roots } = inhabited(t);
  const before = ownerOf('/etc/passwd');
  const ended = [];
  fs.chmodSync(config.passwdFile, 0o640);
  const user = await takeOver(config, { ...AGENT, home: config.workspace }, { uid: 1001, gid: 1001 }, async () => ended.push(ownerOf(mine[0])[0]));
  assert.deepEqual([user.uid, user.gid, user.name], [1001, 1001, 'agent']);
  assert.deepEqual(ended, [1000], 'what runs is ended before anything changes its owner');
  for (const file of mine) assert.deepEqual(ownerOf(file), [1001, 1001], String(file));
  for (const file of roots) assert.deepEqual(ownerOf(file), [0, 0], file);
  assert.deepEqual(ownerOf('/etc/passwd'), before, 'a link is not followed');
  assert.match(fs.readFileSync(config.passwdFile, 'utf8'), /^root:x:0:0:.*\nagent:x:1001:1001::[^\n]*\n$/);
  assert.equal(fs.statSync(config.passwdFile).mode & 0o7777, 0o640);
  assert.match(fs.readFileSync(config.groupFile, 'utf8'), /^agent:x:1001:$/m);
  assert.deepEqual(fs.readdirSync(path.dirname(config.passwdFile)).filter((name) => name.endsWith('.agentd')), []);
  const again = await takeOver(config, user, { uid: 501, gid: 20 }, async () => ended.push('again'));
  assert.deepEqual([again.uid, again.gid], [501, 1001]);
  for (const file of mine) assert.deepEqual(ownerOf(file), [501, 1001], String(file));
  await takeOver(config, again, { uid: 501, gid: 20 }, async () => assert.fail('nothing to take over'));
  assert.equal(ended.length, 2);
});

test('another file system is the host\'s', asRoot, async (t) => {
  const { root } = makeGuest(t);
  fs.mkdirSync('/dev/shm', { recursive: true });
  const other = fs.mkdtempSync('/dev/shm/agentd-');
  t.after(() => fs.rmSync(other, { recursive: true }));
  if (fs.statSync(other).dev === fs.statSync(root).dev) return t.skip('needs a second file system');
  fs.lchownSync(other, 1000, 1000);
  await handOver(other, AGENT, { uid: 1001, gid: 1001 });
  assert.deepEqual(ownerOf(other), [1001, 1001], 'where it starts counts');
  await handOver('/dev', { uid: 1001, gid: 1001 }, { uid: 4711, gid: 4711 });
  assert.deepEqual(ownerOf(other), [1001, 1001]);
});

test('very many files and folders deeper than a path are no fault', asRoot, async (t) => {
  const { config } = makeGuest(t);
  const name = 'd'.repeat(200);
  const start = process.cwd();
  process.chdir(config.workspace);
  try {
    for (let depth = 0; depth < 30; depth += 1) {
      fs.mkdirSync(name);
      fs.lchownSync(name, 1000, 1000);
      process.chdir(name);
    }
  } finally {
    process.chdir(start);
  }
  for (let number = 0; number < 600; number += 1) fs.writeFileSync(path.join(config.workspace, String(number)), '');
  await handOver(config.workspace, AGENT, { uid: 1001, gid: 1001 });
  assert.deepEqual(ownerOf(path.join(config.workspace, name, name)), [1001, 1001]);
});

test('files of the system that cannot be written are an error with the account\'s name, and the old numbers stay', asRoot, async (t) => {
  const { config } = inhabited(t);
  for (const file of [config.groupFile, config.passwdFile]) {
    fs.mkdirSync(`${file}.agentd`);
    await assert.rejects(takeOver(config, { ...AGENT, home: '/' }, { uid: 1001, gid: 1001 }, async () => {}), { message: /^the account agent cannot take over uid 1001: / });
    assert.match(fs.readFileSync(config.passwdFile, 'utf8'), /^agent:x:1000:1000/m, 'it is written last: what was interrupted is done again');
    fs.rmdirSync(`${file}.agentd`);
  }
});

/** A mounter for which the share is mounted already. */
function mounterWith(config, where, probe) {
  const table = path.join(config.runDir, 'table');
  fs.writeFileSync(table, `9 1 0:9 / ${where} rw - 9p work rw\n`);
  const calls = [];
  const run = async (file, args, options) => {
    calls.push([file, options.uid, options.gid]);
    probe?.();
  };
  return { mounter: new Mounter(config, { run, table, endAgents: async () => calls.push(['endAgents']) }), calls };
}

test('a request works as the owner of "work", and of nothing else', asRoot, async (t) => {
  const { config } = inhabited(t);
  const guestPath = path.join(fs.realpathSync(config.workspace), 'project');
  fs.mkdirSync(guestPath);
  fs.chownSync(guestPath, 1001, 1001);
  const { mounter, calls } = mounterWith({ ...config, workspace: fs.realpathSync(config.workspace) }, guestPath);
  const user = { ...AGENT, home: '/home/agent' };
  const other = await mounter.prepare([{ name: 'other', tag: 'work', guestPath }], user);
  assert.deepEqual([other, calls], [user, []]);
  const worker = await mounter.prepare([{ name: 'work', tag: 'work', guestPath }], user);
  assert.deepEqual([worker.uid, worker.gid], [1001, 1001]);
  assert.deepEqual(calls, [['endAgents'], ['/bin/sh', 1001, 1001]]);
  await mounter.prepare([{ name: 'work', tag: 'work', guestPath }], worker);
  assert.equal(calls.length, 2, 'the second request of the same owner costs nothing');
  fs.chownSync(guestPath, 1002, 1002);
  const second = await mounter.prepare([{ name: 'work', tag: 'work', guestPath }], worker);
  assert.deepEqual([second.uid, calls.slice(2)], [1002, [['endAgents'], ['/bin/sh', 1002, 1002]]]);
});

test('a folder of root\'s that only root may write to is refused with what to do', asRoot, async (t) => {
  const { config } = inhabited(t);
  const guestPath = path.join(fs.realpathSync(config.workspace), 'project');
  fs.mkdirSync(guestPath);
  const refuse = () => {
    throw new Error('Permission denied');
  };
  const { mounter } = mounterWith({ ...config, workspace: fs.realpathSync(config.workspace) }, guestPath, refuse);
  const attempt = mounter.prepare([{ name: 'work', tag: 'work', guestPath }], { ...AGENT, home: '/home/agent' });
  await assert.rejects(attempt, /\(owner 0:0, mode 755\) is not writable for uid 1000: Permission denied; it belongs to root/);
});
