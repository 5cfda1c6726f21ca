'use strict';
// Reads the keys that imgkit uses from a cloud-config, which is written in YAML or JSON; other keys are skipped unread.
// Every style of text is understood. Collections are read only where the caller's shape has them; anchors, aliases, tags
// and flow collections that are not JSON are refused. docs/decisions/0010-reading-nocloud.md says why.
//
//   readConfig('hostname: box\npackages: [a]\n', { hostname: 'text' })
//   // → { values: { hostname: 'box' }, unknown: ['packages'] }

class ConfigError extends Error {}

/** Escapes of double-quoted text, beside those with hexadecimal digits (YAML 1.2, section 5.7). */
const ESCAPES = new Map(Object.entries({ 0: '\0', a: '\x07', b: '\b', t: '\t', '\t': '\t', n: '\n', v: '\v', f: '\f', r: '\r', e: '\x1b', ' ': ' ', '"': '"', '/': '/', '\\': '\\', N: '\x85', _: '\xa0', L: '\u2028', P: '\u2029' })); // prettier-ignore
const ESCAPE = /\\(\n+|x[\da-fA-F]{2}|u[\da-fA-F]{4}|U[\da-fA-F]{8}|[^])|\n+/g;
const KEY = /^(?:"([^"\\]*)"|'([^']*)'|([\w.-]+))[ \t]*:(?:[ \t]+([^]*))?$/;
const DASH = /^-(?:[ \t]|$)/;
const BEHIND_KEY = /^(?:-(?:[ \t]|$)|[\]}])/; // lines that belong to a key although they begin in its column
const NULLS = ['', '~', 'null', 'Null', 'NULL'];

/**
 * Read the keys of `shape` from a configuration.
 * @param {string} text YAML or JSON whose top level is a mapping
 * @param {object} shape key → 'text', a list with one shape for its items, or again a mapping of shapes
 * @returns {{values: object, unknown: string[]}} the values that are there, and the names of the keys that were skipped.
 *   A text is a string, or null when it is empty.
 * @throws {ConfigError} naming the line; a message never contains a value
 */
function readConfig(text, shape) {
  const unknown = new Set();
  const values = readNode({ indent: -1, lines: documentLines(text) }, shape, '', unknown) ?? {};
  return { values, unknown: [...unknown] };
}

/** The lines between "---" and "...", which both may be missing. */
function documentLines(text) {
  const lines = splitLines(text);
  const start = lines.findIndex(hasContent);
  if (start >= 0 && withoutComment(lines[start].text) === '---') lines.splice(0, start + 1);
  const end = lines.findIndex(({ raw }) => withoutComment(raw) === '...');
  if (end < 0) return lines;
  const after = lines.splice(end).slice(1).find(hasContent);
  return after ? refuse(after, 'text goes on after the end of the document') : lines;
}

/** Lines as {raw, indent, text, number}: the whole line, its leading blanks, the line without blanks around it. */
function splitLines(text) {
  const raws = text.split(/\r\n?|\n/);
  if (raws.at(-1) === '') raws.pop(); // what follows the last line's end is no line
  return raws.map((raw, index) => ({ raw, indent: raw.search(/[^ ]|$/), text: trim(raw), number: index + 1 }));
}

/** Without blanks and tabs at both ends. A regular expression takes quadratic time for this, trim() removes more. */
function trim(text) {
  let [start, end] = [0, text.length];
  while (isBlank(text[start])) start += 1;
  while (isBlank(text[end - 1])) end -= 1;
  return text.slice(start, end);
}

function isBlank(character) {
  return character === ' ' || character === '\t';
}

/** The text before a comment: "#" begins one at the start of a text or after a blank. */
function withoutComment(text) {
  for (let at = text.indexOf('#'); at >= 0; at = text.indexOf('#', at + 1)) {
    if (at === 0 || isBlank(text[at - 1])) return trim(text.slice(0, at));
  }
  return text;
}

/** True if a line is neither empty nor a comment. */
function hasContent({ text }) {
  return withoutComment(text) !== '';
}

function refuse(line, reason) {
  throw new ConfigError(`line ${line.number}: ${reason}`);
}

/**
 * Read a node in the given shape. A node has the lines of a value, the first of which may begin behind a key or a dash, and
 * the indentation of that key or dash.
 */
