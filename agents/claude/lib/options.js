// The SDK's options for a request.

import { instructionsOf } from './instructions.js';
import { canUseTool, questionOfEveryTool } from './permission.js';

/**
 * The tools that the model has. Those that outlive a request are missing: a request ends with its answer, and the machine
 * often with it. Glob and Grep are there only if they are named.
 */
const TOOLS = ['Agent', 'Bash', 'Edit', 'Glob', 'Grep', 'NotebookEdit', 'Read', 'Skill', 'WebFetch', 'WebSearch', 'Write'];
const QUESTION = 'AskUserQuestion';

/** Settings of the program that the SDK starts. Those of the request and of the machine beat them. */
const SETTINGS = {
  CLAUDE_AGENT_SDK_CLIENT_APP: 'imgkit',
  CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: '1', // no telemetry, no error reports, no updates
};
/** Secrets that often come from a file with a newline at its end. */
const KEYS = ['ANTHROPIC_API_KEY', 'ANTHROPIC_AUTH_TOKEN', 'CLAUDE_CODE_OAUTH_TOKEN'];

/**
 * The SDK's options.
 * @param {Awaited<ReturnType<import('./request.js').readRequest>>} request
 * @param {{host: import('./host.js').Host, env: NodeJS.ProcessEnv, cwd: string, abortController: AbortController, log: Function}} place
 * @returns {import('@anthropic-ai/claude-agent-sdk').Options}
 * @throws {RangeError} if CLAUDE_MAX_TURNS is not a positive integer
 */
export function optionsOf(request, { host, env, cwd, abortController, log }) {
  return {
    cwd,
    abortController,
    stderr: log,
    env: environment(env),
    ...given('resume', request.sessionId),
    ...given('maxTurns', maxTurns(env.CLAUDE_MAX_TURNS)),
    systemPrompt: systemPrompt(request.systemPrompt, instructionsOf(cwd)),
    includePartialMessages: true,
    tools: canAnswer(request) ? [...TOOLS, QUESTION] : TOOLS,
    permissionMode: 'default',
    canUseTool: canUseTool(host, request),
    hooks: request.autoApprove ? {} : { PreToolUse: [{ hooks: [questionOfEveryTool] }] },
    // No settings of the folder count, nor what an earlier request has left in the agent's home: they could run programs
    // without a question, and send the key elsewhere.
    settingSources: [],
    strictMcpConfig: true,
  };
}

/** That of the request, or Claude Code's own, and what the folder says. */
function systemPrompt(given, instructions) {
  if (given !== undefined) return instructions === undefined ? given : `${given}\n\n${instructions}`;
  return { type: 'preset', preset: 'claude_code', ...(instructions === undefined ? {} : { append: instructions }) };
}

/** Whether there may be somebody who answers a question of the model: text mode asks in the answer's own text. */
function canAnswer({ autoApprove, confirmationMode }) {
  return !autoApprove && confirmationMode === 'modal';
}

function given(name, value) {
  return value === undefined ? {} : { [name]: value };
}

function maxTurns(text) {
  if (!text) return undefined;
  const turns = Number(text);
  if (!Number.isInteger(turns) || turns < 1) throw new RangeError(`CLAUDE_MAX_TURNS is ${text}, not a number of turns`);
  return turns;
}

/** The environment of the program that the SDK starts. What only the adapter needs stays here. */
function environment(env) {
  const kept = Object.entries(env).filter(([name]) => !name.startsWith('AGENT_'));
  const trimmed = kept.map(([name, value]) => [name, KEYS.includes(name) ? value.trim() : value]);
  return { ...SETTINGS, ...Object.fromEntries(trimmed) };
}

/**
 * The prompt as the one message of a stream, which can have images.
 * @param {{prompt: string, images: {mimeType: string, data: string}[]}} request
 * @returns {AsyncGenerator<import('@anthropic-ai/claude-agent-sdk').SDKUserMessage>}
 */
export async function* promptOf({ prompt, images }) {
  const text = prompt === '' ? [] : [{ type: 'text', text: prompt }];
  const shown = images.map(({ mimeType, data }) => ({ type: 'image', source: { type: 'base64', media_type: mimeType, data } }));
  yield { type: 'user', message: { role: 'user', content: [...text, ...shown] }, parent_tool_use_id: null, session_id: '' };
}
