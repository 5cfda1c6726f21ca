'use strict';

const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { setTimeout: delay } = require('node:timers/promises');

const UNNAMED = new Set(['', '(none)', 'localhost']);
const DEFAULT_ROUTE = /^\S+\t0{8}\t/m; // proc(5), net/route: interface, destination in hexadecimal

/** How many ms after its address a network without a default route counts as complete. */
const ROUTE_TIMEOUT = 3000;

/** Where the state of the machine is read from; tests replace these. */
const SOURCES = {
  hostname: os.hostname,
  addresses: os.networkInterfaces,
  cards: '/sys/class/net',
  interfaces: '/etc/network/interfaces',
  routes: '/proc/net/route',
  name: '/etc/hostname',
  routeTimeout: ROUTE_TIMEOUT,
};

/**
 * Tells how much of what commands expect is there: the host's name, the loopback device, an address. agentd starts before
 * the services that set these up.
 */
class SystemState {
  #sources;
  #deadline;
  #addressed; // monotonic ms when an address was there for the first time

  /** @param {number} timeout milliseconds from now for which a request may be held back */
  constructor(timeout, sources = {}) {
    this.#sources = { ...SOURCES, ...sources };
    this.#deadline = performance.now() + timeout;
  }

  /** Read the state. @returns {{hostname: boolean, loopback: boolean, network: boolean|null}} `network` is null if nothing sets one up */
  read() {
    const addresses = this.#sources.addresses();
    return {
      hostname: this.#isNamed(this.#sources.hostname()),
      loopback: Object.values(addresses).some((list) => list.some(({ address }) => address === '127.0.0.1')),
      network: this.#expectsNetwork() ? this.#hasNetwork(addresses) : null,
    };
  }

  /** True if nothing is missing any more. */
  get complete() {
    return Object.values(this.read()).every((value) => value !== false);
  }

  /** Wait until the machine is complete. @returns {Promise<boolean>} false if the timeout or `signal` came first */
  async settled(signal) {
    while (!this.complete) {
      if (signal.aborted || performance.now() >= this.#deadline) return false;
      await delay(100, undefined, { signal }).catch(() => {});
    }
    return true;
  }

  /** True if the system has been told to set up a network card, and the card is there. */
  #expectsNetwork() {
    return this.#configured().some((name) => fs.existsSync(path.join(this.#sources.cards, name)));
  }

  #configured() {
    const text = readText(this.#sources.interfaces);
    return [...text.matchAll(/^\s*auto\s+(.*)$/gm)].flatMap(([, names]) => names.trim().split(/\s+/)).filter((name) => name !== 'lo');
  }

  /** True if the machine has its name, which may also be one that the kernel gives to machines without a name. */
  #isNamed(name) {
    return !UNNAMED.has(name) || (name !== '' && name === readText(this.#sources.name).trim());
  }

  #hasNetwork(addresses) {
    if (!Object.values(addresses).some((list) => list.some(({ family, internal }) => family === 'IPv4' && !internal))) return false;
    this.#addressed ??= performance.now();
    return DEFAULT_ROUTE.test(readText(this.#sources.routes)) || performance.now() - this.#addressed >= this.#sources.routeTimeout;
  }
}

function readText(file) {
  try {
    return fs.readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}

module.exports = { SystemState };
