'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { setImmediate: turn } = require('node:timers/promises');
const { RequestError } = require('./errors');
const { ENTRY, FOLDER, below, holdFolder, mountOf } = require('./folders');

const LAST_ID = 2 ** 31 - 1; // the largest id with which Node can start a process
const BATCH = 256; // files that are handled before the event loop, and so the heartbeat, gets a turn
const DEPTH = 200; // nested folders that are entered; each of them takes a descriptor

/** Parse the lines of a passwd(5) or group(5) file as `{name, ids}`, where `ids` are fields 3 and 4 as numbers. */
function parseTable(text) {
  const lines = text.split('\n').map((line) => line.split(':'));
  return lines.filter((fields) => fields.length >= 4).map(([name, , third, fourth]) => ({ name, ids: [Number(third), Number(fourth)] }));
}

/** The group that belongs to the agent alone, or undefined: no other account may have it as its primary group. */
function ownGroup(user, accounts, groups) {
  if (accounts.some(({ name, ids }) => name !== user.name && ids[1] === user.gid)) return undefined;
  return groups.find(({ ids }) => ids[0] === user.gid) ?? groups.find(({ name }) => name === user.name);
}

/**
 * Decide with which uid and gid the agent's account works in a folder. These are the ids of the folder's owner, so that the
 * agent may do in it what the host's user may do, and its files belong to that user.
 *
 * The uids of root and of other accounts are never taken over. A gid is taken over only if the image has no group with that
 * number: macOS' first user is 501:20, and 20 is Alpine's `dialout`.
 * @param {{name: string, uid: number, gid: number}} user the agent's account as it is now
 * @param {{uid: number, gid: number}} owner the folder's
 * @param {{passwd: string, group: string}} tables the texts of /etc/passwd and /etc/group
 * @returns {{uid: number, gid: number, group?: string}} the user's own ids if there is nothing to take over; `group` is
 *   the name of the group whose gid changes
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

/** Explain in one clause why the user cannot write to a folder of this owner, and what to do about it. */
function explainOwner(user, owner, passwd) {
  if (owner.uid === 0) return 'it belongs to root, and the agent never acts as root: let an ordinary user own it, or others write to it';
  const other = parseTable(passwd).find(({ name, ids }) => name !== user.name && ids[0] === owner.uid);
  if (other) return `uid ${owner.uid} is the account ${other.name} of this image: let another user own it, or others write to it`;
  return 'let its owner write to it';
}

/**
 * Give the files below `top` that belong neither to root nor to another account to `to`: earlier uids of the agent own
 * them. Other mounts are left alone, because shares belong to the host. Every folder and file is held by a descriptor while
 * it is examined and changed, so a name that leads elsewhere meanwhile has no effect.
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

/** Handle one entry of a held folder. A folder of the same mount is entered, unless it lies too deep. */
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

/** The path of an entry in a held folder, as bytes, because names need not be UTF-8. */
function entryOf(fd, name) {
  return Buffer.concat([Buffer.from(`${below(fd)}/`), name]);
}

/** The names in a held folder, as bytes. Empty if the folder is gone. */
function readFolder(fd) {
  return unlessGone(() => fs.readdirSync(below(fd), { encoding: 'buffer' })) ?? [];
}

/** Call `open` for a descriptor. Returns undefined if the entry is gone or has become something else. */
function hold(open) {
  return unlessGone(open, ['ENOENT', 'ENOTDIR', 'ELOOP']);
}

/** Call `action`. Returns undefined if it fails with one of these error codes. */
function unlessGone(action, codes = ['ENOENT']) {
  try {
    return action();
  } catch (error) {
    if (!codes.includes(error.code)) throw error;
    return undefined;
  }
}

/** True if a file of this owner is to be given to `to`. */
function isGiven({ uid }, accounts, to) {
  return uid !== to.uid && !accounts.isOthers(uid);
}

/** Change the owner of the file, folder or symbolic link that a descriptor holds. */
function give(fd, accounts, to) {
  const stat = fs.fstatSync(fd);
  if (isGiven(stat, accounts, to)) fs.chownSync(below(fd), to.uid, accounts.isNamed(stat.gid) ? stat.gid : to.gid);
}

/** Tell the uids and gids that the agent must not give away: those of root, of other accounts and of other groups. */
function accountsBeside(user, tables) {
  const [accounts, groups] = [parseTable(tables.passwd), parseTable(tables.group)];
  const own = ownGroup(user, accounts, groups);
  return {
    isOthers: (uid) => uid === 0 || accounts.some(({ name, ids }) => name !== user.name && ids[0] === uid),
    isNamed: (gid) => groups.some(({ name, ids }) => name !== own?.name && ids[0] === gid),
  };
}

/** The path at which the new content of a file is written before it is renamed into place. */
function draftOf(file) {
  return `${file}.agentd`;
}

/** Write the new content of a system file to its draft, with the file's mode. `change` maps its lines to the new ones. */
function writeDraft(file, change) {
  const text = fs.readFileSync(file, 'latin1'); // keeps every byte of the lines that are not changed
  const fd = fs.openSync(draftOf(file), 'w', 0o600);
  try {
    fs.writeFileSync(fd, change(text.split('\n')).join('\n'), 'latin1');
    fs.fchmodSync(fd, fs.statSync(file).mode & 0o7777);
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
}

/** Replace the third and following fields of the line of `name` by `ids`. */
function renumber(lines, name, ids) {
  return lines.map((line) => {
    const fields = line.split(':');
    if (fields[0] !== name || fields.length < 4) return line;
    fields.splice(2, ids.length, ...ids.map(String));
    return fields.join(':');
  });
}

/**
 * Let the agent's account work as the owner of its folder. From now on /etc/passwd, /etc/group and the agent's files have
 * the owner's uid, and the owner's gid if it is free. Processes of the agent are ended first.
 *
 * This may be interrupted at any time. Drafts of both files are written before anything changes, which also proves that
 * there is room for them, and the draft of /etc/passwd is renamed last. If that draft still exists at the next call,
 * everything is done again, for the user who owns the folder then.
 * @param {{passwdFile: string, groupFile: string, workspace: string, scratchFolders: string[]}} config
 * @param {object} user as returned by `findUser`
 * @param {{uid: number, gid: number}} owner of the folder
 * @param {{endLeftovers: () => Promise<unknown>, isShare: (folder: string) => boolean}} system `endLeftovers` ends every
 *   process of the agent, `isShare` returns true if a folder is the host's
 * @returns {Promise<object>} the user with its current ids
 * @throws {RequestError} if the files cannot be written, or a process cannot be ended
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
