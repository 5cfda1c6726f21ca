// Lists changes to the JavaScript files named on the command line, one JSON array for all, on standard output.
// The parser is the one inside of Node itself: run with --expose-internals.
'use strict';
const fs = require('fs');
const acorn = require('internal/deps/acorn/acorn/dist/acorn');

const COMPARISONS = { '<': '<=', '<=': '<', '>': '>=', '>=': '>', '===': '!==', '!==': '===', '==': '!=', '!=': '==' };
const ARITHMETIC = { '+': '-', '-': '+', '*': '/', '&': '|', '|': '&' };
const LEAVES = ['ReturnStatement', 'ThrowStatement', 'ContinueStatement', 'BreakStatement'];

function children(node) {
  return Object.values(node).flat().filter((value) => value && typeof value.type === 'string');
}

function isText(node) {
  return node.type === 'TemplateLiteral' || (node.type === 'Literal' && typeof node.value === 'string')
    || (node.type === 'BinaryExpression' && (isText(node.left) || isText(node.right)));
}

const RULES = {
  BinaryExpression(node, put, text) {
    const between = text.slice(node.left.end, node.right.start);
    if (COMPARISONS[node.operator]) {
      put(node.left.end, node.right.start, between.replace(node.operator, COMPARISONS[node.operator]), 'comparison');
    } else if (ARITHMETIC[node.operator] && !isText(node)) {
      put(node.left.end, node.right.start, between.replace(node.operator, ARITHMETIC[node.operator]), 'arithmetic');
    }
  },
  LogicalExpression(node, put, text) {
    if (node.operator === '??') return;
    const between = text.slice(node.left.end, node.right.start);
    put(node.left.end, node.right.start, between.replace(node.operator, node.operator === '&&' ? '||' : '&&'), 'condition');
  },
  UnaryExpression(node, put) {
    if (node.operator === '!') put(node.start, node.argument.start, '', 'condition');
  },
  ConditionalExpression(node, put, text) {
    put(node.test.start, node.test.end, `!(${text.slice(node.test.start, node.test.end)})`, 'condition');
  },
  IfStatement(node, put, text) {
    const last = node.consequent.type === 'BlockStatement' ? node.consequent.body.at(-1) : node.consequent;
    const guard = last && LEAVES.includes(last.type);
    const test = text.slice(node.test.start, node.test.end);
    put(node.test.start, node.test.end, guard ? 'false' : `!(${test})`, guard ? 'guard' : 'condition');
  },
  Literal(node, put) {
    if (typeof node.value === 'boolean') put(node.start, node.end, String(!node.value), 'constant');
    else if (typeof node.value === 'number') put(node.start, node.end, String(node.value + 1), 'constant');
  },
  ExpressionStatement(node, put, text) {
    const call = node.expression.type === 'AwaitExpression' ? node.expression.argument : node.expression;
    if (call.type === 'CallExpression' && !/^(log|console)\b/.test(text.slice(call.start, call.end))) {
      put(node.start, node.end, ';', 'statement');
    } else if (call.type === 'AssignmentExpression' && !/^(module\.)?exports\b/.test(text.slice(call.start, call.end))) {
      put(node.start, node.end, ';', 'statement');
    }
  },
  ThrowStatement(node, put) {
    put(node.start, node.end, ';', 'throw');
  },
  ReturnStatement(node, put) {
    const isNothing = !node.argument || node.argument.name === 'undefined' || node.argument.value === false; // false is made true
    if (!isNothing) put(node.start, node.end, 'return;', 'result');
  },
};

function changesOf(path) {
  const text = fs.readFileSync(path, 'utf8');
  const found = [];
  const at = (index) => Buffer.byteLength(text.slice(0, index));
  const walk = (node) => {
    const put = (start, end, replacement, kind) => {
      const line = text.slice(0, start).split('\n').length;
      found.push({ path, line, start: at(start), end: at(end), text: replacement, kind });
    };
    if (RULES[node.type]) RULES[node.type](node, put, text);
    children(node).forEach(walk);
  };
  walk(acorn.parse(text, { ecmaVersion: 'latest', sourceType: 'script', allowHashBang: true, allowReturnOutsideFunction: true }));
  return found;
}

process.stdout.write(JSON.stringify(process.argv.slice(2).flatMap(changesOf)));
