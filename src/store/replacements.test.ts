import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { DataDirectory } from './data-directory.js';
import { replaceDatabase } from './replacements.js';

describe('replaceDatabase', () => {
  let data: string;

  beforeEach(() => {
    data = mkdtempSync(join(tmpdir(), 'kitefs-replace-'));
    DataDirectory.open(data, { nodeId: 'a' }).close();
  });

  afterEach(() => rmSync(data, { recursive: true, force: true }));

  const folder = (path: string, content: string): string => {
    mkdirSync(path, { recursive: true });
    writeFileSync(join(path, 'database'), content);
    return path;
  };
  const content = (): string => readFileSync(join(data, 'dbs/app.db/database'), 'utf8');

  it('keeps what was there', () => {
    expect(replaceDatabase(data, 'app.db', folder(join(data, 'tmp/one'), 'one'))).toBeUndefined();
    expect(content()).toBe('one');
    const kept = replaceDatabase(data, 'app.db', folder(join(data, 'tmp/two'), 'two'));
    expect(content()).toBe('two');
    expect(readFileSync(join(kept!, 'database'), 'utf8')).toBe('one');
    expect(existsSync(join(data, 'replace'))).toBe(false);
  });

  it('is finished by the next start, wherever it was killed', () => {
    folder(join(data, 'dbs/app.db'), 'old');
    folder(join(data, 'replace/app.db'), 'new');
    DataDirectory.open(data, { nodeId: 'a' }).close();
    expect(content()).toBe('new');
    expect(readdirSync(join(data, 'lost+found/app.db'))).toHaveLength(1);
    // Killed when the old one was out of the way.
    rmSync(join(data, 'dbs/app.db'), { recursive: true });
    folder(join(data, 'replace/app.db'), 'newer');
    DataDirectory.open(data, { nodeId: 'a' }).close();
    expect(content()).toBe('newer');
    // Before the last step.
    mkdirSync(join(data, 'replace'));
    DataDirectory.open(data, { nodeId: 'a' }).close();
    expect(existsSync(join(data, 'replace'))).toBe(false);
    expect(content()).toBe('newer');
  });
});
