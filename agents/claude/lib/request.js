// What an agent is asked to do: the request as agentd tells it, or what its environment and standard input say.

import { NoHostError } from './host.js';

/**
 * Read the request.
 *
 * agentd's socket has all of it. An agentd that does not tell it, or none (in a container), leaves the prompt on standard
 * input and a part of the rest in the environment.
 *
 * @param {import('./host.js').Host} host
 * @param {NodeJS.ProcessEnv} env
 * @param {AsyncIterable<Buffer>} input
 * @returns {Promise<{prompt: string, systemPrompt?: string, images: {mimeType: string, data: string}[], sessionId?: string,
 *   autoApprove: boolean, confirmationMode: string}>}
 */
export async function readRequest(host, env, input) {
  const told = await host.request().catch(unlessAway);
  if (told) return complete(told);
  return complete({
    prompt: await text(input),
    systemPrompt: env.AGENT_SYSTEM_PROMPT,
    autoApprove: env.AGENT_AUTO_APPROVE === '1',
    confirmationMode: env.AGENT_CONFIRMATION_MODE,
  });
}

function unlessAway(error) {
  if (error instanceof NoHostError) return undefined;
  throw error;
}

function complete(told) {
  return {
    prompt: typeof told.prompt === 'string' ? told.prompt : '',
    systemPrompt: told.systemPrompt || undefined,
    images: Array.isArray(told.imageAttachments) ? told.imageAttachments.filter(isImage).map(image) : [],
    sessionId: typeof told.sessionId === 'string' && told.sessionId ? told.sessionId : undefined,
    autoApprove: told.autoApprove === true,
    confirmationMode: told.confirmationMode === 'text' ? 'text' : 'modal',
  };
}

function isImage(attachment) {
  return typeof attachment?.mimeType === 'string' && typeof attachment.base64Data === 'string';
}

/** An attachment as the application sends it: {name, mimeType, base64Data}. The model is not told its name. */
function image({ mimeType, base64Data }) {
  return { mimeType, data: base64Data };
}

async function text(input) {
  const chunks = [];
  for await (const chunk of input) chunks.push(chunk);
  return Buffer.concat(chunks).toString('utf8');
}
