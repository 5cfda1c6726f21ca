'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { randomUUID } = require('node:crypto');
const { findLink, isId, isInside, joinInside } = require('./paths');
const { asUser } = require('./users');

const CHUNK = 512 * 1024; // bytes of one message, before base64
const MAX_FILE = 100 * 1024 * 1024;
const MAX_TRANSFERS = 16;
const MAX_ENTRIES = 200_000;
const { O_CREAT, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_WRONLY } = fs.constants;

class TransferError extends Error {}

/** Decode base64 strictly: Node's own decoder skips what it does not know. @throws {TransferError} if it is not base64 */
function decode(data) {
  if (typeof data !== 'string' || data.length % 4 !== 0 || !/^[A-Za-z0-9+/]*={0,2}$/.test(data)) throw new TransferError('"data" is not base64');
  return Buffer.from(data, 'base64');
}

/** Receives files that the host pushes. They are written beside their target with the agent's own rights, then renamed. */
class Receiver {
  #config;
  #open = new Map(); // transferId → {target, temporary, next, size}

  constructor(config) {
    this.#config = config;
  }

  /**
   * Take one push_file, push_file_chunk or push_file_complete.
   * @param {object} message
   * @param {{uid: number, gid: number}} user the agent's account as it is now
   * @throws {Error} saying what is wrong; the partial file is removed
   */
  take(message, user) {
    asUser(user, () => {
      if (message.type === 'push_file') this.#whole(message);
      else if (message.type === 'push_file_chunk') this.#chunk(message);
      else this.#complete(message);
    });
  }

  /** The path that a message names. @throws {TransferError} if it is outside of the workspace */
  #target({ basePath, path: name }) {
    const { workspace, ipcDir } = this.#config;
    if (typeof basePath !== 'string' || !path.isAbsolute(basePath) || !isInside(workspace, basePath)) throw new TransferError(`base ${basePath} is outside ${workspace}`);
    const target = joinInside(basePath, name);
    if (!target || isInside(ipcDir, target)) throw new TransferError(`path ${name} leaves ${basePath}`);
    const link = findLink(path.dirname(target));
    if (link && isInside(workspace, link)) throw new TransferError(`path ${name}: ${link} is a symbolic link`);
    return target;
  }

  #begin(message) {
    const target = this.#target(message);
    fs.mkdirSync(path.dirname(target), { recursive: true });
    const temporary = path.join(path.dirname(target), `.agentd-push-${randomUUID()}`);
    fs.closeSync(fs.openSync(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o644));
    return { target, temporary, next: 0, size: 0 };
  }

  #append(file, bytes) {
    file.size += bytes.length;
    if (file.size > MAX_FILE) throw new TransferError(`a file may have ${MAX_FILE} bytes`);
    fs.appendFileSync(file.temporary, bytes, { flag: 'a' });
  }

  #whole(message) {
    const bytes = decode(message.data);
    const file = this.#begin(message);
    this.#finish(file, () => this.#append(file, bytes));
  }

  #chunk(message) {
    const { transferId, chunkIndex } = message;
    if (!isId(transferId)) throw new TransferError('"transferId" is not an id');
    const bytes = decode(message.data);
    if (!this.#open.has(transferId)) {
      if (chunkIndex !== 0) throw new TransferError(`chunk ${chunkIndex} of an unknown transfer`);
      if (this.#open.size >= MAX_TRANSFERS) this.#abandon(this.#open.keys().next().value);
      this.#open.set(transferId, this.#begin(message));
    }
    const file = this.#open.get(transferId);
    try {
      if (chunkIndex !== file.next) throw new TransferError(`chunk ${chunkIndex} came in place of ${file.next}`);
      this.#append(file, bytes);
      file.next += 1;
    } catch (error) {
      this.#abandon(transferId);
      throw error;
    }
  }

  #complete({ transferId, totalChunks }) {
    const file = this.#open.get(transferId);
    if (!file) throw new TransferError('the end of an unknown transfer');
    this.#open.delete(transferId);
    this.#finish(file, () => {
      if (totalChunks !== undefined && totalChunks !== file.next) throw new TransferError(`${file.next} chunks came, not ${totalChunks}`);
    });
  }

  #finish(file, last) {
    try {
      last();
      fs.renameSync(file.temporary, file.target);
    } catch (error) {
      fs.rmSync(file.temporary, { force: true });
      throw error;
    }
  }

  #abandon(transferId) {
    fs.rmSync(this.#open.get(transferId).temporary, { force: true });
    this.#open.delete(transferId);
  }
}

/**
 * List the regular files below `root` that the agent can see. Links are not followed, and `skip` is left out.
 * @returns {Map<string, string>} relative path → a text that differs if the file has changed
 */
function snapshot(root, user, skip) {
  const files = new Map();
  const walk = (relative) => {
    let entries;
    try {
      entries = fs.readdirSync(path.join(root, relative), { withFileTypes: true });
    } catch {
      return;
    }
    for (const entry of entries) {
      const name = path.join(relative, entry.name);
      if (files.size >= MAX_ENTRIES) return;
      if (path.join(root, name) === skip) continue;
      if (entry.isDirectory()) walk(name);
      else if (entry.isFile()) stamp(name);
    }
  };
  const stamp = (name) => {
    const stat = fs.lstatSync(path.join(root, name), { throwIfNoEntry: false });
    if (stat) files.set(name, `${stat.ino}:${stat.size}:${stat.mtimeMs}:${stat.ctimeMs}`);
  };
  asUser(user, () => walk(''));
  return files;
}

/** The paths of files that are new or changed in `after`. Removed files are not among them. */
function changedFiles(before, after) {
  return [...after].filter(([name, stamp]) => before.get(name) !== stamp).map(([name]) => name);
}

/**
 * Send one file, read with the agent's rights, in messages of bounded size.
 * @param {(message: object) => Promise<void>} send resolves when the host has taken the message
 */
async function sendFile(root, name, user, requestId, send) {
  const flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK;
  const fd = asUser(user, () => fs.openSync(path.join(root, name), flags));
  try {
    const stat = fs.fstatSync(fd);
    if (!stat.isFile()) return;
    if (stat.size > MAX_FILE) throw new TransferError(`larger than ${MAX_FILE} bytes`);
    const transferId = randomUUID();
    const totalChunks = Math.max(1, Math.ceil(stat.size / CHUNK));
    const buffer = Buffer.alloc(Math.min(CHUNK, stat.size));
    for (let chunkIndex = 0; chunkIndex < totalChunks; chunkIndex += 1) {
      const length = fs.readSync(fd, buffer, 0, buffer.length, chunkIndex * CHUNK);
      const data = buffer.toString('base64', 0, length);
      if (totalChunks === 1) return void (await send({ type: 'file_sync', requestId, path: name, data }));
      await send({ type: 'file_sync_chunk', requestId, transferId, path: name, chunkIndex, totalChunks, data });
    }
    await send({ type: 'file_sync_complete', requestId, transferId, path: name, totalChunks });
  } finally {
    fs.closeSync(fd);
  }
}

module.exports = { CHUNK, MAX_FILE, Receiver, changedFiles, decode, sendFile, snapshot };
