import { execFileSync } from 'node:child_process';
import { Worker } from 'node:worker_threads';
import { once } from 'node:events';
import { expect, it } from 'vitest';
import { ChangeMark, ChangeMarkReader } from './change-mark.js';

it('is another number for another process after each touch of any thread', async () => {
  const mark = ChangeMark.create()!;
  const reader = ChangeMarkReader.open(mark.path)!;
  const first = reader.read();
  expect([typeof first, reader.read()]).toEqual(['number', first]);
  mark.watch();
  mark.touch();
  const second = reader.read();
  expect(second).not.toBe(first);
  // Nobody has asked since.
  mark.touch();
  expect(reader.read()).toBe(second);

  const elsewhere = execFileSync('od', ['-An', '-td4', mark.path], { encoding: 'utf8' });
  expect(Number(elsewhere)).toBe(reader.read());

  // Another thread has the buffer only, as the mount's has.
  const worker = new Worker(
    `const { workerData } = require('node:worker_threads');
     import(workerData.module).then(({ ChangeMark }) => {
       const mark = new ChangeMark(workerData.buffer);
       for (let i = 0; i < 100_000; i += 1) mark.touch();
     });`,
    {
      eval: true,
      workerData: {
        buffer: mark.buffer,
        module: new URL('../../dist/util/change-mark.js', import.meta.url).href,
      },
    },
  );
  // What was read before a question is never read after the touch that comes after it.
  const seen = new Set<number | undefined>([reader.read()]);
  let touched = 0;
  const ended = once(worker, 'exit').then(() => true);
  while (!(await Promise.race([ended, new Promise((resolve) => setImmediate(resolve, false))]))) {
    seen.add(reader.read());
    mark.watch();
    mark.touch();
    touched += 1;
    expect(seen.has(reader.read())).toBe(false);
  }
  expect(touched).toBeGreaterThan(0);
});

it('is no mark where there is none', () => {
  expect(ChangeMarkReader.open('/proc/self/fd/9999')).toBeUndefined();
});
