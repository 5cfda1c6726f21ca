'use strict';

const fs = require('node:fs');
const net = require('node:net');
const path = require('node:path');
const { randomUUID } = require('node:crypto');

const MAX_QUESTION = 4 * 1024 * 1024; // characters
/** The keys of a request that its agent may read. The others (env, mounts) can name what agentd keeps to itself. */
const AGENT_KEYS = Object.freeze([
  'prompt',
  'systemPrompt',
  'imageAttachments',
  'sessionId',
  'autoApprove',
  'confirmationMode',
  'cwd',
  'workspaceRoot',
  'hostWorkspaceRoot',
  'memoryEnabled',
]);

/** Passes questions of the running agent to the host: permissions and host tools. No answer counts as a denial. */
class Questions {
  #current; // {request, channel, stream, signal}
  #times;
  #socket;

  constructor(times) {
    this.#times = times;
  }

  /**
   * Open the socket of agent-ask and agent-host-tool, which takes one JSON line and answers with one. Only root may connect
   * until `admit` is called.
   * @returns {Promise<net.Server>}
   */
  async listen(socket) {
    fs.mkdirSync(path.dirname(socket), { recursive: true, mode: 0o755 });
    fs.rmSync(socket, { force: true });
    const server = net.createServer({ allowHalfOpen: true }, (connection) => serve(connection, this));
    await new Promise((resolve, reject) => {
      server.once('error', reject);
      server.listen(socket, resolve);
    });
    fs.chmodSync(socket, 0o660);
    this.#socket = socket;
    return server;
  }

  /** Let the group of this user connect from now on: the user of the agent that is about to run. */
  admit(user) {
    if (this.#socket && process.getuid() === 0) fs.chownSync(this.#socket, 0, user.gid);
  }

  /** Set the request whose agent may ask from now on. With undefined, every question is denied. */
  serve(current) {
    this.#current = current;
  }

  /** What the running agent may read of its request, as the host sent it; undefined if no request is running. */
  request() {
    const data = this.#current?.request.data;
    return data && Object.fromEntries(AGENT_KEYS.filter((key) => key in data).map((key) => [key, data[key]]));
  }

  /** Ask whether a tool may be used. @returns {Promise<{behavior: 'allow'|'deny', message?: string, updatedInput?: unknown}>} */
  async permission(toolName, toolInput) {
    const current = this.#current;
    if (!current) return { behavior: 'deny', message: 'no request is running' };
    if (current.request.autoApprove) return { behavior: 'allow', updatedInput: toolInput };
    const answer = await this.#ask(current, 'permission', toolName, toolInput);
    if (answer?.behavior === 'allow') return { updatedInput: toolInput, ...answer };
    return { behavior: 'deny', message: textOr(answer?.message, answer ? 'denied' : 'no answer from the host') };
  }

  /** Have the host run a tool. @returns {Promise<{success: boolean, text: string, error?: string}>} */
  async hostTool(toolName, toolInput) {
    if (!this.#current) return { success: false, text: '', error: 'no request is running' };
    const answer = await this.#ask(this.#current, 'host_tool', toolName, toolInput);
    if (!answer) return { success: false, text: '', error: 'no answer from the host' };
    const success = answer.success === true;
    return { success, text: textOr(answer.text, ''), error: success ? undefined : textOr(answer.error, 'the host tool failed') };
  }

  /** Ask the host. @returns {Promise<object|undefined>} undefined if no answer comes in time */
  async #ask({ channel, stream, signal }, kind, toolName, toolInput) {
    const requestId = randomUUID();
    // AbortSignal.any() with AbortSignal.timeout() is not used: Node may collect both as garbage, and the timeout never comes.
    const limit = new AbortController();
    const end = () => limit.abort();
    const timer = setTimeout(end, this.#times.answer);
    signal.addEventListener('abort', end, { once: true });
    if (signal.aborted) end();
    try {
      const answer = channel.answer(kind, requestId, limit.signal); // listen first: the answer may come at once
      await Promise.race([stream.write({ type: `${kind}_request`, requestId, toolName, toolInput }), answer]);
      return await answer;
    } finally {
      clearTimeout(timer);
      signal.removeEventListener('abort', end);
    }
  }
}

function textOr(value, otherwise) {
  return typeof value === 'string' ? value : otherwise;
}

/** Read one line from a connection and answer it. */
function serve(connection, questions) {
  let text = '';
  connection.setEncoding('utf8');
  connection.on('error', () => connection.destroy());
  connection.on('data', (chunk) => {
    text += chunk;
    if (text.length > MAX_QUESTION) return connection.destroy();
    const end = text.indexOf('\n');
    if (end < 0) return undefined;
    connection.removeAllListeners('data');
    connection.resume();
    return void reply(connection, text.slice(0, end), questions);
  });
}

async function reply(connection, line, questions) {
  let answer;
  try {
    answer = await answerTo(JSON.parse(line), questions);
  } catch (error) {
    answer = { behavior: 'deny', success: false, text: '', error: error.message, message: error.message };
  }
  if (!connection.destroyed) connection.end(`${JSON.stringify(answer)}\n`);
}

async function answerTo({ kind, toolName, toolInput }, questions) {
  if (kind === 'request') return { request: questions.request() };
  if (typeof toolName !== 'string') throw new Error('toolName must be a string');
  return kind === 'host_tool' ? questions.hostTool(toolName, toolInput) : questions.permission(toolName, toolInput);
}

module.exports = { Questions };
