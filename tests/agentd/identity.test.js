'use strict';

// The agent's account takes over the uid and gid of whoever owns the folder it works in.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { test } = require('node:test');
const { spawn, spawnSync } = require('node:child_process');
const { setTimeout: delay } = require('node:timers/promises');
const { makeGuest, payload } = require('./helpers');
const { accountsBeside, explainOwner, handOver, identityFor, takeOver } = payload('identity');
const { Mounter } = payload('mounts');
const { endProcesses } = payload('users');

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
  assert.deepEqual(identity(2 ** 31 - 1, 2 ** 31 - 1), { uid: 2 ** 31 - 1, gid: 2 ** 31 - 1, group: 'agent' });
  assert.deepEqual(identity(1001, 2 ** 31), { uid: 1001, gid: 1000 });
});

test('neither root nor another account of the image is ever taken over', () => {
  for (const uid of [0, 8, 65534, 2 ** 31, 2 ** 32 - 1, -1]) assert.deepEqual(identity(uid, 4711), { uid: 1000, gid: 1000 }, String(uid));
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

test('what can be done is said in full', () => {
  assert.equal(explainOwner(AGENT, { uid: 0 }, TABLES.passwd), 'it belongs to root, and the agent never acts as root: let an ordinary user own it, or others write to it');
  assert.equal(explainOwner(AGENT, { uid: 8 }, TABLES.passwd), 'uid 8 is the account mail of this image: let another user own it, or others write to it');
  assert.equal(explainOwner(AGENT, { uid: 12 }, TABLES.passwd), 'let its owner write to it');
});

test('whose files and groups are not given away', () => {
  const passwd = `${TABLES.passwd}short:x:77\nfull:x:78:79\n`;
  const { isOthers, isNamed } = accountsBeside(AGENT, { passwd, group: TABLES.group });
  assert.deepEqual([0, 8, 65534, 78, 1000, 1001, 77, 12, 79].map(isOthers), [true, true, true, true, false, false, false, false, false]);
  const bare = accountsBeside(AGENT, { passwd: '', group: '' });
  assert.deepEqual([0, 1].map(bare.isOthers), [true, false], 'root is others in any image');
  assert.deepEqual([0, 20, 100, 65533, 1000, 1001, 12, 8].map(isNamed), [true, true, true, true, false, false, false, false]);
  const foreign = accountsBeside({ ...AGENT, gid: 4711 }, TABLES);
  assert.equal(foreign.isNamed(1000), false, "without a group of that number the agent's is the one with its name");
  const shared = accountsBeside(AGENT, { ...TABLES, passwd: `${TABLES.passwd}other:x:1005:1000::/:\n` });
  assert.equal(shared.isNamed(1000), true, 'a group that another account has, too');
});

test('bytes that are no text, other lines and the modes stay as they are', asRoot, async (t) => {
  const { config } = makeGuest(t);
  const [comment, name] = [Buffer.from([0xfc, 0xff]), Buffer.from(':/bin/sh\nagent\nagentx:x:1:1::/:\n')];
  fs.writeFileSync(config.passwdFile, Buffer.concat([Buffer.from('agent:x:1000:1000:'), comment, Buffer.from(':/h'), name]), { mode: 0o640 });
  fs.writeFileSync(config.groupFile, 'agent:x:1000:one,two\nagent:x\nlast:x:5:', { mode: 0o604 });
  fs.chmodSync(config.passwdFile, 0o640);
  fs.chmodSync(config.groupFile, 0o604);
  await takeOver({ ...config, scratchFolders: [] }, { ...AGENT, home: '/' }, { uid: 1001, gid: 1002 }, ending(() => {}));
  assert.ok(fs.readFileSync(config.passwdFile).equals(Buffer.concat([Buffer.from('agent:x:1001:1002:'), comment, Buffer.from(':/h'), name])));
  assert.equal(fs.readFileSync(config.groupFile, 'latin1'), 'agent:x:1002:one,two\nagent:x\nlast:x:5:');
  assert.deepEqual([config.passwdFile, config.groupFile].map((file) => fs.statSync(file).mode & 0o7777), [0o640, 0o604]);
});

test('what is handed over: the workspace, the home and the scratch folders, unless they are the host\'s or the root', asRoot, async (t) => {
  const { root, config } = makeGuest(t);
  const places = Object.fromEntries(['home', 'one', 'two', 'elsewhere'].map((name) => [name, path.join(root, name)]));
  for (const place of [...Object.values(places), config.workspace]) {
    fs.mkdirSync(place, { recursive: true });
    fs.lchownSync(place, 1000, 1000);
  }
  const asked = [];
  const system = { endLeftovers: async () => {}, isShare: (folder) => (asked.push(folder), folder === places.two) };
  const settings = { ...config, scratchFolders: [places.one, places.two, path.join(root, 'none'), '/'] };
  await takeOver(settings, { ...AGENT, home: `${places.home}/../home` }, { uid: 1001, gid: 1001 }, system);
  assert.deepEqual(asked, [config.workspace, places.home, places.one, places.two, path.join(root, 'none')]);
  assert.deepEqual([config.workspace, places.home, places.one, places.two, places.elsewhere].map((place) => ownerOf(place)[0]), [1001, 1001, 1001, 1000, 1000]);
});

test('a draft that was there before is kept when the take-over fails again, and others are not', asRoot, async (t) => {
  for (const interrupted of [false, true]) {
    const { config } = makeGuest(t);
    const draft = `${config.passwdFile}.agentd`;
    if (interrupted) fs.writeFileSync(draft, 'half');
    t.mock.method(fs, 'fsyncSync', () => {
      throw new Error('no space left');
    });
    const open = fs.readdirSync('/proc/self/fd').length;
    await assert.rejects(takeOver(config, { ...AGENT, home: '/' }, { uid: 1001, gid: 1001 }, ending(() => assert.fail('too late'))), { name: 'RequestError', message: 'the account agent cannot take over uid 1001: no space left' });
    assert.deepEqual([fs.existsSync(draft), fs.existsSync(`${config.groupFile}.agentd`)], [interrupted, interrupted]);
    assert.equal(fs.readdirSync('/proc/self/fd').length, open);
    t.mock.restoreAll();
  }
});

test('folders are entered down to a depth of 200', asRoot, async (t) => {
  const { config } = makeGuest(t);
  const at = (depth) => path.join(config.workspace, ...Array.from({ length: depth }, () => 'd'));
  fs.mkdirSync(at(202), { recursive: true });
  for (let depth = 0; depth <= 202; depth += 1) fs.lchownSync(at(depth), 1000, 1000);
  await handOver(config.workspace, BESIDE, { uid: 1001, gid: 1001 });
  assert.deepEqual([0, 1, 199, 200, 201, 202].map((depth) => ownerOf(at(depth))[0]), [1001, 1001, 1001, 1001, 1000, 1000]);
});

test('what is handed over is gone or no folder', asRoot, async (t) => {
  const { root, config } = makeGuest(t);
  fs.symlinkSync(config.workspace, path.join(root, 'link'));
  fs.lchownSync(config.workspace, 1000, 1000);
  for (const name of ['none', 'link', 'passwd']) await handOver(path.join(root, name), BESIDE, { uid: 1001, gid: 1001 });
  assert.equal(ownerOf(config.workspace)[0], 1000);
  t.mock.method(fs, 'readdirSync', () => {
    throw Object.assign(new Error('not allowed'), { code: 'EACCES' });
  });
  await assert.rejects(handOver(config.workspace, BESIDE, { uid: 1001, gid: 1001 }), { code: 'EACCES' });
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

/** A system whose processes end by saying so. */
const ending = (end) => ({ endLeftovers: async () => end(), isShare: () => false });
const BESIDE = accountsBeside(AGENT, TABLES);

const ownerOf = (file) => [fs.lstatSync(file).uid, fs.lstatSync(file).gid];

test('what is the agent\'s goes with it, links and odd names too; what is not, and other file systems, stay', asRoot, async (t) => {
  const { config, mine, roots } = inhabited(t);
  const before = ownerOf('/etc/passwd');
  const ended = [];
  fs.chmodSync(config.passwdFile, 0o640);
  const user = await takeOver(config, { ...AGENT, home: config.workspace }, { uid: 1001, gid: 1001 }, ending(() => ended.push(ownerOf(mine[0])[0])));
  assert.deepEqual([user.uid, user.gid, user.name], [1001, 1001, 'agent']);
  assert.deepEqual(ended, [1000], 'what runs is ended before anything changes its owner');
  for (const file of mine) assert.deepEqual(ownerOf(file), [1001, 1001], String(file));
  for (const file of roots) assert.deepEqual(ownerOf(file), [0, 0], file);
  assert.deepEqual(ownerOf('/etc/passwd'), before, 'a link is not followed');
  assert.match(fs.readFileSync(config.passwdFile, 'utf8'), /^root:x:0:0:.*\nagent:x:1001:1001::[^\n]*\n$/);
  assert.equal(fs.statSync(config.passwdFile).mode & 0o7777, 0o640);
  assert.match(fs.readFileSync(config.groupFile, 'utf8'), /^agent:x:1001:$/m);
  assert.deepEqual(fs.readdirSync(path.dirname(config.passwdFile)).filter((name) => name.endsWith('.agentd')), []);
  const again = await takeOver(config, user, { uid: 501, gid: 20 }, ending(() => ended.push('again')));
  assert.deepEqual([again.uid, again.gid], [501, 1001]);
  for (const file of mine) assert.deepEqual(ownerOf(file), [501, 1001], String(file));
  await takeOver(config, again, { uid: 501, gid: 20 }, ending(() => assert.fail('nothing to take over')));
  assert.equal(ended.length, 2);
});

/** A program that gives the folder it is called with to 61235, and prints the owners of these names in it. */
function walkOver(...names) {
  return `const { handOver } = require(${JSON.stringify(require.resolve('../../overlay/opt/agent-runner/lib/identity.js'))});
    const beside = { isOthers: (uid) => uid === 0, isNamed: () => false };
    handOver(process.argv[1], beside, { uid: 61235, gid: 61235 }).then(() => {
      const { lstatSync } = require('node:fs');
      console.log(${JSON.stringify(names)}.map((name) => lstatSync(process.argv[1] + name).uid).join());
    });`;
}

test('what is mounted in a folder of the agent\'s is the host\'s, as is a home that is a share', asRoot, async (t) => {
  const { root, config } = makeGuest(t);
  const inner = path.join(config.workspace, 'share');
  fs.mkdirSync(inner);
  const script = 'mount -t tmpfs none "$1" && touch "$1/file" && chown -R 61234:61234 "$2" && exec "$3" -e "$4" "$2"';
  const walk = walkOver('', '/share', '/share/file');
  const done = spawnSync('unshare', ['--mount', 'sh', '-c', script, 'sh', inner, config.workspace, process.execPath, walk], { encoding: 'utf8' });
  assert.equal(done.stdout, '61235,61234,61234\n', done.stderr);
  fs.lchownSync(config.workspace, 61234, 61234);
  fs.writeFileSync(config.passwdFile, TABLES.passwd);
  await takeOver({ ...config, scratchFolders: [] }, { ...AGENT, home: root }, { uid: 61235, gid: 61235 }, { endLeftovers: async () => {}, isShare: () => true });
  assert.deepEqual(ownerOf(config.workspace), [61234, 61234]);
});

test('files and folders of an overlay are handed over alike', asRoot, (t) => {
  const base = fs.mkdtempSync('/var/tmp/agentd-'); // the tmpfs above it is another file system, as in a read-only guest
  t.after(() => spawnSync('rm', ['-rf', base]));
  for (const name of ['lower/dir', 'memory', 'merged']) fs.mkdirSync(path.join(base, name), { recursive: true });
  fs.writeFileSync(path.join(base, 'lower/dir/lower'), 'x');
  const script = `cd "$1" && mount -t tmpfs none memory && mkdir memory/upper memory/work &&
    mount -t overlay overlay -o lowerdir=lower,upperdir=memory/upper,workdir=memory/work merged &&
    touch merged/dir/upper && ln -s nowhere merged/dir/link && chown -hR 61234:61234 merged && exec "$2" -e "$3" "$1/merged"`;
  const walk = walkOver('', '/dir', '/dir/lower', '/dir/upper', '/dir/link');
  const done = spawnSync('unshare', ['--mount', 'sh', '-c', script, 'sh', base, process.execPath, walk], { encoding: 'utf8' });
  assert.equal(done.stdout, '61235,61235,61235,61235,61235\n', done.stderr);
});

test('very many files and folders deeper than a path are no fault, and no descriptor stays open', asRoot, async (t) => {
  const { config } = makeGuest(t);
  const name = 'd'.repeat(200);
  const start = process.cwd();
  process.chdir(config.workspace);
  try {
    for (let depth = 0; depth < 250; depth += 1) {
      fs.mkdirSync(name);
      fs.lchownSync(name, 1000, 1000);
      process.chdir(name);
    }
  } finally {
    process.chdir(start);
  }
  for (let number = 0; number < 600; number += 1) fs.writeFileSync(path.join(config.workspace, String(number)), '');
  const open = () => fs.readdirSync('/proc/self/fd').length;
  const before = open();
  await handOver(config.workspace, BESIDE, { uid: 1001, gid: 1001 });
  assert.equal(open(), before);
  assert.deepEqual(ownerOf(path.join(config.workspace, name, name)), [1001, 1001]);
});

test('what is taken away or replaced while root looks at it is left alone', asRoot, async (t) => {
  const { root, config } = makeGuest(t);
  const [victim, trap] = [path.join(root, 'victim'), path.join(config.workspace, 'trap')];
  fs.writeFileSync(victim, 'roots');
  fs.writeFileSync(trap, 'mine');
  fs.lchownSync(trap, 1000, 1000);
  const real = fs.lstatSync;
  let sprung = false;
  t.mock.method(fs, 'lstatSync', (file, ...rest) => {
    const stat = real(file, ...rest);
    if (String(file).endsWith('/trap') && !sprung) {
      sprung = true;
      fs.unlinkSync(trap);
      fs.symlinkSync(victim, trap);
    }
    return stat;
  });
  await handOver(config.workspace, BESIDE, { uid: 1001, gid: 1001 });
  assert.ok(sprung);
  assert.equal(real(victim).uid, 0);
  assert.equal(real(trap).uid, 0, 'the link itself is not what was looked at');
});

test('an interrupted take-over is finished, whoever the owner is by then', asRoot, async (t) => {
  for (const owner of [{ uid: 1000, gid: 1000 }, { uid: 1002, gid: 1002 }]) {
    const { config, mine } = inhabited(t);
    const user = { ...AGENT, home: config.workspace };
    const stop = ending(() => {
      throw new Error('power off');
    });
    await assert.rejects(takeOver(config, user, { uid: 1001, gid: 1001 }, stop), /power off/);
    for (const file of mine.slice(0, 3)) fs.lchownSync(file, 1001, 1001); // as far as it came
    const worker = await takeOver(config, user, owner, ending(() => {}));
    assert.equal(worker.uid, owner.uid);
    for (const file of mine) assert.deepEqual(ownerOf(file), [owner.uid, owner.gid], String(file));
    assert.deepEqual(fs.readdirSync(path.dirname(config.passwdFile)).filter((name) => name.endsWith('.agentd')), []);
    await takeOver(config, worker, owner, ending(() => assert.fail('it is finished')));
  }
});

/** Run a program for `uid`; resolves when it has begun, to a promise that is kept when all that came of it has ended. */
async function leftover(t, uid, program) {
  const child = spawn('/usr/bin/python3', ['-c', program], { uid, gid: uid, cwd: '/', stdio: ['ignore', 'pipe', 'ignore'] });
  t.after(() => endProcesses(uid));
  const over = new Promise((resolve) => child.stdout.once('end', resolve)); // nobody holds the other end any more
  await new Promise((resolve) => child.stdout.once('data', resolve));
  child.stdout.resume();
  return { over };
}

async function checkEnded(over) {
  const late = delay(10_000, 'it goes on', { ref: false });
  assert.notEqual(await Promise.race([over, late]), 'it goes on');
}

test('a process that is in no list, because it forks and ends all the time, is ended too', asRoot, async (t) => {
  const uid = 61_236; // nobody's
  const { over } = await leftover(t, uid, 'import os\nos.setsid()\nwhile True:\n    os.write(1, b"x")\n    if os.fork(): os._exit(0)');
  await endProcesses(uid);
  await checkEnded(over);
});

test('a process whose first thread has ended is ended with its others', asRoot, async (t) => {
  const uid = 61_237; // nobody's
  const exit = 'ctypes.CDLL(None).syscall(60 if os.uname().machine == "x86_64" else 93, 0)'; // of this thread alone
  const { over } = await leftover(t, uid, `import ctypes, os, threading, time\nthreading.Thread(target=lambda: (time.sleep(0.5), os.write(1, b"x"), time.sleep(600))).start()\n${exit}`);
  assert.ok((await endProcesses(uid)) > 0, 'it is seen');
  await checkEnded(over);
});

test('files of the system that cannot be written are an error with the account\'s name, and the old numbers stay', asRoot, async (t) => {
  const { config } = inhabited(t);
  for (const file of [config.groupFile, config.passwdFile]) {
    fs.mkdirSync(`${file}.agentd`);
    await assert.rejects(takeOver(config, { ...AGENT, home: '/' }, { uid: 1001, gid: 1001 }, ending(() => assert.fail('too late'))), { message: /^the account agent cannot take over uid 1001: / });
    assert.match(fs.readFileSync(config.passwdFile, 'utf8'), /^agent:x:1000:1000/m);
    fs.rmSync(`${file}.agentd`, { recursive: true, force: true });
  }
});

/** A mounter for which the share is mounted already. `maker` gives what is written its owner, or refuses. */
function mounterWith(config, where, maker = (uid, gid) => [uid, gid], system = {}) {
  const table = path.join(config.runDir, 'table');
  fs.writeFileSync(table, `9 1 0:9 / ${where} rw - 9p work rw\n`);
  const calls = [];
  const run = async (file, args, { uid, gid }) => {
    calls.push([file, uid, gid]);
    if (file === '/bin/rm') return fs.rmSync(args.at(-1));
    const owner = maker(uid, gid);
    fs.writeFileSync(args.at(-1), '');
    return fs.chownSync(args.at(-1), ...owner);
  };
  return { mounter: new Mounter(config, { run, table, endAgents: async () => calls.push(['endAgents']), ...system }), calls };
}

/** A guest with a folder to work in, which is mounted. */
function working(t, owner, maker, system) {
  const { config } = inhabited(t);
  const workspace = fs.realpathSync(config.workspace);
  const guestPath = path.join(workspace, 'project');
  fs.mkdirSync(guestPath);
  fs.chownSync(guestPath, ...owner);
  return { guestPath, work: [{ name: 'work', tag: 'work', guestPath }], ...mounterWith({ ...config, workspace }, guestPath, maker, system) };
}

const USER = { ...AGENT, home: '/home/agent' };

test('a request works as the owner of "work", and of nothing else', asRoot, async (t) => {
  const { guestPath, work, mounter, calls } = working(t, [1001, 1001]);
  const other = await mounter.prepare([{ ...work[0], name: 'other' }], USER);
  assert.deepEqual([other, calls], [USER, []]);
  const worker = await mounter.prepare(work, USER);
  assert.deepEqual([worker.uid, worker.gid], [1001, 1001]);
  assert.deepEqual(calls, [['endAgents'], ['endAgents'], ['/bin/sh', 1001, 1001], ['/bin/rm', 1001, 1001]]);
  await mounter.prepare(work, worker);
  assert.equal(calls.length, 4, 'the second request of the same owner costs nothing');
  fs.chownSync(guestPath, 1002, 1002);
  const second = await mounter.prepare(work, worker);
  assert.deepEqual([second.uid, calls.slice(4, 7)], [1002, [['endAgents'], ['endAgents'], ['/bin/sh', 1002, 1002]]]);
  assert.deepEqual(fs.readdirSync(guestPath), []);
});

test('where others own what the agent makes, it works as those: QEMU runs as another user than the folder\'s', asRoot, async (t) => {
  const { guestPath, work, mounter, calls } = working(t, [1001, 1001], () => [1005, 1005]);
  const worker = await mounter.prepare(work, USER);
  assert.deepEqual([worker.uid, worker.gid], [1005, 1005]);
  const ended = () => calls.filter(([name]) => name === 'endAgents').length;
  assert.equal(ended(), 3);
  fs.chownSync(guestPath, 1001, 1001); // a real share is a mount of its own: its owner does not change with the agent's
  const before = calls.length;
  assert.equal((await mounter.prepare(work, worker)).uid, 1005);
  assert.equal(calls.length, before, 'that is remembered');
  const root = working(t, [0, 0], () => [1005, 1005]);
  assert.equal((await root.mounter.prepare(root.work, USER)).uid, 1005, 'a folder of root\'s that everybody may write to');
});

test('before anything is written to find out whose it is, leftovers are ended, also where the owner stays', asRoot, async (t) => {
  const { work, mounter, calls } = working(t, [1000, 1000]);
  assert.equal((await mounter.prepare(work, USER)).uid, 1000);
  assert.deepEqual(calls.slice(0, 2), [['endAgents'], ['/bin/sh', 1000, 1000]]);
});

test('who may not write is not worked as', asRoot, async (t) => {
  const maker = (uid) => {
    if (uid === 1005) throw new Error('Permission denied');
    return [1005, 1005];
  };
  const { work, mounter } = working(t, [1001, 1001], maker);
  assert.equal((await mounter.prepare(work, USER)).uid, 1001);
});

test('a folder of root\'s that only root may write to is refused with what to do', asRoot, async (t) => {
  const { work, mounter } = working(t, [0, 0], () => {
    throw new Error('Permission denied');
  });
  await assert.rejects(mounter.prepare(work, USER), /\(owner 0:0, mode 755\) is not writable for uid 1000: Permission denied; it belongs to root/);
});

test('a folder for reading only is worked in as its owner, and nothing is written to find that out', asRoot, async (t) => {
  const touch = () => {
    throw Object.assign(new Error('EROFS: read-only file system'), { code: 'EROFS' });
  };
  const maker = () => assert.fail('nothing may be written');
  const { work, mounter, calls } = working(t, [1001, 1001], maker, { touch });
  const worker = await mounter.prepare(work, USER);
  assert.deepEqual([worker.uid, worker.gid], [1001, 1001]);
  assert.deepEqual(calls, [['endAgents'], ['endAgents']]);
  await mounter.prepare(work, worker);
  assert.equal(calls.length, 2, 'that is remembered');
});

test('a folder that cannot be changed for another reason is not taken for one for reading only', asRoot, async (t) => {
  const touch = () => {
    throw Object.assign(new Error('EPERM'), { code: 'EPERM' });
  };
  const { work, mounter, calls } = working(t, [1001, 1001], undefined, { touch });
  await mounter.prepare(work, USER);
  assert.deepEqual(calls.at(-1), ['/bin/rm', 1001, 1001]);
});

test('a link in place of the folder is refused', asRoot, async (t) => {
  const { guestPath, work, mounter } = working(t, [1001, 1001]);
  fs.rmdirSync(guestPath);
  fs.symlinkSync('/etc', guestPath);
  await assert.rejects(mounter.prepare(work, USER), /mount "work": .*project is a symbolic link|cannot be reached/);
});
