import { readdirSync, rmSync } from 'node:fs';
import { setPriority } from 'node:os';
import { join } from 'node:path';
import { KiteError } from '../errors.js';
import { FILES_PER_READ } from '../store/log.js';
import type { BackupSource } from './database-backup.js';
import { DestinationRunner } from './destination-runner.js';
import { TEMPORARY } from './merge.js';
import type { BackupQuestions, FromBackup, ToBackup } from './messages.js';

/** The backup process, forked by Backups (backups.ts). It holds nothing that cannot be lost: all state is in the bucket. */

if (!process.send) {
  process.stderr.write('the backup process is started by kitefs mount\n');
  process.exit(2);
}
const ALIVE_MS = 2000;

// The application and the commit path come first on a busy machine.
setPriority(10);

const send = (message: FromBackup): void => {
  // A parent that is gone shows by `disconnect`.
  process.send?.(message, undefined, undefined, () => {});
};

let nextId = 1;
const waiting = new Map<number, { resolve: (value: never) => void; reject: (error: KiteError) => void }>();

function ask<K extends keyof BackupQuestions>(
  op: K,
  args: BackupQuestions[K][0],
): Promise<BackupQuestions[K][1]> {
  return new Promise((resolve, reject) => {
    const id = nextId++;
    waiting.set(id, { resolve, reject });
    send({ kind: 'ask', id, op, args } as FromBackup);
  });
}

const source: BackupSource = {
  filesPerRead: FILES_PER_READ,
  filesAfter: (name, position) => ask('filesAfter', { name, position }),
  contains: (name, position) => ask('contains', { name, position }),
  copy: (name) => ask('copy', { name }),
};

let leaseUntilMs = 0;
let runners: DestinationRunner[] = [];

function start({ backups, dataDir, tmpDir }: Extract<ToBackup, { kind: 'start' }>): void {
  // Of a process before this one, which was killed: they are as large as databases.
  for (const name of readdirSync(tmpDir)) {
    if (name.startsWith(TEMPORARY)) rmSync(join(tmpDir, name), { force: true });
  }
  runners = backups.map(
    (settings, destination) =>
      new DestinationRunner({
        settings,
        dataDir,
        tmpDir,
        source,
        leaseUntilMs: () => leaseUntilMs,
        onShipped: (name, progress) => send({ kind: 'shipped', destination, name, progress }),
        onTrouble: (name, error) =>
          send({
            kind: 'trouble',
            destination,
            name,
            message: error?.message,
            ...(error && { code: error.code }),
          }),
        onEvent: (name, { kind, message }) =>
          send({ kind: 'event', destination, name, event: kind, message }),
        onPut: (name, sizeBytes) => send({ kind: 'put', destination, name, sizeBytes }),
      }),
  );
}

process.on('message', (message: ToBackup) => {
  switch (message.kind) {
    case 'start':
      start(message);
      break;
    case 'primary':
      for (const runner of runners) runner.primary(message.writer, message.names);
      break;
    case 'lease':
      leaseUntilMs = message.untilMs;
      break;
    case 'stop':
      for (const runner of runners) runner.stop();
      break;
    case 'moved':
      for (const runner of runners) for (const name of message.names) runner.moved(name);
      break;
    case 'hurry':
      for (const runner of runners) runner.hurry();
      break;
    case 'urgent':
      runners[0]?.urgent(message.name);
      break;
    case 'answer':
      waiting.get(message.id)?.resolve(message.value as never);
      waiting.delete(message.id);
      break;
    case 'refused':
      waiting.get(message.id)?.reject(new KiteError(message.code, message.message));
      waiting.delete(message.id);
      break;
  }
});
process.on('disconnect', () => process.exit(0));
// The daemon may have died while this was loading: nobody was listening then.
if (!process.connected) process.exit(0);
setInterval(() => send({ kind: 'alive' }), ALIVE_MS);
send({ kind: 'ready' });
