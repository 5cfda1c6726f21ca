#!/usr/bin/env node
// The adapter between agentd and the Claude agent SDK: it takes one request, and reports what happens as lines of JSON.
// Its exit status is 0 whenever it has reported a result, a failed one included; agentd makes the request's result of that.

import { query } from '@anthropic-ai/claude-agent-sdk';
import { Host } from './lib/host.js';
import { readRequest } from './lib/request.js';
import { carryOut } from './lib/run.js';

const cancel = new AbortController();
process.once('SIGTERM', () => cancel.abort());

const host = new Host(process.env.AGENT_SOCKET);
const request = await readRequest(host, process.env, process.stdin);
await carryOut(request, {
  query,
  host,
  env: process.env,
  cwd: process.cwd(),
  abortController: cancel,
  write: (line) => process.stdout.write(line),
  log: (text) => process.stderr.write(text),
});
process.exit(0); // what the SDK leaves open must not keep the request running
