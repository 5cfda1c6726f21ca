'use strict';

/** Runs requests one after the other, in the order in which they are added. */
class RequestQueue {
  #waiting = new Map(); // id → {id, data, cancel: AbortController}
  #running;
  #run;
  #limit;
  #closed = false;

  /** @param {(entry: {id: string, data: object|Error, signal: AbortSignal}) => Promise<void>} run must not reject */
  constructor(run, limit) {
    this.#run = run;
    this.#limit = limit;
  }

  /** True if another request can be added. */
  hasRoom() {
    return !this.#closed && this.#waiting.size < this.#limit;
  }

  /** True if the request waits or runs. */
  has(id) {
    return this.#running?.id === id || this.#waiting.has(id);
  }

  /** Add a request, unless it waits or runs already. */
  add(id, data) {
    if (this.has(id)) return;
    this.#waiting.set(id, { id, data, controller: new AbortController() });
    if (!this.#running) void this.#work();
  }

  /** Cancel a request that waits or runs, so that it ends in an error result. Unknown ids are ignored. */
  cancel(id, reason = 'cancelled by the host') {
    const entry = this.#running?.id === id ? this.#running : this.#waiting.get(id);
    entry?.controller.abort(new Error(reason));
  }

  /** End the running request, and leave the waiting ones to the next agentd. Resolves when the running one has ended. */
  async close(reason) {
    this.#closed = true;
    this.#waiting.clear();
    if (!this.#running) return;
    this.#running.controller.abort(new Error(reason));
    await this.#running.done;
  }

  async #work() {
    while (this.#waiting.size > 0) {
      const [entry] = this.#waiting.values();
      this.#waiting.delete(entry.id);
      this.#running = entry;
      entry.done = this.#run({ id: entry.id, data: entry.data, signal: entry.controller.signal });
      await entry.done;
    }
    this.#running = undefined;
  }
}

module.exports = { RequestQueue };
