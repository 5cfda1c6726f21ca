'use strict';
// The config drive's YAML, whatever is in it: a value or a YamlError (JSON's own error for a broken quoted text), in short time.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { test } = require('node:test');

const { Yaml, YamlError, apply } = require('../../overlay/usr/local/lib/imgkit/nocloud');

const SEED = Number(process.env.FUZZ_SEED ?? (process.env.CI ? 1 : Date.now() % 1_000_000));
const SECONDS = Number(process.env.FUZZ_SECONDS ?? 1);
const CORPUS = path.resolve(__dirname, '../../fuzz/corpus/nocloud');

const WHOLE = `#cloud-config
hostname: box-1 # of the machine
ssh_authorized_keys:
  - ssh-ed25519 AAAA user@host
  - "quoted: \\"text\\"" # more
write_files:
- path: /tmp/a
  content: |
    one
      two

    three
  permissions: '0644'
  owner: root:root
- path: /tmp/b
  encoding: b64
  content: >-
    aGVs
    bG8=
`;
const WORDS = ['\n', '  ', '- ', '-\n', ': ', ':\n', '#', ' #', '"', "'", "''", '\\', '|', '>-', '|+\n', '[', '{', '&a', '*a', '!', '---\n', '\t',
  '\r\n', '__proto__: ', 'constructor: ', 'toString:\n', '\u0000', '\u2028', 'ü🎉', 'a'.repeat(500), ' '.repeat(500), '\n'.repeat(500)]; // prettier-ignore

/** mulberry32: small, and the same everywhere. */
function makeRandom(seed) {
  let state = seed >>> 0;
  return (limit) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * limit);
  };
}

function mutated(random) {
  let text = WHOLE;
  for (let times = 1 + random(8); times > 0; times -= 1) {
    const [start, end] = [random(text.length + 1), random(text.length + 1)].sort((a, b) => a - b);
    const piece = [WORDS[random(WORDS.length)], '', text.slice(start, end).repeat(1 + random(4)), String.fromCharCode(random(128))][random(4)];
    text = (text.slice(0, start) + piece + text.slice(random(2) ? start : end)).slice(0, 50_000);
  }
  return text;
}

/** What the text says, or null where it is refused as it should be. */
function parse(text) {
  const started = process.cpuUsage();
  try {
    return new Yaml(text).parse();
  } catch (error) {
    assert.ok(error instanceof YamlError || error instanceof SyntaxError, `seed ${SEED}: ${error.stack}\n${JSON.stringify(text)}`);
    return null;
  } finally {
    const { user } = process.cpuUsage(started);
    assert.ok(user < 2e6, `seed ${SEED}: ${user} µs\n${JSON.stringify(text).slice(0, 500)}`);
    assert.equal({}.polluted, undefined);
  }
}

test('any text is read or refused, in short time', (t) => {
  t.diagnostic(`FUZZ_SEED=${SEED}`);
  const random = makeRandom(SEED);
  const end = Date.now() + SECONDS * 1000;
  let count = 0;
  for (; Date.now() < end; count += 1) parse(mutated(random));
  t.diagnostic(`${count} texts`);
});

test('what was found stays mended', () => {
  for (const name of fs.readdirSync(CORPUS)) parse(fs.readFileSync(path.join(CORPUS, name), 'utf8'));
});

const LARGE = 400_000;
for (const [name, text] of Object.entries({
  'blanks in a value': `a: b${' '.repeat(LARGE)}c`,
  'blanks in a quoted value': `a: "b${' '.repeat(LARGE)}c"`,
  'blanks in a value in single quotes': `a: 'b'${' '.repeat(LARGE)}c`,
  'signs of comments': `a: b${'#'.repeat(LARGE)} c`,
  'comments that are none': `a: "${' #'.repeat(LARGE / 2)}`,
  'newlines in a block': `a: |-\n  b${'\n'.repeat(LARGE)}  c`,
  'many keys': 'a: b\n'.repeat(LARGE / 5),
  'many items': '- a\n'.repeat(LARGE / 4),
})) {
  test(`linear time: ${name}`, () => {
    assert.notEqual(parse(text), undefined);
  });
}

test('deep texts are refused', () => {
  const deep = Array.from({ length: 5000 }, (_, level) => `${' '.repeat(level)}a:\n`).join('');
  assert.throws(() => new Yaml(deep).parse(), /line 51: more than 50 levels/);
});

test('no key means anything to the language', () => {
  const value = new Yaml('__proto__:\n  polluted: yes\nconstructor: x\n').parse();
  assert.deepEqual(Object.keys(value), ['__proto__', 'constructor']);
  assert.equal(value.polluted, undefined);
});

test('comments end values as before', () => {
  assert.deepEqual(new Yaml('a: b # c # d\nb: "x # y" # z\nc: \'it\'\'s #1\' # z\nd: x#y\ne: "" # z\n').parse(), {
    a: 'b', b: 'x # y', c: "it's #1", d: 'x#y', e: '',
  }); // prettier-ignore
});

test('a drive that is too large, or no drive, is refused', (t) => {
  const drive = fs.mkdtempSync(path.join(os.tmpdir(), 'imgkit-nocloud-'));
  t.after(() => fs.rmSync(drive, { recursive: true }));
  fs.writeFileSync(path.join(drive, 'meta-data'), 'local-hostname: x\n');
  fs.writeFileSync(path.join(drive, 'user-data'), '');
  fs.truncateSync(path.join(drive, 'user-data'), (16 << 20) + 1);
  assert.throws(() => apply(drive, drive, drive), /user-data: more than 16 MiB/);
  fs.rmSync(path.join(drive, 'user-data'));
  fs.mkdirSync(path.join(drive, 'user-data'));
  assert.throws(() => apply(drive, drive, drive), /no regular file/);
});
