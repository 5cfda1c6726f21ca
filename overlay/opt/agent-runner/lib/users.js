'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { setTimeout: delay } = require('node:timers/promises');
const { RequestError } = require('./errors');

/**
 * The user that the agent runs as.
 * @returns {{name: string, uid: number, gid: number, home: string, shell: string}}
 * @throws {RequestError} when there is no such user, or when it is root: there is no fallback
 */
function findUser(name, passwdFile) {
  for (const line of fs.readFileSync(passwdFile, 'utf8').split('\n')) {
    const [login, , uid, gid, , home, shell] = line.split(':');
    if (login !== name || !/^\d+$/.test(uid) || !/^\d+$/.test(gid)) continue;
    const user = { name, uid: Number(uid), gid: Number(gid), home: home || '/', shell: shell || '/bin/sh' };
    if (user.uid === 0 || user.gid === 0) throw new RequestError(`AGENT_USER ${name} is root or in root's group: the agent never runs as root`);
    return user;
  }
  throw new RequestError(`AGENT_USER ${name} does not exist in this image`);
}

/** Run a short program to its end; rejects with its first line of stderr. */
function runTool(file, args, options = {}) {
  const { execFile } = require('node:child_process');
  return new Promise((resolve, reject) => {
    execFile(file, args, { timeout: 20_000, killSignal: 'SIGKILL', ...options }, (error, stdout, stderr) => {
      if (!error) resolve(stdout);
      else reject(new Error(stderr.trim().split('\n')[0] || error.message));
    });
  });
}

const GONE = /^State:\s*[ZX]/m;
const ROUNDS = 20;
const SWEEP = 5000; // ms for a shell that does nothing but kill

/** The living processes of `uid`. Their status says so: the owner of /proc/PID is root when they forbid to be dumped. */
function processesOf(uid) {
  const pids = fs.readdirSync('/proc').filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid);
  return pids.map(Number).filter((pid) => {
    const status = statusOf(`/proc/${pid}`);
    if (!/^Uid:(.*)$/m.exec(status)?.[1].trim().split(/\s+/).includes(String(uid))) return false;
    return !GONE.test(status) || hasThreads(pid);
  });
}

/** The status of a process or thread, empty when it has ended meanwhile. */
function statusOf(folder) {
  try {
    return fs.readFileSync(`${folder}/status`, 'utf8');
  } catch {
    return '';
  }
}

/** Whether threads go on although the first one, which stands for the process, has ended. */
function hasThreads(pid) {
  let tasks = [];
  try {
    tasks = fs.readdirSync(`/proc/${pid}/task`);
  } catch {
    // It has ended meanwhile.
  }
  return tasks.some((task) => {
    const status = statusOf(`/proc/${pid}/task/${task}`);
    return status !== '' && !GONE.test(status);
  });
}

/**
 * End every process of `uid` (never root's). A list of them proves nothing: one that forks and ends is in none. So a
 * process of their own kills all others, which the kernel does at once: none can fork away from that. They could only
 * end that process before it does, in which case it is started again.
 * @returns {Promise<number>} how many were seen
 * @throws {RequestError} when some are still there
 */
async function endProcesses(uid) {
  if (uid === 0 || process.getuid() !== 0) return 0;
  const seen = new Set();
  let swept = false;
  for (let round = 0; round < ROUNDS; round += 1) {
    const living = processesOf(uid);
    for (const pid of living) {
      seen.add(pid);
      killOne(pid);
    }
    if (swept && living.length === 0) return seen.size;
    swept ||= await runTool('/bin/sh', ['-c', 'kill -KILL -1'], { uid, gid: uid, cwd: '/', env: {}, timeout: SWEEP }).then(
      () => true,
      () => false,
    );
    await delay(10);
  }
  throw new RequestError(`processes of uid ${uid} cannot be ended`);
}

function killOne(pid) {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // It has ended meanwhile.
  }
}

/** Note that agents run as `user` from now on: whoever ends leftovers, also after a crash of agentd, ends theirs. */
function noteUser({ runDir }, user) {
  fs.mkdirSync(runDir, { recursive: true });
  if (!notedUids({ runDir }).has(user.uid)) fs.appendFileSync(path.join(runDir, 'users'), `${user.uid}\n`);
}

/** The uids that agents of this boot have run as. */
function notedUids({ runDir }) {
  const file = path.join(runDir, 'users');
  return new Set(fs.existsSync(file) ? fs.readFileSync(file, 'utf8').split('\n').filter(Boolean).map(Number) : []);
}

/** End whatever agents of this boot have left running. @returns {Promise<number>} how many processes there were */
async function endAgents(config) {
  let ended = 0;
  for (const uid of notedUids(config)) ended += await endProcesses(uid);
  return ended;
}

/**
 * Call `action` (synchronous) with the file-system rights of `user`, so that the kernel refuses what the agent
 * itself could not do, whatever links it has planted.
 */
function asUser(user, action) {
  if (process.getuid() !== 0) return action();
  process.setegid(user.gid);
  process.seteuid(user.uid);
  try {
    return action();
  } finally {
    process.seteuid(0);
    process.setegid(0);
  }
}

module.exports = { asUser, endAgents, endProcesses, findUser, noteUser, runTool };
