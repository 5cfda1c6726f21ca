'use strict';

const path = require('node:path');
const { RequestError } = require('./errors');

/** Key → what its value must be, in words and as a test. Other keys are ignored, as the contract says. */
const SHAPES = {
  prompt: ['a string', (value) => typeof value === 'string'],
  cwd: ['a string', (value) => typeof value === 'string'],
  workspaceRoot: ['a string', (value) => typeof value === 'string'],
  hostWorkspaceRoot: ['a string', (value) => typeof value === 'string'],
  env: ['an object of strings', (value) => isObject(value) && Object.values(value).every((item) => typeof item === 'string')],
  mounts: ['an object', isObject],
  autoApprove: ['true or false', (value) => typeof value === 'boolean'],
  confirmationMode: ['a string', (value) => typeof value === 'string'],
  systemPrompt: ['a string', (value) => typeof value === 'string'],
  awaitSystem: ['true or false', (value) => typeof value === 'boolean'],
  stdin: ['true or false', (value) => typeof value === 'boolean'],
  command: ['a list of strings, not empty', (value) => Array.isArray(value) && value.length > 0 && value.every(isArgument) && value[0] !== ''],
};

function isObject(value) {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isArgument(value) {
  return typeof value === 'string' && !value.includes('\0');
}

/**
 * Check a request and return it as a frozen object. null counts as absent.
 * @param {string} id
 * @param {object} data the parsed JSON object
 * @throws {RequestError} naming the first key of a wrong type
 */
function parseRequest(id, data) {
  for (const [key, [what, fits]] of Object.entries(SHAPES)) {
    const value = data[key] ?? undefined;
    if (value !== undefined && !fits(value)) throw new RequestError(`request: "${key}" must be ${what}`);
  }
  if (data.stdin && (!data.command || (data.prompt ?? undefined) !== undefined)) throw new RequestError('request: "stdin" needs a "command", and no "prompt"');
  return Object.freeze({
    id,
    prompt: data.prompt ?? undefined,
    cwd: data.cwd || undefined,
    workspaceRoot: data.workspaceRoot || undefined,
    hostWorkspaceRoot: data.hostWorkspaceRoot || undefined,
    env: data.env ?? {},
    mounts: parseMounts(data.mounts ?? {}),
    autoApprove: data.autoApprove === true,
    confirmationMode: data.confirmationMode ?? 'modal',
    systemPrompt: data.systemPrompt ?? undefined,
    awaitSystem: data.awaitSystem !== false,
    command: data.command ?? undefined,
    stdin: data.stdin === true,
    data,
  });
}

function parseMounts(mounts) {
  return Object.entries(mounts).map(([name, mount]) => {
    const { tag, guestPath } = isObject(mount) ? mount : {};
    if (typeof tag !== 'string' || !/^[\w.-]{1,64}$/.test(tag)) throw new RequestError(`mount "${name}": "tag" must be a mount tag`);
    if (typeof guestPath !== 'string' || !path.isAbsolute(guestPath) || guestPath.includes('\0')) throw new RequestError(`mount "${name}": "guestPath" must be an absolute path`);
    return Object.freeze({ name, tag, guestPath: path.resolve(guestPath) });
  });
}

module.exports = { isObject, parseRequest };
