'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { setTimeout: delay } = require('node:timers/promises');
const { listConsoles } = require('./consoles');
const { RequestError } = require('./errors');
const { listPorts } = require('./port');
const { Session } = require('./session');

const PORT = /^imgkit\.session\.(\d{1,9})$/;

/**
 * Opens a session for each port called `imgkit.session.N` that the host plugs into the running machine. The kernel takes the
 * name from the host, and only root may open the port, so no process of the guest can ask for a session.
 *
 * The host plugs in a console for a session when the session says that it is ready for one. Nothing tells which console
 * belongs to which port. So one session at a time says that it is ready, and takes the console that appears.
 */
class Terminals {
  #services;
  #sessions = new Map(); // name of a port → Session
  #foreign = new Set(); // consoles that were there before agentd
  #turn = Promise.resolve();
  #timer;

  /** @param {{config, log, channel, mounter, system, launch?, ports?, consoles?}} services `ports` and `consoles` list them */
  constructor(services) {
    this.#services = { ports: listPorts, consoles: listConsoles, ...services };
  }

  /** Look for ports from now on. Sessions of an agentd that ended are ended. */
  start() {
    const { config, log, ports, consoles } = this.#services;
    const journal = path.join(config.runDir, 'sessions');
    fs.mkdirSync(journal, { recursive: true, mode: 0o700 });
    for (const device of consoles()) this.#foreign.add(device);
    for (const [name, device] of ports()) if (fs.existsSync(path.join(journal, name))) this.#open(name, device).abandon();
    const look = () => {
      try {
        this.#scan(ports());
      } catch (error) {
        log.once('terminals', `sessions: ${error.message}`);
      }
    };
    look();
    this.#timer = setInterval(look, config.times.poll);
  }

  /** Look for no more ports, and end all sessions. */
  stop() {
    clearInterval(this.#timer);
    for (const session of this.#sessions.values()) session.close();
  }

  #scan(ports) {
    for (const [name, session] of this.#sessions) {
      if (ports.has(name)) continue;
      this.#sessions.delete(name);
      session.close();
    }
    for (const [name, device] of ports) if (PORT.test(name) && !this.#sessions.has(name)) void this.#open(name, device).run();
  }

  #open(name, device) {
    const session = new Session(name, device, this.#services, (own) => this.#claim(own));
    this.#sessions.set(name, session);
    return session;
  }

  /** Wait for the console of a session, after the sessions that asked for theirs before. */
  #claim(session) {
    const claimed = this.#turn.then(() => this.#awaitConsole(session));
    this.#turn = claimed.catch(() => {});
    return claimed;
  }

  async #awaitConsole(session) {
    const { config, ports, consoles } = this.#services;
    this.#forgetForeign(); // now, because the next console may get the number of one that is gone
    session.send({ type: 'ready' });
    for (const begun = performance.now(); performance.now() - begun < config.times.console && !session.closed; await delay(config.times.poll / 5)) {
      const listed = ports();
      const taken = new Set([...this.#sessions].filter(([name]) => listed.has(name)).map(([, { device }]) => device));
      session.device = consoles().find((console) => !taken.has(console) && !this.#foreign.has(console));
      if (session.device) return;
    }
    throw new RequestError('the host has plugged in no console for the session');
  }

  #forgetForeign() {
    const present = this.#services.consoles();
    for (const device of this.#foreign) if (!present.includes(device)) this.#foreign.delete(device);
  }
}

module.exports = { Terminals };
