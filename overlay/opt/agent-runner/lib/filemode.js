'use strict';

const fs = require('node:fs');
const fsp = require('node:fs/promises');
const path = require('node:path');
const { setTimeout: delay } = require('node:timers/promises');
const { APPEND, READ, parseObject, readSmall, removeFile } = require('./files');
const { SharedFolder, below, holdFolder, isOwn } = require('./folders');
const { writeHeartbeat } = require('./heartbeat');
const { isId } = require('./paths');
const { StreamFile } = require('./stream');

const FOLDERS = ['requests', 'streams', 'responses'];
const RESULT = /^\{"type":"sdk_event","event":\{"type":"result"/;

/**
 * The channel over a shared folder. inotify does not cross 9p, so it is looked at every `times.poll` ms.
 *
 * A stream file that has content says that its request was begun. It is the only journal, it is in the share, and so
 * no request runs twice whatever crashes, the VM included.
 */
class FileChannel {
  mode = 'file';
  #config;
  #log;
  #mounter;
  #doubtful = new Map(); // request file → {stamp, since}: not JSON (yet)
  #taken = new Set(); // ids that are queued, running, or done and not yet removed
  #share; // held: every path below comes from it
  #failures = 0;
  #folder; // descriptor of the folder of requests
  #stamp; // what it said last
  #changed = 0; // monotonic ms when that was new
  #scanned = 0; // and when the folder was read
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

  get mounted() {
    return this.#mounter.ipcMounted();
  }

  makeFolders() {
    for (const name of FOLDERS) {
      // Not recursive: a share that is away must not be replaced by folders on the VM's own disk.
      if (!fs.existsSync(this.#path(name))) fs.mkdirSync(this.#path(name));
    }
  }

  /** Write the heartbeat; when that fails again and again, or the folder is not the share, the share is mounted anew. */
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

  /** That the share is missing is said in the folder that it belongs on, when that is root's: nobody can plant links in it. */
  #beatAlone(beat) {
    const fd = holdFolder(this.#config.ipcDir);
    try {
      if (!isOwn(fd)) throw new Error(`${this.#config.ipcDir} is neither the share nor root's own`);
      writeHeartbeat(below(fd), beat);
    } finally {
      fs.closeSync(fd);
    }
  }

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
      // The share is away; the heartbeat sees to it.
    }
  }

  stop() {
    this.#stopped.abort();
    this.#closeFolder();
  }

  /**
   * Whether the folder of requests must be read: one question to the host through an open descriptor costs a tenth of
   * that. A time of change is not exact, and nothing says that the host's filesystem keeps one: hence `times.rescan`.
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

  /** Changes with the content of the folder; undefined when it cannot be told. */
  #folderStamp() {
    try {
      this.#folder ??= fs.openSync(this.#path('requests'), 'r');
      const { mtimeNs, nlink } = fs.fstatSync(this.#folder, { bigint: true });
      if (nlink > 0n) return mtimeNs;
    } catch {
      // The share is away, or was mounted anew: reading the folder says so.
    }
    this.#closeFolder();
    return undefined;
  }

  #closeFolder() {
    try {
      if (this.#folder !== undefined) fs.closeSync(this.#folder);
    } catch {
      // A descriptor of a share that is away.
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

  #forgetRemoved(names, queue) {
    for (const id of this.#taken) if (!names.has(`${id}.json`) && !queue.has(id)) this.#taken.delete(id);
  }

  /** Oldest first; the name decides between equals. */
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

  /** Not JSON: half-written, unless nothing has changed for `times.garbage` ms of monotonic time. */
  #isGarbage(name, content) {
    if (content.tooLarge) return true;
    const known = this.#doubtful.get(name);
    if (known?.stamp === content.stamp) return performance.now() - known.since >= this.#config.times.garbage;
    this.#doubtful.set(name, { stamp: content.stamp, since: performance.now() });
    return false;
  }

  /** What an earlier agentd did with this request: 'new', 'begun', or 'ended' (it has its result). */
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

  /** The stream of a request. A line that a crash left unfinished is ended first. */
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

  /** The request is done: its file goes, at once or (share away) when it is found again: its stream says that it ended. */
  async finish(id) {
    this.#log.forget('stream');
    for (const name of [`${id}.json`, `${id}.cancel`]) {
      await this.#remove('requests', name).catch((error) => this.#log.once('remove', `${name} cannot be removed: ${error.message}`));
    }
    this.#taken.delete(id);
  }

  /**
   * The host's answer to a question, read again until it is a JSON object, and removed.
   * @param {'permission'|'host_tool'} kind
   * @returns {Promise<object|undefined>} undefined when `signal` is aborted first
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

  // Files need no transfer: both sides see the same folder.
  async beforeAgent() {}
  async afterAgent() {}
}

async function tailLines(handle, size) {
  const length = Math.min(size, 4 * 1024 * 1024);
  const { buffer, bytesRead } = await handle.read(Buffer.alloc(length), 0, length, size - length);
  return buffer.toString('utf8', 0, bytesRead).split('\n').slice(-4);
}

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
