'use strict';

// What root does where the agent may write: no link is followed, nothing is done outside of the share.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const childProcess = require('node:child_process');
const { spawn } = childProcess;
const { test } = require('node:test');
const { setTimeout: delay } = require('node:timers/promises');
const { FAST, FakeMounter, makeGuest, payload, startHost, until } = require('./helpers');
const { SharedFolder, below, holdFolder, isOwn, mountOf, placeOf } = payload('folders');
const { Mounter } = payload('mounts');
const { bootUser } = payload('environment');
const { Questions } = payload('permissions');
const { StreamFile } = payload('stream');
const { endAgents, endProcesses, noteUser } = payload('users');

const ROOT = process.getuid() === 0;
const own = { uid: process.getuid(), gid: process.getgid(), home: '/home/agent' };
const asRoot = { skip: !ROOT && 'needs root' };

test('a folder is held through no link; missing ones are made for their owner', (t) => {
  const { root } = makeGuest(t);
  fs.mkdirSync(path.join(root, 'outside'));
  fs.symlinkSync('outside', path.join(root, 'link'));
  const owner = ROOT ? { uid: 1000, gid: 1001 } : own;
  for (const name of ['link', 'link/below', 'console', 'console/below']) assert.throws(() => holdFolder(path.join(root, name), owner), { code: 'ENOTDIR' }, name);
  assert.throws(() => holdFolder(path.join(root, 'none')), { code: 'ENOENT' });
  assert.deepEqual(fs.readdirSync(path.join(root, 'outside')), []);
  const fd = holdFolder(path.join(root, 'a/b'), owner);
  t.after(() => fs.closeSync(fd));
  assert.equal(placeOf(fd), path.join(fs.realpathSync(root), 'a/b'));
  for (const name of ['a', 'a/b']) assert.deepEqual([fs.statSync(path.join(root, name)).uid, fs.statSync(path.join(root, name)).gid], [owner.uid, owner.gid]);
  assert.equal(fs.statSync(root).uid, own.uid, 'what is there keeps its owner');
});

/** A mounter whose programs are played: `mount` calls `mounting(folder)`, which says where the mount came to be. */
function playedMounter(config, mounting, present = [], beside = []) {
  const table = path.join(config.runDir, 'table');
  const calls = [];
  const rows = present.map(([where, tag], at) => `${at + 10} 1 0:1 / ${where} rw - 9p ${tag} rw`);
  const save = () => fs.writeFileSync(table, rows.map((row) => `${row}\n`).join(''));
  save();
  const run = async (file, [tool, ...args]) => {
    assert.equal(file, '/bin/busybox');
    calls.push([tool, ...args.slice(tool === 'umount' ? 0 : -2)]);
    if (tool === 'mount') rows.push(...beside, `99 1 0:2 / ${mounting(fs.readlinkSync(args.at(-1)))} rw - 9p ${args.at(-2)} rw`);
    if (tool === 'umount') rows.splice(rows.findIndex((row) => row.includes(` ${args.at(-1)} `)), 1);
    save();
  };
  const end = async () => calls.push(['endAgents']);
  return { mounter: new Mounter(config, { run, table, endAgents: end }), calls };
}

test('a share is mounted on the folder that was looked at, after what an earlier agent left is ended', async (t) => {
  const { config } = makeGuest(t);
  const workspace = fs.realpathSync(config.workspace);
  const guestPath = path.join(workspace, 'project');
  const { mounter, calls } = playedMounter({ ...config, workspace }, (folder) => folder);
  await mounter.prepare([{ name: 'data', tag: 'data', guestPath }], own);
  assert.deepEqual(calls.map(([name]) => name), ['endAgents', 'mount']);
  assert.match(calls[1].at(-1), new RegExp(`^/proc/${process.pid}/fd/\\d+$`));
  await mounter.prepare([{ name: 'data', tag: 'data', guestPath }], own);
  assert.equal(calls.length, 2, 'what is mounted costs no process its life');
});

