'use strict';
// nocloud.js DRIVE TARGET: carries out what a NoCloud drive (meta-data, user-data) asks for. The host name and the instance
// id are written to TARGET, as imgkit's own config drive has them; keys and files are written where the drive wants them.
// Other keys are ignored, and those of user-data are named on stderr. No message contains a file's content or a key.

const fs = require('node:fs');
const path = require('node:path');
const { ConfigError, readConfig } = require('./cloudconfig');

const { O_CREAT, O_EXCL, O_NOFOLLOW, O_TRUNC, O_WRONLY } = fs.constants;
const MAX_LINKS = 40; // the kernel's own limit
const MAX_BYTES = 16 << 20; // of a file of the drive; clouds take less than a megabyte

const META_DATA = { 'instance-id': 'text', 'local-hostname': 'text' };
const FILE = { path: 'text', content: 'text', encoding: 'text', permissions: 'text', owner: 'text' };
const USER_DATA = { hostname: 'text', ssh_authorized_keys: ['text'], write_files: [FILE] };

/** The text of a file, which is empty if there is no such file. */
function readText(file) {
  const stat = fs.statSync(file, { throwIfNoEntry: false });
  if (!stat) return '';
  if (!stat.isFile() || stat.size > MAX_BYTES) throw new ConfigError(`${path.basename(file)}: more than ${MAX_BYTES >> 20} MiB, or no regular file`);
  return fs.readFileSync(file, 'utf8');
}

/** A file of the drive as `readConfig` returns it; the message of an error names the file. */
function readDriveFile(file, shape) {
  const text = readText(file);
  if (shape === USER_DATA && text.trim() !== '' && !text.startsWith('#cloud-config')) throw new ConfigError('user-data must begin with "#cloud-config"');
  try {
    return readConfig(text, shape);
  } catch (error) {
    if (error instanceof ConfigError) error.message = `${path.basename(file)}: ${error.message}`;
    throw error;
  }
}

/** True if nobody but root can change the entries of the folder. */
function isRootOwned(dir) {
  const { uid, mode } = fs.statSync(dir);
  return (uid === 0 || uid === process.getuid()) && (mode & 0o022) === 0;
}

/**
 * Resolve the symbolic links in `file`. Links in root's folders are followed. A link in a folder that others can write to
 * is refused, because an agent may have made it at an earlier boot. No agent runs yet, so the result stays true.
 * @throws {ConfigError} naming the link
 */
function resolveSafely(file, links = 0) {
  if (links > MAX_LINKS) throw new ConfigError(`${file}: too many symbolic links`);
  const parts = file.split('/').filter(Boolean);
  let dir = '/';
  for (const [at, part] of parts.entries()) {
    const next = path.join(dir, part);
    const stat = fs.lstatSync(next, { throwIfNoEntry: false });
    if (stat?.isSymbolicLink()) {
      if (!isRootOwned(dir)) throw new ConfigError(`${next} is a symbolic link in a folder that is not root's`);
      return resolveSafely(path.resolve(dir, fs.readlinkSync(next), ...parts.slice(at + 1)), links + 1);
    }
    if (!stat) return path.join(next, ...parts.slice(at + 1));
    dir = next;
  }
  return dir;
}

/**
 * Write a file from its start. In a folder that others can write to, an existing file is replaced, not overwritten: it may
 * be a hard link to a file elsewhere.
 */
function writeSafely(name, bytes, [uid, gid], mode) {
  const file = resolveSafely(name);
  fs.mkdirSync(path.dirname(file), { recursive: true, mode: 0o755 });
  const isShared = !isRootOwned(path.dirname(file));
  if (isShared) fs.rmSync(file, { force: true });
  const fd = fs.openSync(file, O_WRONLY | O_CREAT | O_NOFOLLOW | (isShared ? O_EXCL : O_TRUNC), 0o600);
  try {
    fs.writeFileSync(fd, bytes);
    fs.fchownSync(fd, uid, gid);
    fs.fchmodSync(fd, mode);
  } finally {
    fs.closeSync(fd);
  }
}

/** The uid and gid that a file gets: the given ones, but only root can give files away. */
function allowedOwner(ids) {
  return process.getuid() === 0 ? ids : [process.getuid(), process.getgid()];
}

