'use strict';

const fsp = require('node:fs/promises');
const { setTimeout: delay } = require('node:timers/promises');
const { APPEND } = require('./files');

/**
 * The stream of one request: JSON lines that are appended to a file, one after the other. A write that fails (the disk is
 * full, the share is away) is tried again from the byte at which it stopped, so no line is ever torn.
 */
class StreamFile {
  #where;
  #times;
  #handle;
  #queue = [];
  #pending = 0;
  #working;
  #onError;
  stalledSince; // monotonic ms of the first failure since the last success, or undefined

  /** @param {() => string} where returns the file's path whenever it is opened; it may throw */
  constructor(where, times, onError = () => {}) {
    this.#where = where;
    this.#times = times;
    this.#onError = onError;
  }

  /** The number of bytes that wait to be written. */
  get pending() {
    return this.#pending;
  }

  /** Append an event. Resolves when it has been written. */
  write(event) {
    const line = Buffer.from(`${JSON.stringify(event)}\n`);
    this.#pending += line.length;
    return new Promise((resolve) => {
      this.#queue.push({ line, resolve });
      this.#working ??= this.#work();
    });
  }

  /** Drop all events but the one that is being written, so that the result of the request can follow soon. */
  discard() {
    for (const { line, resolve } of this.#queue.splice(1)) {
      this.#pending -= line.length;
      resolve();
    }
  }

  /** Wait until everything is written, and close the file. */
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
    this.#working = undefined; // before anybody who waits for the last event goes on, and may write another one
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
