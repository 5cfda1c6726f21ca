// Lists where the statements and the branches of JavaScript files begin: {path: {statements, branches}}, as offsets in
// characters. The parser is the one inside of Node itself: run with --expose-internals.
'use strict';
const fs = require('fs');
const acorn = require('internal/deps/acorn/acorn/dist/acorn');

const BRANCHES = {
  IfStatement: (node) => [node.consequent, node.alternate],
  ConditionalExpression: (node) => [node.consequent, node.alternate],
  LogicalExpression: (node) => [node.right],
};

function positions(path) {
  const statements = [];
  const branches = [];
  const walk = (node) => {
    if (/(Statement|Declaration)$/.test(node.type) && !/^(Block|Empty|Function|Class)/.test(node.type)) statements.push(node.start);
    if (BRANCHES[node.type]) branches.push(...BRANCHES[node.type](node).filter(Boolean).map((arm) => arm.start));
    Object.values(node).flat().filter((value) => value && typeof value.type === 'string').forEach(walk);
  };
  const options = { ecmaVersion: 'latest', sourceType: 'script', allowHashBang: true, allowReturnOutsideFunction: true };
  walk(acorn.parse(fs.readFileSync(path, 'utf8'), options));
  return { statements, branches };
}

const listed = Object.fromEntries(process.argv.slice(2).map((path) => [path, positions(path)]));
process.stdout.write(JSON.stringify(listed));
