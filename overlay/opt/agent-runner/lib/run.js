'use strict';

const { AgentRun, checkProgram } = require('./agent');
const { agentEnvironment, chooseAgent, describePresence, readDrive } = require('./environment');
const { RequestError } = require('./errors');
const { checkKernel } = require('./kernel');
const { parseRequest } = require('./request');
const { findUser, noteUser } = require('./users');
const { workingFolder } = require('./workfolder');

const NO_AGENT = 'no agent is configured: set AGENT_COMMAND in /etc/conf.d/agentd, on the config drive or in the request, or send a "command"';

/** Carries out requests, each of which ends in exactly one `result`. */
class Runner {
  #services;
  #current;

  /** @param {{config, log, channel, mounter, system, questions, launch?: Function}} services */
  constructor(services) {
    this.#services = services;
  }

  /** Pass a signal on to the running agent. */
  signal(signal) {
    this.#current?.signal(signal);
  }

  /** Carry out one request. Never rejects. */
  async run({ id, data, signal }) {
    const { channel, log } = this.#services;
    const started = performance.now();
    try {
      const history = await retrying(() => channel.history(id), this.#services.config.times.retry);
      if (history !== 'ended') await this.#answer(id, data, signal, history, started);
    } catch (error) {
      log.alarm(`request ${id}: ${error.stack}`); // a bug here; the request must not be run again
    }
    await channel.finish(id);
  }

  async #answer(id, data, signal, history, started) {
    const { channel, log } = this.#services;
    const stream = await retrying(() => channel.openStream(id), this.#services.config.times.retry);
    const outcome = await this.#outcome(id, data, signal, history, stream).catch((error) => failure(error));
    // The application of the first seed shows "errors" of a failed request, as the SDK that it was made for has them.
    const errors = outcome.subtype === 'error' ? { errors: [outcome.result] } : {};
    const event = { type: 'result', ...outcome, ...errors, durationMs: Math.round(performance.now() - started) };
    await stream.write({ type: 'sdk_event', event });
    await stream.close();
    log.info(`request ${id}: ${outcome.subtype}, exit code ${outcome.exitCode}, signal ${outcome.signal}, ${event.durationMs} ms`);
  }

  async #outcome(id, data, signal, history, stream) {
    if (history === 'begun') throw new RequestError('agentd ended while this request was running; it is not run again');
    if (data instanceof Error) throw new RequestError(data.message);
    if (signal.aborted) return cancelled(signal);
    const request = parseRequest(id, data);
    // From here on the stream has content: the request counts as begun.
    await stream.write({ type: 'sdk_event', event: { type: 'started', requestId: id } });
    const plan = await this.#plan(request, signal);
    if (signal.aborted) return cancelled(signal);
    return this.#runAgent(request, plan, signal, stream);
  }

