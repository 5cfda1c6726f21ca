'use strict';
// nocloud.js DRIVE TARGET: what a NoCloud drive (meta-data, user-data) says, in the form of imgkit's own config drive.
// Understood: local-hostname, instance-id; hostname, ssh_authorized_keys, write_files (path, content, permissions, owner,
// encoding b64). Everything else is named on stderr, by key, never with a value.

const fs = require('node:fs');
const path = require('node:path');

const { O_CREAT, O_EXCL, O_NOFOLLOW, O_TRUNC, O_WRONLY } = fs.constants;
const MOST_LINKS = 40; // the kernel's own limit
const MOST_BYTES = 16 << 20; // of a file of the drive; clouds take less than a megabyte
const MOST_LEVELS = 50; // of mappings and lists inside one another

class YamlError extends Error {}

/** Lines that say something: {indent, text, number}; a comment or an empty line says nothing outside of block scalars. */
function splitLines(text) {
  return text.split(/\r?\n/).map((raw, index) => ({ raw, indent: raw.search(/\S|$/), text: raw.trim(), number: index + 1 }));
}

/** A parser for the part of YAML that such files use: block mappings and lists, block scalars, plain and quoted scalars. */
class Yaml {
  constructor(text) {
    this.lines = splitLines(text);
    this.at = 0;
    this.level = 0;
  }

  parse() {
    const line = this.peek();
    if (!line) return {};
    const value = this.block(line.indent);
    const rest = this.peek();
    if (rest) throw new YamlError(`line ${rest.number}: unexpected indentation`);
    return value;
  }

