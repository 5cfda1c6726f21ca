'use strict';

const fs = require('node:fs');
const path = require('node:path');

const O_PATH = 0o10000000; // Linux's flag, for which Node has no name. Such a descriptor needs no right to read the folder.
const ENTRY = O_PATH | fs.constants.O_NOFOLLOW;
const FOLDER = ENTRY | fs.constants.O_DIRECTORY;

/** The path of something below a folder that this process holds by a descriptor. It stays valid if the folder is renamed. */
function below(fd, ...parts) {
  return path.join(`/proc/self/fd/${fd}`, ...parts);
}

/**
 * Hold the folder `target` by a descriptor, without following symbolic links. Each step starts from the descriptor of the
 * folder above, because the agent may rename folders meanwhile.
 * @param {{uid: number, gid: number}} [owner] missing folders are made for this owner; without it they are an error
 * @returns {number} a descriptor that the caller closes
 * @throws {Error} with the code ENOTDIR if a component is a link or no folder, ENOENT if it is missing
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

/** Hold the folder `part` of a held folder. With an owner, it is made if it is missing. */
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

/** The current path of a held folder. */
function placeOf(fd) {
  return fs.readlinkSync(below(fd));
}

/** The id of the mount that a held folder belongs to, as in mountinfo. */
function mountOf(fd) {
  return /^mnt_id:\s*(\d+)$/m.exec(fs.readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))[1];
}

/** True if only this process's own user can change the entries of a held folder. */
function isOwn(fd) {
  const { uid, mode } = fs.fstatSync(fd);
  return uid === process.getuid() && (mode & 0o022) === 0;
}

/**
 * The request share, held by a descriptor from the moment it was found to be the share. A path from here leads into the
 * share or fails; it never leads into a folder that the agent has put in its place.
 */
class SharedFolder {
  #dir;
  #isShare;
  #fd;

  /** @param {(fd: number) => boolean} isShare returns true if a held folder is the share */
  constructor(dir, isShare) {
    this.#dir = dir;
    this.#isShare = isShare;
  }

  /** The path of something in the share, for immediate use. @throws {Error} if the folder is not the share */
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

  /** Close the descriptor if its folder is not the share any more. */
  refresh() {
    if (this.#fd !== undefined && !this.#isShare(this.#fd)) this.close();
  }

  /** Close the descriptor. The share cannot be mounted again while it is held. */
  close() {
    if (this.#fd === undefined) return;
    const fd = this.#fd;
    this.#fd = undefined;
    fs.closeSync(fd);
  }
}

module.exports = { ENTRY, FOLDER, SharedFolder, below, holdFolder, isOwn, mountOf, placeOf };
