'use strict';

const assert = require('node:assert/strict');
const { test } = require('node:test');
const { LIMITS, payload } = require('./helpers');
const { OutputSplitter, completeEnd, cutPoint, outputEvent } = payload('output');

/** All events of `bytes`, pushed in pieces of the given sizes (again and again). */
function split(bytes, sizes, events = true, limits = LIMITS) {
  const seen = [];
  const splitter = new OutputSplitter('stdout', events, limits, (event) => seen.push(event));
  for (let at = 0, i = 0; at < bytes.length; i += 1) {
    const size = sizes[i % sizes.length];
    splitter.push(bytes.subarray(at, at + size));
    if (i % 7 === 3) splitter.idle();
    at += size;
  }
  splitter.end();
  return seen;
}

const joined = (events) => Buffer.concat(events.map((event) => Buffer.from(event.data, event.encoding ?? 'utf8')));

/** A small generator of repeatable "random" numbers (mulberry32). */
function random(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let value = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    value = (value + Math.imul(value ^ (value >>> 7), 61 | value)) ^ value;
    return ((value ^ (value >>> 14)) >>> 0) / 4294967296;
  };
}

test('any bytes in any pieces come back whole, in bounded chunks', () => {
  const limits = { ...LIMITS, chunk: 64, jsonLine: 256 };
  for (let seed = 1; seed <= 300; seed += 1) {
    const next = random(seed);
    const pieces = Array.from({ length: 30 }, () => {
      const kind = Math.floor(next() * 5);
      if (kind === 0) return Buffer.from('äöü€😀\n');
      if (kind === 1) return Buffer.from(Array.from({ length: 9 }, () => Math.floor(next() * 256)));
      if (kind === 2) return Buffer.from(`{${'x'.repeat(Math.floor(next() * 400))}`);
      if (kind === 3) return Buffer.from('a line\n\n');
      return Buffer.from('😀'.repeat(Math.floor(next() * 60)));
    });
    const bytes = Buffer.concat(pieces);
    const events = split(bytes, [1 + Math.floor(next() * 50), 1 + Math.floor(next() * 5)], seed % 2 === 0, limits);
    assert.ok(events.every((event) => event.type === 'output'));
    assert.deepEqual(joined(events), bytes, `seed ${seed}`);
    assert.ok(events.every((event) => Buffer.from(event.data, event.encoding ?? 'utf8').length <= limits.chunk));
  }
});

test('text of several bytes a character is never base64, wherever it is cut', () => {
  const text = Buffer.from('€😀ä'.repeat(20_000));
  for (const size of [1, 3, 1000]) assert.ok(split(text.subarray(0, size * 3000 > text.length ? text.length : 9000), [size], false).every((event) => event.encoding === undefined));
});

test('bytes that are not UTF-8 travel as base64', () => {
  const [event] = split(Buffer.from([0xff, 0x00, 0x0a]), [3]);
  assert.deepEqual(event, { type: 'output', stream: 'stdout', encoding: 'base64', data: '/wAK' });
});

test('a line that is a JSON object with a string type is an event, also without a newline at the end', () => {
  const lines = ['plain', '{"type":"a","n":1}', '{"type":1}', '["type"]', '{broken', '{"type":"b"}'];
  const events = split(Buffer.from(lines.join('\n')), [5]);
  assert.deepEqual(events.filter((event) => event.type !== 'output'), [{ type: 'a', n: 1 }, { type: 'b' }]);
  assert.equal(joined(events.filter((event) => event.type === 'output')).toString(), 'plain\n{"type":1}\n["type"]\n{broken\n');
});

test('a command has no events, only output', () => {
  const events = split(Buffer.from('{"type":"module"}\n'), [4], false);
  assert.equal(joined(events).toString(), '{"type":"module"}\n');
});

test('an event longer than the limit is output', () => {
  const line = Buffer.from(`${JSON.stringify({ type: 'x', data: 'y'.repeat(LIMITS.jsonLine) })}\n`);
  const events = split(line, [65536]);
  assert.ok(events.every((event) => event.type === 'output'));
  assert.deepEqual(joined(events), line);
});

test('a question without a newline is shown when the agent falls silent', () => {
  const seen = [];
  const splitter = new OutputSplitter('stdout', true, LIMITS, (event) => seen.push(event));
  splitter.push(Buffer.from('Name? '));
  assert.deepEqual(seen, []);
  splitter.idle();
  assert.equal(seen[0].data, 'Name? ');
});

test('a cut goes back by three bytes at most, and only to the start of a character', () => {
  const bytes = (...values) => Buffer.from(values);
  assert.equal(cutPoint(Buffer.from('aé'), 2), 1);
  assert.equal(cutPoint(Buffer.from('a🎉'), 4), 1);
  assert.equal(cutPoint(Buffer.from('ab'), 2), 2);
  assert.equal(cutPoint(bytes(0x41, 0x41, 0x80, 0x80, 0x80, 0x80), 5), 5, 'no character is that long');
  assert.equal(cutPoint(bytes(0x80, 0x80, 0x80), 2), 2, 'there is no start');
});

/** A splitter and what it has emitted, as text or as events of the agent. */
function splitter(events, limits = { chunk: 8, jsonLine: 16 }) {
  const seen = [];
  const splitting = new OutputSplitter('stderr', events, limits, (event) => seen.push(event.type === 'output' ? event.data : event));
  return { seen, splitting, push: (text) => splitting.push(Buffer.from(text)) };
}

