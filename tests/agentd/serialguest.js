'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { FAST, FakeMounter, FakeSystem, launch, makeGuest, makeLog, payload, until } = require('./helpers');
const { SerialChannel } = payload('serial');
const { RequestQueue } = payload('queue');
const { Runner } = payload('run');
const { Questions } = payload('permissions');

/** The port with the test at its other end. */
class FakePort {
  pending = 0;
  sent = [];
  #inbox = [];
  #wake = () => {};
  push(bytes) {
    this.#inbox.push(Buffer.from(bytes));
    this.#wake();
  }
  async read() {
    while (this.#inbox.length === 0) await new Promise((resolve) => (this.#wake = resolve));
    return this.#inbox.shift();
  }
  async write(bytes) {
    for (const line of bytes.toString().split('\n').filter(Boolean)) this.sent.push(JSON.parse(line));
  }
}

/** Starts the channel on a fake port, with a runner, and plays the host. */
function startSerial(t, guest = makeGuest(t)) {
  fs.writeFileSync(guest.config.passwdFile, `agent:x:${process.getuid() || 1000}:${process.getgid() || 1000}::${guest.root}:/bin/sh\n`);
  fs.chmodSync(guest.root, 0o755);
  fs.mkdirSync(path.join(guest.config.workspace, 'project'), { recursive: true });
  for (const dir of ['', 'project']) fs.chmodSync(path.join(guest.config.workspace, dir), 0o777);
  const [port, log] = [new FakePort(), makeLog()];
  const channel = new SerialChannel(port, guest.config, log);
  const runner = new Runner({ config: { ...guest.config, socket: path.join(guest.root, 'sock') }, log, channel, mounter: new FakeMounter(), system: new FakeSystem(), questions: new Questions(FAST), launch });
  void channel.run(new RequestQueue((entry) => runner.run(entry), 16));
  t.after(() => channel.stop());
  const send = (message) => port.push(`${JSON.stringify(message)}\n`);
  const events = (id) => port.sent.filter((message) => message.type === 'stream' && message.requestId === id).map((message) => JSON.parse(message.line));
  const result = (id) => until(`the result of ${id}`, () => events(id).map((line) => line.event).find((event) => event.type === 'result'));
  return { ...guest, port, log, channel, send, events, result, project: path.join(guest.config.workspace, 'project') };
}

module.exports = { startSerial };
