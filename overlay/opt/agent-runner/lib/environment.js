'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { CHOICE_NAMES, CONTAINER_NAMES, CONTROL_NAMES } = require('./config');
const { RequestError } = require('./errors');
const { parseObject } = require('./files');
const { findUser } = require('./users');

const PATH = '/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin';
const HIDDEN = new Set([...CONTROL_NAMES, ...CHOICE_NAMES, ...CONTAINER_NAMES]);
/** The kernel's limit for one string of the environment (MAX_ARG_STRLEN), less the name. */
const MAX_VALUE = 128 * 1024 - 256;

/**
 * Read the values that the config drive brought for this boot: env.json, then one file per secret.
 * @throws {RequestError} if env.json is not a JSON object
 */
function readDrive(configDir) {
  const file = path.join(configDir, 'env.json');
  const values = fs.existsSync(file) ? parseObject(fs.readFileSync(file, 'utf8')) : {};
  if (!values) throw new RequestError('config drive: env.json is not a JSON object');
  const secrets = path.join(configDir, 'secrets');
  for (const name of fs.existsSync(secrets) ? fs.readdirSync(secrets) : []) {
    values[name] = fs.readFileSync(path.join(secrets, name), 'utf8');
  }
  return values;
}

/** Describe for the log which control-plane values are present. The values themselves are never shown. */
function describePresence(values) {
  return CONTROL_NAMES.map((name) => `${name} ${values[name] ? 'present' : 'absent'}`).join(', ');
}

/** A word and the blanks in front of it. Blanks are ASCII's, and a backslash does not continue a line, as in the entrypoint. */
const WORD = /[ \t-\r]*((?:[^ \t-\r"'\\]|\\[^\n]|"(?:[^"\\]|\\[^\n])*"|'[^']*')+)/y;
const PARTS = /\\([^\n])|"((?:[^"\\]|\\[^\n])*)"|'([^']*)'/g;

/**
 * Split a command line into words, as a shell does, but without expanding anything.
 * @param {string} text
 * @param {string} name of the variable, for the message
 * @throws {RequestError} if a quote is not closed
 */
function splitWords(text, name) {
  const words = [];
  const pattern = new RegExp(WORD);
  let end = 0;
  for (let match = pattern.exec(text); match; match = pattern.exec(text)) {
    end = pattern.lastIndex;
    words.push(match[1].replace(PARTS, (_, escaped, double, single) => escaped ?? single ?? double.replace(/\\(["\\$`])/g, '$1')));
  }
  if (/[^ \t-\r]/.test(text.slice(end))) throw new RequestError(`${name} has an unfinished quote`);
  return words;
}

/**
 * Split AGENT_ARGS, which is a JSON array of strings, or words as in a shell.
 * @throws {RequestError} if it begins with "[" and is no such array, or if a quote is not closed
 */
function splitArguments(text) {
  if (!/^[ \t-\r]*\[/.test(text)) return splitWords(text, 'AGENT_ARGS');
  const list = parseArray(text);
  if (!list?.every(isArgument)) throw new RequestError("AGENT_ARGS must be an array of strings, as it begins with [ (or quote that: '[')");
  return list;
}

function parseArray(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** True for what can be an argument of a program: a string without NUL that has bytes in UTF-8. */
function isArgument(item) {
  return typeof item === 'string' && !item.includes('\0') && item.isWellFormed();
}

/**
 * Choose the agent. The request's variables take precedence over the config drive's, and those over /etc/conf.d/agentd's.
 * @returns {{command: string[], workdir?: string, userName: string}} command is empty when none is configured
 */
function chooseAgent(choices, drive, requestEnv) {
  const merged = { ...choices, ...drive, ...requestEnv };
  const command = merged.AGENT_COMMAND ? splitWords(merged.AGENT_COMMAND, 'AGENT_COMMAND') : [];
  if (command.length > 0 && merged.AGENT_ARGS) command.push(...splitArguments(merged.AGENT_ARGS));
  return { command, workdir: merged.AGENT_WORKDIR || undefined, userName: merged.AGENT_USER || 'agent' };
}

/**
 * Find the user of this boot's agents. A request may choose another one.
 * @throws {RequestError} when the config drive cannot be read or there is no such user
 */
function bootUser(config) {
  return findUser(chooseAgent(config.choices, readDrive(config.configDir), {}).userName, config.passwdFile);
}

/**
 * Make the whole environment of an agent. Nothing is inherited from agentd, and the hidden variables are left out.
 * @throws {RequestError} naming a variable that the kernel would not take
 */
function agentEnvironment(user, drive, request, socket) {
  const env = { PATH, HOME: user.home, USER: user.name, LOGNAME: user.name, SHELL: user.shell, LANG: 'C.UTF-8' };
  Object.assign(env, drive, request.env, {
    AGENT_REQUEST_ID: request.id,
    AGENT_SOCKET: socket,
    AGENT_AUTO_APPROVE: request.autoApprove ? '1' : '0',
    AGENT_CONFIRMATION_MODE: request.confirmationMode,
  });
  for (const [name, value] of [['AGENT_PROMPT', request.prompt], ['AGENT_SYSTEM_PROMPT', request.systemPrompt]]) {
    if (value !== undefined && Buffer.byteLength(value) <= MAX_VALUE && !value.includes('\0')) env[name] = value;
  }
  for (const name of HIDDEN) delete env[name];
  checkEnvironment(env);
  return env;
}

function checkEnvironment(env) {
  for (const [name, value] of Object.entries(env)) {
    if (name === '' || /[=\0]/.test(name)) throw new RequestError('env: a name is empty or contains "="');
    if (typeof value !== 'string' || value.includes('\0')) throw new RequestError(`env: ${name} must be a string without NUL`);
    if (Buffer.byteLength(value) > MAX_VALUE) throw new RequestError(`env: ${name} is larger than ${MAX_VALUE} bytes`);
  }
}

module.exports = { PATH, agentEnvironment, bootUser, chooseAgent, describePresence, readDrive, splitArguments, splitWords };
