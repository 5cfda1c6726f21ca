// Who decides about the model's tools: the host, for each use.

/** Tools that touch nothing but the conversation, or whose own steps are asked about. */
const HARMLESS = new Set(['Agent', 'Skill', 'Task']);

/**
 * A hook that has the SDK ask about every use of a tool. Without it the SDK asks only about what it takes for dangerous,
 * and never about reading.
 */
export async function questionOfEveryTool({ tool_name: name }) {
  if (HARMLESS.has(name)) return {};
  return { hookSpecificOutput: { hookEventName: 'PreToolUse', permissionDecision: 'ask' } };
}

/**
 * The SDK's callback, which passes the question on to the host.
 * @param {import('./host.js').Host} host
 * @param {{autoApprove: boolean}} request
 * @returns {import('@anthropic-ai/claude-agent-sdk').CanUseTool}
 */
export function canUseTool(host, { autoApprove }) {
  return async (name, input, { signal }) => {
    if (autoApprove) return { behavior: 'allow', updatedInput: input };
    try {
      return decision(name, input, await host.permission(name, input, signal));
    } catch (error) {
      return deny(error.message);
    }
  };
}

function decision(name, input, answer) {
  if (answer.behavior !== 'allow') return deny(answer.message || 'denied');
  const updatedInput = isObject(answer.updatedInput) ? answer.updatedInput : input;
  // A host that allows everything has not answered the question itself.
  if (name === 'AskUserQuestion' && !isObject(updatedInput.answers)) return deny('nobody answered the question');
  return { behavior: 'allow', updatedInput };
}

function deny(message) {
  return { behavior: 'deny', message };
}

function isObject(value) {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
