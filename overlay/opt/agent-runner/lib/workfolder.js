'use strict';

const fs = require('node:fs');
const { RequestError } = require('./errors');
const { isInside } = require('./paths');

/**
 * Find the folder in which the agent starts: the request's cwd, else AGENT_WORKDIR, else the workspace.
 * @throws {RequestError} if it is no folder, or lies outside of the folders of the agent
 */
function workingFolder(request, workdir, config, user) {
  const cwd = request.cwd ?? workdir ?? config.workspace;
  const bases = [config.workspace, user.home, '/tmp', ...request.mounts.map((mount) => mount.guestPath)];
  const real = fs.existsSync(cwd) ? fs.realpathSync(cwd) : undefined;
  if (!cwd.startsWith('/') || !bases.some((base) => isInside(base, cwd))) throw new RequestError(`cwd ${cwd} is outside ${config.workspace}`);
  if (!real || !fs.statSync(real).isDirectory()) throw new RequestError(`cwd ${cwd} is not a folder`);
  if (!bases.some((base) => isInside(fs.existsSync(base) ? fs.realpathSync(base) : base, real))) throw new RequestError(`cwd ${cwd} leads outside ${config.workspace}`);
  if (isInside(config.ipcDir, real)) throw new RequestError(`cwd ${cwd} is agentd's own folder`);
  return real;
}

module.exports = { workingFolder };
