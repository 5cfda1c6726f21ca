'use strict';

/** The host asks for something that cannot be done. The message goes into the request's `result`. */
class RequestError extends Error {
  constructor(message, exitCode = null) {
    super(message);
    this.name = 'RequestError';
    this.exitCode = exitCode;
  }
}

module.exports = { RequestError };