test('the request share among the mounts of a request is there already; anything else there is refused', async (t) => {
  const { config } = makeGuest(t);
  const { mounter, calls } = playedMounter(config, (folder) => folder);
  const user = await mounter.prepare([{ name: 'ipc', tag: 'ipc', guestPath: config.ipcDir }], own);
  assert.deepEqual([user, calls], [own, []], 'nothing is mounted, and nobody is ended');
  await mounter.prepare([{ name: 'any', tag: 'ipc', guestPath: `${config.ipcDir}/.` }], own, true);
  for (const mount of [{ tag: 'other', guestPath: config.ipcDir }, { tag: 'ipc', guestPath: path.join(config.ipcDir, 'x') }]) {
    await assert.rejects(mounter.prepare([{ name: 'ipc', ...mount }], own), /is not a place for a share/);
  }
});

test('a held folder of the share is known by its mount', (t) => {
  const { config } = makeGuest(t);
  const fd = holdFolder(config.ipcDir);
  t.after(() => fs.closeSync(fd));
  const table = path.join(config.runDir, 'table');
  const holds = (id, type, where = config.ipcDir) => {
    fs.writeFileSync(table, `${id} 1 0:1 / ${where} rw - ${type} ipc rw\n`);
    const mounter = new Mounter(config, { table });
    return [mounter.ipcMounted(), mounter.holdsIpc(fd)];
  };
  assert.deepEqual(holds(mountOf(fd), '9p'), [true, true]);
  assert.deepEqual(holds(mountOf(fd), 'virtiofs'), [true, true]);
  assert.deepEqual(holds(`${mountOf(fd)}0`, '9p'), [true, false]);
  assert.deepEqual(holds(mountOf(fd), 'ext4'), [false, false]);
  assert.deepEqual(holds(mountOf(fd), '9p', config.workspace), [false, false]);
});

test('the request share is mounted once, for root alone, and mounted again when it stops working', async (t) => {
  const { config } = makeGuest(t);
  const ipcDir = path.join(fs.realpathSync(config.workspace), 'ipc');
  const commands = [];
  const table = path.join(config.runDir, 'table');
  fs.writeFileSync(table, '');
  let works = true;
  const run = async (file, args) => {
    commands.push([path.basename(file), ...args]);
    if (args[0] === 'mount' && !works) throw new Error('no such device');
    fs.writeFileSync(table, args[0] === 'mount' ? `9 1 0:1 / ${ipcDir} rw - 9p ipc rw\n` : '');
  };
  const mounter = new Mounter({ ...config, ipcDir }, { run, table });
  assert.deepEqual([await mounter.mountIpc(), await mounter.mountIpc(), commands.length], [true, true, 1]);
  const options = 'trans=virtio,version=9p2000.L,msize=262144,access=0,nosuid,nodev,noexec';
  assert.deepEqual(commands[0].slice(0, -1), ['busybox', 'mount', '-t', '9p', '-o', options, 'ipc']);
  assert.equal(await mounter.remountIpc(), true);
  assert.deepEqual(commands.slice(1).map((words) => words.slice(1, 4)), [['umount', '-l', ipcDir], ['mount', '-t', '9p']]);
  works = false;
  assert.deepEqual([await mounter.remountIpc(), await mounter.remountIpc(), mounter.ipcMounted()], [false, false, false]);
  assert.deepEqual(commands.slice(3).map(([, tool]) => tool), ['umount', 'mount', 'mount'], 'what is not mounted is not unmounted');
});

