import type { Socket } from 'node:net';

/** What a client that knows that it may speak HTTP/2 says first (RFC 9113 §3.4). No method of HTTP/1.1 begins so. */
const PREFACE = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');

/** What a connection speaks; `slow`: too few bytes in time; `gone`: it has ended before. */
export type Spoken = 'http1' | 'http2' | 'slow' | 'gone';

/**
 * Tells what a new connection speaks by its first bytes, which `then` gets; they are read already. `limitMs` is how long they may
 * take, 0: for ever. Two listeners and a timer, because every connection of HTTP/1.1 pays for it (docs/decisions/035).
 */
export function sniff(socket: Socket, limitMs: number, then: (spoken: Spoken, first: Buffer) => void): void {
  let first: Buffer | undefined;
  const end = (spoken: Spoken): void => {
    clearTimeout(late);
    socket.removeListener('data', look);
    socket.removeListener('end', gone);
    socket.removeListener('error', gone);
    then(spoken, first ?? Buffer.alloc(0));
  };
  const gone = (): void => end('gone');
  const look = (chunk: Buffer): void => {
    // Nearly always one packet decides.
    first = first ? Buffer.concat([first, chunk]) : chunk;
    const length = Math.min(first.length, PREFACE.length);
    if (first.compare(PREFACE, 0, length, 0, length) !== 0) end('http1');
    else if (length === PREFACE.length) end('http2');
  };
  const late = limitMs > 0 ? setTimeout(end, limitMs, 'slow') : undefined;
  socket.on('data', look);
  socket.on('end', gone);
  socket.on('error', gone);
}
