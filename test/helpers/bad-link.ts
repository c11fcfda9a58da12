import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';

/**
 * A real TCP link to a server of this machine that a test can spoil: cut after so many bytes of an answer, mute, or with an HTTP
 * answer of its own instead of the server's.
 */
export class BadLink {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  /** Connections are cut after so many bytes from the server, so often. */
  cuts: { afterBytes: number; times: number } = { afterBytes: 0, times: 0 };
  /** Instead of the server answers this, as long as it is set; empty: nobody answers at all. */
  answer: string | undefined;
  /** Connections that were spoilt. */
  spoilt = 0;

  private constructor(server: Server) {
    this.#server = server;
  }

  static async to(port: number): Promise<BadLink> {
    const server = createServer();
    const link = new BadLink(server);
    server.on('connection', (near) => link.#carry(near, port));
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    return link;
  }

  get port(): number {
    return (this.#server.address() as { port: number }).port;
  }

  /** Ends every connection that is open, at once. */
  cut(): void {
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  stop(): void {
    this.cut();
    this.#server.close();
  }

  #carry(near: Socket, port: number): void {
    this.#keep(near);
    if (this.answer !== undefined) {
      this.spoilt += 1;
      const { answer } = this;
      near.on('data', () => {
        if (answer !== '') near.end(answer);
      });
      return;
    }
    const far = connect(port, '127.0.0.1');
    this.#keep(far);
    let carried = 0;
    far.on('data', (bytes) => {
      carried += bytes.length;
      if (this.cuts.times > 0 && carried > this.cuts.afterBytes) {
        this.cuts.times -= 1;
        this.spoilt += 1;
        near.destroy();
        far.destroy();
        return;
      }
      if (this.answer !== undefined) near.end(this.answer);
      else if (!near.write(bytes)) far.pause();
    });
    near.on('drain', () => far.resume());
    near.on('data', (bytes) => {
      if (!far.write(bytes)) near.pause();
    });
    far.on('drain', () => near.resume());
    near.on('close', () => far.destroy());
    far.on('close', () => near.destroy());
  }

  #keep(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on('error', () => socket.destroy());
    socket.on('close', () => this.#sockets.delete(socket));
  }
}

/** An HTTP answer, as a server in trouble gives it. */
export const httpAnswer = (status: string, body: string): string =>
  `HTTP/1.1 ${status}\r\ncontent-type: application/xml\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`;
