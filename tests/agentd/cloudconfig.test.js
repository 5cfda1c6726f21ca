'use strict';
// What the reader of cloud-configs makes of every style of text, of what hosts send, and of what it must refuse.
// tests/test_cloudconfig.py compares it with a whole YAML library.

const assert = require('node:assert/strict');
const path = require('node:path');
const { test } = require('node:test');
const { PAYLOAD } = require('./helpers');
const { ConfigError, readConfig } = require(path.resolve(PAYLOAD, '../../usr/local/lib/imgkit/cloudconfig.js'));

const SHAPE = { a: 'text', b: 'text', list: ['text'], files: [{ path: 'text', content: 'text' }] };
const read = (text) => readConfig(text, SHAPE).values;

const TEXTS = {
  // Plain text, and what ends it.
  'a: b # c # d': 'b',
  'a: x#y': 'x#y',
  'a: -x': '-x',
  'a: ?x': '?x',
  'a: :x': ':x',
  'a: b:c': 'b:c',
  'a:   b \t ': 'b',
  'a:\tb': 'b',
  'a : b': 'b',
  'a: it\'s "so"': 'it\'s "so"',
  'a: \u00a0x\u00a0': '\u00a0x\u00a0',
  'a: x\n  y\n\n\n   z\n': 'x y\n\nz',
  'a: x\n  # comment\n': 'x',
  'a: # comment\n  x\n': 'x',
  'a:\n\n  x\n': 'x',
  'a:': null,
  'a: ~': null,
  'a: null': null,
  'a: Null': null,
  'a: NULL': null,
  'a: nUll': 'nUll',
  'a: true': 'true',
  'a: 0644': '0644',
  // Quotes.
  'a: ""': '',
  "a: ''": '',
  'a: "x # y" # z': 'x # y',
  "a: 'it''s #1' # z": "it's #1",
  "a: ''''": "'",
  "a: 'a\\'": 'a\\',
  'a: "a\\"b\\\\"': 'a"b\\',
  'a: "x"\n# c\n\n  # d\n': 'x',
  'a: "x\n  y\n\n  z "': 'x y\nz ',
  "a: 'x\n  y\n\n\n  z'": 'x y\n\nz',
  'a: "x\n  # y"': 'x # y',
  'a: "x\\\n  y\\\n\n  z"': 'xy\nz',
  'a: "x\\\n  \\ y"': 'x y',
  'a:\n  "x"': 'x',
  'a: "\\0\\a\\b\\t\\n\\v\\f\\r\\e\\ \\"\\/\\\\\\N\\_\\L\\P\\\t"': '\0\x07\b\t\n\v\f\r\x1b "/\\\x85\xa0\u2028\u2029\t',
  'a: "\\x41\\u00FC\\U0001f389\\ud83c\\udf89"': 'A\u00fc🎉🎉',
  'a: "\\U0010ffff"': '\u{10ffff}',
  // Blocks.
  'a: |\n  x\n    y\n\n  z\n\n\n': 'x\n  y\n\nz\n',
  'a: |-\n  x\n\n': 'x',
  'a: |+\n  x\n\n\n': 'x\n\n\n',
  'a: |+\n\nb: y\n': '\n',
  'a: |+\nb: y\n': '',
  'a: |\n': '',
  'a: |\nb: y': '',
  'a: |\n\n\nb: y': '',
  'a: |\n# comment\nb: y': '',
  'a: | # comment\n  x\n': 'x\n',
  'a: |\n\n  x\n': '\nx\n',
  'a: |\n  # x\n  y\n': '# x\ny\n',
  'a: |\n  - x\n': '- x\n',
  'a: |\n  x \n     \n': 'x \n   \n',
  'a: |\n  x\n # less\n# least\n': 'x\n',
  'a: |2\n    x\n': '  x\n',
  'a: |2-\n   x\n': ' x',
  'a: |-2\n   x\n': ' x',
  'a: |9\n         x\n': 'x\n',
  'a: >\n  x\n  y\n\n  z\n': 'x y\nz\n',
  'a: >-\n  x\n  y\n\n\n': 'x y',
  'a: >+\n  x\n  y\n\n': 'x y\n\n',
  'a: >\n\n  x\n  y\n': '\nx y\n',
  'a: |\r\n  x\r\n  y\r\n': 'x\ny\n',
};

for (const [text, expected] of Object.entries(TEXTS)) {
  test(`text: ${JSON.stringify(text)}`, () => assert.equal(read(text).a, expected));
}

