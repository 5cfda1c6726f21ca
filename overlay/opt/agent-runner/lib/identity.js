'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { setImmediate: turn } = require('node:timers/promises');
const { RequestError } = require('./errors');
const { ENTRY, FOLDER, below, holdFolder, mountOf } = require('./folders');

const LAST_ID = 2 ** 31 - 1; // Node starts processes with no greater one
const BATCH = 256; // files between two chances for everything else, the heartbeat first of all
const DEPTH = 200; // folders in folders; each of them is held while root works in it

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
 * Give what earlier uids of the agent own below `top` to `to`: what belongs neither to root nor to another account.
 * Other mounts are left alone: the shares are the host's. Every folder and file is held by a descriptor while it is
 * looked at and changed, so that a name which leads elsewhere meanwhile changes nothing.
 * @param {string} top
 * @param {{isOthers: (uid: number) => boolean, isNamed: (gid: number) => boolean}} accounts see `accountsBeside`
 * @param {{uid: number, gid: number}} to
 */
async function handOver(top, accounts, to) {
  const levels = [];
  const enter = (fd) => levels.push({ fd, names: readFolder(fd) });
  try {
    const start = hold(() => holdFolder(top));
    if (start === undefined) return;
    enter(start);
    give(start, accounts, to);
    const mount = mountOf(start);
    for (let count = 1; levels.length > 0; count += 1) {
      const { fd, names } = levels.at(-1);
      const name = names.pop();
      if (name === undefined) fs.closeSync(levels.pop().fd);
      else handOverEntry(entryOf(fd, name), { accounts, to, mount, enter: levels.length < DEPTH ? enter : undefined });
      if (count % BATCH === 0) await turn();
    }
  } finally {
    for (const { fd } of levels) fs.closeSync(fd);
  }
}

/** One entry of a held folder; a folder of the same mount is entered, unless it lies too deep. */
function handOverEntry(entry, { accounts, to, mount, enter }) {
  const stat = unlessGone(() => fs.lstatSync(entry));
  if (!stat || !(stat.isDirectory() || isGiven(stat, accounts, to))) return;
  const fd = hold(() => fs.openSync(entry, stat.isDirectory() ? FOLDER : ENTRY));
  if (fd === undefined) return;
  let entered = false;
  try {
    if (mountOf(fd) !== mount) return;
    give(fd, accounts, to);
    if (stat.isDirectory() && enter) {
      enter(fd);
      entered = true;
    }
  } finally {
    if (!entered) fs.closeSync(fd);
  }
}

/** The path of an entry in a held folder: bytes, because names need not be UTF-8. */
function entryOf(fd, name) {
  return Buffer.concat([Buffer.from(`${below(fd)}/`), name]);
}

function readFolder(fd) {
  return unlessGone(() => fs.readdirSync(below(fd), { encoding: 'buffer' })) ?? [];
}

/** A descriptor, or undefined when the entry is gone or has become something else. */
function hold(open) {
  return unlessGone(open, ['ENOENT', 'ENOTDIR', 'ELOOP']);
}

function unlessGone(action, codes = ['ENOENT']) {
  try {
    return action();
  } catch (error) {
    if (!codes.includes(error.code)) throw error;
    return undefined;
  }
}

function isGiven({ uid }, accounts, to) {
  return uid !== to.uid && !accounts.isOthers(uid);
}

/** Change the owner of what a descriptor holds, be it a symbolic link. */
function give(fd, accounts, to) {
  const stat = fs.fstatSync(fd);
  if (isGiven(stat, accounts, to)) fs.chownSync(below(fd), to.uid, accounts.isNamed(stat.gid) ? stat.gid : to.gid);
}

/** Which uids and gids are not the agent's to give: those of root, of other accounts, of other groups. */
function accountsBeside(user, tables) {
  const [accounts, groups] = [parseTable(tables.passwd), parseTable(tables.group)];
  const own = ownGroup(user, accounts, groups);
  return {
    isOthers: (uid) => uid === 0 || accounts.some(({ name, ids }) => name !== user.name && ids[0] === uid),
    isNamed: (gid) => groups.some(({ name, ids }) => name !== own?.name && ids[0] === gid),
  };
}

/** Where the next content of a file is written before it is renamed into place. */
function draftOf(file) {
  return `${file}.agentd`;
}

/** Write the next content of a file of root's, its mode kept. `change` gets and returns its lines. */
function writeDraft(file, change) {
  const text = fs.readFileSync(file, 'latin1'); // the bytes of what is not changed stay as they are
  const fd = fs.openSync(draftOf(file), 'w', 0o600);
  try {
    fs.writeFileSync(fd, change(text.split('\n')).join('\n'), 'latin1');
    fs.fchmodSync(fd, fs.statSync(file).mode & 0o7777);
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
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
 * It may be interrupted: the next contents of the two files are written before anything is changed, which also shows
 * that there is room for them, and the one of /etc/passwd is put into place last. Where that is still lying about,
 * everything is done again, whoever the owner is by then.
 * @param {{passwdFile: string, groupFile: string, workspace: string, scratchFolders: string[]}} config
 * @param {object} user as `findUser` gives it
 * @param {{uid: number, gid: number}} owner of the folder
 * @param {{endLeftovers: () => Promise<unknown>, isShare: (folder: string) => boolean}} system how every process that
 *   runs as the agent is ended, and whether a folder is the host's
 * @returns {Promise<object>} the user with the numbers that it has now
 * @throws {RequestError} when the system's files cannot be written, or a process cannot be ended
 */
async function takeOver(config, user, owner, { endLeftovers, isShare }) {
  const tables = { passwd: fs.readFileSync(config.passwdFile, 'latin1'), group: fs.readFileSync(config.groupFile, 'latin1') };
  const { uid, gid, group } = identityFor(user, owner, tables);
  const interrupted = fs.existsSync(draftOf(config.passwdFile));
  if (uid === user.uid && gid === user.gid && !interrupted) return user;
  const files = [config.groupFile, config.passwdFile];
  try {
    writeDraft(config.groupFile, (lines) => (group === undefined ? lines : renumber(lines, group, [gid])));
    writeDraft(config.passwdFile, (lines) => renumber(lines, user.name, [uid, gid]));
  } catch (error) {
    if (!interrupted) for (const file of files) fs.rmSync(draftOf(file), { force: true, recursive: true });
    throw new RequestError(`the account ${user.name} cannot take over uid ${uid}: ${error.message}`);
  }
  await endLeftovers();
  const places = new Set([config.workspace, path.resolve(user.home), ...config.scratchFolders]);
  places.delete('/');
  for (const place of places) if (!isShare(place)) await handOver(place, accountsBeside(user, tables), { uid, gid });
  for (const file of files) fs.renameSync(draftOf(file), file);
  return { ...user, uid, gid };
}

module.exports = { accountsBeside, explainOwner, handOver, identityFor, takeOver };
