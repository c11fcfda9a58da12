import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { expect, test } from 'vitest';

import { markClosed, markServed } from './boot-marker.js';

test('What was saved is trusted after a kill and a clean close, and not after another boot', () => {
  const dir = mkdtempSync(join(tmpdir(), 'kitefs-applier-boot-'));
  try {
    expect(markServed(dir)).toBe(true);
    expect(markServed(dir)).toBe(true);
    writeFileSync(join(dir, 'applier-boot'), 'the boot before');
    expect(markServed(dir)).toBe(false);
    writeFileSync(join(dir, 'applier-boot'), 'the boot before');
    markClosed(dir);
    expect(markServed(dir)).toBe(true);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
});
