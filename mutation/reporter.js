'use strict';
// Ends the process with the first test that fails, and says which one that is.

const { writeSync } = require('node:fs');
const path = require('node:path');

module.exports = async function* reporter(source) {
  for await (const { type, data } of source) {
    if (type === 'test:diagnostic' && /^(?:Warning|Error): /.test(data.message)) writeSync(1, `${data.message}\n`); // it fails the file
    if (type !== 'test:fail') continue;
    writeSync(1, `FAILED ${path.relative('', data.file)}::${data.name}\n`);
    process.exit(1);
  }
};
