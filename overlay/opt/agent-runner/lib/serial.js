'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { bootUser } = require('./environment');
const { parseObject } = require('./files');
const { LineReader } = require('./lines');
const { isId, isInside } = require('./paths');
const { Port, findPort } = require('./port');
const { Receiver, changedFiles, sendFile, snapshot } = require('./transfer');

const REMEMBERED = 1000; // ids of ended requests that are not taken again

/**
 * The channel over one virtio-serial port: a JSON object a line, both ways. Files travel over it as well.
 * The journal of begun requests is in tmpfs: the line itself forgets.
 */
class SerialChannel {
  mode = 'serial';
  mounted = null; // there is no share to be mounted; a host that waits for "not false" goes on
  ownDisk = true; // a share that does not exist is a folder here, filled by push_file and emptied by file_sync
  #port;
  #config;
  #log;
  #journal;
  #receiver;
  #answers = new Map(); // question id → resolve
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

  /** At most one heartbeat waits: a host that connects late gets no pile of old ones. */
  async beat(beat) {
    if (this.#beating) return;
    this.#beating = true;
    void this.#send({ type: 'heartbeat', ...beat }).finally(() => (this.#beating = false));
  }

  /** Read messages until stopped. What the last agentd had begun is answered first. */
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

  stop() {
    this.#stopped = true;
  }

  #take(line, queue) {
    const message = parseObject(line);
    if (!message) return this.#log.once('garbage', 'a line from the host is not a JSON object; it is ignored');
    const { type, requestId } = message;
    if (type === 'request') return this.#request(message, queue);
    if (type === 'cancel') return queue.cancel(requestId);
    if (type === 'permission_response') return this.#answers.get(requestId)?.(message.result);
    if (type === 'host_tool_response') return this.#answers.get(requestId)?.(message);
    if (['push_file', 'push_file_chunk', 'push_file_complete'].includes(type)) return this.#push(message);
    return undefined; // unknown messages are ignored, as unknown keys are
  }

  #request({ requestId, data }, queue) {
    if (!isId(requestId)) return this.#log.info('a request without a usable requestId was ignored');
    if (this.#ended.has(requestId)) return undefined;
    const object = typeof data === 'string' ? parseObject(data) : parseObject(JSON.stringify(data));
    return queue.add(requestId, object ?? new Error('the request is not a JSON object'));
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

  async history(id) {
    return fs.existsSync(path.join(this.#journal, id)) ? 'begun' : 'new';
  }

  async openStream(id) {
    fs.writeFileSync(path.join(this.#journal, id), '');
    return new SerialStream(id, this.#port, (message) => this.#send(message));
  }

  async finish(id) {
    this.#ended.add(id);
    if (this.#ended.size > REMEMBERED) this.#ended.delete(this.#ended.values().next().value);
    fs.rmSync(path.join(this.#journal, id), { force: true });
  }

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

  #project(request) {
    const root = path.resolve(request.workspaceRoot ?? request.cwd ?? path.join(this.#config.workspace, 'project'));
    return isInside(this.#config.workspace, root) ? root : undefined;
  }

  /** Remember the project folder, to know afterwards what the agent has changed. */
  async beforeAgent(request, user) {
    const root = this.#project(request);
    this.#before = root && { root, files: snapshot(root, user, this.#config.ipcDir) };
  }

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

/** The stream of one request, with the face of a StreamFile. A slow host slows the agent, it does not kill it. */
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

function openSerial(device, config, log) {
  return new SerialChannel(new Port(device), config, log);
}

module.exports = { SerialChannel, findPort, openSerial };
