'use strict';

/** The standard input of one request as it arrives over the serial port, until the agent takes it. */
class InputQueue {
  #pieces = [];
  #closed = false;
  #wake = () => {};

  /** Take the next bytes from the host. An empty piece ends the input. */
  push(bytes) {
    this.#pieces.push(bytes);
    this.#wake();
  }

  /** Give nothing more: the agent has ended. */
  close() {
    this.#closed = true;
    this.#wake();
  }

  /** Wait for the next piece. @returns {Promise<Buffer|undefined>} undefined if the queue is closed */
  async next() {
    while (this.#pieces.length === 0 && !this.#closed) await new Promise((resolve) => (this.#wake = resolve));
    return this.#closed ? undefined : this.#pieces.shift();
  }
}

/**
 * Pass input on to a program, each piece after the program has taken the one before. Ends early, without an error, when the
 * program does not read any more: what it leaves is not asked for.
 *
 * @param {AsyncIterable<Buffer>} source
 * @param {import('node:stream').Writable} sink has a listener for errors
 */
async function feed(source, sink) {
  for await (const piece of source) {
    const error = await new Promise((resolve) => sink.write(piece, resolve));
    if (error) return;
  }
  sink.end();
}

module.exports = { InputQueue, feed };
