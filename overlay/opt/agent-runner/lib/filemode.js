'use strict';

const fs = require('node:fs');
const fsp = require('node:fs/promises');
const path = require('node:path');
const { setTimeout: delay } = require('node:timers/promises');
const { APPEND, READ, parseObject, readBytes, readSmall, removeFile } = require('./files');
const { SharedFolder, below, holdFolder, isOwn } = require('./folders');
const { writeHeartbeat } = require('./heartbeat');
const { isId } = require('./paths');
const { StreamFile } = require('./stream');

const FOLDERS = ['requests', 'streams', 'responses'];
const RESULT = /^\{"type":"sdk_event","event":\{"type":"result"/;

/**
 * The channel over a shared folder. inotify does not work over 9p, so the folder is polled every `times.poll` ms.
 *
 * A stream file that has content proves that its request was begun. There is no other journal. As it lies in the share,
 * no request runs twice even if the VM crashes.
 */
class FileChannel {
  mode = 'file';
  #config;
  #log;
  #mounter;
  #doubtful = new Map(); // request file that is not JSON (yet) → {stamp, since}
  #taken = new Set(); // ids that are queued, running, or done and not yet removed
  #share; // SharedFolder: every path that is used here comes from it
  #failures = 0;
  #folder; // descriptor of the requests folder
  #stamp; // its last known mtime
  #changed = 0; // monotonic ms when its mtime was last seen to change
  #scanned = 0; // monotonic ms when it was last read
  #stopped = new AbortController();

  constructor(config, log, mounter) {
    this.#config = config;
    this.#log = log;
    this.#mounter = mounter;
    this.#share = new SharedFolder(config.ipcDir, (fd) => mounter.holdsIpc(fd));
  }

  #path(...parts) {
    return this.#share.path(...parts);
  }

  /** True if the share is mounted. */
  get mounted() {
    return this.#mounter.ipcMounted();
  }

  /** Make the folders of the contract. @throws {Error} if the share is not there or cannot be written */
  makeFolders() {
    for (const name of FOLDERS) {
      // This is not recursive, because a missing share must not be replaced by folders on the VM's own disk.
      if (!fs.existsSync(this.#path(name))) fs.mkdirSync(this.#path(name));
    }
  }

  /** Write the heartbeat. A share that is not mounted is mounted first; every third failure in a row mounts it again. */
  async beat(beat) {
    if (!beat.ipcMounted) {
      this.#letGo();
      if (await this.#mounter.mountIpc()) beat = { ...beat, ipcMounted: true };
    }
    this.#share.refresh();
    try {
      if (beat.ipcMounted) writeHeartbeat(this.#path(), beat);
      else this.#beatAlone(beat);
      this.#failures = 0;
      this.#log.forget('beat');
    } catch (error) {
      this.#log.once('beat', `the heartbeat cannot be written: ${error.message}`);
      this.#failures += 1;
      if (error.code === 'ENOSPC' || this.#failures % 3 !== 0) return;
      this.#letGo();
      await this.#mounter.remountIpc();
    }
  }

  /** Without the share, write the heartbeat into its mount point, provided that only root can make links there. */
  #beatAlone(beat) {
    const fd = holdFolder(this.#config.ipcDir);
    try {
      if (!isOwn(fd)) throw new Error(`${this.#config.ipcDir} is neither the share nor root's own`);
      writeHeartbeat(below(fd), beat);
    } finally {
      fs.closeSync(fd);
    }
  }

  /** Close every descriptor of the share, so that it can be mounted again. */
  #letGo() {
    this.#closeFolder();
    this.#share.close();
  }

  /**
   * Look for requests until stopped.
   * @param {{hasRoom: () => boolean, add: (id: string, data: object|Error) => void, cancel: (id: string) => void}} queue
   */
  async run(queue) {
    const { signal } = this.#stopped;
    while (!signal.aborted) {
      try {
        if (this.#mayHaveNews()) await this.#scan(queue);
        this.#log.forget('scan');
      } catch (error) {
        this.#log.once('scan', `requests cannot be read: ${error.message}`);
        if (error.code === 'ENOENT') this.#restoreFolders();
      }
      await delay(this.#config.times.poll, undefined, { signal }).catch(() => {});
    }
  }

  #restoreFolders() {
    try {
      this.makeFolders();
    } catch {
      // The share is away; beat() mounts it again.
    }
  }

  /** Stop looking for requests. */
  stop() {
    this.#stopped.abort();
    this.#closeFolder();
  }

  /**
   * True if the requests folder must be read. Asking for its mtime through an open descriptor costs a tenth of that. An
   * mtime is not exact, and the host's file system may not keep one, so the folder is read every `times.rescan` ms anyway.
   */
  #mayHaveNews() {
    const now = performance.now();
    const stamp = this.#folderStamp();
    if (stamp === undefined || stamp !== this.#stamp || this.#taken.size > 0 || this.#doubtful.size > 0) {
      this.#stamp = stamp;
      this.#changed = now;
    }
    if (now - this.#changed >= this.#config.times.rescan && now - this.#scanned < this.#config.times.rescan) return false;
    this.#scanned = now;
    return true;
  }

  /** The mtime of the requests folder in ns, or undefined if it cannot be determined. */
  #folderStamp() {
    try {
      this.#folder ??= fs.openSync(this.#path('requests'), 'r');
      const { mtimeNs, nlink } = fs.fstatSync(this.#folder, { bigint: true });
      if (nlink > 0n) return mtimeNs;
    } catch {
      // The share is away, or was mounted again; reading the folder reports that.
    }
    this.#closeFolder();
    return undefined;
  }

  #closeFolder() {
    try {
      if (this.#folder !== undefined) fs.closeSync(this.#folder);
    } catch {
      // The share of this descriptor is away.
    }
    this.#folder = undefined;
  }

  async #scan(queue) {
    if (this.#scanned - this.#changed >= this.#config.times.rescan) this.#closeFolder(); // it may have been replaced
    const names = await fsp.readdir(this.#path('requests'));
    const ids = [];
    for (const name of names) {
      const { name: id, ext } = path.parse(name);
      if (!isId(id)) continue;
      if (ext === '.cancel') queue.cancel(id);
      if (ext === '.json' && !this.#taken.has(id)) ids.push(id);
    }
    if (this.#taken.size > 0) this.#forgetRemoved(new Set(names), queue);
    for (const id of ids.length > 1 ? await this.#byAge(ids) : ids) {
      if (!queue.hasRoom()) break;
      await this.#look(id, queue, names.includes(`${id}.cancel`));
    }
  }

  /** Forget the ids whose request files the host has removed. */
  #forgetRemoved(names, queue) {
    for (const id of this.#taken) if (!names.has(`${id}.json`) && !queue.has(id)) this.#taken.delete(id);
  }

  /** Sort ids by the age of their request files, the oldest first; ids of the same age are sorted by name. */
  async #byAge(ids) {
    const aged = await Promise.all(
      ids.map(async (id) => {
        const stat = await fsp.lstat(this.#path('requests', `${id}.json`)).catch(() => undefined);
        return { id, age: stat?.mtimeMs ?? Infinity };
      }),
    );
    aged.sort((a, b) => a.age - b.age || (a.id < b.id ? -1 : 1));
    return aged.map(({ id }) => id);
  }

  /** Read one request file, and queue its request if the file is complete or refused. */
  async #look(id, queue, cancelled) {
    const name = `${id}.json`;
    const content = await readSmall(this.#path('requests', name), this.#config.limits.request);
    if (!content) return;
    const data = content.tooLarge ? undefined : parseObject(content.text);
    if (!data && !this.#isGarbage(name, content)) return;
    this.#doubtful.delete(name);
    this.#taken.add(id);
    if (!data) await this.#keepRejected(name).catch(() => {});
    queue.add(id, data ?? new Error(content.tooLarge ? 'the request is too large' : 'the request is not a JSON object'));
    if (cancelled) queue.cancel(id);
  }

  async #keepRejected(name) {
    await removeFile(this.#path('requests', `${name}.rejected`));
    await fsp.copyFile(this.#path('requests', name), this.#path('requests', `${name}.rejected`), fs.constants.COPYFILE_EXCL);
  }

  /** True if a file that is not JSON is refused: it is too large, or unchanged for `times.garbage` ms and so not being written. */
  #isGarbage(name, content) {
    if (content.tooLarge) return true;
    const known = this.#doubtful.get(name);
    if (known?.stamp === content.stamp) return performance.now() - known.since >= this.#config.times.garbage;
    this.#doubtful.set(name, { stamp: content.stamp, since: performance.now() });
    return false;
  }

  /** Return what an earlier agentd did with this request: 'new' (nothing), 'begun', or 'ended' (it has its result). */
  async history(id) {
    let handle;
    try {
      handle = await fsp.open(this.#path('streams', `${id}.log`), READ);
      const { size } = await handle.stat();
      if (size === 0) return 'new';
      return (await tailLines(handle, size)).some((line) => RESULT.test(line)) ? 'ended' : 'begun';
    } catch (error) {
      if (error.code === 'ENOENT') return 'new';
      throw error;
    } finally {
      await handle?.close();
    }
  }

  /** Open the stream of a request. If a crash left an unfinished line, that line is ended first. */
  async openStream(id) {
    const file = () => this.#path('streams', `${id}.log`);
    const torn = await endsTorn(file());
    if (torn) await fsp.appendFile(file(), '\n', { flag: APPEND }).catch(() => {});
    return new StreamFile(file, this.#config.times, (error) => this.#streamFailed(error));
  }

  #streamFailed(error) {
    this.#log.once('stream', `a stream cannot be written: ${error.message}`);
    if (error.code === 'ENOENT') this.#restoreFolders();
  }

  /** Remove the files of a request that is done. If the share is away, they are removed when they are found again. */
  async finish(id) {
    this.#log.forget('stream');
    for (const name of [`${id}.json`, `${id}.cancel`]) {
      await this.#remove('requests', name).catch((error) => this.#log.once('remove', `${name} cannot be removed: ${error.message}`));
    }
    this.#taken.delete(id);
  }

  /**
   * Wait for the host's answer to a question, and remove its file. A file that is no JSON object yet is read again.
   * @param {'permission'|'host_tool'} kind
   * @returns {Promise<object|undefined>} undefined if `signal` is aborted first, or the answer is too large
   */
  async answer(kind, id, signal) {
    const name = kind === 'host_tool' ? `${id}.host-tool.json` : `${id}.json`;
    while (!signal.aborted) {
      const content = await this.#readAnswer(name).catch(() => undefined);
      const value = content && parseObject(content.text);
      if (value || content?.tooLarge) {
        await this.#remove('responses', name).catch(() => {});
        return value;
      }
      await delay(this.#config.times.poll / 2, undefined, { signal }).catch(() => {});
    }
    await this.#remove('responses', name).catch(() => {});
    return undefined;
  }

  async #readAnswer(name) {
    return readSmall(this.#path('responses', name), this.#config.limits.answer);
  }

  async #remove(...parts) {
    await removeFile(this.#path(...parts));
  }

  /**
   * The standard input of a request: the files inputs/ID.0, inputs/ID.1 …, of which an empty one is the end. A file is removed
   * when the agent has taken its bytes; the host has only a few files there at a time.
   */
  async *input(id, signal) {
    for (let index = 0; ; index += 1) {
      const name = `${id}.${index}`;
      const bytes = await this.#nextInput(name, signal);
      if (bytes?.length > 0) yield bytes;
      if (bytes) await this.#remove('inputs', name).catch(() => {});
      if (!bytes?.length) return;
    }
  }

  /** Wait for a piece of input; undefined if `signal` is aborted first. */
  async #nextInput(name, signal) {
    for (let wait = this.#config.times.poll / 25; !signal.aborted; wait = Math.min(wait * 2, this.#config.times.poll)) {
      const bytes = await this.#readInput(name).catch(() => undefined);
      if (bytes) return bytes;
      await delay(wait, undefined, { signal }).catch(() => {});
    }
    return undefined;
  }

  async #readInput(name) {
    return readBytes(this.#path('inputs', name), this.#config.limits.input);
  }

  // Files need no transfer, because both sides see the same folder.
  async beforeAgent() {}
  async afterAgent() {}
}

/** The last four lines of a stream file, of which the last 4 MiB are read. */
async function tailLines(handle, size) {
  const length = Math.min(size, 4 * 1024 * 1024);
  const { buffer, bytesRead } = await handle.read(Buffer.alloc(length), 0, length, size - length);
  return buffer.toString('utf8', 0, bytesRead).split('\n').slice(-4);
}

/** True if the file's last line has no end. */
async function endsTorn(file) {
  const handle = await fsp.open(file, READ).catch(() => undefined);
  if (!handle) return false;
  try {
    const { size } = await handle.stat();
    if (size === 0) return false;
    const { buffer } = await handle.read(Buffer.alloc(1), 0, 1, size - 1);
    return buffer[0] !== 0x0a;
  } finally {
    await handle.close();
  }
}

module.exports = { FileChannel };
