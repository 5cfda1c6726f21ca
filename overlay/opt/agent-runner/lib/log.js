'use strict';

const fs = require('node:fs');

/** Lines for people: all of them to stderr (the service's log file, kept below a size), the grave ones to the console. */
class Log {
  #config;
  #seen = new Set();

  constructor(config) {
    this.#config = config;
  }

  info(text) {
    process.stderr.write(`${new Date().toISOString()} ${text}\n`);
    this.#shorten();
  }

  /** Also shown on the serial console, whose tail the host prints when something fails. */
  alarm(text) {
    this.info(text);
    try {
      const fd = fs.openSync(this.#config.consoleFile, fs.constants.O_WRONLY | fs.constants.O_NOCTTY | fs.constants.O_NONBLOCK);
      fs.writeSync(fd, `agentd: ${text}\n`);
      fs.closeSync(fd);
    } catch {
      // A console that is missing or full must not stop agentd.
    }
  }

  /** An alarm that is given only once for each `key` until `forget(key)`. */
  once(key, text) {
    if (this.#seen.has(key)) return;
    this.#seen.add(key);
    this.alarm(text);
  }

  forget(key) {
    this.#seen.delete(key);
  }

  /** The supervisor appends to the log, so cutting it is safe. */
  #shorten() {
    try {
      if (fs.statSync(this.#config.logFile).size <= this.#config.limits.log) return;
      fs.copyFileSync(this.#config.logFile, `${this.#config.logFile}.1`);
      fs.truncateSync(this.#config.logFile);
    } catch {
      // No log file (tests, another payload's service), or a full disk.
    }
  }
}

module.exports = { Log };
