'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { promisify } = require('node:util');
const { setTimeout: delay } = require('node:timers/promises');

const read = promisify(fs.read);
const write = promisify(fs.write);
const RETRY_INTERVAL = 200; // ms between attempts while no host is connected

/** The virtio-serial ports of the machine, as name → device. The kernel has the names, so mdev's links are not needed. */
function listPorts(sysfs = '/sys/class/virtio-ports', dev = '/dev') {
  const ports = new Map();
  for (const port of fs.existsSync(sysfs) ? fs.readdirSync(sysfs) : []) {
    try {
      ports.set(fs.readFileSync(path.join(sysfs, port, 'name'), 'utf8').trim(), path.join(dev, port));
    } catch {
      // This port has no name, or is being removed.
    }
  }
  return ports;
}

/** The device of the virtio-serial port called `name`, or undefined. */
function findPort(name, sysfs, dev) {
  return listPorts(sysfs, dev).get(name);
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

/** A port that is looked at now and then. It takes no thread of Node's pool, of which there are four. */
class PolledPort {
  #fd;
  #buffer = Buffer.alloc(64 * 1024);

  constructor(device) {
    this.#fd = fs.openSync(device, fs.constants.O_RDWR | fs.constants.O_NOCTTY | fs.constants.O_NONBLOCK);
  }

  /**
   * Read what is there, valid until the next call.
   * @returns {Buffer|undefined} undefined if there is nothing; empty if no host is connected
   * @throws {Error} if the host has unplugged the port
   */
  read() {
    const count = unlessBusy(() => fs.readSync(this.#fd, this.#buffer, 0, this.#buffer.length, null));
    return count === undefined ? undefined : this.#buffer.subarray(0, count);
  }

  /** Write what the port takes at once. @returns {number} how many bytes that is */
  write(bytes) {
    return unlessBusy(() => fs.writeSync(this.#fd, bytes)) ?? 0;
  }

  close() {
    fs.closeSync(this.#fd);
  }
}

function unlessBusy(action) {
  try {
    return action();
  } catch (error) {
    if (error.code !== 'EAGAIN') throw error;
    return undefined;
  }
}

module.exports = { PolledPort, Port, findPort, listPorts };
