'use strict';

const path = require('node:path');
const { setTimeout: delay } = require('node:timers/promises');
const { FileChannel } = require('./filemode');
const { makeHeartbeat, readRelease } = require('./heartbeat');
const { RequestQueue } = require('./queue');
const { SystemState } = require('./system');

/**
 * The wiring: a channel to the host, a heartbeat over it, a queue of requests, one runner.
 * The heartbeat goes out before the parts that only requests need are loaded.
 */
class Supervisor {
  #config;
  #log;
  #mounter;
  #release;
  #system;
  #channel;
  #beats;
  #queue;
  #runner;
  #launch;
  #server;
  #ending = new AbortController();

  /** @param {{config, log, mounter, launch?: Function, system?: SystemState}} parts */
  constructor({ config, log, mounter, launch, system }) {
    this.#config = { ...config, socket: path.join(config.runDir, 'agent.sock') };
    this.#log = log;
    this.#mounter = mounter;
    this.#launch = launch;
    this.#release = readRelease(config.releaseFile);
    this.#system = system ?? new SystemState(config.times.settle);
  }

  async start() {
    this.#channel = await this.#openChannel();
    const complete = this.#system.complete;
    await this.#beat();
    this.#beats = setInterval(() => void this.#beat(), this.#config.times.heartbeat);
    if (!complete) void this.#announceSystem();
    await this.#prepare();
    void this.#channel.run(this.#queue);
    this.#log.info(`ready: ${this.#channel.mode} mode, pid ${process.pid}`);
  }

  /** The share first; then the serial port, which may appear late; then both again and again. */
  async #openChannel() {
    const started = performance.now();
    for (let wait = 100; ; wait = Math.min(wait * 2, 1000)) {
      if (await this.#mounter.mountIpc()) return this.#openFiles();
      const port = require('./serial').findPort(this.#config.portName);
      if (port) return require('./serial').openSerial(port, this.#config, this.#log);
      if (performance.now() - started > this.#config.times.portSearch) this.#log.once('channel', 'no share "ipc" and no port "ipc.0"; still looking');
      await delay(wait);
    }
  }

  #openFiles() {
    const channel = new FileChannel(this.#config, this.#log, this.#mounter);
    try {
      channel.makeFolders();
    } catch (error) {
      this.#log.alarm(`the ipc share is not usable: ${error.message}`);
    }
    return channel;
  }

  async #beat() {
    await this.#channel.beat(makeHeartbeat(this.#channel.mode, this.#channel.mounted, this.#release, this.#system.read()));
  }

  /** A host that waits for the rest of the system learns at once that it is there. */
  async #announceSystem() {
    if (await this.#system.settled(this.#ending.signal)) await this.#beat();
  }

  async #prepare() {
    const { Questions } = require('./permissions');
    const { Runner } = require('./run');
    const questions = new Questions(this.#config.times);
    await this.#cleanUp();
    this.#server = await questions.listen(this.#config.socket);
    this.#runner = new Runner({ config: this.#config, log: this.#log, channel: this.#channel, mounter: this.#mounter, system: this.#system, questions, launch: this.#launch });
    this.#queue = new RequestQueue((entry) => this.#runner.run(entry), this.#config.limits.queue);
  }

  /** Agents of an agentd that crashed must not go on: their requests are answered as failed. */
  async #cleanUp() {
    const { bootUser } = require('./environment');
    const { endAgents } = require('./users');
    try {
      const ended = await endAgents(this.#config);
      if (ended > 0) this.#log.info(`restarted; ${ended} processes of agents killed`);
      bootUser(this.#config); // says now what every request would say
    } catch (error) {
      this.#log.alarm(error.message);
    }
  }

  /** Pass a signal on to the agent. */
  forward(signal) {
    this.#runner?.signal(signal);
  }

  /** The service or the VM is being stopped: the agent is ended, its request gets its result, nothing new begins. */
  async stop(reason) {
    if (this.#ending.signal.aborted) return;
    this.#ending.abort();
    this.#channel?.stop();
    const limit = this.#config.times.kill + 3000;
    await Promise.race([this.#queue?.close(reason), delay(limit, undefined, { ref: false })]);
    clearInterval(this.#beats);
    this.#server?.close();
  }
}

module.exports = { Supervisor };