test('a share that is not there after mounting, or took the place of another', async (t) => {
  const { config } = makeGuest(t);
  const workspace = fs.realpathSync(config.workspace);
  const guestPath = path.join(workspace, 'project');
  const data = [{ name: 'data', tag: 'data', guestPath }];
  const table = path.join(config.runDir, 'table');
  fs.writeFileSync(table, '');
  const silent = new Mounter({ ...config, workspace }, { run: async () => {}, table, endAgents: async () => {} });
  await assert.rejects(silent.prepare(data, own), { name: 'RequestError', message: `mount "data": ${guestPath} is not a share after mounting` });
  const broken = new Mounter({ ...config, workspace }, { run: async () => Promise.reject(new Error('no such device')), table, endAgents: async () => {} });
  await assert.rejects(broken.prepare(data, own), { message: `mount "data": tag data cannot be mounted on ${guestPath}: no such device` });
  const { mounter, calls } = playedMounter({ ...config, workspace }, (folder) => folder, [[guestPath, 'other']]);
  await mounter.prepare(data, own);
  assert.deepEqual(calls.map(([name]) => name), ['endAgents', 'umount', 'mount']);
  assert.deepEqual(calls[1], ['umount', '-l', guestPath]);
});

test('where a share may be mounted', async (t) => {
  const { config } = makeGuest(t);
  // Whatever comes after the check fails before it touches these places.
  const mounter = new Mounter(config, { run: async () => assert.fail('too late'), endAgents: async () => assert.fail('too late') });
  const user = { ...own, home: '/home/agent' };
  const refused = async (guestPath) => assert.rejects(mounter.prepare([{ name: 'n', tag: 't', guestPath }], user), { name: 'RequestError', message: `mount "n": ${guestPath} is not a place for a share` });
  for (const base of [config.workspace, '/home/agent', '/mnt', '/media', '/srv']) {
    await refused(base);
    await refused(`${base}x/y`);
    await refused(`${base}/../elsewhere`);
  }
  for (const guestPath of [config.ipcDir, path.join(config.ipcDir, 'x'), '/', '/home/agen', '/opt/x']) await refused(guestPath);
  const link = path.join(config.workspace, 'link');
  fs.symlinkSync('/mnt', link);
  await assert.rejects(mounter.prepare([{ name: 'n', tag: 't', guestPath: path.join(link, 'x') }], user), { message: `mount "n": ${link} is a symbolic link` });
});

test('a link that is planted while leftovers are ended is not mounted over', async (t) => {
  const { root, config } = makeGuest(t);
  const workspace = fs.realpathSync(config.workspace);
  const guestPath = path.join(workspace, 'project');
  const endAgents = async () => {
    fs.rmSync(guestPath, { force: true });
    fs.symlinkSync(root, guestPath);
  };
  const table = path.join(config.runDir, 'table');
  fs.writeFileSync(table, '');
  for (const ownDisk of [false, true]) {
    const mounter = new Mounter({ ...config, workspace }, { run: async () => assert.fail('nothing is mounted'), table, endAgents });
    fs.rmSync(guestPath, { force: true });
    await assert.rejects(mounter.prepare([{ name: 'n', tag: 'nosuchtag', guestPath }], own, ownDisk), { message: `mount "n": ${guestPath} is a symbolic link` });
  }
});

test('without a device a share is a folder of the user, made once', async (t) => {
  const { config } = makeGuest(t);
  const workspace = fs.realpathSync(config.workspace);
  const { mounter, calls } = playedMounter({ ...config, workspace }, () => assert.fail('nothing is mounted'));
  const user = { ...(ROOT ? { uid: 1000, gid: 1001 } : own), home: '/home/agent' };
  const work = [{ name: 'work', tag: 'nosuchtag', guestPath: path.join(workspace, 'a/project') }, { name: 'more', tag: 'nosuchtag', guestPath: path.join(workspace, 'more') }];
  assert.equal(await mounter.prepare(work, user, true), user);
  for (const name of ['a', 'a/project', 'more']) {
    const { uid, gid, mode } = fs.statSync(path.join(workspace, name));
    assert.deepEqual([uid, gid, mode & 0o777], [user.uid, user.gid, 0o755]);
  }
  assert.deepEqual(calls, [['endAgents'], ['endAgents']]);
  await mounter.prepare(work, user, true);
  assert.equal(calls.length, 2, 'what is there costs no process its life');
});

