import { ERRORS, KiteError, type ErrorCode } from '../errors.js';

/** Asks a node's admin server, with the token of KITEFS_HTTP_TOKEN; rejects with ERR_CLI_UNREACHABLE, or with the error that the node answered. */
export async function callNode(url: string, path: string, init?: RequestInit): Promise<Response> {
  if (!URL.canParse(url)) throw new KiteError('ERR_CLI_USAGE', `-url: ${JSON.stringify(url)} is no URL`);
  let response: Response;
  try {
    const token = process.env['KITEFS_HTTP_TOKEN'];
    const headers = new Headers(init?.headers);
    if (token) headers.set('authorization', `Bearer ${token}`);
    response = await fetch(new URL(path, url), { ...init, headers });
  } catch (error) {
    const cause =
      error instanceof Error && error.cause instanceof Error ? error.cause.message : String(error);
    throw new KiteError('ERR_CLI_UNREACHABLE', `no answer from ${url} (${cause})`, { cause: error });
  }
  if (!response.ok) throw await errorOf(response, url);
  return response;
}

async function errorOf(response: Response, url: string): Promise<KiteError> {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text) as { error: { code: string; message: string } };
    if (Object.hasOwn(ERRORS, error.code)) return new KiteError(error.code as ErrorCode, error.message);
  } catch {
    // Not one of our answers: something else listens there.
  }
  return new KiteError('ERR_CLI_UNREACHABLE', `${url} answered ${response.status}, not as a node does`);
}