  peek() {
    while (this.at < this.lines.length && (this.lines[this.at].text === '' || /^(#|---)/.test(this.lines[this.at].text))) this.at += 1;
    return this.lines[this.at];
  }

  block(indent) {
    if (this.level >= MOST_LEVELS) throw new YamlError(`line ${this.peek().number}: more than ${MOST_LEVELS} levels`);
    this.level += 1;
    const value = /^-(\s|$)/.test(this.peek().text) ? this.list(indent) : this.mapping(indent);
    this.level -= 1;
    return value;
  }

  list(indent) {
    const items = [];
    for (let line = this.peek(); line && line.indent === indent && /^-(\s|$)/.test(line.text); line = this.peek()) {
      const rest = line.text.slice(1).trimStart();
      if (rest === '') {
        this.at += 1;
        items.push(this.nested(indent));
      } else if (/^[\w-]+:(\s|$)/.test(rest)) {
        line.indent += line.text.length - rest.length; // the mapping begins behind the dash
        line.text = rest;
        items.push(this.block(line.indent));
      } else {
        this.at += 1;
        items.push(this.scalar(rest, indent));
      }
    }
    return items;
  }

  mapping(indent) {
    const values = {};
    for (let line = this.peek(); line && line.indent === indent && !/^-(\s|$)/.test(line.text); line = this.peek()) {
      const match = /^([\w.-]+):(?:\s+(.*))?$/.exec(line.text);
      if (!match) throw new YamlError(`line ${line.number}: not "key: value"`);
      this.at += 1;
      const value = match[2] === undefined || match[2].startsWith('#') ? this.nested(indent) : this.scalar(match[2], indent);
      Object.defineProperty(values, match[1], { value, enumerable: true, configurable: true, writable: true }); // __proto__ too
    }
    return values;
  }

  nested(indent) {
    const line = this.peek();
    const isList = line && /^-(\s|$)/.test(line.text);
    if (!line || line.indent < indent || (line.indent === indent && !isList)) return null;
    return this.block(line.indent);
  }

  scalar(text, indent) {
    const block = /^([|>])([+-]?)\d?$/.exec(text);
    if (block) return this.blockScalar(indent, block[1] === '>', block[2]);
    if (text.startsWith('"')) return JSON.parse(withoutComment(text, '"'));
    if (text.startsWith("'")) return withoutComment(text, "'").slice(1, -1).replaceAll("''", "'");
    if (/^[[{&*!]/.test(text)) throw new YamlError('flow values, anchors and tags are not understood');
    return withoutComment(text, '');
  }

  blockScalar(indent, folded, chomp) {
    const lines = [];
    let base;
    for (; this.at < this.lines.length; this.at += 1) {
      const { raw, indent: own, text } = this.lines[this.at];
      if (text !== '' && own <= indent) break;
      if (text !== '') base ??= own;
      lines.push(text === '' ? '' : raw.slice(base));
    }
    const body = lines.join(folded ? ' ' : '\n');
    if (chomp === '+') return `${body}\n`;
    return chomp === '-' ? withoutNewlines(body) : `${withoutNewlines(body)}\n`;
  }
}

/** The text up to a comment: the first "#" that blanks, and before them `end`, precede. A plain /\s+#/ takes quadratic time. */
function withoutComment(text, end) {
  for (let at = text.indexOf('#'); at > 0; at = text.indexOf('#', at + 1)) {
    const before = text.slice(0, at).trimEnd();
    if (before.length < at && before.endsWith(end) && before.length >= end.length * 2) return before;
  }
  return text;
}

function withoutNewlines(text) {
  let end = text.length;
  while (end > 0 && text[end - 1] === '\n') end -= 1;
  return text.slice(0, end);
}

function readText(file) {
  const stat = fs.statSync(file, { throwIfNoEntry: false });
  if (!stat) return '';
  if (!stat.isFile() || stat.size > MOST_BYTES) throw new YamlError(`${path.basename(file)}: more than ${MOST_BYTES >> 20} MiB, or no regular file`);
  return fs.readFileSync(file, 'utf8');
}

function parseFile(file) {
  const value = new Yaml(readText(file)).parse();
  if (value === null || typeof value !== 'object' || Array.isArray(value)) throw new YamlError('must be a mapping');
  return value;
}

/** True when nobody but root can change what is in the folder. */
function isRoots(dir) {
  const { uid, mode } = fs.statSync(dir);
  return (uid === 0 || uid === process.getuid()) && (mode & 0o022) === 0;
}

/**
 * Where `file` really is: root's own links are followed, and one in a folder of somebody else's is refused, which an agent
 * may have planted at an earlier boot. No agent runs yet, so nothing changes after this look.
 */
function resolveSafely(file, links = 0) {
  if (links > MOST_LINKS) throw new YamlError(`${file}: too many symbolic links`);
  const parts = file.split('/').filter(Boolean);
  let dir = '/';
  for (const [at, part] of parts.entries()) {
    const next = path.join(dir, part);
    const stat = fs.lstatSync(next, { throwIfNoEntry: false });
    if (stat?.isSymbolicLink()) {
      if (!isRoots(dir)) throw new YamlError(`${next} is a symbolic link in a folder that is not root's`);
      return resolveSafely(path.resolve(dir, fs.readlinkSync(next), ...parts.slice(at + 1)), links + 1);
    }
    if (!stat) return path.join(next, ...parts.slice(at + 1));
    dir = next;
  }
  return dir;
}

/** Write a file as a whole. In a folder that is not root's it replaces what is there: that may have a second name elsewhere. */
function writeSafely(name, bytes, [uid, gid], mode) {
  const file = resolveSafely(name);
  fs.mkdirSync(path.dirname(file), { recursive: true, mode: 0o755 });
  const foreign = !isRoots(path.dirname(file));
  if (foreign) fs.rmSync(file, { force: true });
  const fd = fs.openSync(file, O_WRONLY | O_CREAT | O_NOFOLLOW | (foreign ? O_EXCL : O_TRUNC), 0o600);
  try {
    fs.writeFileSync(fd, bytes);
    fs.fchownSync(fd, uid, gid);
    fs.fchmodSync(fd, mode);
  } finally {
    fs.closeSync(fd);
  }
}

/** Owners can be given only by root. */
function owners(ids) {
  return process.getuid() === 0 ? ids : [process.getuid(), process.getgid()];
}

/** Keys for the agent; an image with an SSH server finds them where it looks. */
function writeKeys(keys, root) {
  const [, uid, gid, home] = /^agent:[^:]*:(\d+):(\d+):[^:]*:([^:]*):/m.exec(readText(path.join(root, 'etc/passwd'))) ?? [];
  if (!home || !Array.isArray(keys)) throw new YamlError('ssh_authorized_keys: needs a list, and the user "agent"');
  const dir = resolveSafely(path.join(root, home, '.ssh'));
  const agent = owners([Number(uid), Number(gid)]);
  fs.mkdirSync(dir, { recursive: true, mode: 0o700 });
  fs.chownSync(dir, ...agent);
  writeSafely(path.join(dir, 'authorized_keys'), keys.map((key) => `${key}\n`).join(''), agent, 0o600);
}

function ownerOf(text, root) {
  const [user, group] = String(text ?? 'root:root').split(':');
  const id = (file, name) => Number(/^\d+$/.test(name) ? name : readText(path.join(root, file)).match(new RegExp(`^${name.replace(/[^\w.-]/g, '')}:[^:]*:(\\d+)`, 'm'))?.[1] ?? NaN);
  const [uid, gid] = [id('etc/passwd', user), id('etc/group', group ?? user)];
  if (Number.isNaN(uid) || Number.isNaN(gid)) throw new YamlError(`write_files: owner ${text} does not exist`);
  return [uid, gid];
}

function writeFile(entry, root) {
  const { path: name, content = '', encoding, permissions = '0644', owner } = entry;
  if (typeof name !== 'string' || !path.isAbsolute(name) || name.split('/').includes('..')) throw new YamlError('write_files: "path" must be absolute');
  if (encoding && !['b64', 'base64', 'text/plain'].includes(encoding)) throw new YamlError(`write_files: encoding ${encoding} is not understood`);
  if (!/^[0-7]{3,4}$/.test(permissions)) throw new YamlError('write_files: "permissions" must be octal');
  const bytes = encoding?.startsWith('b') ? Buffer.from(content, 'base64') : Buffer.from(content ?? '');
  writeSafely(path.join(root, name), bytes, owners(ownerOf(owner, root)), parseInt(permissions, 8));
}

/** Carry out a NoCloud drive. `root` is "/" but in tests. */
function apply(drive, target, root = '/') {
  const meta = parseFile(path.join(drive, 'meta-data'));
  const text = readText(path.join(drive, 'user-data'));
  const user = text.trim() === '' ? {} : readUserData(text, path.join(drive, 'user-data'));
  const { hostname = meta['local-hostname'], ssh_authorized_keys: keys, write_files: files, ...others } = user;
  for (const key of Object.keys(others)) process.stderr.write(`imgkit-config: user-data: "${key}" is not understood and was ignored\n`);
  if (hostname && !/^[A-Za-z0-9][A-Za-z0-9.-]{0,63}$/.test(hostname)) throw new YamlError('hostname is not a host name');
  if (hostname) fs.writeFileSync(path.join(target, 'hostname'), `${hostname}\n`);
  if (meta['instance-id']) fs.writeFileSync(path.join(target, 'instance-id'), `${meta['instance-id']}\n`);
  if (keys) writeKeys(keys, root);
  for (const entry of files ?? []) writeFile(entry, root);
}

function readUserData(text, file) {
  if (!text.startsWith('#cloud-config')) throw new YamlError('user-data must begin with "#cloud-config"');
  return parseFile(file);
}

if (require.main === module) {
  try {
    apply(process.argv[2], process.argv[3]);
  } catch (error) {
    process.stderr.write(`imgkit-config: ${error instanceof YamlError ? error.message : 'the NoCloud drive cannot be read'}\n`);
    process.exitCode = 1;
  }
}

module.exports = { Yaml, YamlError, apply };
