'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { bootUser } = require('./environment');
const { parseObject } = require('./files');
const { InputQueue } = require('./input');
const { LineReader } = require('./lines');
const { isId, isInside } = require('./paths');
const { Port, findPort } = require('./port');
const { Receiver, changedFiles, decode, sendFile, snapshot } = require('./transfer');

const REMEMBERED = 1000; // ids of ended requests that are not run again

/**
 * The channel over one virtio-serial port: one JSON object per line in both directions, files included. The journal of begun
 * requests is in tmpfs, because the port keeps nothing.
 */
class SerialChannel {
  mode = 'serial';
  mounted = null; // there is no share; a host that waits until this is not false continues
  ownDisk = true; // a share without a device is a folder here, filled by push_file and emptied by file_sync
  #port;
  #config;
  #log;
  #journal;
  #receiver;
  #answers = new Map(); // question id → resolve
  #inputs = new Map(); // request id → InputQueue
  #ended = new Set();
  #before;
  #beating = false;
  #stopped = false;

  constructor(port, config, log) {
    this.#port = port;
    this.#config = config;
    this.#log = log;
    this.#journal = path.join(config.runDir, 'journal');
    fs.mkdirSync(this.#journal, { recursive: true });
  }

  #send(message) {
    return this.#port.write(Buffer.from(`${JSON.stringify(message)}\n`));
  }

  /** Send a heartbeat, unless one still waits: a host that connects late gets no pile of old ones. */
  async beat(beat) {
    if (this.#beating) return;
    this.#beating = true;
    void this.#send({ type: 'heartbeat', ...beat }).finally(() => (this.#beating = false));
  }

  /** Read messages until stopped. Requests that an earlier agentd had begun are answered first. */
  async run(queue) {
    for (const id of fs.readdirSync(this.#journal)) queue.add(id, {});
    const onTooLong = () => this.#log.once('line', 'a line from the host was too long and was dropped');
    const lines = new LineReader(this.#config.limits.request * 1.5, (line) => this.#take(line, queue), onTooLong);
    while (!this.#stopped) {
      const bytes = await this.#port.read();
      if (bytes.length === 0) lines.reset();
      else lines.push(bytes);
    }
  }

  /** Stop reading after the next message. */
  stop() {
    this.#stopped = true;
  }

  #take(line, queue) {
    const message = parseObject(line);
    if (!message) return this.#log.once('garbage', 'a line from the host is not a JSON object; it is ignored');
    const { type, requestId } = message;
    if (type === 'request') return this.#request(message, queue);
    if (type === 'cancel') return queue.cancel(requestId);
    if (type === 'input') return this.#input(message);
    if (type === 'permission_response') return this.#answers.get(requestId)?.(message.result);
    if (type === 'host_tool_response') return this.#answers.get(requestId)?.(message);
    if (['push_file', 'push_file_chunk', 'push_file_complete'].includes(type)) return this.#push(message);
    return undefined; // unknown messages are ignored, as unknown keys are
  }

  #request({ requestId, data }, queue) {
    if (!isId(requestId)) return this.#log.info('a request without a usable requestId was ignored');
    if (this.#ended.has(requestId)) return undefined;
    const object = typeof data === 'string' ? parseObject(data) : parseObject(JSON.stringify(data));
    if (object?.stdin === true && !this.#inputs.has(requestId)) this.#inputs.set(requestId, new InputQueue()); // input may come before the request begins
    return queue.add(requestId, object ?? new Error('the request is not a JSON object'));
  }

  #input({ requestId, data }) {
    try {
      this.#inputs.get(requestId)?.push(decode(data));
    } catch (error) {
      this.#log.once('input', `input: ${error.message}`);
    }
  }

  /** The standard input of a request. The host is told of each piece that the agent has taken, and sends only a few ahead. */
  async *input(id, signal) {
    const queue = this.#inputs.get(id);
    signal.addEventListener('abort', () => queue?.close(), { once: true });
    for (let index = 0; queue; index += 1) {
      const bytes = await queue.next();
      if (bytes?.length > 0) yield bytes;
      if (bytes) void this.#send({ type: 'input_taken', requestId: id, index });
      if (!bytes?.length) return;
    }
  }

  #push(message) {
    try {
      this.#receiver ??= new Receiver(this.#config);
      this.#receiver.take(message, bootUser(this.#config));
    } catch (error) {
      this.#log.info(`${message.type}: ${error.message}`);
      void this.#send({ type: 'push_error', transferId: message.transferId, path: message.path, error: error.message });
    }
  }

  /** Return what an earlier agentd did with this request: 'new' (nothing) or 'begun'. */
  async history(id) {
    return fs.existsSync(path.join(this.#journal, id)) ? 'begun' : 'new';
  }

  /** Note in the journal that the request is begun, and open its stream. */
  async openStream(id) {
    fs.writeFileSync(path.join(this.#journal, id), '');
    return new SerialStream(id, this.#port, (message) => this.#send(message));
  }

  /** Remember that the request has ended, and remove it from the journal. */
  async finish(id) {
    this.#ended.add(id);
    this.#inputs.delete(id);
    if (this.#ended.size > REMEMBERED) this.#ended.delete(this.#ended.values().next().value);
    fs.rmSync(path.join(this.#journal, id), { force: true });
  }

  /** Wait for the host's answer to a question. @returns {Promise<object|undefined>} undefined if `signal` is aborted first */
  answer(kind, id, signal) {
    return new Promise((resolve) => {
      const done = (value) => {
        this.#answers.delete(id);
        resolve(typeof value === 'object' && value !== null ? value : undefined);
      };
      this.#answers.set(id, done);
      if (signal.aborted) done(undefined);
      signal.addEventListener('abort', () => done(undefined), { once: true });
    });
  }

  /** The folder whose changed files are sent back, or undefined if it is outside of the workspace. */
  #project(request) {
    const root = path.resolve(request.workspaceRoot ?? request.cwd ?? path.join(this.#config.workspace, 'project'));
    return isInside(this.#config.workspace, root) ? root : undefined;
  }

  /** Take a snapshot of the project folder, to find later which files the agent has changed. */
  async beforeAgent(request, user) {
    const root = this.#project(request);
    this.#before = root && { root, files: snapshot(root, user, this.#config.ipcDir) };
  }

  /** Send the files that the agent has changed. */
  async afterAgent(request, user, stream) {
    const before = this.#before;
    this.#before = undefined;
    if (!before) return;
    for (const name of changedFiles(before.files, snapshot(before.root, user, this.#config.ipcDir))) {
      await sendFile(before.root, name, user, request.id, (message) => this.#send(message)).catch((error) => {
        void stream.write({ type: 'sdk_event', event: { type: 'file_sync_error', path: name, error: error.message } });
      });
    }
  }
}

/** The stream of one request, with the interface of StreamFile. A slow host slows the agent down; it does not get it killed. */
class SerialStream {
  stalledSince = undefined;
  #id;
  #port;
  #send;

  constructor(id, port, send) {
    this.#id = id;
    this.#port = port;
    this.#send = send;
  }

  get pending() {
    return this.#port.pending;
  }

  write(event) {
    return this.#send({ type: 'stream', requestId: this.#id, line: JSON.stringify(event) });
  }

  discard() {}

  async close() {}
}

/** Open the channel over a virtio-serial port. */
function openSerial(device, config, log) {
  return new SerialChannel(new Port(device), config, log);
}

module.exports = { SerialChannel, findPort, openSerial };
