'use strict';

const fs = require('node:fs');
const path = require('node:path');

const { O_NOCTTY, O_NONBLOCK, O_RDWR } = fs.constants;
const MOST = 16; // consoles of the kernel's driver (hvc_console.h)

/** The terminals that the host has plugged in as virtio consoles: the kernel opens no others. */
function listConsoles(dev = '/dev') {
  const found = [];
  for (let number = 0; number < MOST; number += 1) {
    const device = path.join(dev, `hvc${number}`);
    try {
      fs.closeSync(fs.openSync(device, O_RDWR | O_NOCTTY | O_NONBLOCK));
      found.push(device);
    } catch {
      // There is no such console.
    }
  }
  return found;
}

/** Open a console for a program that is to have it as its terminal; agentd itself gets no controlling terminal by this. */
function openConsole(device) {
  return fs.openSync(device, O_RDWR | O_NOCTTY);
}

module.exports = { listConsoles, openConsole };
