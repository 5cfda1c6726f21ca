'use strict';
// The table that agentd shares with the entrypoint of containers (tests/entrypoint.json, docs/reference/entrypoint.md).

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { test } = require('node:test');
const { startHost } = require('./helpers');

const TABLE = JSON.parse(fs.readFileSync(path.join(__dirname, '../entrypoint.json'), 'utf8'));
const ACCOUNTS = 'root:x:0:0:root:/root:/bin/sh\nsync:x:5:0::/sbin:/bin/sync\nagent:x:1000:1000::/home/agent:/bin/sh\n';

/** The environment that the agent printed. */
function environment(block) {
  const items = block.toString().split('\0').filter(Boolean);
  return Object.fromEntries(items.map((item) => [item.slice(0, item.indexOf('=')), item.slice(item.indexOf('=') + 1)]));
}

for (const [index, entry] of TABLE.entries()) {
  if (entry.where && !entry.where.includes('agentd')) continue;
  test(`${entry.name} (${index})`, async (t) => {
    const host = await startHost(t);
    fs.writeFileSync(host.config.passwdFile, ACCOUNTS);
    const { message, status, output, variables, absent } = entry;
    const { subtype, exitCode, result } = await host.run('r', { cwd: '/tmp', env: entry.env });
    if (message !== undefined) {
      assert.deepEqual([subtype, result, exitCode], ['error', message.machine ?? message, status ?? null]);
      assert.equal(host.output('r').length, 0);
      return;
    }
    assert.equal(exitCode, status ?? 0);
    if (output !== undefined) assert.equal(host.output('r').toString(), output);
    const given = environment(host.output('r'));
    for (const name of Object.keys(variables ?? {})) assert.equal(given[name], variables[name], name);
    for (const name of absent ?? []) assert.equal(name in given, false, name);
  });
}
