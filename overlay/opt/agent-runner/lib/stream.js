'use strict';

const fsp = require('node:fs/promises');
const { setTimeout: delay } = require('node:timers/promises');
const { APPEND } = require('./files');

/**
 * The stream of one request: JSON lines appended to a file, each written out before the next.
 * A write that fails (disk full, share gone) is tried again from the byte where it stopped, so no line is ever torn.
 */
class StreamFile {
  #where;
  #times;
  #handle;
  #queue = [];
  #pending = 0;
  #working;
  #onError;
  stalledSince; // monotonic ms since when writing fails, undefined while it works

  /** @param {() => string} where the file's path, asked for whenever it is opened; it may throw */
  constructor(where, times, onError = () => {}) {
    this.#where = where;
    this.#times = times;
    this.#onError = onError;
  }

  /** Bytes that wait to be written. */
  get pending() {
    return this.#pending;
  }

  /** Resolves when the event is in the file. */
  write(event) {
    const line = Buffer.from(`${JSON.stringify(event)}\n`);
    this.#pending += line.length;
    return new Promise((resolve) => {
      this.#queue.push({ line, resolve });
      this.#working ??= this.#work().finally(() => (this.#working = undefined));
    });
  }

  /** Forget what has not begun to be written: the end of the request must still fit. */
  discard() {
    for (const { line, resolve } of this.#queue.splice(1)) {
      this.#pending -= line.length;
      resolve();
    }
  }

  async close() {
    await this.#working;
    await this.#handle?.close().catch(() => {});
    this.#handle = undefined;
  }

  async #work() {
    while (this.#queue.length > 0) {
      const entry = this.#queue[0];
      await this.#append(entry.line);
      this.#queue.shift();
      this.#pending -= entry.line.length;
      entry.resolve();
    }
  }

  async #append(line) {
    for (let offset = 0; offset < line.length; ) {
      try {
        this.#handle ??= await fsp.open(this.#where(), APPEND, 0o644);
        const { bytesWritten } = await this.#handle.write(line, offset, line.length - offset);
        offset += bytesWritten;
        this.stalledSince = undefined;
      } catch (error) {
        this.stalledSince ??= performance.now();
        this.#onError(error);
        await this.#handle?.close().catch(() => {});
        this.#handle = undefined;
        await delay(this.#times.retry);
      }
    }
  }
}

module.exports = { StreamFile };
