'use strict';

const fs = require('node:fs');

/** Writes all messages to stderr, which is the service's log file, and grave ones to the console as well. */
class Log {
  #config;
  #seen = new Set();

  constructor(config) {
    this.#config = config;
  }

  /** Write a message to the log. A log file that exceeds `limits.log` bytes is begun again. */
  info(text) {
    process.stderr.write(`${new Date().toISOString()} ${text}\n`);
    this.#shorten();
  }

  /** Write a message to the log and to the serial console, whose tail the host prints when something fails. */
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

  /** Raise an alarm only once for each `key`, until `forget(key)` is called. */
  once(key, text) {
    if (this.#seen.has(key)) return;
    this.#seen.add(key);
    this.alarm(text);
  }

  /** Let the next `once(key, …)` raise its alarm again. */
  forget(key) {
    this.#seen.delete(key);
  }

  /** Keep the log below its limit. supervise-daemon opens the file for appending, so truncating it is safe. */
  #shorten() {
    try {
      if (fs.statSync(this.#config.logFile).size <= this.#config.limits.log) return;
      fs.copyFileSync(this.#config.logFile, `${this.#config.logFile}.1`);
      fs.truncateSync(this.#config.logFile);
    } catch {
      // There is no log file (in tests, or under another service), or the disk is full.
    }
  }
}

module.exports = { Log };
