'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { RequestError } = require('./errors');
const { below, holdFolder, mountOf, placeOf } = require('./folders');
const { explainOwner, takeOver } = require('./identity');
const { findLink, isInside } = require('./paths');
const { endAgents, noteUser, runTool } = require('./users');

/** Its mount takes a held folder as it is. The mount of util-linux, which an image may have as well, resolves the path again. */
const BUSYBOX = '/bin/busybox';
const IPC_TAG = 'ipc';
const OPTIONS = 'trans=virtio,version=9p2000.L,msize=262144';
/** Only root may use the request share: the agent must neither read other requests nor write results. */
const IPC_OPTIONS = `${OPTIONS},access=0,nosuid,nodev,noexec`;
const SHARE_OPTIONS = `${OPTIONS},nosuid,nodev`;
const SHARE_TYPES = new Set(['9p', 'virtiofs']);

/** Read all mounts as {id, where, type, source}. Of several mounts on one folder, the last is visible. */
function readMounts(table = '/proc/self/mountinfo') {
  const lines = fs.readFileSync(table, 'utf8').split('\n').filter(Boolean);
  return lines.map((line) => {
    const fields = line.split(' ').map((field) => field.replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(parseInt(octal, 8))));
    const [type, source] = fields.slice(fields.indexOf('-', 6) + 1); // behind the optional fields
    return { id: fields[0], where: fields[4], type, source };
  });
}

/** The visible mount on `target`, or undefined. */
function findMount(target, table) {
  return readMounts(table).findLast(({ where }) => where === target);
}

/** True if a share of the host is mounted on `dir`. */
function isShare(dir, table) {
  const mount = findMount(dir, table);
  return mount !== undefined && SHARE_TYPES.has(mount.type);
}

/** Mounts the host's folders; needs root. */
class Mounter {
  #config;
  #system;
  #turn = Promise.resolve();
  #workers = new Map(); // folder → {owner, uid}: its owner, and the uid that works in it

  /** @param {{run?, table?, endAgents?, touch?}} system replaced by tests: programs, the mount table, ending processes */
  constructor(config, system = {}) {
    this.#config = config;
    this.#system = { run: runTool, endAgents, touch, ...system };
  }

