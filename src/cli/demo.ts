import { once } from 'node:events';
import { existsSync, mkdirSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { KiteError } from '../errors.js';
import { machineChecks } from './checks.js';
import { DemoNode } from './demo-node.js';
import { formatCheck } from './doctor.js';
import { print } from './output.js';

const NODES_MAX = 9;
const WATCH_MS = 500;

/** `kitefs demo`: that many nodes on this machine until Ctrl-C; returns the exit code. */
export async function demo(folder: string, nodeCount: string): Promise<number> {
  const count = Number(nodeCount);
  if (!Number.isInteger(count) || count < 1 || count > NODES_MAX)
    throw new KiteError(
      'ERR_CLI_USAGE',
      `--nodes: expected a number from 1 to ${NODES_MAX}, found ${nodeCount}`,
    );
  requireMachine();

  const dir = resolve(folder);
  const isFirstStart = !existsSync(join(dir, 'data'));
  makeFolder(dir);
  const stop = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => stop.abort());

  const nodes: DemoNode[] = [];
  try {
    for (let number = 1; number <= count; number++) nodes.push(await DemoNode.prepare(dir, number));
    print(`Starting ${count} nodes in ${dir} ...`);
    if (isFirstStart) {
      // With nothing to choose by, the first to come is the primary; later, whoever has most may be.
      for (const node of nodes) await node.start(stop.signal);
    } else {
      await Promise.all(nodes.map((node) => node.start(stop.signal)));
    }
    if (!stop.signal.aborted) {
      explain(dir, nodes, await primaryOf(nodes));
      await watchPrimary(nodes, stop.signal);
    }
    print('\nStopping ...');
  } finally {
    await stopAll(nodes);
  }
  print(`Unmounted. The data stays in ${join(dir, 'data')}; start again to go on with it.`);
  return 0;
}

function requireMachine(): void {
  const missing = machineChecks('kernel').filter(({ ok }) => !ok);
  if (missing.length > 0) {
    const lines = missing.map((check) => `  ${formatCheck(check)}`).join('\n');
    throw new KiteError('ERR_CLI_CHECKS', `this machine cannot run the demo yet:\n${lines}\n`);
  }
}

function makeFolder(dir: string): void {
  try {
    mkdirSync(dir, { recursive: true });
  } catch (error) {
    throw new KiteError('ERR_CLI_FILE', `cannot make ${dir} (${(error as Error).message})`, { cause: error });
  }
}

async function primaryOf(nodes: readonly DemoNode[]): Promise<DemoNode | undefined> {
  for (const node of nodes) if ((await node.status())?.role === 'primary') return node;
  return undefined;
}

function explain(dir: string, nodes: readonly DemoNode[], primary: DemoNode | undefined): void {
  print('');
  for (const node of nodes) {
    print(
      `  ${node.name}  ${node === primary ? 'primary' : 'replica'}  ${node.mountDir}  http://127.0.0.1:${node.httpPort}/status`,
    );
  }
  const writer = primary ?? nodes[0];
  const reader = nodes.find((node) => node !== writer) ?? writer;
  print(`
  configuration  ${join(dir, 'config')}
  data           ${join(dir, 'data')}
  logs           ${join(dir, 'logs')}

Write on the primary, read on a replica (in another terminal):

  sqlite3 ${writer?.mountDir}/app.db "CREATE TABLE IF NOT EXISTS t (x); INSERT INTO t VALUES (datetime()); SELECT count(*) FROM t"
  sqlite3 ${reader?.mountDir}/app.db "SELECT * FROM t"

Ctrl-C unmounts everything and keeps the data.`);
}

/** Says who is primary whenever that changes, until it is to stop. */
async function watchPrimary(nodes: readonly DemoNode[], stop: AbortSignal): Promise<void> {
  let known = await primaryOf(nodes);
  const stopped = once(stop, 'abort');
  while (!stop.aborted) {
    const pause = new Promise((done) => {
      setTimeout(done, WATCH_MS);
    });
    await Promise.race([pause, stopped]);
    const primary = stop.aborted ? known : await primaryOf(nodes);
    if (primary && primary !== known) {
      print(`${primary.name} is the primary now: write in ${primary.mountDir}`);
      known = primary;
    }
  }
}

/** Replicas first: with the primary gone first, they would elect another one only to stop it. */
async function stopAll(nodes: readonly DemoNode[]): Promise<void> {
  const primary = await primaryOf(nodes);
  await Promise.all(nodes.filter((node) => node !== primary).map((node) => node.stop()));
  await primary?.stop();
}
