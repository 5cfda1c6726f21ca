'use strict';

const fs = require('node:fs');
const path = require('node:path');

const O_PATH = 0o10000000; // Linux's; Node has no name for it. The folder is held, not opened: no right to read is needed.
const ENTRY = O_PATH | fs.constants.O_NOFOLLOW;
const FOLDER = ENTRY | fs.constants.O_DIRECTORY;

/** The path by which this process reaches what is below a folder that it holds, whatever becomes of the folder's name. */
function below(fd, ...parts) {
  return path.join(`/proc/self/fd/${fd}`, ...parts);
}

/**
 * Hold the folder `target`, reached through no symbolic link. The agent may change names while root walks.
 * @param {{uid: number, gid: number}} [owner] missing folders are made, for this owner; without it they are an error
 * @returns {number} a descriptor, to be closed
 */
function holdFolder(target, owner) {
  let fd = fs.openSync('/', FOLDER);
  for (const part of path.resolve(target).split('/').filter(Boolean)) {
    const above = fd;
    try {
      fd = step(above, part, owner);
    } finally {
      fs.closeSync(above);
    }
  }
  return fd;
}

function step(above, part, owner) {
  try {
    return fs.openSync(below(above, part), FOLDER);
  } catch (error) {
    if (error.code !== 'ENOENT' || !owner) throw error;
  }
  fs.mkdirSync(below(above, part), 0o755);
  const fd = fs.openSync(below(above, part), FOLDER);
  fs.chownSync(below(fd), owner.uid, owner.gid);
  return fd;
}

/** The path at which a held folder is now. */
function placeOf(fd) {
  return fs.readlinkSync(below(fd));
}

/** The id of the mount that a held folder belongs to, as in mountinfo. */
function mountOf(fd) {
  return /^mnt_id:\s*(\d+)$/m.exec(fs.readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))[1];
}

/** True when only this process's own user can change what is in a held folder. */
function isOwn(fd) {
  const { uid, mode } = fs.fstatSync(fd);
  return uid === process.getuid() && (mode & 0o022) === 0;
}

/**
 * The request share, held from the moment at which it was seen to be the share: a path in it leads into the share or
 * nowhere, never into a folder that the agent has put in its place.
 */
class SharedFolder {
  #dir;
  #isShare;
  #fd;

  /** @param {(fd: number) => boolean} isShare whether a held folder is the share */
  constructor(dir, isShare) {
    this.#dir = dir;
    this.#isShare = isShare;
  }

  /** The path of something in the share, to be used at once. @throws {Error} when the folder is not the share */
  path(...parts) {
    this.#fd ??= this.#open();
    return below(this.#fd, ...parts);
  }

  #open() {
    const fd = holdFolder(this.#dir);
    if (this.#isShare(fd)) return fd;
    fs.closeSync(fd);
    throw new Error(`${this.#dir} is not the share`);
  }

  /** Let go of it when it is the share no more. */
  refresh() {
    if (this.#fd !== undefined && !this.#isShare(this.#fd)) this.close();
  }

  /** Let go of it: a share that is held cannot be mounted a second time. */
  close() {
    if (this.#fd === undefined) return;
    const fd = this.#fd;
    this.#fd = undefined;
    fs.closeSync(fd);
  }
}

module.exports = { ENTRY, FOLDER, SharedFolder, below, holdFolder, isOwn, mountOf, placeOf };