test('what other services mount meanwhile is neither an error nor undone', async (t) => {
  const { config } = makeGuest(t);
  const workspace = fs.realpathSync(config.workspace);
  const beside = ['97 1 0:3 / /tmp/tmp.abc rw - tmpfs tmpfs rw', '98 1 0:4 / /elsewhere rw - 9p other rw'];
  const { mounter, calls } = playedMounter({ ...config, workspace }, (folder) => folder, [], beside);
  await mounter.prepare([{ name: 'data', tag: 'data', guestPath: path.join(workspace, 'project') }], own);
  assert.deepEqual(calls.map(([name]) => name), ['endAgents', 'mount']);
});

test('a folder that is moved while it is mounted: the mount is undone, and the link in its place is not followed', async (t) => {
  const { root, config } = makeGuest(t);
  const workspace = fs.realpathSync(config.workspace);
  const [guestPath, moved, outside] = [path.join(workspace, 'project'), path.join(workspace, 'moved'), path.join(fs.realpathSync(root), 'outside')];
  fs.mkdirSync(outside);
  const swap = (folder) => {
    assert.equal(folder, guestPath);
    fs.renameSync(guestPath, moved);
    fs.symlinkSync(outside, guestPath);
    return moved;
  };
  const { mounter, calls } = playedMounter({ ...config, workspace }, swap);
  await assert.rejects(mounter.prepare([{ name: 'work', tag: 'work', guestPath }], own), /moved meanwhile/);
  assert.deepEqual(calls.at(-1), ['umount', '-l', moved]);
  await assert.rejects(mounter.prepare([{ name: 'work', tag: 'work', guestPath }], own), /symbolic link/);
});

test('the request share is not mounted through a link', async (t) => {
  const { root, config } = makeGuest(t);
  fs.rmdirSync(config.ipcDir);
  fs.symlinkSync(root, config.ipcDir);
  const { mounter, calls } = playedMounter(config, (folder) => folder);
  assert.equal(await mounter.mountIpc(), false);
  assert.equal(await mounter.remountIpc(), false);
  assert.deepEqual(calls, []);
});

test('a held folder belongs to the share only when it is on that very mount', (t) => {
  const { config } = makeGuest(t);
  const { mounter } = playedMounter(config, undefined, [[config.ipcDir, 'ipc']]);
  const fd = holdFolder(config.ipcDir);
  t.after(() => fs.closeSync(fd));
  assert.ok(mounter.ipcMounted());
  assert.ok(!mounter.holdsIpc(fd), 'the folder below the mount');
});

test('requests in a folder that is not the share are not run, and nothing is written there', async (t) => {
  const guest = makeGuest(t);
  const host = await startHost(t, { guest });
  assert.equal((await host.run('good', { command: ['true'] })).subtype, 'success');
  host.mounter.mounted = false;
  await until('a beat that says so', () => JSON.parse(fs.readFileSync(host.ipc('heartbeat'), 'utf8')).ipcMounted === false);
  fs.chmodSync(host.config.ipcDir, 0o777); // from now on it could be anybody's
  await delay(3 * FAST.heartbeat);
  const before = fs.readFileSync(host.ipc('heartbeat'), 'utf8');
  host.send('planted', { command: ['/bin/sh', '-c', 'touch "$1"', 'sh', path.join(host.root, 'ran')] });
  for (const name of ['streams', 'responses']) fs.rmSync(host.ipc(name), { recursive: true });
  await delay(10 * FAST.heartbeat);
  assert.equal(fs.readFileSync(host.ipc('heartbeat'), 'utf8'), before);
  assert.deepEqual(fs.readdirSync(host.config.ipcDir).sort(), ['heartbeat', 'requests']);
  assert.ok(!fs.existsSync(path.join(host.root, 'ran')));
  assert.ok(host.log.lines.some((line) => /not the share|neither the share/.test(line)));
  host.mounter.mounted = true;
  await host.result('planted'); // to the test it is the share again
});

