// The one result of a request, with a text that a person understands.

/**
 * The result of a run that the SDK has ended.
 * @param {import('@anthropic-ai/claude-agent-sdk').SDKResultMessage} message
 * @param {string | undefined} failure the kind of error that the model's last message has, such as "authentication_failed"
 */
export function resultOf(message, failure) {
  const failed = message.is_error || message.subtype !== 'success';
  if (!failed) return message;
  const subtype = message.subtype === 'success' ? 'error_during_execution' : message.subtype;
  return { ...message, subtype, result: oneLine(explain(message, failure)) };
}

/** The result of a run that failed before, or without, the SDK's own result. */
export function failed(reason) {
  return { type: 'result', subtype: 'error_during_execution', is_error: true, result: oneLine(reason) };
}

function explain(message, failure) {
  const text = message.result || message.errors?.join('; ') || `the agent ended with ${message.subtype}`;
  if (failure === 'authentication_failed') return keyProblem(message.api_error_status, text);
  if (message.stop_reason === 'refusal') return `the model refused: ${text}`;
  if (message.subtype === 'error_max_turns') return `${text}: CLAUDE_MAX_TURNS allows no more`;
  if (/^No conversation found/.test(text)) return `${text}. A session ends with its machine, unless CLAUDE_CONFIG_DIR is in a share`;
  return text;
}

function keyProblem(status, text) {
  if (status) return `the API does not accept the key (${status}: ${text})`;
  return 'there is no API key: give one with --secret ANTHROPIC_API_KEY=FILE, or in the request\'s "env"';
}

function oneLine(text) {
  return text.replace(/\s*\n\s*/g, ' ').trim();
}
