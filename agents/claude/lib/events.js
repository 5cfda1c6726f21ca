// The SDK's messages as lines of JSON that agentd passes on.

/** Bytes of a line. agentd takes a longer line (1 MiB) for plain output. */
export const MAX_LINE = 1_000_000;
/** Characters that a string of a message which is too long keeps, in the order in which they are tried. */
const KEPT = [100_000, 10_000, 1_000, 100];

/** A message as one line. If it is too long, its longest strings are cut, which says so in their place. */
export function lineOf(message) {
  for (const kept of [Infinity, ...KEPT]) {
    const line = `${JSON.stringify(message, shortened(kept))}\n`;
    if (Buffer.byteLength(line) <= MAX_LINE) return line;
  }
  const { type, subtype, uuid, session_id: sessionId } = message;
  return `${JSON.stringify({ type, subtype, uuid, session_id: sessionId, cut: true })}\n`;
}

function shortened(kept) {
  return (_, value) => {
    if (typeof value !== 'string' || value.length <= kept) return value;
    return `${value.slice(0, kept).toWellFormed()}… (${value.length - kept} characters more)`;
  };
}
