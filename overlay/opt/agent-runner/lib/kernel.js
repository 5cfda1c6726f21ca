'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { RequestError } = require('./errors');

/** What the kernel must refuse, or an agent could have root change files through links that the agent has made. */
const REQUIRED = ['protected_hardlinks', 'protected_symlinks'];

/**
 * Make sure that links are protected. The kernel itself is asked, before anything of a request is done: the settings are
 * in force long before agentd starts, so there is nothing to wait for, and nothing that a request could wait out.
 * @param {{kernelSettings: string}} config the folder of the settings, /proc/sys/fs
 * @throws {RequestError} naming the setting that is not in force, or cannot be read
 */
function checkKernel({ kernelSettings }) {
  for (const name of REQUIRED) {
    const value = readNumber(path.join(kernelSettings, name));
    if (!(value >= 1)) throw new RequestError(`the kernel's setting fs.${name} is not in force: no agent is run`);
  }
}

function readNumber(file) {
  try {
    return Number.parseInt(fs.readFileSync(file, 'utf8'), 10);
  } catch {
    return NaN;
  }
}

module.exports = { checkKernel };
