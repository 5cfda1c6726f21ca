'use strict';

// Whether the machine has come up as far as commands expect, and how long a request waits for that.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { test } = require('node:test');
const { setTimeout: delay } = require('node:timers/promises');
const { FakeMounter, FakeSystem, makeGuest, payload, startHost, until } = require('./helpers');
const { SystemState } = payload('system');

const LO = { lo: [{ address: '127.0.0.1', family: 'IPv4', internal: true }] };
const ETH = { ...LO, eth0: [{ address: '10.0.2.15', family: 'IPv4', internal: false }] };
const ROUTE = 'Iface\tDestination\tGateway\neth0\t00000000\t0202000A\t0003\n';

/** The sources of a machine whose parts come up one after the other. */
function machine(t, { cards = ['lo', 'eth0'], interfaces = 'auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\n' } = {}) {
  const { root } = makeGuest(t);
  const sources = { cards: path.join(root, 'net'), interfaces: path.join(root, 'interfaces'), routes: path.join(root, 'route') };
  for (const card of cards) fs.mkdirSync(path.join(sources.cards, card), { recursive: true });
  fs.writeFileSync(sources.interfaces, interfaces);
  const state = { name: '(none)', addresses: {} };
  return { state, sources: { ...sources, hostname: () => state.name, addresses: () => state.addresses } };
}

test('the parts of a machine that comes up', (t) => {
  const { state, sources } = machine(t);
  const system = new SystemState(0, sources);
  assert.deepEqual(system.read(), { hostname: false, loopback: false, network: false });
  state.name = 'sandbox';
  state.addresses = LO;
  assert.deepEqual(system.read(), { hostname: true, loopback: true, network: false });
  state.addresses = ETH;
  assert.equal(system.read().network, false, 'an address without a route');
  fs.writeFileSync(sources.routes, ROUTE.replace('00000000', '0002000A'));
  assert.equal(system.read().network, false, 'a route to its own network only');
  assert.equal(system.complete, false);
  fs.writeFileSync(sources.routes, ROUTE);
  assert.deepEqual(system.read(), { hostname: true, loopback: true, network: true });
  assert.equal(system.complete, true);
});

test('a network without a default route counts after a while, and a machine may be called localhost', async (t) => {
  const { state, sources } = machine(t);
  Object.assign(state, { name: 'localhost', addresses: ETH });
  const system = new SystemState(0, { ...sources, name: path.join(path.dirname(sources.routes), 'hostname'), routeTimeout: 50 });
  assert.deepEqual(system.read(), { hostname: false, loopback: true, network: false });
  fs.writeFileSync(path.join(path.dirname(sources.routes), 'hostname'), 'localhost\n');
  assert.equal(system.read().hostname, true);
  await until('the network', () => system.read().network, 5000);
});

test('only an address of IPv4 that leads outside is a network', (t) => {
  const { state, sources } = machine(t);
  fs.writeFileSync(sources.routes, ROUTE);
  const system = new SystemState(0, sources);
  for (const [addresses, loopback, network] of [
    [{ eth0: [{ address: 'fe80::1', family: 'IPv6', internal: false }] }, false, false],
    [LO, true, false],
    [{ lo: [{ address: '127.0.0.2', family: 'IPv4', internal: true }] }, false, false],
    [{ eth0: [...ETH.eth0, { address: 'fe80::1', family: 'IPv6', internal: false }] }, false, true],
    [{ eth0: [{ address: 'fe80::1', family: 'IPv6', internal: false }, ...ETH.eth0] }, false, true],
  ]) {
    state.addresses = addresses;
    const { loopback: isLooped, network: isThere } = system.read();
    assert.deepEqual([isLooped, isThere], [loopback, network], JSON.stringify(addresses));
  }
});

test('a name is one that the machine was given', (t) => {
  const { state, sources } = machine(t);
  const name = path.join(path.dirname(sources.routes), 'hostname');
  const isNamed = (host, file) => {
    state.name = host;
    fs.rmSync(name, { force: true });
    if (file !== undefined) fs.writeFileSync(name, file);
    return new SystemState(0, { ...sources, name }).read().hostname;
  };
  for (const host of ['', '(none)', 'localhost']) assert.equal(isNamed(host), false, host);
  assert.deepEqual([isNamed('box'), isNamed('box', 'other\n'), isNamed('localhost', 'localhost\n'), isNamed('localhost', 'box\n')], [true, true, true, false]);
  assert.equal(isNamed('', ''), false);
});

test('a network is expected of the cards that are named in the lines of the configuration', (t) => {
  for (const [interfaces, expected] of [
    ['auto eth0\n', false], ['  auto\teth1 eth0 \n', false], ['auto lo eth0', false], ['#auto eth0\n', null], ['autoeth0\n', null], ['iface eth0 inet dhcp\n', null],
    ['auto lo\n', null], ['auto eth1\n', null], ['auto lo\n\nauto eth0\n', false],
  ]) {
    const { sources } = machine(t, { interfaces });
    assert.equal(new SystemState(0, sources).read().network, expected, interfaces);
  } // prettier-ignore
  const { sources } = machine(t);
  fs.rmSync(sources.interfaces);
  assert.equal(new SystemState(0, sources).read().network, null);
});

