'use strict';

const path = require('node:path');
const { setTimeout: delay } = require('node:timers/promises');
const { FileChannel } = require('./filemode');
const { makeHeartbeat, readRelease } = require('./heartbeat');
const { RequestQueue } = require('./queue');
const { SystemState } = require('./system');

/**
 * Connects the parts of agentd: the channel to the host, the heartbeat, the queue of requests and the runner. The first
 * heartbeat is sent before the modules that only requests need are loaded.
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
  #terminals;
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

  /** Connect to the host, send the first heartbeat, and begin to take requests. */
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

  /** Try the share, then the serial port, which may appear late, until one of them is there. */
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

  /** Send a heartbeat as soon as the rest of the system is up, because hosts wait for that. */
  async #announceSystem() {
    if (await this.#system.settled(this.#ending.signal)) await this.#beat();
  }

  async #prepare() {
    const { Questions } = require('./permissions');
    const { Runner } = require('./run');
    const { Terminals } = require('./terminals');
    const questions = new Questions(this.#config.times);
    await this.#cleanUp();
    this.#server = await questions.listen(this.#config.socket);
    this.#runner = new Runner({ config: this.#config, log: this.#log, channel: this.#channel, mounter: this.#mounter, system: this.#system, questions, launch: this.#launch });
    this.#queue = new RequestQueue((entry) => this.#runner.run(entry), this.#config.limits.queue);
    this.#terminals = new Terminals({ config: this.#config, log: this.#log, channel: this.#channel, mounter: this.#mounter, system: this.#system });
    this.#terminals.start();
  }

  /** End the agents of an agentd that crashed: their requests are answered as failed. */
  async #cleanUp() {
    const { bootUser } = require('./environment');
    const { endAgents } = require('./users');
    try {
      const ended = await endAgents(this.#config);
      if (ended > 0) this.#log.info(`restarted; ${ended} processes of agents killed`);
      bootUser(this.#config); // an error shows now, not only at the first request
    } catch (error) {
      this.#log.alarm(error.message);
    }
  }

  /** Pass a signal on to the agent. */
  forward(signal) {
    this.#runner?.signal(signal);
  }

  /** Stop: the running agent is ended, its request gets its result, and no other request begins. */
  async stop(reason) {
    if (this.#ending.signal.aborted) return;
    this.#ending.abort();
    this.#channel?.stop();
    this.#terminals?.stop();
    const limit = this.#config.times.kill + 3000;
    await Promise.race([this.#queue?.close(reason), delay(limit, undefined, { ref: false })]);
    clearInterval(this.#beats);
    this.#server?.close();
  }
}

module.exports = { Supervisor };
