// Asks the host through agentd's socket (docs/reference/agentd.md, "Asking the host").

import net from 'node:net';

/** Thrown when nobody answers on agentd's socket. */
export class NoHostError extends Error {}

/** The host, as far as an agent can reach it. */
export class Host {
  #socket;

  /** @param {string | undefined} socket path of agentd's socket; without one every question is an error */
  constructor(socket) {
    this.#socket = socket;
  }

  /**
   * What agentd tells an agent of its own request.
   * @returns {Promise<object | undefined>} undefined if this agentd is too old to tell it
   * @throws {NoHostError}
   */
  async request() {
    const { request } = await this.#ask({ kind: 'request' });
    return request;
  }

  /**
   * Ask whether a tool may be used. agentd answers itself when nobody else does within a minute.
   * @param {string} toolName
   * @param {object} toolInput
   * @param {AbortSignal} [signal] ends the wait
   * @returns {Promise<{behavior: string, message?: string, updatedInput?: unknown}>}
   * @throws {NoHostError}
   */
  permission(toolName, toolInput, signal) {
    return this.#ask({ kind: 'permission', toolName, toolInput }, signal);
  }

  #ask(question, signal) {
    return new Promise((resolve, reject) => {
      if (!this.#socket) {
        reject(new NoHostError('there is no agentd to ask (AGENT_SOCKET is not set)'));
        return;
      }
      const fail = (reason) => reject(new NoHostError(`agentd does not answer: ${reason}`));
      const connection = net.connect({ path: this.#socket, signal });
      let text = '';
      connection.setEncoding('utf8');
      connection.on('connect', () => connection.write(`${JSON.stringify(question)}\n`));
      connection.on('data', (chunk) => (text += chunk));
      connection.on('error', (error) => fail(error.message));
      connection.on('end', () => {
        connection.end();
        const answer = parse(text);
        if (answer) resolve(answer);
        else fail('it hung up');
      });
    });
  }
}

/** The JSON object of an answer, or undefined. */
function parse(text) {
  try {
    const answer = JSON.parse(text);
    return typeof answer === 'object' && answer !== null ? answer : undefined;
  } catch {
    return undefined;
  }
}