  /** Find everything that can be wrong with a request before its agent runs. @throws {RequestError} saying what is wrong */
  async #plan(request, signal) {
    const { config, mounter, channel, log, system } = this.#services;
    checkKernel(config); // from here on, root works in folders of the agent's
    const drive = readDrive(config.configDir);
    log.info(`request ${request.id}: ${describePresence({ ...drive, ...request.env })}`);
    const choice = chooseAgent(config.choices, drive, request.env);
    const command = request.command ?? choice.command;
    const account = findUser(choice.userName, config.passwdFile);
    const user = await mounter.prepare(request.mounts, account, channel.ownDisk);
    const cwd = workingFolder(request, choice.workdir, config, user);
    if (request.awaitSystem && !(await system.settled(signal)) && !signal.aborted) log.info(`request ${request.id}: begins before the system is up: ${JSON.stringify(system.read())}`);
    await channel.beforeAgent(request, user); // after the wait, during which the host may push files: those are not the agent's changes
    if (command.length === 0) throw new RequestError(NO_AGENT);
    const env = agentEnvironment(user, drive, request, config.socket);
    checkProgram(command, env, cwd);
    return { command, cwd, env, user, input: request.prompt, events: request.command === undefined };
  }

  async #runAgent(request, plan, signal, stream) {
    const { config, channel, questions, launch } = this.#services;
    const report = new Report(stream, config.limits);
    noteUser(config, plan.user);
    questions.admit(plan.user);
    const running = new AbortController();
    const source = request.stdin ? channel.input(request.id, running.signal) : undefined;
    const agent = new AgentRun({ ...plan, source }, { limits: config.limits, times: config.times, launch }, (event) => report.add(event, agent));
    this.#current = agent;
    questions.serve({ request, channel, stream, signal });
    const cancel = () => agent.stop();
    signal.addEventListener('abort', cancel, { once: true });
    if (signal.aborted) cancel();
    const watch = setInterval(() => report.checkStall(agent, config.times.stall), 1000);
    try {
      const status = await agent.finished;
      return report.outcome(status, signal, plan.events);
    } finally {
      running.abort();
      clearInterval(watch);
      signal.removeEventListener('abort', cancel);
      questions.serve(undefined);
      this.#current = undefined;
      await channel.afterAgent(request, plan.user, stream);
    }
  }
}

/** Passes the agent's events to the stream, pauses the agent while the stream is slow, and makes the result. */
class Report {
  #stream;
  #limits;
  #text = ''; // the end of the plain output
  #own; // the result event of the agent itself
  #stalled = false;

  constructor(stream, limits) {
    this.#stream = stream;
    this.#limits = limits;
  }

  add(event, agent) {
    if (event.type === 'result') {
      this.#own = event; // the contract allows one result, which agentd writes; the agent's becomes a part of it
      return;
    }
    if (event.type === 'output' && event.stream === 'stdout' && !event.encoding) this.#text = (this.#text + event.data).slice(-this.#limits.resultText);
    const written = this.#stream.write({ type: 'sdk_event', event });
    if (this.#stream.pending <= this.#limits.backlog) return;
    agent.pause();
    void written.then(() => agent.resume());
  }

  /** Kill the agent if the stream could not be written for `limit` ms. */
  checkStall(agent, limit) {
    const since = this.#stream.stalledSince;
    if (since === undefined || performance.now() - since < limit) return;
    this.#stalled = true;
    this.#stream.discard();
    agent.stop('SIGKILL');
    agent.resume();
  }

  /** Make the result of a request whose agent has ended. In agent mode the agent's own result counts as well as its status. */
  outcome({ exitCode, signal }, cancel, agentMode) {
    const end = { exitCode, signal };
    if (this.#stalled) return { subtype: 'error', ...end, result: 'the stream could not be written; the agent was killed and output is lost' };
    if (cancel.aborted) return cancelled(cancel, end);
    const failed = exitCode !== 0 || (agentMode && this.#own?.subtype !== undefined && this.#own.subtype !== 'success');
    const text = agentMode ? (this.#own?.result ?? this.#text) : '';
    const summary = signal ? `the agent was killed by ${signal}` : `the agent ended with status ${exitCode}`;
    const outcome = { subtype: failed ? 'error' : 'success', ...end, result: typeof text === 'string' && text !== '' && exitCode === 0 ? text : summary };
    return this.#own ? { ...outcome, agentResult: this.#own } : outcome;
  }
}

function cancelled({ reason }, end = { exitCode: null, signal: null }) {
  return { subtype: 'error', ...end, cancelled: true, result: reason.message };
}

function failure(error) {
  return { subtype: 'error', exitCode: error.exitCode ?? null, signal: null, result: error.message };
}

/** Repeat an action until it succeeds, because the share may be away for a while. */
async function retrying(action, pause) {
  const { setTimeout: delay } = require('node:timers/promises');
  for (;;) {
    try {
      return await action();
    } catch {
      await delay(pause);
    }
  }
}

module.exports = { Runner };