function readNode(node, shape, name, unknown) {
  if (shape === 'text') return readText(node);
  const first = node.lines.find(hasContent);
  if (!first) return null;
  if (/^[[{]/.test(first.text)) return readJson(node.lines.slice(node.lines.indexOf(first)), shape, name, unknown);
  if (Array.isArray(shape)) return splitList(node.lines).map((item) => readNode(item, shape[0], name, unknown));
  return readMapping(splitMapping(node.lines), shape, name, unknown, readNode);
}

/** The values of the pairs whose keys the shape has, each of them read by `read`; the other keys are noted in `unknown`. */
function readMapping(pairs, shape, name, unknown, read) {
  const values = {};
  for (const [key, item] of pairs) {
    const path = name === '' ? key : `${name}.${key}`;
    if (Object.hasOwn(shape, key)) values[key] = read(item, shape[key], path, unknown);
    else unknown.add(path);
  }
  return values;
}

/** Pairs of a key and its node. A list and closing brackets may stand in the column of their key; all else is indented. */
function splitMapping(lines) {
  const pairs = [];
  const { indent } = lines.find(hasContent);
  for (const line of lines) {
    const isDeeper = line.indent > indent || (line.indent === indent && pairs.length > 0 && BEHIND_KEY.test(line.text));
    if (isDeeper || !hasContent(line)) {
      pairs.at(-1)?.[1].lines.push(line);
      continue;
    }
    if (line.indent < indent || line.raw[line.indent] === '\t') refuse(line, 'unexpected indentation');
    const [, double, single, plain, rest = ''] = KEY.exec(line.text) ?? refuse(line, 'not "key: value"');
    pairs.push([double ?? single ?? plain, { indent, lines: [{ ...line, text: rest }] }]);
  }
  return pairs;
}

/** The nodes of a list's items, each of which begins with a dash in the same column. */
function splitList(lines) {
  const items = [];
  const { indent } = lines.find(hasContent);
  for (const line of lines) {
    if (line.indent > indent || !hasContent(line)) {
      items.at(-1)?.lines.push(line);
      continue;
    }
    if (line.indent < indent || line.raw[line.indent] === '\t' || !DASH.test(line.text)) refuse(line, 'not an item of the list');
    const text = trim(line.text.slice(1));
    items.push({ indent, lines: [{ ...line, text, indent: indent + line.text.length - text.length }] });
  }
  return items;
}

/** One text, in whatever style it is written. */
function readText({ indent, lines }) {
  const start = lines.findIndex(hasContent);
  if (start < 0) return null;
  const [first, ...more] = lines.slice(start);
  const tooFarLeft = more.find((line) => hasContent(line) && line.indent <= indent);
  if (tooFarLeft) refuse(tooFarLeft, 'a list or a bracket where text is expected');
  if (/^[|>]/.test(first.text)) return readBlock(first, more, indent);
  if (/^["']/.test(first.text)) return readQuoted(first, more);
  if (/^(?:[,[\]{}&*!%@`]|[-?:](?:[ \t]|$))/.test(first.text)) refuse(first, 'collections, anchors, aliases and tags are not understood here');
  return readPlain([first, ...more]);
}

function readPlain(lines) {
  const texts = [];
  let comment = false;
  for (const line of lines) {
    const text = withoutComment(line.text);
    if (comment && text !== '') refuse(line, 'text goes on after a comment');
    if (/:(?:[ \t]|$)/.test(text)) refuse(line, 'a mapping where text is expected');
    comment ||= text !== line.text;
    texts.push(text);
  }
  const text = fold(withoutNewlines(texts.join('\n')));
  return NULLS.includes(text) ? null : text;
}

/** The end of a line becomes a blank; where empty lines follow, each of them becomes the end of a line instead. */
function fold(text) {
  return text.replace(/\n+/g, (ends) => (ends.length === 1 ? ' ' : '\n'.repeat(ends.length - 1)));
}

function withoutNewlines(text) {
  let end = text.length;
  while (end > 0 && text[end - 1] === '\n') end -= 1;
  return text.slice(0, end);
}

function readQuoted(first, more) {
  const quote = first.text[0];
  const lines = [first, ...more];
  const text = lines.map((line) => line.text).join('\n');
  const end = closingQuote(text, quote);
  const after = text.slice(end + 1);
  if (end === -1 || after.startsWith('#') || !after.split('\n').every((rest) => withoutComment(trim(rest)) === '')) refuse(first, 'the quotes are not closed, or text follows them');
  const inner = text.slice(1, end);
  if (quote === "'") return fold(inner).replaceAll("''", "'");
  const unclear = lines.find((line) => line.text.endsWith('\\') && !line.raw.endsWith('\\'));
  if (unclear) refuse(unclear, 'a backslash before blanks at the end of a line is not understood');
  return inner.replace(ESCAPE, (ends, escape) => (escape === undefined ? fold(ends) : unescape(escape, first)));
}

/** Where a quoted text ends, or -1. In single quotes, two of them stand for one; in double quotes, a backslash escapes. */
function closingQuote(text, quote) {
  for (let at = 1; at < text.length; at += 1) {
    if (text[at] === '\\' && quote === '"') at += 1;
    else if (text[at] === quote && quote === "'" && text[at + 1] === quote) at += 1;
    else if (text[at] === quote) return at;
  }
  return -1;
}

function unescape(escape, line) {
  if (escape[0] === '\n') return escape.slice(1); // an escaped end of line joins two lines, empty ones still count
  const code = parseInt(escape.slice(1), 16); // NaN if the escape is one character
  if (code <= 0x10ffff) return String.fromCodePoint(code);
  return ESCAPES.get(escape) ?? refuse(line, 'an escape in the quotes is not understood');
}

/** A literal (|) or folded (>) block. The digit in its header counts from the column of what it belongs to. */
function readBlock(first, more, parent) {
  const [, style, marks] = /^([|>])([-+]?[1-9]?|[1-9][-+])$/.exec(withoutComment(first.text)) ?? refuse(first, 'not the header of a block of text');
  const digit = /\d/.exec(marks);
  const begin = more.find(({ raw, indent }) => indent < raw.length);
  const base = digit ? parent + Number(digit[0]) : Math.max(begin?.indent ?? 0, parent + 1);
  const lines = blockLines(more, base);
  if (style === '>' && lines.some((line) => isBlank(line[0]))) refuse(first, 'indented lines in folded text are not understood');
  const body = withoutNewlines(lines.join('\n'));
  const text = style === '>' ? foldBlock(body) : body;
  if (marks.includes('+')) return lines.length > 0 ? `${text}${lines.join('\n').slice(body.length)}\n` : '';
  return text === '' || marks.includes('-') ? text : `${text}\n`;
}

/** The lines of a block without their indentation. Only comments may follow it, and they are indented less. */
function blockLines(lines, base) {
  const end = lines.findIndex(({ raw, indent }) => indent < raw.length && indent < base);
  const after = lines.slice(end).find(hasContent);
  if (end >= 0 && after) refuse(after, 'unexpected indentation');
  return lines.slice(0, end < 0 ? lines.length : end).map(({ raw }) => raw.slice(base));
}

/** Empty lines at the start of a block stay as they are. */
function foldBlock(text) {
  const content = text.replace(/^\n+/, '');
  return text.slice(0, text.length - content.length) + fold(content);
}

function readJson(lines, shape, name, unknown) {
  let value;
  try {
    value = JSON.parse(lines.map(({ raw, text }, at) => (at === 0 ? text : raw)).join('\n'));
  } catch {
    refuse(lines[0], 'a flow collection is understood only if it is JSON');
  }
  return pick(value, shape, name, unknown);
}

/** The part of a JSON value that a shape asks for. */
function pick(value, shape, name, unknown) {
  if (value === null) return null;
  if (shape === 'text') return typeof value === 'string' ? value : reject(name, 'a text in quotes');
  if (Array.isArray(shape)) return Array.isArray(value) ? value.map((item) => pick(item, shape[0], name, unknown)) : reject(name, 'a list');
  if (typeof value !== 'object' || Array.isArray(value)) reject(name, 'a mapping');
  return readMapping(Object.entries(value), shape, name, unknown, pick);
}

function reject(name, wanted) {
  throw new ConfigError(`${name === '' ? 'the configuration' : name} must be ${wanted}`);
}

module.exports = { ConfigError, readConfig };
