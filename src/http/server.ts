import type { AddressInfo } from 'node:net';
import { createServer, type Server, type ServerResponse } from 'node:http';
import { KiteError } from '../errors.js';
import type { Address } from '../config/values.js';
import { formatAddress } from '../config/values.js';
import type { Logger } from '../observability/log.js';
import type { Metrics } from '../observability/metrics.js';
import type { NodeApi } from './node-api.js';
import { handleRequest } from './routes.js';

export interface AdminServerOptions {
  readonly address: Address;
  readonly node: NodeApi;
  readonly metrics: Metrics;
  readonly logger: Logger;
  /** Where imports are received before they become a database: on the file system of the data directory. */
  readonly importDir: string;
  readonly maxImportBytes: number;
  /** Age of its data beyond which a replica says that it is unwell. */
  readonly maxLagMs: number;
  /** What admin actions must show; undefined: they are served to this machine only. */
  readonly token?: string | undefined;
}

/** The HTTP server for people and tools on the node: metrics, status, import, export. */
export class AdminServer {
  readonly #server: Server;
  readonly #closing: AbortController;

  private constructor(server: Server, closing: AbortController) {
    this.#server = server;
    this.#closing = closing;
  }

  /** Rejects with ERR_DAEMON_PORT when the address cannot be listened on. */
  static async listen(options: AdminServerOptions): Promise<AdminServer> {
    const closing = new AbortController();
    const state = { ...options, closing: closing.signal, eventStreams: new Set<ServerResponse>() };
    const server = createServer((request, response) => void handleRequest(request, response, state));
    const { host, port } = options.address;
    await new Promise<void>((resolve, reject) => {
      server.once('error', (error: NodeJS.ErrnoException) => {
        const why = error.code === 'EADDRINUSE' ? 'something listens there already' : error.message;
        reject(
          new KiteError('ERR_DAEMON_PORT', `http.addr ${formatAddress(options.address)}: ${why}`, {
            cause: error,
          }),
        );
      });
      server.listen({ port, ...(host === '' ? {} : { host }) }, resolve);
    });
    return new AdminServer(server, closing);
  }

  /** The port that is listened on, for `:0`. */
  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** Takes no more requests; ends streams of events; cuts what else runs, after a moment. */
  async close(): Promise<void> {
    this.#closing.abort();
    const closed = new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
    });
    this.#server.closeIdleConnections();
    const cut = setTimeout(() => this.#server.closeAllConnections(), 2000);
    await closed;
    clearTimeout(cut);
  }
}
