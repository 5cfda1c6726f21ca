'use strict';

const path = require('node:path');

/** Variables that only agentd may know, and variables that choose what runs. None of them ever reaches the agent. */
const CONTROL_NAMES = Object.freeze(['SESSION_TOKEN', 'CONTROL_PLANE_URL', 'SESSION_ID']);
const CHOICE_NAMES = Object.freeze(['AGENT_COMMAND', 'AGENT_ARGS', 'AGENT_WORKDIR', 'AGENT_USER']);
/** Settings of /usr/local/bin/entrypoint, which starts agents in containers. They mean nothing here, but are not the agent's. */
const CONTAINER_NAMES = Object.freeze(['AGENT_INIT', 'ALLOW_ROOT_AGENT']);

/** Timeouts and intervals, in milliseconds. */
const TIMES = Object.freeze({
  poll: 250, // how often the share is looked at (the contract: 300 or faster)
  rescan: 2000, // a folder that has not changed for this long is read only this often; in between only its mtime is looked at
  heartbeat: 5000,
  answer: 60_000, // no answer to a question within this time is a deny
  garbage: 30_000, // a request file that is not JSON and has not changed for this long is refused
  kill: 5000, // from SIGTERM to SIGKILL
  drain: 1000, // output still in the pipe after the agent has ended
  retry: 500, // after a failed write to the stream
  stall: 60_000, // an agent whose stream cannot be written for this long is killed
  settle: 30_000, // from agentd's start: how long requests are held back for a system that is still coming up
  console: 10_000, // from a session's start until the host has plugged in its terminal
  portSearch: 120_000, // how long the serial port is looked for before saying so
});
/** Limits, in bytes unless the comment says otherwise. */
const LIMITS = Object.freeze({
  request: 64 * 1024 * 1024,
  answer: 4 * 1024 * 1024,
  input: 1024 * 1024, // one piece of a request's standard input
  chunk: 64 * 1024, // one output event
  jsonLine: 1024 * 1024, // a longer line of the agent is output, not an event
  resultText: 64 * 1024,
  backlog: 1024 * 1024, // unwritten stream bytes at which the agent's output is no longer read
  queue: 16, // parsed requests kept in memory; the others stay in the share
  log: 1024 * 1024,
});

/**
 * The settings of one agentd, from the environment that the service gives it.
 * @param {NodeJS.ProcessEnv} env
 */
function loadConfig(env) {
  const workspace = path.resolve(env.AGENTD_WORKDIR || '/workspace');
  const choices = {};
  for (const name of CHOICE_NAMES) if (env[name]) choices[name] = env[name];
  return {
    workspace,
    ipcDir: path.join(workspace, 'ipc'),
    runDir: '/run/agentd',
    configDir: '/run/imgkit',
    releaseFile: '/etc/imgkit-release',
    passwdFile: '/etc/passwd',
    groupFile: '/etc/group',
    kernelSettings: '/proc/sys/fs',
    scratchFolders: ['/tmp', '/var/tmp', '/dev/shm'],
    consoleFile: '/dev/console',
    logFile: env.AGENTD_LOG || '/var/log/agentd.log',
    portName: 'ipc.0',
    choices,
    times: TIMES,
    limits: LIMITS,
  };
}

module.exports = { CHOICE_NAMES, CONTAINER_NAMES, CONTROL_NAMES, LIMITS, TIMES, loadConfig };