  /** True if the request share is mounted. */
  ipcMounted() {
    return isShare(this.#config.ipcDir, this.#system.table);
  }

  /** True if the held folder belongs to the mounted request share. */
  holdsIpc(fd) {
    const mount = findMount(this.#config.ipcDir, this.#system.table);
    return mount !== undefined && SHARE_TYPES.has(mount.type) && mount.id === mountOf(fd);
  }

  /** Mount the request share, unless it is mounted. @returns {Promise<boolean>} true if it is mounted afterwards */
  async mountIpc() {
    if (this.ipcMounted()) return true;
    try {
      await this.#mountShare(IPC_TAG, this.#config.ipcDir, IPC_OPTIONS, { uid: process.getuid(), gid: process.getgid() });
    } catch {
      return false;
    }
    return this.ipcMounted();
  }

  /**
   * Mount a share on a folder that is held: links that the agent plants meanwhile change nothing, and when the folder is
   * somewhere else afterwards the mount is undone.
   */
  async #mountShare(tag, target, options, owner) {
    const { run, table } = this.#system;
    const fd = holdFolder(target, owner);
    try {
      const before = new Set(readMounts(table).map(({ id }) => id));
      await run(BUSYBOX, ['mount', '-t', '9p', '-o', options, tag, `/proc/${process.pid}/fd/${fd}`]);
      // Other services mount things, too, while the machine comes up: only what is of this share is ours.
      const made = readMounts(table).filter(({ id, type, source }) => !before.has(id) && SHARE_TYPES.has(type) && source === tag);
      if (placeOf(fd) === target && made.every(({ where }) => where === target)) return;
      for (const { where } of made) await run(BUSYBOX, ['umount', '-l', where]);
      throw new Error('the folder was moved meanwhile');
    } finally {
      fs.closeSync(fd);
    }
  }

  /** Unmount the request share and mount it again, because it stopped working: the host may have replaced its folder. */
  async remountIpc() {
    if (this.ipcMounted()) await this.#system.run(BUSYBOX, ['umount', '-l', this.#config.ipcDir]).catch(() => {});
    return this.mountIpc();
  }

  /**
   * Mount all shares that a request names, before its agent starts. Processes that an earlier agent left running are ended
   * before anything is made or mounted, because root then works in folders of the agent's. The host application names the
   * request share in every request; it is mounted already and skipped.
   * @param {readonly {name: string, tag: string, guestPath: string}[]} wanted
   * @param {{name: string, uid: number, gid: number, home: string}} user must be able to write to `work`
   * @param {boolean} ownDisk true in serial mode: a tag that no device has becomes a folder, whose files the port carries
   * @returns {Promise<object>} the user, with the uid and gid under which it works in `work`
   * @throws {RequestError} naming the share that cannot be mounted: an agent never runs on the VM's disk instead
   */
  prepare(wanted, user, ownDisk = false) {
    const prepared = this.#turn.then(() => this.#prepare(wanted, user, ownDisk));
    this.#turn = prepared.catch(() => {}); // a session may begin while a request does
    return prepared;
  }

  async #prepare(wanted, user, ownDisk) {
    let work;
    for (const mount of wanted.filter((share) => !this.#isRequestShare(share))) {
      this.#check(mount, user);
      if (ownDisk && !shareTags().includes(mount.tag)) {
        await this.#makeFolder(mount, user);
        continue;
      }
      await this.#mount(mount, user);
      if (mount.name === 'work') work = mount;
    }
    return work ? this.#adapt(work, user) : user;
  }

  #isRequestShare({ tag, guestPath }) {
    return tag === IPC_TAG && path.resolve(guestPath) === path.resolve(this.#config.ipcDir);
  }

  /**
   * Let the user work as the owner of the folder. If its files there would belong to somebody else (the user who runs QEMU,
   * in a folder that others may write to), it works as that user, provided it can then write. A read-only folder is read
   * as its owner.
   * @returns {Promise<object>} the user, with the uid and gid under which it works
   */
  async #adapt(work, user) {
    const owner = this.#ownerOf(work);
    const known = this.#workers.get(work.guestPath);
    if (known && known.uid === user.uid && known.owner.uid === owner.uid && known.owner.gid === owner.gid) return user;
    await this.#system.endAgents(this.#config); // a leftover process could replace the file that the probe writes
    const worker = await this.#become(user, owner);
    const maker = this.#isReadOnly(work) ? worker : await this.#probe(work, worker);
    const other = maker.uid === worker.uid ? worker : await this.#become(worker, maker);
    const chosen = other.uid === worker.uid ? worker : await this.#probe(work, other).then(() => other, () => this.#become(other, owner));
    this.#workers.set(work.guestPath, { owner, uid: chosen.uid });
    return chosen;
  }