test('the time that a network may be without a route counts from its address', (t) => {
  const { state, sources } = machine(t);
  let now = 1000;
  t.mock.method(performance, 'now', () => now);
  const system = new SystemState(0, sources);
  assert.equal(system.read().network, false);
  now += 10_000;
  state.addresses = ETH;
  assert.equal(system.read().network, false);
  now += 2999;
  assert.equal(system.read().network, false);
  now += 1;
  assert.equal(system.read().network, true);
});

test('a machine is waited for until its time is over, and not longer', async (t) => {
  const { sources } = machine(t);
  const system = new SystemState(120, sources);
  const begun = performance.now();
  assert.equal(await system.settled(new AbortController().signal), false);
  assert.ok(performance.now() - begun >= 115);
  const controller = new AbortController();
  const waiting = new SystemState(60_000, sources).settled(controller.signal);
  controller.abort();
  assert.equal(await waiting, false);
});

test('no network is waited for where there is no card, or nothing sets it up', (t) => {
  for (const how of [{ cards: ['lo'] }, { interfaces: 'auto lo\niface lo inet loopback\n' }, { interfaces: '' }]) {
    const { state, sources } = machine(t, how);
    Object.assign(state, { name: 'sandbox', addresses: LO });
    const system = new SystemState(0, sources);
    assert.deepEqual([system.read().network, system.complete], [null, true]);
  }
});

test('the wait ends with the machine complete, with the time over, or with the request cancelled', async (t) => {
  const { state, sources } = machine(t, { cards: ['lo'] });
  const never = new AbortController().signal;
  assert.equal(await new SystemState(0, sources).settled(never), false);
  const waiting = new SystemState(60_000, sources).settled(never);
  Object.assign(state, { name: 'sandbox', addresses: LO });
  assert.equal(await waiting, true);
  state.name = 'localhost';
  assert.equal(await new SystemState(60_000, sources).settled(AbortSignal.abort()), false);
});

test('a request waits for the system unless it says otherwise, and the heartbeat says at once when it is there', async (t) => {
  const system = new FakeSystem();
  system.state = { hostname: true, loopback: true, network: false };
  const config = { times: { ...payload('config').TIMES, poll: 10 } }; // heartbeats every 5 s
  const host = await startHost(t, { system, config });
  const beat = () => JSON.parse(fs.readFileSync(host.ipc('heartbeat'), 'utf8')).system;
  assert.deepEqual(beat(), { hostname: true, loopback: true, network: false });
  host.send('early', { command: ['/bin/echo', 'early'], awaitSystem: false });
  assert.equal((await host.result('early')).subtype, 'success');
  host.send('waits', { command: ['/bin/echo', 'waits'] });
  await until('the request to begin', () => host.events('waits').length === 1);
  await delay(100);
  assert.equal(host.events('waits').length, 1, 'begun, and the agent not started');
  system.state = { ...system.state, network: true };
  assert.equal((await host.result('waits', 4000)).subtype, 'success');
  await until('a heartbeat that says so', () => beat().network === true, 4000);
});

test('a request that waits can be cancelled', async (t) => {
  const system = new FakeSystem();
  system.state = { hostname: false, loopback: false, network: null };
  const host = await startHost(t, { system });
  host.send('c', { command: ['/bin/echo', 'never'] });
  await until('the request to begin', () => host.events('c').length === 1);
  fs.writeFileSync(host.ipc('requests', 'c.cancel'), '');
  assert.equal((await host.result('c')).cancelled, true);
  assert.equal(host.output('c').length, 0);
});

test('no agent runs while links are not protected, however long it takes and whatever the request says', async (t) => {
  const mounter = new FakeMounter();
  const host = await startHost(t, { mounter });
  const setting = (name, value) => fs.writeFileSync(path.join(host.config.kernelSettings, name), value);
  const mounts = { work: { tag: 'work', guestPath: path.join(host.config.workspace, 'project') } };
  const cases = { protected_hardlinks: ['0\n', '', 'x\n', 'a\n', '-1\n'], protected_symlinks: ['0\n'] };
  for (const [name, values] of Object.entries(cases)) {
    for (const [at, value] of values.entries()) {
      setting(name, value);
      for (const awaitSystem of [true, false]) {
        const id = `${name}-${at}-${awaitSystem}`;
        host.send(id, { command: ['/bin/echo', 'ran'], awaitSystem, mounts });
        const result = await host.result(id);
        assert.deepEqual([result.subtype, result.result], ['error', `the kernel's setting fs.${name} is not in force: no agent is run`]);
        assert.equal(host.output(id).length, 0);
      }
      setting(name, '1\n');
    }
  }
  assert.deepEqual(mounter.wanted, [], 'root has not begun to work in the agent\'s folders either');
  host.send('now', { command: ['/bin/echo', 'ran'] });
  assert.equal((await host.result('now')).subtype, 'success');
});

test('a setting that the kernel does not know is not in force', async (t) => {
  const host = await startHost(t);
  fs.rmSync(host.config.kernelSettings, { recursive: true });
  host.send('none', { command: ['/bin/echo', 'ran'], awaitSystem: false });
  assert.match((await host.result('none')).result, /fs\.protected_hardlinks is not in force/);
});
