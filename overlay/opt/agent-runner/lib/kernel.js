'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { RequestError } = require('./errors');

/** Settings without which an agent could make links through which root changes files elsewhere. */
const REQUIRED = ['protected_hardlinks', 'protected_symlinks'];

/**
 * Check that the kernel protects links. This is the first step of every request. The settings are in force long before
 * agentd starts, so there is no reason to wait for them.
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