  #ownerOf({ name, guestPath }) {
    const fd = holdMounted(name, guestPath);
    try {
      const { uid, gid, mode } = fs.fstatSync(fd);
      return { uid, gid, mode };
    } finally {
      fs.closeSync(fd);
    }
  }

  /** True if the folder is mounted read-only: then setting its owner to what it is fails with EROFS, even for root. */
  #isReadOnly({ name, guestPath }) {
    const fd = holdMounted(name, guestPath);
    try {
      this.#system.touch(below(fd));
    } catch (error) {
      return error.code === 'EROFS';
    } finally {
      fs.closeSync(fd);
    }
    return false;
  }

  /** Let the user's account take over the owner's ids. @returns {Promise<object>} the user with its ids from then on */
  #become(user, owner) {
    const endLeftovers = () => {
      noteUser(this.#config, user);
      return this.#system.endAgents(this.#config);
    };
    return takeOver(this.#config, user, owner, { endLeftovers, isShare: (folder) => isShare(folder, this.#system.table) });
  }

  /** @throws {RequestError} if a share must not be mounted there */
  #check({ name, guestPath }, user) {
    const { workspace, ipcDir } = this.#config;
    const bases = [workspace, user.home, '/mnt', '/media', '/srv'];
    const allowed = bases.some((base) => isInside(base, guestPath) && path.resolve(guestPath) !== path.resolve(base));
    if (!allowed || isInside(ipcDir, guestPath)) throw new RequestError(`mount "${name}": ${guestPath} is not a place for a share`);
    checkLinks(name, guestPath);
  }

  /** In serial mode, make the share an ordinary folder. */
  async #makeFolder({ name, guestPath }, user) {
    if (fs.existsSync(guestPath)) return;
    await this.#system.endAgents(this.#config);
    checkLinks(name, guestPath);
    fs.closeSync(holdFolder(guestPath, user));
  }

  async #mount({ name, tag, guestPath }, user) {
    const target = path.resolve(guestPath);
    const { run, table } = this.#system;
    const present = findMount(target, table);
    if (present && SHARE_TYPES.has(present.type) && present.source === tag) return;
    this.#workers.delete(target);
    await this.#system.endAgents(this.#config);
    checkLinks(name, target);
    try {
      if (present) await run(BUSYBOX, ['umount', '-l', target]);
      await this.#mountShare(tag, target, SHARE_OPTIONS, user);
    } catch (error) {
      throw new RequestError(`mount "${name}": tag ${tag} cannot be mounted on ${target}: ${error.message}`);
    }
    if (!isShare(target, table)) throw new RequestError(`mount "${name}": ${target} is not a share after mounting`);
  }

  /**
   * Write a file as the agent's user, because only that shows whether the host lets the agent write.
   * @returns {Promise<{uid: number, gid: number}>} the owner of the file that was written
   * @throws {RequestError} if the agent cannot write, with the reason and a remedy
   */
  async #probe({ name, guestPath }, user) {
    const file = path.join(guestPath, `.agentd-probe-${process.pid}`);
    const as = { uid: user.uid, gid: user.gid, cwd: '/', env: {} };
    try {
      await this.#system.run('/bin/sh', ['-c', ': > "$1"', 'probe', file], as);
      const { uid, gid } = fs.lstatSync(file);
      await this.#system.run('/bin/rm', ['-f', file], as);
      return { uid, gid };
    } catch (error) {
      const owner = this.#ownerOf({ name, guestPath });
      const advice = explainOwner(user, owner, fs.readFileSync(this.#config.passwdFile, 'latin1'));
      throw new RequestError(`mount "${name}": ${guestPath} (${describeOwner(owner)}) is not writable for uid ${user.uid}: ${error.message}; ${advice}`);
    }
  }
}

/** Set a folder's owner to what it is, which changes nothing but fails on a read-only file system. */
function touch(folder) {
  fs.chownSync(folder, -1, -1);
}

/** Hold a folder on which a share is mounted. @throws {RequestError} if it is not there any more */
function holdMounted(name, guestPath) {
  try {
    return holdFolder(guestPath);
  } catch (error) {
    throw new RequestError(`mount "${name}": ${guestPath} cannot be reached: ${error.message}`);
  }
}

/** Read the mount tags of all 9p devices. */
function shareTags(sysfs = '/sys/bus/virtio/drivers/9pnet_virtio') {
  const devices = fs.existsSync(sysfs) ? fs.readdirSync(sysfs).filter((name) => name.startsWith('virtio')) : [];
  return devices.map((name) => fs.readFileSync(path.join(sysfs, name, 'mount_tag'), 'utf8').replace(/\0.*$/s, '').trim());
}

function describeOwner({ uid, gid, mode }) {
  return `owner ${uid}:${gid}, mode ${(mode & 0o7777).toString(8)}`;
}

function checkLinks(name, target) {
  const link = findLink(target);
  if (link) throw new RequestError(`mount "${name}": ${link} is a symbolic link`);
}

module.exports = { IPC_OPTIONS, Mounter, SHARE_OPTIONS, findMount, isShare, readMounts };
