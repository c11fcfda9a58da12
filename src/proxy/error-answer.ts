import { STATUS_CODES } from 'node:http';
import type { Duplex } from 'node:stream';
import type { KiteError } from '../errors.js';
import type { ProxyAnswer, ProxyRequest } from './inbound.js';
import type { ProxySettings } from './settings.js';

/** The proxy's own answers: what went wrong, in the form of the admin API; a 503 may be the page of `proxy.maintenance-page`. */
export function sendError(
  request: Pick<ProxyRequest, 'method' | 'complete'>,
  response: ProxyAnswer,
  error: KiteError,
  settings: Pick<ProxySettings, 'maintenancePage'>,
): void {
  if (response.headersSent) {
    response.destroy();
    return;
  }
  const { headers, body } = errorAnswer(error, settings);
  // The rest of a body that nobody wants is not read, and what comes after a doubtful head is not believed.
  if (!request.complete || error.code === 'ERR_PROXY_REQUEST') response.shouldKeepAlive = false;
  response.writeHead(error.row.http, STATUS_CODES[error.row.http] ?? '', Object.entries(headers).flat());
  response.end(request.method === 'HEAD' ? undefined : body);
}

/** The same where there is no request that Node could answer: malformed ones, upgrades. Ends the connection. */
export function writeError(
  socket: Duplex,
  error: KiteError,
  settings: Pick<ProxySettings, 'maintenancePage'>,
): void {
  if (!socket.writable) {
    socket.destroy();
    return;
  }
  const { headers, body } = errorAnswer(error, settings);
  const lines = Object.entries({ ...headers, Connection: 'close' }).map(
    ([name, value]) => `${name}: ${value}\r\n`,
  );
  const head = `HTTP/1.1 ${error.row.http} ${REASONS[error.row.http] ?? 'Error'}\r\n${lines.join('')}\r\n`;
  socket.end(Buffer.concat([Buffer.from(head, 'latin1'), body]));
  // Whoever does not read that is not waited for.
  setTimeout(() => socket.destroy(), 1000).unref();
}

const REASONS: Readonly<Record<number, string>> = {
  400: 'Bad Request',
  403: 'Forbidden',
  408: 'Request Timeout',
  413: 'Content Too Large',
  417: 'Expectation Failed',
  421: 'Misdirected Request',
  431: 'Request Header Fields Too Large',
  501: 'Not Implemented',
  502: 'Bad Gateway',
  503: 'Service Unavailable',
  504: 'Gateway Timeout',
  508: 'Loop Detected',
};

export function errorAnswer(
  { code, message, row }: KiteError,
  { maintenancePage }: Pick<ProxySettings, 'maintenancePage'>,
): { readonly headers: Record<string, string>; readonly body: Buffer } {
  const isPage = row.http === 503 && maintenancePage !== undefined;
  const text = isPage
    ? maintenancePage
    : `${JSON.stringify({ error: { code, message, action: row.action } })}\n`;
  const body = Buffer.from(text);
  return {
    body,
    headers: {
      'Content-Type': isPage ? 'text/html; charset=utf-8' : 'application/json',
      'Content-Length': String(body.length),
      // Nobody on the way may keep it.
      'Cache-Control': 'no-store',
      'Kitefs-Error': code,
      ...(row.http === 503 && { 'Retry-After': '1' }),
    },
  };
}