test('no link is followed by a stream or a heartbeat', async (t) => {
  const { root, config } = makeGuest(t);
  const victim = path.join(root, 'victim');
  fs.writeFileSync(victim, 'untouched');
  fs.symlinkSync(victim, path.join(config.ipcDir, `.heartbeat.${process.pid}`));
  assert.throws(() => payload('heartbeat').writeHeartbeat(config.ipcDir, {}), { code: 'ELOOP' });
  const file = path.join(root, 'x.log');
  fs.symlinkSync(victim, file);
  const failures = [];
  const stream = new StreamFile(() => file, { retry: 1 }, (error) => failures.push(error.code));
  const written = stream.write({ type: 'x' });
  await until('a failure', () => failures.length > 0);
  assert.equal(failures[0], 'ELOOP');
  fs.rmSync(file);
  await written;
  await stream.close();
  assert.equal(fs.readFileSync(victim, 'utf8'), 'untouched');
});

test('every process of a user is ended, also those with sessions of their own and those that fork', asRoot, async (t) => {
  const uid = 61_234; // nobody's
  const script = 'for n in 1 2 3; do setsid sleep 300 & done; while :; do (sleep 300 &) ; sleep 0.01; done';
  const child = spawn('/bin/sh', ['-c', script], { uid, gid: uid, cwd: '/', detached: true, stdio: 'ignore' });
  t.after(() => endProcesses(uid));
  const lives = (pid) => {
    try {
      return fs.statSync(`/proc/${pid}`).uid === uid && !/^State:\tZ/m.test(fs.readFileSync(`/proc/${pid}/status`, 'utf8'));
    } catch {
      return false;
    }
  };
  const count = () => fs.readdirSync('/proc').filter((name) => /^\d+$/.test(name) && lives(name)).length;
  await until('processes', () => count() > 12);
  const { config } = makeGuest(t);
  assert.equal(await endAgents(config), 0, 'only those whom agents have run as');
  noteUser(config, { uid });
  noteUser(config, { uid });
  assert.equal(fs.readFileSync(path.join(config.runDir, 'users'), 'utf8'), `${uid}\n`);
  assert.ok((await endAgents(config)) > 6);
  await until('their ends', () => count() === 0);
  assert.ok(child.pid);
});

test("root's processes are never ended, nor any when agentd is not root", async (t) => {
  // Nothing here can reach a process: a fault in the function would end everything on the machine that runs this test.
  const kill = t.mock.method(process, 'kill', () => true);
  const execFile = t.mock.method(childProcess, 'execFile', (file, args, options, done) => done(null, '', ''));
  const getuid = t.mock.method(process, 'getuid', () => 0);
  assert.equal(await endProcesses(0), 0);
  getuid.mock.mockImplementation(() => 1000);
  assert.equal(await endProcesses(61_235), 0);
  assert.deepEqual([kill.mock.callCount(), execFile.mock.callCount()], [0, 0]);
});

