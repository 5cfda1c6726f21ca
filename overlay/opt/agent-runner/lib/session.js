'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { spawn } = require('node:child_process');
const { checkProgram, inFolder, launcher } = require('./agent');
const { openConsole } = require('./consoles');
const { PATH, agentEnvironment, chooseAgent, readDrive } = require('./environment');
const { RequestError } = require('./errors');
const { parseObject } = require('./files');
const { checkKernel } = require('./kernel');
const { LineReader } = require('./lines');
const { PolledPort } = require('./port');
const { parseRequest } = require('./request');
const { findUser, noteUser, runTool } = require('./users');
const { workingFolder } = require('./workfolder');

const BUSYBOX = '/bin/busybox';
const SETSID = '/usr/bin/setsid';
const LARGEST = 9999; // columns and rows
const LINE = 256 * 1024; // bytes of a message of the host

/** A login shell with the controlling terminal. `launch` drops the rights, and is replaced by tests. */
function onTerminal({ file, args, options }) {
  return { file: SETSID, args: ['-c', file, ...args], options };
}

/** One program on a terminal of the host's, from the first message on its port until the port is unplugged. */
class Session {
  device; // its console, once Terminals has found that
  closed = false;
  #name;
  #services;
  #claim;
  #port;
  #lines;
  #timer;
  #child;
  #begun = false;
  #journal;
  #unsent = Buffer.alloc(0);

  /** @param {(session: Session) => Promise<void>} claim finds the session's console */
  constructor(name, port, services, claim) {
    this.#name = name;
    this.#services = services;
    this.#claim = claim;
    this.#journal = path.join(services.config.runDir, 'sessions', name);
    this.#lines = new LineReader(LINE, (line) => this.#take(line), () => this.#fail(new RequestError('a message of the host is too long')));
    try {
      this.#port = (services.openPort ?? ((device) => new PolledPort(device)))(port);
    } catch (error) {
      this.closed = true; // the host has unplugged it already
      services.log.info(`${name}: ${error.message}`);
    }
  }

  /** Begin to read what the host sends. */
  run() {
    if (!this.closed) this.#timer = setInterval(() => this.#poll(), this.#services.config.times.poll / 5);
  }

