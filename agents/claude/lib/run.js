// Carries out one request.

import { lineOf } from './events.js';
import { optionsOf, promptOf } from './options.js';
import { failed, resultOf } from './outcome.js';

const KEPT_LOG = 2000; // characters of the SDK's standard error that a failure shows

/**
 * Carry out a request: report the SDK's messages as they come, and exactly one result.
 * @param {Awaited<ReturnType<import('./request.js').readRequest>>} request
 * @param {{query: Function, host: object, env: object, cwd: string, abortController: AbortController,
 *   write: (line: string) => unknown, log: (text: string) => unknown}} place where it runs; `query` is the SDK's
 */
export async function carryOut(request, place) {
  place.write(lineOf(await outcome(request, place)));
}

async function outcome(request, place) {
  if (request.prompt.trim() === '' && request.images.length === 0) return failed('there is no prompt');
  const tail = new Tail(place.log);
  const seen = {};
  try {
    const options = optionsOf(request, { ...place, log: tail.add });
    for await (const message of place.query({ prompt: promptOf(request), options })) note(message, seen, place.write);
  } catch (error) {
    // The SDK throws after a result that is an error as well.
    if (!seen.result) return failed(reason(error, tail.text, place.abortController.signal));
  }
  return seen.result ? resultOf(seen.result, seen.failure) : failed('the SDK ended without a result');
}

/** Report a message, unless it is the result, which is kept to the end. */
function note(message, seen, write) {
  if (message.type === 'result') {
    seen.result = message;
    return;
  }
  if (message.type === 'assistant' && !message.parent_tool_use_id) seen.failure = message.error;
  write(lineOf(message));
}

function reason(error, log, signal) {
  if (signal.aborted) return 'the request was cancelled';
  return log && !error.message.includes(log) ? `${error.message}: ${log}` : error.message;
}

/** Passes text on, and keeps its end. */
class Tail {
  #kept = '';

  constructor(log) {
    this.add = (text) => {
      this.#kept = (this.#kept + text).slice(-KEPT_LOG);
      log(text);
    };
  }

  get text() {
    return this.#kept.trim();
  }
}