/** Processes that are only told of: nothing here can reach a real one. `statuses` are the files of /proc by their path. */
function played(t, statuses, sweep = () => null) {
  const kills = [];
  t.mock.method(process, 'kill', (pid, signal) => {
    kills.push([pid, signal]);
    delete statuses[pid];
    throw new Error('it has ended meanwhile');
  });
  const sweeps = t.mock.method(childProcess, 'execFile', (file, args, options, done) => (delete options.signal, done(sweep(), '', ''))).mock;
  t.mock.method(process, 'getuid', () => 0);
  t.mock.method(fs, 'readdirSync', (folder) => {
    if (folder === '/proc') return ['1', 'self', '10x', String(process.pid), ...Object.keys(statuses).filter((name) => !name.includes('/'))];
    const pid = folder.split('/')[2];
    if (statuses[pid] === undefined || statuses[pid] === 'no tasks') throw new Error('ENOENT');
    return Object.keys(statuses).filter((name) => name.startsWith(`${pid}/`)).map((name) => name.split('/')[1]);
  });
  const read = fs.readFileSync;
  t.mock.method(fs, 'readFileSync', (file, ...rest) => {
    if (!file.startsWith('/proc/')) return read(file, ...rest);
    const [, pid, task] = /^\/proc\/(\d+)(?:\/task\/(\d+))?\/status$/.exec(file);
    const text = statuses[task ? `${pid}/${task}` : pid] ?? (pid === String(process.pid) ? status(UID) : undefined);
    if (text === undefined) throw new Error('ENOENT');
    return text;
  });
  return { kills, sweeps };
}

const UID = 61_235;
const status = (uid, state = 'S (sleeping)', ids = `${uid}\t${uid}\t${uid}\t${uid}`) => `Name:\tx\nState:\t${state}\nUid:\t${ids}\nGid:\t0\n`;

test('which processes are those of a user', async (t) => {
  const { kills, sweeps } = played(t, {
    101: status(UID), 102: status(UID, 'Z (zombie)'), 103: status(UID, 'Z (zombie)'), 104: status(0, 'R (running)', `0\t0\t${UID}\t0`), 105: status(61_236),
    106: status(UID, 'X (dead)'), 107: status(612_350), 108: 'Name:\tx\n', '103/103': status(UID, 'Z (zombie)'), '103/203': status(UID), '102/102': status(UID, 'Z (zombie)'), '102/202': '',
  }); // prettier-ignore
  assert.equal(await endProcesses(UID), 3);
  assert.deepEqual(kills, [101, 103, 104].map((pid) => [pid, 'SIGKILL']));
  assert.equal(sweeps.callCount(), 1);
  const [file, args, options] = sweeps.calls[0].arguments;
  assert.deepEqual([file, args], ['/bin/sh', ['-c', 'kill -KILL -1']]);
  assert.deepEqual(options, { timeout: 5000, killSignal: 'SIGKILL', uid: UID, gid: UID, cwd: '/', env: {} });
});

test('a sweep that fails is tried again, twenty times', async (t) => {
  let failures = 2;
  const { sweeps } = played(t, {}, () => ((failures -= 1) >= 0 ? new Error('killed') : null));
  assert.equal(await endProcesses(UID), 0);
  assert.equal(sweeps.callCount(), 3);
  failures = Infinity;
  await assert.rejects(endProcesses(UID), { name: 'RequestError', message: `processes of uid ${UID} cannot be ended` });
  assert.equal(sweeps.callCount(), 23);
});

test('all accounts that agents have had are gone through', async (t) => {
  const { config } = makeGuest(t);
  const runDir = path.join(config.runDir, 'deep/er');
  for (const uid of [61_234, UID, 61_234]) noteUser({ runDir }, { uid });
  assert.equal(fs.readFileSync(path.join(runDir, 'users'), 'utf8'), `61234\n${UID}\n`);
  const { sweeps } = played(t, { 101: status(UID), 102: status(61_234), 103: status(UID) });
  assert.equal(await endAgents({ runDir }), 3);
  assert.deepEqual(sweeps.calls.map(({ arguments: [, , { uid }] }) => uid), [61_234, UID]);
});

test('what is done as a user is done with its ids, and then it is root again', asRoot, () => {
  const { asUser } = payload('users');
  const ids = () => [process.geteuid(), process.getegid()];
  const before = ids();
  assert.deepEqual(asUser({ uid: 1000, gid: 1001 }, ids), [1000, 1001]);
  assert.deepEqual(ids(), before);
  assert.throws(() => asUser({ uid: 1000, gid: 1001 }, () => assert.fail('no')), { message: 'no' });
  assert.deepEqual(ids(), before);
});

