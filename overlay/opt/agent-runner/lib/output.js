'use strict';

const { isUtf8 } = require('node:buffer');
const { isObject } = require('./request');

const NEWLINE = 0x0a;
const BRACE = 0x7b;

/** The last position up to `limit` at which `buffer` can be cut without splitting a UTF-8 character. */
function cutPoint(buffer, limit) {
  if (buffer.length <= limit) return buffer.length;
  for (let end = limit; end > limit - 4 && end > 0; end -= 1) {
    if ((buffer[end] & 0xc0) !== 0x80) return end;
  }
  return limit;
}

/** Make an event of one chunk of output. Bytes that are not UTF-8 are encoded as base64. */
function outputEvent(stream, chunk) {
  if (isUtf8(chunk)) return { type: 'output', stream, data: chunk.toString('utf8') };
  return { type: 'output', stream, encoding: 'base64', data: chunk.toString('base64') };
}

/**
 * Splits the output of the agent into events. The data of all output events, joined, are the agent's bytes without the
 * lines that became events of their own.
 *
 * @param {'stdout'|'stderr'} name
 * @param {boolean} events true if a line that is a JSON object with a string `type` is an event of the agent
 * @param {{chunk: number, jsonLine: number}} limits
 * @param {(event: object) => void} emit
 */
class OutputSplitter {
  #pending = Buffer.alloc(0);
  #midLine = false; // part of the pending line has been emitted, so the line cannot become an event

  constructor(name, events, limits, emit) {
    this.name = name;
    this.events = events;
    this.limits = limits;
    this.emit = emit;
  }

  /** Take the next bytes. */
  push(chunk) {
    this.#pending = this.#pending.length === 0 ? chunk : Buffer.concat([this.#pending, chunk]);
    if (this.events) this.#takeLines();
    else this.#take(this.#pending.lastIndexOf(NEWLINE) + 1);
    const limit = this.#mayBeEvent() ? this.limits.jsonLine : this.limits.chunk;
    if (this.#pending.length >= limit) this.#flushPart();
  }

  /** Emit an unfinished line (such as a prompt) after a pause, unless it may still become an event. */
  idle() {
    if (this.#pending.length > 0 && !this.#mayBeEvent()) this.#flushPart();
  }

  /** Emit the rest at the end of the output. */
  end() {
    if (this.events && !this.#midLine) this.#line(this.#pending);
    else this.#output(this.#pending);
    this.#pending = Buffer.alloc(0);
  }

  #mayBeEvent() {
    return this.events && !this.#midLine && this.#pending[0] === BRACE;
  }

  /** Emit an unfinished line, up to its last complete character. */
  #flushPart() {
    this.#take(completeEnd(this.#pending));
    this.#midLine = true;
  }

  #take(end) {
    if (end === 0) return;
    this.#output(this.#pending.subarray(0, end));
    this.#pending = this.#pending.subarray(end);
    this.#midLine = false;
  }

  /** Emit all complete lines. Neighbouring lines of plain output become one event, not one event each. */
  #takeLines() {
    let start = 0;
    let plain = 0;
    for (let end = this.#pending.indexOf(NEWLINE) + 1; end > 0; end = this.#pending.indexOf(NEWLINE, start) + 1) {
      const line = this.#pending.subarray(start, end);
      const event = this.#midLine ? undefined : this.#parse(line);
      if (event) {
        this.#output(this.#pending.subarray(plain, start));
        this.emit(event);
        plain = end;
      }
      this.#midLine = false;
      start = end;
    }
    this.#output(this.#pending.subarray(plain, start));
    this.#pending = this.#pending.subarray(start);
  }

  #line(line) {
    const event = this.#parse(line);
    if (event) this.emit(event);
    else this.#output(line);
  }

  #parse(line) {
    if (line[0] !== BRACE || line.length > this.limits.jsonLine) return undefined;
    try {
      const value = JSON.parse(line.toString('utf8'));
      return isObject(value) && typeof value.type === 'string' ? value : undefined;
    } catch {
      return undefined;
    }
  }

  #output(bytes) {
    for (let rest = bytes; rest.length > 0; ) {
      const end = cutPoint(rest, this.limits.chunk);
      this.emit(outputEvent(this.name, rest.subarray(0, end)));
      rest = rest.subarray(end);
    }
  }
}

/** The length of `buffer` without an incomplete UTF-8 character at its end, or its whole length if it has nothing else. */
function completeEnd(buffer) {
  for (let back = 1; back <= Math.min(3, buffer.length - 1); back += 1) {
    const byte = buffer[buffer.length - back];
    if ((byte & 0xc0) === 0x80) continue;
    const need = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
    return need > back ? buffer.length - back : buffer.length;
  }
  return buffer.length;
}

module.exports = { OutputSplitter, completeEnd, cutPoint, outputEvent };
