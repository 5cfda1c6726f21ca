'use strict';

const fs = require('node:fs');
const fsp = require('node:fs/promises');

const { O_APPEND, O_CREAT, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_WRONLY } = fs.constants;

/** Flags for files of a shared folder. Symbolic links are not followed. */
const READ = O_RDONLY | O_NOFOLLOW | O_NONBLOCK;
const APPEND = O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW;

/**
 * Read a small file.
 * @returns {Promise<{text: string, stamp: string, size: number, tooLarge: boolean}|undefined>} `stamp` differs if the file
 *   has changed; `text` is empty if the file is larger than `limit` bytes. undefined if there is no regular file.
 */
async function readSmall(file, limit) {
  let handle;
  try {
    handle = await fsp.open(file, READ);
    const stat = await handle.stat();
    if (!stat.isFile()) return undefined;
    const stamp = `${stat.ino}:${stat.size}:${stat.mtimeMs}`;
    if (stat.size > limit) return { text: '', stamp, size: stat.size, tooLarge: true };
    const bytes = await handle.readFile();
    return { text: bytes.toString('utf8'), stamp: `${stamp}:${bytes.length}`, size: bytes.length, tooLarge: false };
  } catch (error) {
    if (['ENOENT', 'ELOOP'].includes(error.code)) return undefined;
    throw error;
  } finally {
    await handle?.close().catch(() => {});
  }
}

/** Read all bytes of a regular file of at most `limit` bytes. @returns {Promise<Buffer|undefined>} undefined if there is none */
async function readBytes(file, limit) {
  let handle;
  try {
    handle = await fsp.open(file, READ);
    const stat = await handle.stat();
    return stat.isFile() && stat.size <= limit ? await handle.readFile() : undefined;
  } catch (error) {
    if (['ENOENT', 'ELOOP'].includes(error.code)) return undefined;
    throw error;
  } finally {
    await handle?.close().catch(() => {});
  }
}

/** Remove a file, if it exists. */
async function removeFile(file) {
  await fsp.rm(file, { force: true });
}

/** Parse a JSON object. Returns undefined for anything else, such as a file that is still being written. */
function parseObject(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === 'object' && value !== null && !Array.isArray(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

module.exports = { APPEND, READ, parseObject, readBytes, readSmall, removeFile };
