'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { RequestError } = require('./errors');
const { findLink, isInside } = require('./paths');

const OPTIONS = 'trans=virtio,version=9p2000.L,msize=262144';
/** Only root may use the request channel: the agent must not read other requests nor write results. */
const IPC_OPTIONS = `${OPTIONS},access=0,nosuid,nodev,noexec`;
const SHARE_OPTIONS = `${OPTIONS},nosuid,nodev`;
const SHARE_TYPES = new Set(['9p', 'virtiofs']);

/** What is mounted on `target`: {source, type}, or undefined. The last line wins, as in the kernel. */
function findMount(target, table = '/proc/self/mounts') {
  let found;
  for (const line of fs.readFileSync(table, 'utf8').split('\n')) {
    const [source, where, type] = line.split(' ').map((field) => field.replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(parseInt(octal, 8))));
    if (where === target) found = { source, type };
  }
  return found;
}

/** True when `dir` really is a share of the host. */
function isShare(dir, table) {
  const mount = findMount(dir, table);
  return mount !== undefined && SHARE_TYPES.has(mount.type);
}

/** Run a short program to its end; rejects with its first line of stderr. */
function runTool(file, args, options = {}) {
  const { execFile } = require('node:child_process');
  return new Promise((resolve, reject) => {
    execFile(file, args, { timeout: 20_000, killSignal: 'SIGKILL', ...options }, (error, stdout, stderr) => {
      if (!error) resolve(stdout);
      else reject(new Error(stderr.trim().split('\n')[0] || error.message));
    });
  });
}

/** Mounts the host's folders; needs root. */
class Mounter {
  #config;
  #writable = new Set();

  constructor(config) {
    this.#config = config;
  }

  ipcMounted() {
    return isShare(this.#config.ipcDir);
  }

  /** Try to mount the request channel; true when it is there afterwards. */
  async mountIpc() {
    if (this.ipcMounted()) return true;
    fs.mkdirSync(this.#config.ipcDir, { recursive: true });
    try {
      await runTool('mount', ['-t', '9p', '-o', IPC_OPTIONS, 'ipc', this.#config.ipcDir]);
    } catch {
      return false;
    }
    return this.ipcMounted();
  }

  /** The channel stopped working (the host may have replaced the folder): let go of it, mount it again. */
  async remountIpc() {
    await runTool('umount', ['-l', this.#config.ipcDir]).catch(() => {});
    return this.mountIpc();
  }

  /**
   * Mount everything that a request names, before its agent starts.
   * @param {readonly {name: string, tag: string, guestPath: string}[]} wanted
   * @param {{uid: number, gid: number, home: string}} user who must be able to write to `work`
   * @param {boolean} ownDisk serial mode: a tag that no device has is a folder, whose files the port carries
   * @throws {RequestError} naming the share that cannot be had: an agent never runs on the VM's disk in its place
   */
  async prepare(wanted, user, ownDisk = false) {
    for (const mount of wanted) {
      this.#check(mount, user);
      if (ownDisk && !shareTags().includes(mount.tag)) {
        makeMountPoint(mount.guestPath, user);
        continue;
      }
      await this.#mount(mount, user);
      if (mount.name === 'work') await this.#probe(mount, user);
    }
  }

  #check({ name, guestPath }, user) {
    const { workspace, ipcDir } = this.#config;
    const bases = [workspace, user.home, '/mnt', '/media', '/srv'];
    const allowed = bases.some((base) => isInside(base, guestPath) && path.resolve(guestPath) !== path.resolve(base));
    if (!allowed || isInside(ipcDir, guestPath)) throw new RequestError(`mount "${name}": ${guestPath} is not a place for a share`);
    const link = findLink(guestPath);
    if (link) throw new RequestError(`mount "${name}": ${link} is a symbolic link`);
  }

  async #mount({ name, tag, guestPath }, user) {
    const target = path.resolve(guestPath);
    const present = findMount(target);
    if (present && SHARE_TYPES.has(present.type) && present.source === tag) return;
    this.#writable.delete(target);
    try {
      if (present) await runTool('umount', ['-l', target]);
      makeMountPoint(target, user);
      await runTool('mount', ['-t', '9p', '-o', SHARE_OPTIONS, tag, target]);
    } catch (error) {
      throw new RequestError(`mount "${name}": tag ${tag} cannot be mounted on ${target}: ${error.message}`);
    }
    if (!isShare(target)) throw new RequestError(`mount "${name}": ${target} is not a share after mounting`);
  }

  /** Only a real write, by the agent's own user, says whether the host lets the agent write. */
  async #probe({ name, guestPath }, user) {
    const target = path.resolve(guestPath);
    if (this.#writable.has(target)) return;
    const file = path.join(target, `.agentd-probe-${process.pid}`);
    try {
      await runTool('/bin/sh', ['-c', ': > "$1" && rm -f "$1"', 'probe', file], { uid: user.uid, gid: user.gid, cwd: '/', env: {} });
    } catch (error) {
      throw new RequestError(`mount "${name}": ${target} (owner ${describeOwner(target)}) is not writable for uid ${user.uid}: ${error.message}`);
    }
    this.#writable.add(target);
  }
}

/** The mount tags of all 9p devices. */
function shareTags(sysfs = '/sys/bus/virtio/drivers/9pnet_virtio') {
  const devices = fs.existsSync(sysfs) ? fs.readdirSync(sysfs).filter((name) => name.startsWith('virtio')) : [];
  return devices.map((name) => fs.readFileSync(path.join(sysfs, name, 'mount_tag'), 'utf8').replace(/\0.*$/s, '').trim());
}

function describeOwner(target) {
  const stat = fs.statSync(target, { throwIfNoEntry: false });
  return stat ? `${stat.uid}:${stat.gid}, mode ${(stat.mode & 0o7777).toString(8)}` : 'unknown';
}

/** The folder and those above it; the new ones belong to the agent. */
function makeMountPoint(target, user) {
  const first = fs.mkdirSync(target, { recursive: true });
  for (let dir = target; first !== undefined; dir = path.dirname(dir)) {
    fs.chownSync(dir, user.uid, user.gid);
    if (dir === first) break;
  }
}

module.exports = { IPC_OPTIONS, Mounter, SHARE_OPTIONS, findMount, isShare, runTool };
