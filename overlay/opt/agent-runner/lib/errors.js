'use strict';

/** A request that cannot be carried out, by the host's doing; the message goes into its `result`. */
class RequestError extends Error {
  constructor(message, exitCode = null) {
    super(message);
    this.name = 'RequestError';
    this.exitCode = exitCode;
  }
}

module.exports = { RequestError };
