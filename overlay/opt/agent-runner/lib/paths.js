'use strict';

const fs = require('node:fs');
const path = require('node:path');

/** A valid id of a request or a transfer, which becomes part of a file name. */
const ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;

/** True if `text` can be used as an id. */
function isId(text) {
  return typeof text === 'string' && ID.test(text);
}

/** True if the absolute path `inner` is `base` or below it. The paths are compared as text; links are not resolved. */
function isInside(base, inner) {
  const relative = path.relative(path.resolve(base), path.resolve(inner));
  return relative === '' || (relative !== '..' && !relative.startsWith('../') && !path.isAbsolute(relative));
}

/** Join `base` and the relative path `name`. Returns undefined if `name` is absolute, empty, or leaves `base`. */
function joinInside(base, name) {
  if (typeof name !== 'string' || name === '' || name.includes('\0') || path.isAbsolute(name)) return undefined;
  if (name.split('/').includes('..')) return undefined;
  const joined = path.resolve(base, name);
  return isInside(base, joined) && joined !== path.resolve(base) ? joined : undefined;
}

/** The first symbolic link among the components of `target`, or undefined. The search ends at a missing component. */
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
