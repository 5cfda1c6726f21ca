'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { setTimeout: delay } = require('node:timers/promises');
const { RequestError } = require('./errors');

/**
 * Find the user as which the agent runs.
 * @returns {{name: string, uid: number, gid: number, home: string, shell: string}}
 * @throws {RequestError} if there is no such user, or if it is root or in root's group; there is no fallback
 */
function findUser(name, passwdFile) {
  for (const line of fs.readFileSync(passwdFile, 'utf8').split('\n')) {
    const [login, , uid, gid, , home, shell] = line.split(':');
    if (login !== name || !isId(uid) || !isId(gid)) continue;
    const user = { name, uid: Number(uid), gid: Number(gid), home: home || '/', shell: shell || '/bin/sh' };
    if (user.uid === 0 || user.gid === 0) throw new RequestError(`AGENT_USER ${name} is root or in root's group: the agent never runs as root`);
    return user;
  }
  throw new RequestError(`AGENT_USER ${name} does not exist in this image`);
}

/** True for a uid or gid with which a process can be started: setuid(2^32 - 1) would change nothing. */
function isId(text) {
  return /^\d{1,10}$/.test(text) && Number(text) < 2 ** 31;
}

/** Run a short program to its end. @returns {Promise<string>} its output; rejects with its first line of stderr */
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
const KILL_TIMEOUT = 5000; // ms for a shell that does nothing but kill

/** The living processes of `uid`, as their status files say: /proc/PID belongs to root if a process is not dumpable. */
function processesOf(uid) {
  const pids = fs.readdirSync('/proc').filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid);
  return pids.map(Number).filter((pid) => {
    const status = statusOf(`/proc/${pid}`);
    if (!/^Uid:(.*)$/m.exec(status)?.[1].trim().split(/\s+/).includes(String(uid))) return false;
    return !GONE.test(status) || hasThreads(pid);
  });
}

/** The status file of a process or thread. Empty if it has ended. */
function statusOf(folder) {
  try {
    return fs.readFileSync(`${folder}/status`, 'utf8');
  } catch {
    return '';
  }
}

/** True if threads of the process still run although its first thread, which stands for the process, has ended. */
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
 * End every process of `uid`, unless that is root. Killing the listed processes is not enough, because a process that keeps
 * forking and ending may be in no list. So a process with the same uid kills all others (`kill -KILL -1`), which the kernel
 * does in one step that no fork escapes. They can only kill that process first, and then it is started again.
 * @returns {Promise<number>} how many processes were seen
 * @throws {RequestError} if some are still there after the last round
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
    swept ||= await runTool('/bin/sh', ['-c', 'kill -KILL -1'], { uid, gid: uid, cwd: '/', env: {}, timeout: KILL_TIMEOUT }).then(
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

/** Record that agents run as `user` from now on, so that `endAgents` ends their processes even after a crash of agentd. */
function noteUser({ runDir }, user) {
  fs.mkdirSync(runDir, { recursive: true });
  if (!notedUids({ runDir }).has(user.uid)) fs.appendFileSync(path.join(runDir, 'users'), `${user.uid}\n`);
}

/** The uids as which agents of this boot have run. */
function notedUids({ runDir }) {
  const file = path.join(runDir, 'users');
  return new Set(fs.existsSync(file) ? fs.readFileSync(file, 'utf8').split('\n').filter(Boolean).map(Number) : []);
}

/** End all processes that agents of this boot have left running. @returns {Promise<number>} how many were seen */
async function endAgents(config) {
  let ended = 0;
  for (const uid of notedUids(config)) ended += await endProcesses(uid);
  return ended;
}

/**
 * Call the synchronous function `action` with the rights of `user`, so that the kernel refuses everything that the agent
 * itself could not do, whatever links it has made.
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
