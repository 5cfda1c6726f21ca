'use strict';

const NEWLINE = 0x0a;

/** Splits bytes into lines. A line longer than `limit` bytes is dropped as a whole and reported. */
class LineReader {
  #parts = [];
  #length = 0;
  #skipping = false;

  /**
   * @param {number} limit the most bytes of a line
   * @param {(line: string) => void} onLine called with every complete, non-empty line
   * @param {() => void} onTooLong called at the end of every line that is too long
   */
  constructor(limit, onLine, onTooLong) {
    this.limit = limit;
    this.onLine = onLine;
    this.onTooLong = onTooLong;
  }

  /** Take the next bytes. The caller may reuse the chunk afterwards. */
  push(chunk) {
    let start = 0;
    for (let end = chunk.indexOf(NEWLINE); end >= 0; end = chunk.indexOf(NEWLINE, start)) {
      this.#add(chunk.subarray(start, end));
      this.#finish();
      start = end + 1;
    }
    this.#add(chunk.subarray(start));
  }

  /** Forget an unfinished line, because the other side has disconnected. */
  reset() {
    this.#parts = [];
    this.#length = 0;
    this.#skipping = false;
  }

  #add(bytes) {
    this.#length += bytes.length;
    if (this.#length > this.limit) {
      this.#parts = [];
      this.#skipping = true;
    } else if (bytes.length > 0) {
      this.#parts.push(Buffer.from(bytes)); // a copy: the reader's buffer is used again
    }
  }

  #finish() {
    const line = this.#skipping ? '' : Buffer.concat(this.#parts).toString('utf8').trim();
    const tooLong = this.#skipping;
    this.reset();
    if (tooLong) this.onTooLong();
    else if (line !== '') this.onLine(line);
  }
}

module.exports = { LineReader };
