import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Database from 'better-sqlite3';
import { expect, it } from 'vitest';
import { databaseLocks, findLockHolder, walWriteLock } from './lock-holder.js';

it('names the process that holds a lock of SQLite, and nobody when it has let go', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'kitefs-locks-'));
  const path = join(dir, 'app.db');
  const database = new Database(path);
  database.pragma('journal_mode = wal');
  database.exec('create table t(x)');
  const locks = [walWriteLock(path), databaseLocks(path)];
  const script = `const d = new (require('better-sqlite3'))(process.argv[1]); d.exec('begin immediate'); console.log('held');
    process.stdin.on('end', () => { d.exec('rollback'); d.close(); }).resume()`;
  const child = spawn(process.execPath, ['-e', script, path], { stdio: ['pipe', 'pipe', 'inherit'] });
  try {
    await once(child.stdout, 'data');
    expect(findLockHolder([walWriteLock(path)])).toMatchObject({
      pid: child.pid,
      command: expect.stringContaining('begin immediate') as string,
    });
    expect(findLockHolder([walWriteLock(join(dir, 'other.db'))])).toBeUndefined();
    child.stdin.end();
    await once(child, 'exit');
    expect(findLockHolder(locks)).toBeUndefined();
  } finally {
    child.kill('SIGKILL');
    database.close();
    rmSync(dir, { recursive: true });
  }
});
