import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect, it } from 'vitest';
import { TestCluster, type TestNode } from '../helpers/cluster.js';

/** An unmodified Django application writes on the primary and reads on the replica. */
const PYTHON = fileURLToPath(new URL('../../.cache/python/bin/python', import.meta.url));
const APPLICATION = fileURLToPath(new URL('application.py', import.meta.url));

async function django(node: TestNode, what: 'write' | 'read'): Promise<string> {
  const env = { ...process.env, DATABASE: join(node.mountDir, 'django.db'), PYTHONDONTWRITEBYTECODE: '1' };
  const { stdout } = await promisify(execFile)(PYTHON, [APPLICATION, what], { env, timeout: 60_000 });
  return stdout.trim();
}

it('migrates, writes and reads with Django', async () => {
  const cluster = await TestCluster.start();
  try {
    await django(cluster.node(1), 'write');
    await cluster.assertSame('django.db');
    const answer = await django(cluster.node(2), 'read');
    expect(answer).toMatch(/^49 5 0 (attempt to write a readonly database|disk I\/O error)$/);
    await cluster.assertSame('django.db');
  } finally {
    await cluster.stop();
  }
});
