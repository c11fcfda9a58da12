import { createInterface } from 'node:readline/promises';
import { ERRORS, KiteError, type ErrorCode } from '../errors.js';
import { callNode } from './node-client.js';
import { print } from './output.js';
import { ProgressBar, sizeText } from './progress.js';
import { wantedOf } from './restore.js';

/** The flags of `kitefs rewind`. */
export interface RewindFlags {
  readonly url: string;
  readonly timestamp?: string;
  readonly txid?: string;
  readonly clusterTxid?: string;
  readonly yes?: boolean;
  readonly dryRun?: boolean;
}

/** A RewindPlan as it travels. */
interface Plan {
  readonly id: string;
  readonly name: string;
  readonly url: string;
  readonly timestampMs: number;
  readonly txid?: string;
  readonly clusterTxid?: string;
  readonly position: string;
  readonly pages: number;
  readonly ofPages: number;
  readonly bytes: number;
  readonly whole: boolean;
}

/** `kitefs rewind DB`: shows what the primary would change, asks, and has it done. Throws ERR_CLI_*, and what the primary answers. */
export async function rewind(name: string, flags: RewindFlags): Promise<void> {
  const wanted = wantedOf(flags);
  if (wanted.kind === 'latest')
    throw new KiteError('ERR_CLI_USAGE', 'rewind to when? Give one of -timestamp, -txid and -cluster-txid');
  const canAsk = process.stdin.isTTY && process.stderr.isTTY;
  if (!canAsk && !flags.yes && !flags.dryRun)
    throw new KiteError(
      'ERR_CLI_USAGE',
      'there is no terminal to ask on: give -yes, or -dry-run to look first',
    );
  const query = new URLSearchParams({ name });
  if (wanted.kind === 'time') query.set('timestamp', String(wanted.timestampMs));
  else query.set(wanted.kind, wanted.txid.toString(16));
  const { plan } = (await call(flags.url, 'rewind', query)) as { plan: Plan };
  show(plan);
  const ofPlan = new URLSearchParams({ plan: plan.id });
  if (flags.dryRun || !(flags.yes || (await agrees(name)))) {
    await callNode(flags.url, `/rewind?${String(ofPlan)}`, { method: 'DELETE' });
    print('nothing was changed');
    return;
  }
  const { position } = (await call(flags.url, 'rewind', ofPlan)) as { position: string };
  print(`${name} is at ${position}, with the content of ${new Date(plan.timestampMs).toISOString()}`);
  print(`to undo: kitefs rewind -cluster-txid ${txidOf(plan.position)} ${name}`);
}

/** `kitefs repair DB`: has a node make a damaged database anew from a peer or its backup. Throws what the node answers. */
export async function repair(name: string, url: string): Promise<void> {
  const answer = await call(url, 'repair', new URLSearchParams({ name }));
  const { position, timestampMs, primary, ...from } = answer as {
    position: string;
    timestampMs: number;
    url: string;
    primary?: string;
  };
  print(`${name} is as of ${new Date(timestampMs).toISOString()}, from ${from.url}, and at ${position} now`);
  if (primary !== undefined)
    print(`${primary} is the primary now; when this node's disk is well, kitefs promote brings that back`);
}

const txidOf = (position: string): string => position.slice(0, 16);

function show(plan: Plan): void {
  const { name, position, clusterTxid, txid, pages, ofPages, bytes, url, timestampMs, whole } = plan;
  const numbers = [txid && `TXID ${txid}`, clusterTxid && `cluster TXID ${clusterTxid}`].filter(Boolean);
  print(`found    ${new Date(timestampMs).toISOString()}, ${numbers.join(', ')}, at ${url}`);
  if (clusterTxid !== undefined) {
    const undone = BigInt(`0x${txidOf(position)}`) - BigInt(`0x${clusterTxid}`);
    print(
      `undone   ${undone} transactions of ${name}, and what is written until it is done; it is at ${position} now`,
    );
  }
  const why = whole ? ': all, because the page size is another' : '';
  print(`written  ${pages} of ${ofPages} pages (${sizeText(bytes)})${why}, as one transaction`);
}

async function agrees(name: string): Promise<boolean> {
  const terminal = createInterface({ input: process.stdin, output: process.stderr });
  try {
    return (await terminal.question(`Put ${name} back to this moment? Type yes: `)).trim() === 'yes';
  } finally {
    terminal.close();
  }
}

/** Reads the lines of the answer until the last one. */
async function call(url: string, what: 'rewind' | 'repair', query: URLSearchParams): Promise<unknown> {
  const response = await callNode(url, `/${what}?${String(query)}`, { method: 'POST' });
  const bar = new ProgressBar('restoring');
  let last: unknown;
  let rest = '';
  const decoder = new TextDecoder();
  try {
    for await (const text of (response.body ?? []) as AsyncIterable<Uint8Array>) {
      const lines = (rest + decoder.decode(text, { stream: true })).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) {
        last = JSON.parse(line);
        const { progress, error } = last as {
          progress?: { done: number; total: number };
          error?: { code: string; message: string };
        };
        if (progress) bar.update(progress.done, progress.total);
        if (error) {
          const known = Object.hasOwn(ERRORS, error.code);
          throw new KiteError(known ? (error.code as ErrorCode) : 'ERR_INTERNAL', error.message);
        }
      }
    }
  } finally {
    bar.end();
  }
  const isWhole = typeof last === 'object' && last !== null && !('progress' in last);
  if (!isWhole) throw new KiteError('ERR_CLI_UNREACHABLE', `the answer of ${url} broke off`);
  return last;
}
