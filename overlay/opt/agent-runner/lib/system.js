'use strict';

const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { setTimeout: delay } = require('node:timers/promises');

const UNNAMED = new Set(['', '(none)', 'localhost']);
const DEFAULT_ROUTE = /^\S+\t0{8}\t/m; // proc(5), net/route: interface, destination in hexadecimal

/** Milliseconds after an address until a network without a default route counts as one that has none. */
const ROUTE = 3000;

/** What tells how far the machine has come up; the tests replace it. */
const SOURCES = {
  hostname: os.hostname,
  addresses: os.networkInterfaces,
  cards: '/sys/class/net',
  interfaces: '/etc/network/interfaces',
  routes: '/proc/net/route',
  name: '/etc/hostname',
  patience: ROUTE,
};

/**
 * Tells whether commands find what they expect: the host's name, the loopback device, an address. agentd starts before
 * the services that see to these.
 */
class SystemState {
  #sources;
  #deadline;
  #addressed; // monotonic ms when an address was there for the first time

  /** @param {number} patience milliseconds from now that a request may be held back */
  constructor(patience, sources = {}) {
    this.#sources = { ...SOURCES, ...sources };
    this.#deadline = performance.now() + patience;
  }

  /** @returns {{hostname: boolean, loopback: boolean, network: boolean|null}} `network` is null where nothing sets one up */
  read() {
    const addresses = this.#sources.addresses();
    return {
      hostname: this.#isNamed(this.#sources.hostname()),
      loopback: Object.values(addresses).some((list) => list.some(({ address }) => address === '127.0.0.1')),
      network: this.#expectsNetwork() ? this.#hasNetwork(addresses) : null,
    };
  }

  get complete() {
    return Object.values(this.read()).every((value) => value !== false);
  }

  /** Wait until the machine is complete, or for as long as a request may be held back. @returns {Promise<boolean>} */
  async settled(signal) {
    while (!this.complete) {
      if (signal.aborted || performance.now() >= this.#deadline) return false;
      await delay(100, undefined, { signal }).catch(() => {});
    }
    return true;
  }

  /** There is a network card, and the system has been told to set one up. */
  #expectsNetwork() {
    return this.#configured().some((name) => fs.existsSync(path.join(this.#sources.cards, name)));
  }

  #configured() {
    const text = readText(this.#sources.interfaces);
    return [...text.matchAll(/^\s*auto\s+(.*)$/gm)].flatMap(([, names]) => names.trim().split(/\s+/)).filter((name) => name !== 'lo');
  }

  /** The kernel's own name for a machine may be the one that was chosen, too. */
  #isNamed(name) {
    return !UNNAMED.has(name) || (name !== '' && name === readText(this.#sources.name).trim());
  }

  #hasNetwork(addresses) {
    if (!Object.values(addresses).some((list) => list.some(({ family, internal }) => family === 'IPv4' && !internal))) return false;
    this.#addressed ??= performance.now();
    return DEFAULT_ROUTE.test(readText(this.#sources.routes)) || performance.now() - this.#addressed >= this.#sources.patience;
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
