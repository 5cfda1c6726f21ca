'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { RequestError } = require('./errors');
const { below, holdFolder, mountOf, placeOf } = require('./folders');
const { explainOwner, takeOver } = require('./identity');
const { findLink, isInside } = require('./paths');
const { endAgents, noteUser, runTool } = require('./users');

/** Its mount takes a held folder as it is; the one of util-linux, where an image has that, would look the path up anew. */
const BUSYBOX = '/bin/busybox';
const IPC_TAG = 'ipc';
const OPTIONS = 'trans=virtio,version=9p2000.L,msize=262144';
/** Only root may use the request channel: the agent must not read other requests nor write results. */
const IPC_OPTIONS = `${OPTIONS},access=0,nosuid,nodev,noexec`;
const SHARE_OPTIONS = `${OPTIONS},nosuid,nodev`;
const SHARE_TYPES = new Set(['9p', 'virtiofs']);

/** All mounts, as {id, where, type, source}; of those on the same place the last is the one that is seen. */
function readMounts(table = '/proc/self/mountinfo') {
  const lines = fs.readFileSync(table, 'utf8').split('\n').filter(Boolean);
  return lines.map((line) => {
    const fields = line.split(' ').map((field) => field.replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(parseInt(octal, 8))));
    const [type, source] = fields.slice(fields.indexOf('-', 6) + 1); // behind the optional fields
    return { id: fields[0], where: fields[4], type, source };
  });
}

/** What is mounted on `target`, or undefined. */
function findMount(target, table) {
  return readMounts(table).findLast(({ where }) => where === target);
}

/** True when `dir` really is a share of the host. */
function isShare(dir, table) {
  const mount = findMount(dir, table);
  return mount !== undefined && SHARE_TYPES.has(mount.type);
}

/** Mounts the host's folders; needs root. */
class Mounter {
  #config;
  #system;
  #workers = new Map(); // folder → its owner, and the uid that works in it

  /** @param {{run?, table?, endAgents?, touch?}} system what the tests replace: programs, the table of mounts, the killing */
  constructor(config, system = {}) {
    this.#config = config;
    this.#system = { run: runTool, endAgents, touch, ...system };
  }

  ipcMounted() {
    return isShare(this.#config.ipcDir, this.#system.table);
  }

  /** True when the held folder belongs to the request share. */
  holdsIpc(fd) {
    const mount = findMount(this.#config.ipcDir, this.#system.table);
    return mount !== undefined && SHARE_TYPES.has(mount.type) && mount.id === mountOf(fd);
  }

  /** Try to mount the request channel; true when it is there afterwards. */
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

  /** The channel stopped working (the host may have replaced the folder): let go of it, mount it again. */
  async remountIpc() {
    if (this.ipcMounted()) await this.#system.run(BUSYBOX, ['umount', '-l', this.#config.ipcDir]).catch(() => {});
    return this.mountIpc();
  }

  /**
   * Mount everything that a request names, before its agent starts. What an earlier agent left running is ended before
   * anything is made or mounted: root works in folders of the agent's then. The request share is among them, as the host
   * application names it in every request: it is there already.
   * @param {readonly {name: string, tag: string, guestPath: string}[]} wanted
   * @param {{name: string, uid: number, gid: number, home: string}} user who must be able to write to `work`
   * @param {boolean} ownDisk serial mode: a tag that no device has is a folder, whose files the port carries
   * @returns {Promise<object>} the user, with the uid and gid under which it works in `work`
   * @throws {RequestError} naming the share that cannot be had: an agent never runs on the VM's disk in its place
   */
  async prepare(wanted, user, ownDisk = false) {
    let work;
    for (const mount of wanted.filter((each) => !this.#isRequestShare(each))) {
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
   * The user, working as the owner of the folder; or, where what it makes there belongs to somebody else (whoever runs
   * QEMU, in a folder that others may write to), as that one if that is possible. A folder for reading only is read as
   * its owner.
   */
  async #adapt(work, user) {
    const owner = this.#ownerOf(work);
    const known = this.#workers.get(work.guestPath);
    if (known && known.uid === user.uid && known.owner.uid === owner.uid && known.owner.gid === owner.gid) return user;
    await this.#system.endAgents(this.#config); // nobody may put another's file in the place of the one that is written
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

  /** Whether nobody may write there: root tries to change nothing, which fails for that reason only where all fails. */
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

  #become(user, owner) {
    const endLeftovers = () => {
      noteUser(this.#config, user);
      return this.#system.endAgents(this.#config);
    };
    return takeOver(this.#config, user, owner, { endLeftovers, isShare: (folder) => isShare(folder, this.#system.table) });
  }

  #check({ name, guestPath }, user) {
    const { workspace, ipcDir } = this.#config;
    const bases = [workspace, user.home, '/mnt', '/media', '/srv'];
    const allowed = bases.some((base) => isInside(base, guestPath) && path.resolve(guestPath) !== path.resolve(base));
    if (!allowed || isInside(ipcDir, guestPath)) throw new RequestError(`mount "${name}": ${guestPath} is not a place for a share`);
    checkLinks(name, guestPath);
  }

  /** Serial mode: the share is an ordinary folder. */
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
   * Only a real write, by the agent's own user, says whether the host lets the agent write.
   * @returns {Promise<{uid: number, gid: number}>} the owner of what was written
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

/** Give a folder the owner that it has. */
function touch(folder) {
  fs.chownSync(folder, -1, -1);
}

/** Hold a folder that has been mounted; a request whose folder is not there any more is refused. */
function holdMounted(name, guestPath) {
  try {
    return holdFolder(guestPath);
  } catch (error) {
    throw new RequestError(`mount "${name}": ${guestPath} cannot be reached: ${error.message}`);
  }
}

/** The mount tags of all 9p devices. */
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
