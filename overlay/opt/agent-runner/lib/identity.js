'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { setImmediate: turn } = require('node:timers/promises');
const { RequestError } = require('./errors');

const LAST_ID = 2 ** 32 - 2; // the one above it means "no id" (chown(2))
const BATCH = 256; // files between two chances for everything else, the heartbeat first of all
const SEPARATOR = Buffer.from('/');

/** The accounts of a passwd(5) or the groups of a group(5) text: `{name, ids}`, where ids are fields 3 and 4 as numbers. */
function parseTable(text) {
  const lines = text.split('\n').map((line) => line.split(':'));
  return lines.filter((fields) => fields.length >= 4).map(([name, , third, fourth]) => ({ name, ids: [Number(third), Number(fourth)] }));
}

/** The group that is the agent's own: no other account has it as its primary group. */
function ownGroup(user, accounts, groups) {
  if (accounts.some(({ name, ids }) => name !== user.name && ids[1] === user.gid)) return undefined;
  return groups.find(({ ids }) => ids[0] === user.gid) ?? groups.find(({ name }) => name === user.name);
}

/**
 * The uid and gid with which the agent's account works in a folder: those of the folder's owner, so that the agent may
 * do there what the host's user may and what it makes belongs to that user.
 *
 * Root's uid and those of other accounts are never taken over. A gid is taken over only when it names no group of the
 * image: macOS' first user is 501:20, and 20 is Alpine's `dialout`.
 * @param {{name: string, uid: number, gid: number}} user the agent's account as it is now
 * @param {{uid: number, gid: number}} owner the folder's
 * @param {{passwd: string, group: string}} tables the texts of /etc/passwd and /etc/group
 * @returns {{uid: number, gid: number, group?: string}} the user's own numbers where there is nothing to take over;
 *   `group` is the name of the group that gets another number
 */
function identityFor(user, owner, tables) {
  const unchanged = { uid: user.uid, gid: user.gid };
  const [accounts, groups] = [parseTable(tables.passwd), parseTable(tables.group)];
  if (!(owner.uid > 0 && owner.uid <= LAST_ID)) return unchanged;
  if (accounts.some(({ name, ids }) => name !== user.name && ids[0] === owner.uid)) return unchanged;
  const own = ownGroup(user, accounts, groups);
  const isTaken = accounts.some(({ name, ids }) => name !== user.name && ids[1] === owner.gid) || groups.some((group) => group.name !== own?.name && group.ids[0] === owner.gid);
  if (!own || isTaken || !(owner.gid > 0 && owner.gid <= LAST_ID)) return { uid: owner.uid, gid: user.gid };
  return { uid: owner.uid, gid: owner.gid, group: own.name };
}

/** Why a folder of this owner is not the user's to write to, and what can be done about it; one clause. */
function explainOwner(user, owner, passwd) {
  if (owner.uid === 0) return 'it belongs to root, and the agent never acts as root: let an ordinary user own it, or others write to it';
  const other = parseTable(passwd).find(({ name, ids }) => name !== user.name && ids[0] === owner.uid);
  if (other) return `uid ${owner.uid} is the account ${other.name} of this image: let another user own it, or others write to it`;
  return 'let its owner write to it';
}

/**
 * Give what belongs to `from` below `top` to `to`. Other file systems are left alone: the shares are the host's. No
 * process of `from` may be alive, because names are trusted.
 */
async function handOver(top, from, to) {
  const start = fs.lstatSync(top, { throwIfNoEntry: false });
  if (!start?.isDirectory()) return;
  const folders = [Buffer.from(top)];
  give(folders[0], start, from, to);
  for (let count = 1; folders.length > 0; ) {
    const folder = folders.pop();
    for (const name of readFolder(folder)) {
      const file = Buffer.concat([folder, SEPARATOR, name]); // bytes, because names need not be UTF-8
      const stat = lookAt(file);
      if (stat?.dev !== start.dev) continue;
      give(file, stat, from, to);
      if (stat.isDirectory()) folders.push(file);
      if ((count += 1) % BATCH === 0) await turn();
    }
  }
}

function readFolder(folder) {
  return unlessUnreachable(() => fs.readdirSync(folder, { encoding: 'buffer' })) ?? [];
}

function lookAt(file) {
  return unlessUnreachable(() => fs.lstatSync(file));
}

/** What is gone, or lies deeper than a path can be long, stays as it is. */
function unlessUnreachable(action) {
  try {
    return action();
  } catch (error) {
    if (error.code !== 'ENOENT' && error.code !== 'ENAMETOOLONG') throw error;
    return undefined;
  }
}

function give(file, stat, from, to) {
  if (stat.uid === from.uid) fs.lchownSync(file, to.uid, stat.gid === from.gid ? to.gid : stat.gid);
}

/** Replace a file of root's as a whole, its mode kept. `change` gets and returns its lines. */
function rewriteLines(file, change) {
  const text = fs.readFileSync(file, 'latin1'); // the bytes of what is not changed stay as they are
  const temporary = `${file}.agentd`;
  const fd = fs.openSync(temporary, 'w', 0o600);
  try {
    fs.writeFileSync(fd, change(text.split('\n')).join('\n'), 'latin1');
    fs.fchmodSync(fd, fs.statSync(file).mode & 0o7777);
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
  fs.renameSync(temporary, file);
}

/** The line of `name` with other numbers: `ids` go to its third field and the ones after it. */
function renumber(lines, name, ids) {
  return lines.map((line) => {
    const fields = line.split(':');
    if (fields[0] !== name || fields.length < 4) return line;
    fields.splice(2, ids.length, ...ids.map(String));
    return fields.join(':');
  });
}

/**
 * Let the agent's account work as the owner of its folder: from now on its files, /etc/passwd and /etc/group have the
 * owner's uid (and gid, where that is free). Whatever runs as the agent is ended first.
 *
 * It may be interrupted: /etc/passwd is written last, and until then everything is done again.
 * @param {{passwdFile: string, groupFile: string, workspace: string, scratchFolders: string[]}} config
 * @param {object} user as `findUser` gives it
 * @param {{uid: number, gid: number}} owner of the folder
 * @param {() => Promise<unknown>} endLeftovers ends every process that runs as the agent
 * @returns {Promise<object>} the user with the numbers that it has now
 * @throws {RequestError} when the system's files cannot be written
 */
async function takeOver(config, user, owner, endLeftovers) {
  const tables = { passwd: fs.readFileSync(config.passwdFile, 'latin1'), group: fs.readFileSync(config.groupFile, 'latin1') };
  const { uid, gid, group } = identityFor(user, owner, tables);
  if (uid === user.uid && gid === user.gid) return user;
  await endLeftovers();
  try {
    const places = new Set([config.workspace, path.resolve(user.home), ...config.scratchFolders]);
    places.delete('/');
    for (const place of places) await handOver(place, user, { uid, gid });
    if (group !== undefined) rewriteLines(config.groupFile, (lines) => renumber(lines, group, [gid]));
    rewriteLines(config.passwdFile, (lines) => renumber(lines, user.name, [uid, gid]));
  } catch (error) {
    throw new RequestError(`the account ${user.name} cannot take over uid ${uid}: ${error.message}`);
  }
  return { ...user, uid, gid };
}

module.exports = { explainOwner, handOver, identityFor, takeOver };
