'use strict';

const fs = require('node:fs');
const path = require('node:path');

/** What may be a request's or an answer's id: it becomes part of a file name. */
const ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;

/** True when `text` can be used as an id. */
function isId(text) {
  return typeof text === 'string' && ID.test(text);
}

/** True when the absolute path `inner` is `base` or below it; both are compared as text, without links. */
function isInside(base, inner) {
  const relative = path.relative(path.resolve(base), path.resolve(inner));
  return relative === '' || (relative !== '..' && !relative.startsWith('../') && !path.isAbsolute(relative));
}

/** The relative path `name` below `base`, or undefined when it is absolute, empty, or leaves `base`. */
function joinInside(base, name) {
  if (typeof name !== 'string' || name === '' || name.includes('\0') || path.isAbsolute(name)) return undefined;
  if (name.split('/').includes('..')) return undefined;
  const joined = path.resolve(base, name);
  return isInside(base, joined) && joined !== path.resolve(base) ? joined : undefined;
}

/** The first symbolic link among the components of `target`, or undefined; missing components end the walk. */
function findLink(target) {
  let current = '/';
  for (const part of path.resolve(target).split('/').filter(Boolean)) {
    current = path.join(current, part);
    const stat = fs.lstatSync(current, { throwIfNoEntry: false });
    if (!stat) return undefined;
    if (stat.isSymbolicLink()) return current;
  }
  return undefined;
}

module.exports = { findLink, isId, isInside, joinInside };
