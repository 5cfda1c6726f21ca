'use strict';

const fs = require('node:fs');
const path = require('node:path');

/** 2: a request may have standard input. The host looks at this before it sends any. */
const PROTOCOL_VERSION = 3;
const { O_CREAT, O_NOFOLLOW, O_TRUNC, O_WRONLY } = fs.constants;

/** Read the image's name and build id from the KEY=VALUE file that the build writes. Empty if there is no such file. */
function readRelease(file) {
  let text;
  try {
    text = fs.readFileSync(file, 'utf8');
  } catch {
    return {};
  }
  const values = new Map();
  for (const line of text.split('\n')) {
    const match = /^([A-Z_]+)=(.*)$/.exec(line);
    if (match) values.set(match[1], match[2].replace(/^(["'])(.*)\1$/, '$2'));
  }
  return { image: values.get('IMGKIT_IMAGE'), buildId: values.get('IMGKIT_BUILD_ID') };
}

/** Make one heartbeat: the timestamp is the wall clock in ms, the uptime is in seconds, `system` comes from SystemState. */
function makeHeartbeat(ipcMode, ipcMounted, release, system) {
  return {
    timestamp: Date.now(),
    pid: process.pid,
    uptime: process.uptime(),
    ipcMode,
    ipcMounted,
    protocolVersion: PROTOCOL_VERSION,
    ...release,
    system,
  };
}

/** Replace the heartbeat file atomically: a reader sees the old or the new one, never a part. */
function writeHeartbeat(ipcDir, beat) {
  const temporary = path.join(ipcDir, `.heartbeat.${process.pid}`);
  fs.writeFileSync(temporary, JSON.stringify(beat), { flag: O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW });
  fs.renameSync(temporary, path.join(ipcDir, 'heartbeat'));
}

module.exports = { PROTOCOL_VERSION, makeHeartbeat, readRelease, writeHeartbeat };
