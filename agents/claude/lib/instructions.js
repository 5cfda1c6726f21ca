// What the folder says to the model. The SDK would read it as well, but only together with the folder's settings, and those
// can run programs, choose another server for the API, and so take the key.

import fs from 'node:fs';
import path from 'node:path';

const NAME = 'CLAUDE.md';
/** Bytes that are read. */
const MOST = 100_000;

/**
 * The instructions of the folder, as a part of the system prompt.
 * @param {string} folder
 * @returns {string | undefined} undefined if there are none
 */
export function instructionsOf(folder) {
  const text = textOf(path.join(folder, NAME))?.trim();
  return text ? `# ${NAME}\n\nThe folder in which you work has this file with instructions for you:\n\n${text}` : undefined;
}

/** The beginning of a regular file, or undefined if there is none that can be read. */
function textOf(file) {
  let fd;
  try {
    fd = fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK); // a FIFO would be waited for
    if (!fs.fstatSync(fd).isFile()) return undefined;
    const buffer = Buffer.alloc(MOST + 1);
    const size = fs.readSync(fd, buffer, 0, buffer.length, 0);
    const text = buffer.toString('utf8', 0, Math.min(size, MOST));
    return size > MOST ? `${text}\n… (the file is longer than ${MOST} bytes)` : text;
  } catch {
    return undefined;
  } finally {
    if (fd !== undefined) fs.closeSync(fd);
  }
}
