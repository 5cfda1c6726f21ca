'use strict';

const fs = require('node:fs');
const fsp = require('node:fs/promises');

const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = fs.constants;

/**
 * A small file as text and its identity for "has it changed"; undefined when there is none, or no regular file.
 * @returns {Promise<{text: string, stamp: string, size: number, tooLarge: boolean}|undefined>} text is empty when too large
 */
async function readSmall(file, limit) {
  let handle;
  try {
    handle = await fsp.open(file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
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

/** Remove a file; it does not matter whether it was there. */
async function removeFile(file) {
  await fsp.rm(file, { force: true });
}

/** The JSON object in `text`, or undefined: a file that is being written is no object until its last byte. */
function parseObject(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === 'object' && value !== null && !Array.isArray(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

module.exports = { parseObject, readSmall, removeFile };