const REFUSED = {
  'a: "': [1, 'the quotes are not closed'],
  'a: "x': [1, 'the quotes are not closed'],
  'a: "x\\"': [1, 'the quotes are not closed'],
  "a: '": [1, 'the quotes are not closed'],
  "a: 'x''": [1, 'the quotes are not closed'],
  'a: "x" y': [1, 'or text follows them'],
  'a: "x"#y': [1, 'or text follows them'],
  'a: "x" # c\n  y': [1, 'or text follows them'],
  'a: "\\q"': [1, 'an escape in the quotes'],
  'a: "\\x4"': [1, 'an escape in the quotes'],
  'a: "\\U00110000"': [1, 'an escape in the quotes'],
  'a: "x\n  y\\ \n  z"': [2, 'a backslash before blanks'],
  'a: [x]': [1, 'collections, anchors, aliases and tags'],
  'a: {b: c}': [1, 'collections, anchors, aliases and tags'],
  'a: &x y': [1, 'collections, anchors, aliases and tags'],
  'a: *x': [1, 'collections, anchors, aliases and tags'],
  'a: !!str x': [1, 'collections, anchors, aliases and tags'],
  'a: %x': [1, 'collections, anchors, aliases and tags'],
  'a: @x': [1, 'collections, anchors, aliases and tags'],
  'a: `x': [1, 'collections, anchors, aliases and tags'],
  'a: ,': [1, 'collections, anchors, aliases and tags'],
  'a: ]': [1, 'collections, anchors, aliases and tags'],
  'a: }': [1, 'collections, anchors, aliases and tags'],
  'a: - x': [1, 'collections, anchors, aliases and tags'],
  'a: -': [1, 'collections, anchors, aliases and tags'],
  'a: ? x': [1, 'collections, anchors, aliases and tags'],
  'a: b: c': [1, 'a mapping where text is expected'],
  'a: b:': [1, 'a mapping where text is expected'],
  'a: x\n  b: c': [2, 'a mapping where text is expected'],
  'a: x\n- y': [2, 'a list or a bracket where text is expected'],
  'a:\n- y': [2, 'collections, anchors, aliases and tags'],
  'a: "x\n- y"': [2, 'a list or a bracket where text is expected'],
  'a: x # c\n  y': [2, 'text goes on after a comment'],
  'a: |x\n  y': [1, 'not the header of a block'],
  'a: |0\n  y': [1, 'not the header of a block'],
  'a: |22\n  y': [1, 'not the header of a block'],
  'a: |--\n  y': [1, 'not the header of a block'],
  'a: >\n  x\n    y\n': [1, 'indented lines in folded text'],
  'a: |\n    x\n  y\n': [3, 'unexpected indentation'],
  'a: |\n    x\n # c\n    y\n': [4, 'unexpected indentation'],
  'a: |3\n  x\n': [2, 'unexpected indentation'],
  '  a: x\n b: y': [2, 'unexpected indentation'],
  'a: x\n\tb: y\n': [2, 'unexpected indentation'],
  'no colon': [1, 'not "key: value"'],
  'a:b': [1, 'not "key: value"'],
  'a b: c': [1, 'not "key: value"'],
  '- a: b': [1, 'not "key: value"'],
  '---\na: b\n---\na: c': [3, 'not "key: value"'],
  'a: b\n...\nb: c': [3, 'text goes on after the end of the document'],
  'list: x': [1, 'not an item of the list'],
  'list:\n  x: y': [2, 'not an item of the list'],
  'list:\n  - x\n  y: z': [3, 'not an item of the list'],
  'list:\n    - x\n  - y': [3, 'not an item of the list'],
  'list:\n- x\n\t- y': [3, 'not an item of the list'],
  'a: x\n]': [2, 'a list or a bracket where text is expected'],
  ']\na: x': [1, 'not "key: value"'],
  'list:\n  -x': [2, 'not an item of the list'],
  'list:\n  - a: b': [2, 'a mapping where text is expected'],
  'list: [x, y]': [1, 'a flow collection is understood only if it is JSON'],
  'files:\n  - path: x\n    - y': [3, 'a list or a bracket where text is expected'],
  'files:\n  -   path: x\n    content: y': [3, 'unexpected indentation'],
  'files:\n  - x': [2, 'not "key: value"'],
  '{"a": "b"': [1, 'a flow collection is understood only if it is JSON'],
  '{"a": "b"}\nc: d': [1, 'a flow collection is understood only if it is JSON'],
};

for (const [text, [line, reason]] of Object.entries(REFUSED)) {
  test(`refused: ${JSON.stringify(text)}`, () => {
    assert.throws(
      () => read(text),
      (error) => error instanceof ConfigError && error.message.startsWith(`line ${line}: `) && error.message.includes(reason),
    );
  });
}