/** The fields of the line for `name` in /etc/passwd or /etc/group, or undefined. */
function findAccount(root, file, name) {
  const lines = readText(path.join(root, file)).split('\n');
  return lines.map((line) => line.split(':')).find((fields) => fields[0] === name && /^\d+$/.test(fields[2]));
}

/** Write the SSH keys of the user "agent", where an SSH server looks for them. */
function writeKeys(keys, root) {
  const [, , uid, gid, , home] = findAccount(root, 'etc/passwd', 'agent') ?? [];
  if (!home) throw new ConfigError('ssh_authorized_keys: needs the user "agent"');
  if (keys.includes(null)) throw new ConfigError('ssh_authorized_keys: a key is empty');
  const dir = resolveSafely(path.join(root, home, '.ssh'));
  const owner = allowedOwner([Number(uid), Number(gid)]);
  fs.mkdirSync(dir, { recursive: true, mode: 0o700 });
  fs.chownSync(dir, ...owner);
  writeSafely(path.join(dir, 'authorized_keys'), keys.map((key) => `${key}\n`).join(''), owner, 0o600);
}

/** The uid and gid of "user", "user:group", or numbers in their place. Without a group, the group is named like the user. */
function findOwner(text, root) {
  const [user, group = user] = text.split(':');
  const find = (file, name) => (/^\d+$/.test(name) ? name : findAccount(root, file, name)?.[2]);
  const ids = [find('etc/passwd', user), find('etc/group', group)];
  if (ids.includes(undefined)) throw new ConfigError(`write_files: owner ${text} does not exist`);
  return ids.map(Number);
}

/** Write one file of `write_files`. */
function writeFile(entry, root) {
  const { path: name, content, encoding, permissions, owner } = entry ?? {};
  if (!name || !path.isAbsolute(name) || name.split('/').includes('..')) throw new ConfigError('write_files: "path" must be absolute');
  if (encoding && !['b64', 'base64', 'text/plain'].includes(encoding)) throw new ConfigError(`write_files: encoding ${encoding} is not understood`);
  if (permissions && !/^[0-7]{3,4}$/.test(permissions)) throw new ConfigError('write_files: "permissions" must be octal');
  const bytes = Buffer.from(content ?? '', encoding?.startsWith('b') ? 'base64' : 'utf8');
  writeSafely(path.join(root, name), bytes, allowedOwner(findOwner(owner ?? 'root:root', root)), parseInt(permissions ?? '0644', 8));
}

/**
 * Carry out a NoCloud drive.
 * @param {string} drive the folder on which the drive is mounted
 * @param {string} target the folder for the host name and the instance id
 * @param {string} root the root of the system, which is not "/" in tests
 * @throws {ConfigError} when the drive cannot be understood, or asks for what must not be
 */
function apply(drive, target, root = '/') {
  const { values: meta } = readDriveFile(path.join(drive, 'meta-data'), META_DATA);
  const { values: user, unknown } = readDriveFile(path.join(drive, 'user-data'), USER_DATA);
  for (const key of unknown) process.stderr.write(`imgkit-config: user-data: "${key}" is not understood and was ignored\n`);
  const hostname = user.hostname ?? meta['local-hostname'];
  if (hostname && !/^[A-Za-z0-9][A-Za-z0-9.-]{0,63}$/.test(hostname)) throw new ConfigError('hostname is not a host name');
  if (hostname) fs.writeFileSync(path.join(target, 'hostname'), `${hostname}\n`);
  if (meta['instance-id']) fs.writeFileSync(path.join(target, 'instance-id'), `${meta['instance-id']}\n`);
  if (user.ssh_authorized_keys) writeKeys(user.ssh_authorized_keys, root);
  for (const entry of user.write_files ?? []) writeFile(entry, root);
}

if (require.main === module) {
  try {
    apply(process.argv[2], process.argv[3]);
  } catch (error) {
    process.stderr.write(`imgkit-config: ${error instanceof ConfigError ? error.message : 'the NoCloud drive cannot be read'}\n`);
    process.exitCode = 1;
  }
}

module.exports = { ConfigError, USER_DATA, apply };