test("the config drive's AGENT_USER is the one that pushed files belong to, and the running agent's group may ask", async (t) => {
  const { root, config } = makeGuest(t);
  fs.appendFileSync(config.passwdFile, `other:x:1234:1235::${root}:/bin/sh\n`);
  assert.equal(bootUser(config).name, 'agent');
  assert.equal(bootUser({ ...config, choices: { AGENT_USER: 'other' } }).name, 'other');
  fs.writeFileSync(path.join(config.configDir, 'env.json'), '{"AGENT_USER": "other"}');
  assert.equal(bootUser({ ...config, choices: { AGENT_USER: 'agent' } }).uid, 1234);
  const [questions, socket] = [new Questions(FAST), path.join(config.runDir, 'agent.sock')];
  const server = await questions.listen(socket);
  t.after(() => server.close());
  assert.equal(fs.statSync(socket).mode & 0o777, 0o660);
  questions.admit(bootUser(config));
  assert.equal(fs.statSync(socket).gid, ROOT ? 1235 : own.gid);
  assert.ok(new FakeMounter().holdsIpc());
});

test('a folder is the own one if nobody else can change its entries', (t) => {
  const { root } = makeGuest(t);
  const fd = holdFolder(root);
  t.after(() => fs.closeSync(fd));
  for (const [mode, expected] of [[0o755, true], [0o700, true], [0o777, false], [0o775, false], [0o757, false]]) {
    fs.chmodSync(root, mode);
    assert.equal(isOwn(fd), expected, mode.toString(8));
  }
  fs.chmodSync(root, 0o755);
  t.mock.method(process, 'getuid', () => own.uid + 1);
  assert.equal(isOwn(fd), false);
});

test('a shared folder is held while it is the share, and found again when it is back', (t) => {
  const { config } = makeGuest(t);
  const open = () => fs.readdirSync('/proc/self/fd').length;
  const before = open();
  let isShare = true;
  let asked = 0;
  const folder = new SharedFolder(config.ipcDir, () => ((asked += 1), isShare));
  folder.close();
  folder.refresh();
  assert.deepEqual([asked, open()], [0, before]);
  const place = folder.path('a', 'b');
  assert.match(place, /^\/proc\/self\/fd\/\d+\/a\/b$/);
  assert.deepEqual([folder.path('a', 'b'), asked, open()], [place, 1, before + 1], 'it is asked once');
  folder.refresh();
  assert.equal(open(), before + 1);
  isShare = false;
  folder.refresh();
  assert.equal(open(), before);
  assert.throws(() => folder.path(), { message: `${config.ipcDir} is not the share` });
  assert.equal(open(), before);
  isShare = true;
  assert.equal(fs.realpathSync(folder.path()), fs.realpathSync(config.ipcDir));
  folder.close();
  folder.close();
  assert.equal(open(), before);
  assert.equal(below(7, 'x', 'y'), '/proc/self/fd/7/x/y');
});

test('a program that is run for agentd answers with its output, or with the first line of its complaint', async () => {
  const { runTool } = payload('users');
  const sh = (script, options) => runTool('/bin/sh', ['-c', script], options);
  assert.equal(await sh('echo out; echo err >&2'), 'out\n');
  await assert.rejects(sh('echo first >&2; echo second >&2; exit 1'), { message: 'first' });
  await assert.rejects(sh('exit 3'), { message: /^Command failed: / });
  await assert.rejects(runTool('/none/such', []), { message: /ENOENT/ });
  await assert.rejects(sh('trap "" TERM; sleep 60', { timeout: 50 }), { message: /^Command failed: / });
  assert.equal(await sh('echo "$A"', { env: { A: 'a' } }), 'a\n');
});