test('what is emitted, and when', () => {
  const cases = [
    // what comes, whether lines can be events, what has been emitted by then
    ['', true, []],
    ['x', true, []],
    ['x\n', true, ['x\n']],
    ['x\ny\nz', true, ['x\ny\n']],
    ['x\ny\nz', false, ['x\ny\n']],
    ['1234567', true, []],
    ['12345678', true, ['12345678']],
    ['12345678', false, ['12345678']],
    ['123456789', false, ['12345678', '9']],
    ['x\n1234567', false, ['x\n']],
    ['{"type":"12345"', true, []],
    ['{"type":"123456', true, []],
    ['{"type":"1234567', true, ['{"type":', '"1234567']],
    ['{"type":"1"}\n', true, [{ type: '1' }]],
    ['{"type":"12345"}\n', true, ['{"type":', '"12345"}', '\n']],
    ['{"type":"1234"}\n', true, [{ type: '1234' }]],
    ['x\n{"type":"1"}\ny\nz\n{"type":"2"}\n', true, ['x\n', { type: '1' }, 'y\nz\n', { type: '2' }]],
    ['{"type":"1"}\n', false, ['{"type":', '"1"}\n']],
    [' {"type":"1"}\n', true, [' {"type"', ':"1"}\n']],
    ['{"type":1}\n', true, ['{"type":', '1}\n']],
    ['[{"type":1}]\n', true, ['[{"type"', ':1}]\n']],
    ['1234567é', false, ['1234567', 'é']],
    ['1234é67', true, ['1234é67']],
  ];
  for (const [text, events, expected] of cases) {
    const { seen, push } = splitter(events);
    push(text);
    assert.deepEqual(seen, expected, JSON.stringify([text, events]));
  }
});

test('a pause shows what is pending, unless it may become an event', () => {
  for (const [text, events, expected] of [['', true, []], ['x', true, ['x']], ['{', true, []], ['{', false, ['{']], ['é'.slice(0, 1), true, ['é']]]) {
    const { seen, splitting, push } = splitter(events);
    push(text);
    splitting.idle();
    assert.deepEqual(seen, expected, text);
    splitting.idle();
    assert.deepEqual(seen, expected, 'once');
  }
  const { seen, splitting, push } = splitter(true);
  splitting.push(Buffer.from([0x61, 0xc3]));
  splitting.idle();
  assert.deepEqual(seen, ['a'], 'half a character waits for its other half');
  splitting.push(Buffer.from([0xa9]));
  splitting.idle();
  assert.deepEqual(seen, ['a', 'é']);
  push('{"type":"1"}\n');
  assert.deepEqual(seen.slice(2), ['{"type":', '"1"}\n'], 'the rest of a line is no event');
  push('{"type":"2"}\n');
  assert.deepEqual(seen.at(-1), { type: '2' }, 'the next line is one');
});

test('the end shows everything, a last line as the event that it may be', () => {
  for (const [text, events, expected] of [
    ['', true, []],
    ['x', true, ['x']],
    ['{"type":"1"}', true, [{ type: '1' }]],
    ['{"type":"1"}', false, ['{"type":', '"1"}']],
    ['{"type":"1"', true, ['{"type":', '"1"']],
  ]) {
    const { seen, splitting, push } = splitter(events);
    push(text);
    splitting.end();
    assert.deepEqual(seen, expected, text);
    splitting.end();
    assert.deepEqual(seen, expected, 'once');
  }
  const { seen, splitting, push } = splitter(true);
  push('12345678');
  push('{"type":1}');
  splitting.end();
  assert.deepEqual(seen, ['12345678', '{"type":', '1}']);
  const late = splitter(true);
  late.push('123456789\n{"type":"1"}');
  late.splitting.end();
  assert.deepEqual(late.seen.at(-1), { type: '1' }, 'a line ended before it');
});

test('an event is named after its stream, and bytes that are no text are base64', () => {
  assert.deepEqual(outputEvent('stderr', Buffer.from('é')), { type: 'output', stream: 'stderr', data: 'é' });
  assert.deepEqual(outputEvent('stdout', Buffer.from([0xff])), { type: 'output', stream: 'stdout', encoding: 'base64', data: '/w==' });
});

test('the end of the last complete character', () => {
  const length = (...bytes) => completeEnd(Buffer.from(bytes));
  const [A, TWO, THREE, FOUR, NEXT] = [0x41, 0xc3, 0xe2, 0xf0, 0x80];
  for (const [expected, ...bytes] of [
    [0], [1, A], [2, A, A], [1, A, TWO], [3, A, TWO, NEXT], [1, A, THREE], [1, A, THREE, NEXT], [4, A, THREE, NEXT, NEXT],
    [1, A, FOUR], [1, A, FOUR, NEXT], [1, A, FOUR, NEXT, NEXT], [5, A, FOUR, NEXT, NEXT, NEXT], [3, A, A, NEXT], [1, TWO], [1, FOUR], [2, THREE, NEXT],
    [1, A, 0xc0], [1, A, 0xe0, NEXT], [2, A, 0xbf], [4, A, 0xef, NEXT, NEXT], [1, A, 0xff],
  ]) assert.equal(length(...bytes), expected, String(bytes)); // prettier-ignore
});
