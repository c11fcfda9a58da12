// `proxy-client.mjs PORT METHOD CONNECTIONS SECONDS` asks as fast as it is answered and prints {perSecond, p50, p99} (ms);
// `proxy-client.mjs serve PORT` is the application that answers.
import { createServer } from 'node:http';
import { connect } from 'node:net';

const [, , first, second, connections, seconds] = process.argv;
if (first === 'serve') {
  const body = JSON.stringify({ hello: 'world' });
  createServer((request, response) => {
    request.resume();
    response.writeHead(200, { 'content-type': 'application/json', 'content-length': body.length }).end(body);
  }).listen(Number(second), '127.0.0.1');
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
