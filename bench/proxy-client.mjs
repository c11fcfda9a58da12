// `proxy-client.mjs PORT METHOD CONNECTIONS SECONDS` asks as fast as it is answered and prints {perSecond, p50, p99} (ms);
// `proxy-client.mjs serve PORT` is the application that answers; `accept PORT` one that takes upgraded connections and keeps them;
// `hold PORT COUNT` opens those, exchanges a message on each, says `held` and keeps them until its input ends.
import { once } from 'node:events';
import { createServer } from 'node:http';
import { connect, createServer as createTcpServer } from 'node:net';

const [, , first, second, connections, seconds] = process.argv;
if (first === 'serve') {
  const body = JSON.stringify({ hello: 'world' });
  createServer((request, response) => {
    request.resume();
    response.writeHead(200, { 'content-type': 'application/json', 'content-length': body.length }).end(body);
  }).listen(Number(second), '127.0.0.1');
} else if (first === 'accept') {
  createTcpServer((socket) => {
    socket.on('error', () => {});
    socket.once('data', () => {
      socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n');
      socket.on('data', (bytes) => socket.write(bytes));
    });
  }).listen({ port: Number(second), host: '127.0.0.1', backlog: 4096 });
} else if (first === 'hold') {
  const count = Number(connections);
  const held = [];
  const open = async () => {
    const socket = connect(Number(second), '127.0.0.1');
    held.push(socket);
    socket.write('GET /ws HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n');
    await once(socket, 'data');
    socket.write('a message as long as most of them are, so that every buffer has been used');
    await once(socket, 'data');
  };
  while (held.length < count)
    await Promise.all(Array.from({ length: Math.min(100, count - held.length) }, open));
  process.stdout.write('held');
  process.stdin.on('end', () => process.exit()).resume();
} else {
  const times = [];
  const post = second === 'POST' ? 'Content-Length: 2\r\n' : '';
  const bytes = Buffer.from(
    `${second} /hello HTTP/1.1\r\nHost: app.example\r\nUser-Agent: bench\r\nAccept: */*\r\nCookie: session=0123456789abcdef\r\n${post}\r\n${post ? '{}' : ''}`,
  );
  const end = performance.now() + Number(seconds) * 1000;
  await Promise.all(
    Array.from(
      { length: Number(connections) },
      () =>
        new Promise((resolve, reject) => {
          const socket = connect({ port: Number(first), host: '127.0.0.1', noDelay: true });
          let at = performance.now();
          let text = '';
          socket.on('error', reject);
          socket.on('close', resolve);
          socket.write(bytes);
          socket.on('data', (chunk) => {
            text += chunk.toString('latin1');
            // The body is the same for all; chunked or not, it ends with it.
            if (!text.includes('"world"}')) return;
            if (text.includes('chunked') && !text.endsWith('0\r\n\r\n')) return;
            if (!text.startsWith('HTTP/1.1 200')) reject(new Error(text));
            text = '';
            const now = performance.now();
            times.push(now - at);
            at = now;
            if (now < end) socket.write(bytes);
            else socket.destroy();
          });
        }),
    ),
  );
  times.sort((a, b) => a - b);
  const at = (part) => times[Math.floor(times.length * part)] ?? 0;
  console.log(JSON.stringify({ perSecond: times.length / Number(seconds), p50: at(0.5), p99: at(0.99) }));
}
