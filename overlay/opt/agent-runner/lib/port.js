'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { promisify } = require('node:util');
const { setTimeout: delay } = require('node:timers/promises');

const read = promisify(fs.read);
const write = promisify(fs.write);
const RETRY_INTERVAL = 200; // ms between attempts while no host is connected

/** The device of the virtio-serial port called `name`, or undefined. The kernel has the names, so mdev's links are not needed. */
function findPort(name, sysfs = '/sys/class/virtio-ports', dev = '/dev') {
  for (const port of fs.existsSync(sysfs) ? fs.readdirSync(sysfs) : []) {
    try {
      if (fs.readFileSync(path.join(sysfs, port, 'name'), 'utf8').trim() === name) return path.join(dev, port);
    } catch {
      // This port has no name.
    }
  }
  return undefined;
}

/** Reads and writes a port. A port can be opened only once, so both directions share one descriptor. */
class Port {
  #fd;
  #buffer = Buffer.alloc(64 * 1024);
  #chain = Promise.resolve();
  pending = 0; // bytes that the host has not taken yet

  constructor(device) {
    this.#fd = fs.openSync(device, fs.constants.O_RDWR | fs.constants.O_NOCTTY);
  }

  /**
   * Read the next bytes, which are valid until the next call. Blocks a thread of Node's pool, not the event loop.
   * @returns {Promise<Buffer>} empty if no host is connected
   */
  async read() {
    const { bytesRead } = await read(this.#fd, this.#buffer, 0, this.#buffer.length, null);
    if (bytesRead === 0) await delay(RETRY_INTERVAL);
    return this.#buffer.subarray(0, bytesRead);
  }

  /** Write `bytes` after what is being written already. Resolves when the host has taken them. */
  write(bytes) {
    this.pending += bytes.length;
    this.#chain = this.#chain.then(() => this.#writeAll(bytes));
    return this.#chain;
  }

  async #writeAll(bytes) {
    for (let offset = 0; offset < bytes.length; ) {
      try {
        const { bytesWritten } = await write(this.#fd, bytes, offset, bytes.length - offset, null);
        offset += bytesWritten;
        if (bytesWritten === 0) await delay(RETRY_INTERVAL);
      } catch {
        await delay(RETRY_INTERVAL); // the host has disconnected and may come back
      }
    }
    this.pending -= bytes.length;
  }
}

module.exports = { Port, findPort };
