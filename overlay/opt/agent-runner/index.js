'use strict';

const { loadConfig } = require('./lib/config');
const { Log } = require('./lib/log');
const { Mounter } = require('./lib/mounts');
const { Supervisor } = require('./lib/supervisor');

const config = loadConfig(process.env);
const log = new Log(config);
const supervisor = new Supervisor({ config, log, mounter: new Mounter(config) });

/** End at once. A thread that waits for the serial port would delay an ordinary exit, so this is SIGKILL. */
function leave() {
  process.kill(process.pid, 'SIGKILL');
}

function crash(error) {
  log.alarm(`crashed: ${error?.stack ?? error}`);
  leave();
}

async function end(signal) {
  log.info(`${signal}: ending`);
  await supervisor.stop('agentd is being stopped');
  leave();
}

process.on('uncaughtException', crash);
process.on('unhandledRejection', crash);
for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => void end(signal).catch(crash));
// A handler of SIGUSR1 also prevents Node from opening its debugger.
for (const signal of ['SIGHUP', 'SIGUSR1', 'SIGUSR2']) process.on(signal, () => supervisor.forward(signal));

process.umask(0o022);
if (process.getuid() === 0) process.setgroups([]);
void supervisor.start();
