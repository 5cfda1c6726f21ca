'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { spawn } = require('node:child_process');
const { RequestError } = require('./errors');
const { below, holdFolder } = require('./folders');
const { feed } = require('./input');
const { OutputSplitter } = require('./output');

const SETPRIV = '/bin/setpriv';

/**
 * How a program is started as the agent: Node resets the supplementary groups, then sets gid and uid, which takes all
 * capabilities away; setpriv adds no_new_privs, so that no set-uid program can give any back.
 */
function launcher(plan) {
  const options = { cwd: plan.cwd, env: plan.env, uid: plan.user.uid, gid: plan.user.gid };
  return { file: SETPRIV, args: ['--nnp', '--', ...plan.command], options };
}

/**
 * Check that the agent's own PATH leads to the program, because setpriv's message would be less clear.
 * @throws {RequestError} with exit code 127 if there is no such program, and 126 if it is no program
 */
function checkProgram(command, env, cwd) {
  const [name] = command;
  const dirs = name.includes('/') ? [cwd] : (env.PATH ?? '').split(':').map((dir) => path.resolve(cwd, dir));
  let found = false;
  for (const dir of name === '' ? [] : dirs) {
    const stat = statOf(path.resolve(dir, name));
    if (stat?.isFile() && stat.mode & 0o111) return;
    found ||= stat !== undefined;
  }
  if (found) throw new RequestError(`command cannot be executed: ${name}`, 126);
  throw new RequestError(`command not found: ${name}`, 127);
}

/** What is at a path, or undefined if nothing can be reached there. */
function statOf(file) {
  try {
    return fs.statSync(file);
  } catch {
    return undefined;
  }
}

/** Send a signal to a process group, if there is one. */
function signalGroup(pid, signal) {
  try {
    process.kill(-pid, signal);
  } catch {
    // It has ended.
  }
}

/** Make the kernel kill the agent before agentd when memory runs out. */
function preferAsVictim(pid) {
  try {
    fs.writeFileSync(`/proc/${pid}/oom_score_adj`, '500');
  } catch {
    // The agent has ended already, or this is not Linux.
  }
}

/**
 * Call `start` with a path that can only lead to the folder `cwd`. The child changes to that folder while it is still root,
 * and a process that an earlier agent left running may have replaced the folder with a link since it was checked.
 * @throws {RequestError} if the folder cannot be reached
 */
function inFolder(cwd, start) {
  let fd;
  try {
    fd = holdFolder(cwd);
  } catch (error) {
    throw new RequestError(`cwd ${cwd} cannot be reached: ${error.message}`);
  }
  try {
    return start(below(fd));
  } finally {
    fs.closeSync(fd);
  }
}

/** One run of an agent in its own session and process group. */
class AgentRun {
  #child;
  #times;
  #exited = false;
  #killTimer;

  /**
   * @param {{command: string[], cwd: string, env: object, user: object, input?: string, source?: AsyncIterable<Buffer>, events: boolean}} plan
   *   `source` is the agent's standard input in place of the text `input`
   * @param {{limits: object, times: object, launch?: Function}} settings
   * @param {(event: object) => void} emit
   */
  constructor(plan, settings, emit) {
    const { file, args, options } = (settings.launch ?? launcher)(plan);
    this.#times = settings.times;
    this.#child = inFolder(plan.cwd, (cwd) => spawn(file, args, { ...options, cwd, detached: true, stdio: ['pipe', 'pipe', 'pipe'] }));
    this.splitters = ['stdout', 'stderr'].map((name) => this.#follow(name, plan.events && name === 'stdout', settings.limits, emit));
    this.#child.stdin.on('error', () => {}); // an agent need not read its input
    if (plan.source) void feed(plan.source, this.#child.stdin);
    else this.#child.stdin.end(plan.input ?? '');
    if (this.#child.pid) preferAsVictim(this.#child.pid);
    this.finished = this.#finish();
  }

  get pid() {
    return this.#child.pid;
  }

  #follow(name, events, limits, emit) {
    const splitter = new OutputSplitter(name, events, limits, emit);
    let timer;
    this.#child[name].on('data', (chunk) => {
      clearTimeout(timer);
      splitter.push(chunk);
      timer = setTimeout(() => splitter.idle(), 200);
    });
    this.#child[name].on('error', () => {});
    return { end: () => (clearTimeout(timer), splitter.end()) };
  }

  /** Resolves to {exitCode, signal} when the agent has ended and its output is complete; rejects when it cannot start. */
  async #finish() {
    const closed = new Promise((resolve) => this.#child.once('close', resolve));
    const [exitCode, signal] = await new Promise((resolve, reject) => {
      this.#child.once('error', (error) => reject(new RequestError(`the agent cannot be started: ${error.message}`)));
      this.#child.once('exit', (...status) => resolve(status));
    });
    this.#exited = true;
    clearTimeout(this.#killTimer);
    // Processes that the agent left in its group are killed. A process in a session of its own may stay, and may still
    // hold the pipes, so the end of the pipes is not waited for.
    signalGroup(this.#child.pid, 'SIGKILL');
    await this.#drained(closed);
    for (const splitter of this.splitters) splitter.end();
    return { exitCode, signal };
  }

  /** Wait until the pipes are closed, or nothing has come through them for `times.drain` ms. */
  async #drained(closed) {
    let timer;
    let last = -1;
    const idle = new Promise((resolve) => {
      // Pipes that are paused because the stream is slow are not idle. A whole period without a byte, while reading, is.
      timer = setInterval(() => {
        const read = this.#child.stdout.bytesRead + this.#child.stderr.bytesRead;
        if (read === last && !this.#child.stdout.isPaused()) resolve();
        last = read;
      }, this.#times.drain);
    });
    await Promise.race([closed, idle]);
    clearInterval(timer);
    this.#child.stdout.destroy();
    this.#child.stderr.destroy();
  }

  /** Stop reading the agent's output, which makes the agent wait once its pipe is full. */
  pause() {
    this.#child.stdout.pause();
    this.#child.stderr.pause();
  }

  /** Read the agent's output again. */
  resume() {
    this.#child.stdout.resume();
    this.#child.stderr.resume();
  }

  /** Pass a signal on to the whole process group, unless the agent has ended. */
  signal(signal) {
    if (!this.#exited && this.#child.pid) signalGroup(this.#child.pid, signal);
  }

  /** End the agent with `signal`, and with SIGKILL if it is still there after `times.kill` ms. */
  stop(signal = 'SIGTERM') {
    if (this.#exited || this.#killTimer) return;
    this.signal(signal);
    this.#killTimer = setTimeout(() => this.signal('SIGKILL'), this.#times.kill);
  }
}

module.exports = { AgentRun, checkProgram, inFolder, launcher };
