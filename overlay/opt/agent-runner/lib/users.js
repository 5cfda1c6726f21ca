'use strict';

const fs = require('node:fs');
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

/** Kill every process of `uid`: after a crash of agentd its agents must not go on unsupervised. Returns how many. */
function killUser(uid) {
  let killed = 0;
  for (const entry of fs.readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    try {
      if (fs.statSync(`/proc/${entry}`).uid !== uid) continue;
      process.kill(Number(entry), 'SIGKILL');
      killed += 1;
    } catch {
      // It has ended meanwhile.
    }
  }
  return killed;
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

module.exports = { asUser, findUser, killUser };