test('JSON must have the shape', () => {
  const cases = {
    '["x"]': 'the configuration must be a mapping',
    '{"a": 1}': 'a must be a text in quotes',
    '{"a": ["x"]}': 'a must be a text in quotes',
    '{"list": "x"}': 'list must be a list',
    '{"list": {"a": "b"}}': 'list must be a list',
    '{"files": ["x"]}': 'files must be a mapping',
    '{"files": [["x"]]}': 'files must be a mapping',
    '{"files": [{"path": true}]}': 'files.path must be a text in quotes',
  };
  for (const [text, message] of Object.entries(cases)) assert.throws(() => read(text), { message });
  for (const text of ['files: ["x"]', 'files:\n- ["x"]']) assert.throws(() => read(text), { message: 'files must be a mapping' });
});

test('JSON is read as a whole, and in the place of a list', () => {
  const value = { a: 'x', b: null, list: ['y', null], files: [{ path: '/p', content: 'l1\nl2' }] };
  for (const text of [JSON.stringify(value), `# c\n\n  ${JSON.stringify(value, null, 2)}\n`, `---\n${JSON.stringify(value)}`]) assert.deepEqual(read(text), value);
  assert.deepEqual(read('list: ["x", "y # z"]\nfiles: [{"path": "/p"}]\n'), { list: ['x', 'y # z'], files: [{ path: '/p' }] });
  assert.deepEqual(read('list:\n  [\n    "x"\n  ]\nfiles:\n- {"path": "/p"}\n'), { list: ['x'], files: [{ path: '/p' }] });
  assert.deepEqual(read('list: [\n  "x"\n]\na: y\n'), { list: ['x'], a: 'y' });
  assert.deepEqual(read('list: []\n'), { list: [] });
});

test('lists may be indented or not, and their items as well', () => {
  const expected = { list: ['x y', 'z', null, 'l\n'], files: [{ path: '/p', content: 'l\n' }, { content: '  l', path: '/q' }], a: 'end' };
  const indented = 'list:\n  - x\n    y\n\n  - "z"\n  # c\n  -\n  - |\n    l\nfiles:\n  - path: /p\n    content: |\n      l\n  -\n    content: |2-\n        l\n    path: /q\na: end\n';
  const flush = 'list:\n- x\n  y\n- z\n-\n- |\n l\nfiles:\n-   path: /p\n    content: |\n     l\n- content: |2-\n      l\n  path: /q\na: end\n';
  assert.deepEqual(read(indented), expected);
  assert.deepEqual(read(flush), expected);
  assert.deepEqual(read('list:\nfiles: # none\n'), { list: null, files: null });
  assert.deepEqual(read('files:\n-\n- path: x\n'), { files: [null, { path: 'x' }] });
});

test('what is not asked for is skipped unread, and named once', () => {
  const text = `# c
"password": secret
chpasswd: { expire: False }
users: [default, {name: x, sudo: ["ALL=(ALL) NOPASSWD:ALL"]}]
runcmd:
- [ sh, -c, 'echo a: b' ]
- &anchor !tag >weird
    text
a: x
files:
- path: /p
  append: true
- path: /q
  append: [
    a
  ]
growpart:
  mode: auto
  a: inner
'b': y
a: z # the last one counts
`;
  assert.deepEqual(readConfig(text, SHAPE), {
    values: { a: 'z', b: 'y', files: [{ path: '/p' }, { path: '/q' }] },
    unknown: ['password', 'chpasswd', 'users', 'runcmd', 'files.append', 'growpart'],
  });
  assert.deepEqual(readConfig('{"x": 1, "files": [{"y": 2, "path": "/p"}]}', SHAPE), { values: { files: [{ path: '/p' }] }, unknown: ['x', 'files.y'] });
});

test('no key means anything to the language', () => {
  for (const text of ['__proto__:\n  a: x\nconstructor: x\ntoString: y\n', '{"__proto__": {"a": "x"}, "constructor": 1, "toString": 2}']) {
    const { values, unknown } = readConfig(text, SHAPE);
    assert.deepEqual([Object.keys(values), unknown], [[], ['__proto__', 'constructor', 'toString']]);
    assert.equal(values.a, undefined);
  }
});

test('markers, comments and nothing at all', () => {
  for (const text of ['', '\n\n', '# c\n', '---\n', '--- # c\n# d', '...\n', '---\n...']) assert.deepEqual(readConfig(text, SHAPE), { values: {}, unknown: [] }, text);
  assert.deepEqual(read('\n# c\n---\n  a: x\n\n  b: y\n...\n# c\n'), { a: 'x', b: 'y' });
});
