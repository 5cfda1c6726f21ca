'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { promisify } = require('node:util');
const { setTimeout: delay } = require('node:timers/promises');

const read = promisify(fs.read);
const write = promisify(fs.write);
const NOBODY = 200; // ms between looks while no host is connected

/** The device of the virtio-serial port called `name`, or undefined. mdev's link is not needed: the kernel knows the name. */
function findPort(name, sysfs = '/sys/class/virtio-ports', dev = '/dev') {
  for (const port of fs.existsSync(sysfs) ? fs.readdirSync(sysfs) : []) {
    try {
      if (fs.readFileSync(path.join(sysfs, port, 'name'), 'utf8').trim() === name) return path.join(dev, port);
    } catch {
      // A port without a name.
    }
  }
  return undefined;
}

/** Bytes to and from the port. A port can be opened only once, so both ways share one descriptor. */
class Port {
  #fd;
  #buffer = Buffer.alloc(64 * 1024);
  #chain = Promise.resolve();
  pending = 0; // bytes that the host has not taken yet

  constructor(device) {
    this.#fd = fs.openSync(device, fs.constants.O_RDWR | fs.constants.O_NOCTTY);
  }

  /** The next bytes (valid until the next call); empty when nobody is connected. Blocks a thread, not the loop. */
  async read() {
    const { bytesRead } = await read(this.#fd, this.#buffer, 0, this.#buffer.length, null);
    if (bytesRead === 0) await delay(NOBODY);
    return this.#buffer.subarray(0, bytesRead);
  }

  /** Resolves when all of `bytes` has been taken. */
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
        if (bytesWritten === 0) await delay(NOBODY);
      } catch {
        await delay(NOBODY); // the host has gone; it may come back
      }
    }
    this.pending -= bytes.length;
  }
}

module.exports = { Port, findPort };