  /** Tell the host that the session's agentd has crashed, and end what it left. */
  abandon() {
    const leader = Number.parseInt(fs.readFileSync(this.#journal, 'utf8'), 10);
    if (leader > 1) endSession(leader, this.#services.config.times.kill);
    fs.rmSync(this.#journal, { force: true });
    this.send({ type: 'error', message: 'agentd has ended during the session' });
  }

  /** Send a message to the host. What it does not take at once is sent when the port is looked at next. */
  send(message) {
    this.#unsent = Buffer.concat([this.#unsent, Buffer.from(`${JSON.stringify(message)}\n`)]);
    this.#flush();
  }

  #flush() {
    try {
      for (let count = 1; count > 0 && !this.closed && this.#unsent.length > 0; this.#unsent = this.#unsent.subarray(count)) count = this.#port.write(this.#unsent);
    } catch {
      this.close(); // the host has unplugged the port
    }
  }

  #poll() {
    this.#flush();
    try {
      while (!this.closed) {
        const bytes = this.#port.read();
        if (bytes?.length === 0 && this.#begun) this.close(); // the host has closed its end, and unplugs the port next
        if (!bytes?.length) return;
        this.#lines.push(bytes);
      }
    } catch {
      this.close(); // the host has unplugged the port
    }
  }

  #take(line) {
    const message = parseObject(line) ?? {};
    if (message.type === 'start' && !this.#begun) {
      this.#begun = true;
      void this.#start(message).catch((error) => this.#fail(error));
    } else if (message.type === 'resize' && this.device) {
      void this.#resize(message).catch((error) => this.#services.log.info(`${this.#name}: ${error.message}`));
    }
  }

  #fail(error) {
    this.#services.log.info(`${this.#name}: ${error.message}`);
    this.send({ type: 'error', message: error.message });
  }

  async #start(message) {
    const { config, launch = launcher, attach = onTerminal, log } = this.#services;
    const size = sizeOf(message);
    const plan = message.root === true ? rootPlan(message) : await this.#plan(message);
    checkProgram(plan.command, plan.env, plan.cwd);
    await this.#claim(this);
    const terminal = openConsole(this.device); // its settings last as long as something has it open
    try {
      await this.#resize(size, ['sane', 'iutf8']);
      if (this.closed) return;
      if (plan.user) noteUser(config, plan.user);
      const started = plan.user ? launch(plan) : { file: plan.command[0], args: plan.command.slice(1), options: { env: plan.env } };
      this.#spawn(attach(started), plan.cwd, terminal);
    } finally {
      fs.closeSync(terminal);
    }
    log.info(`${this.#name}: ${plan.user?.name ?? 'root'} on ${this.device}, pid ${this.#child.pid}`);
  }

  #spawn({ file, args, options }, cwd, terminal) {
    this.#child = inFolder(cwd, (folder) => spawn(file, args, { ...options, cwd: folder, stdio: [terminal, terminal, terminal] }));
    this.#child.once('error', (error) => this.#fail(new RequestError(`the program cannot be started: ${error.message}`)));
    this.#child.once('exit', (exitCode, signal) => this.#ended(exitCode, signal));
    if (!this.#child.pid) return;
    fs.writeFileSync(this.#journal, `${this.#child.pid}\n`, { mode: 0o600 });
    this.send({ type: 'started' });
  }

  #ended(exitCode, signal) {
    endSession(this.#child.pid, this.#services.config.times.kill);
    this.#child = undefined;
    fs.rmSync(this.#journal, { force: true });
    this.#services.log.info(`${this.#name}: exit code ${exitCode}, signal ${signal}`);
    this.send({ type: 'exit', exitCode, signal });
  }

  /** Find the user, the folders and the environment, as for a request. @throws {RequestError} saying what is wrong */
  async #plan({ command, env, cwd, mounts }) {
    const { config, mounter, channel, system } = this.#services;
    checkKernel(config);
    const request = parseRequest(this.#name, { command, env, cwd, mounts });
    const drive = readDrive(config.configDir);
    const choice = chooseAgent(config.choices, drive, request.env);
    const account = findUser(choice.userName, config.passwdFile);
    const user = await mounter.prepare(request.mounts, account, channel.ownDisk);
    const folder = workingFolder(request, choice.workdir, config, user);
    await system.settled(AbortSignal.timeout(config.times.settle));
    return { command: request.command ?? [shellOf(user), '-l'], cwd: folder, env: ownEnvironment(user, drive, request), user };
  }

  /** Set the size of the terminal, upon which its programs get SIGWINCH, and other settings of stty(1). */
  async #resize(message, settings = []) {
    const { rows, columns } = sizeOf(message);
    const { run = runTool } = this.#services;
    await run(BUSYBOX, ['stty', '-F', this.device, ...settings, 'rows', String(rows), 'cols', String(columns)]);
  }

  /** End the session: its program and everything that still has its terminal. */
  close() {
    if (this.closed) return;
    this.closed = true;
    clearInterval(this.#timer);
    if (this.#child) endSession(this.#child.pid, this.#services.config.times.kill);
    this.#port.close();
  }
}

/** @throws {RequestError} if a message has no size that a terminal can have */
function sizeOf({ rows, columns }) {
  for (const value of [rows, columns]) if (!Number.isInteger(value) || value < 1 || value > LARGEST) throw new RequestError('a terminal has rows and columns, 1 to 9999');
  return { rows, columns };
}

/** The login shell of root. It gets nothing of the config drive, and works in its own home. */
function rootPlan({ command, env }) {
  const request = parseRequest('root', { command, env });
  const home = fs.existsSync('/root') ? '/root' : '/';
  const shell = fs.existsSync('/bin/bash') ? '/bin/bash' : '/bin/sh';
  const own = { PATH, HOME: home, USER: 'root', LOGNAME: 'root', SHELL: shell, LANG: 'C.UTF-8' };
  return { command: request.command ?? [shell, '-l'], cwd: home, env: { ...own, ...request.env } };
}

/** The user's shell, unless that is one of those that only refuse a login. */
function shellOf({ shell }) {
  if (/\/(nologin|false)$/.test(shell)) return '/bin/sh';
  return shell === '/bin/sh' && fs.existsSync('/bin/bash') ? '/bin/bash' : shell;
}

/** The environment of a request, without what is about one. */
function ownEnvironment(user, drive, request) {
  const env = agentEnvironment(user, drive, request, '');
  for (const name of ['AGENT_REQUEST_ID', 'AGENT_SOCKET', 'AGENT_AUTO_APPROVE', 'AGENT_CONFIRMATION_MODE']) delete env[name];
  return env;
}

/** The processes of a session as the kernel knows it (setsid(2)). */
function membersOf(leader) {
  return fs.readdirSync('/proc').filter((name) => /^\d+$/.test(name) && sessionOf(name) === leader).map(Number);
}

/** The session of a process: the sixth field of proc(5), after the name, which may have blanks. */
function sessionOf(pid) {
  try {
    const text = fs.readFileSync(`/proc/${pid}/stat`, 'latin1');
    return Number(text.slice(text.lastIndexOf(')') + 2).split(' ')[3]);
  } catch {
    return undefined; // it has ended
  }
}

/** End the processes of a session: as when a terminal is closed, and after `patience` ms by force. */
function endSession(leader, patience) {
  const signal = (name) => {
    for (const pid of membersOf(leader)) {
      try {
        process.kill(pid, name);
      } catch {
        // It has ended meanwhile.
      }
    }
  };
  signal('SIGHUP');
  signal('SIGCONT');
  setTimeout(() => signal('SIGKILL'), patience).unref();
}

module.exports = { Session, membersOf, onTerminal, sessionOf };
