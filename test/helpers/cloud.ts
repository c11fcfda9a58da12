import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { freePort, waitFor } from './cluster.js';

/** What `npm test` installs (test/tools/install.mjs). */
const FAKE_GCS = join(process.cwd(), '.cache/bin/fake-gcs-server');
const AZURITE = join(process.cwd(), '.cache/azurite/node_modules/azurite/dist/src/blob/main.js');

/** A server of one of the clouds on this machine, which keeps what it has in memory or in a folder of its own. */
class Server {
  readonly dir = mkdtempSync(join(tmpdir(), 'kitefs-cloud-'));
  #child: ChildProcess | undefined;

  constructor(
    readonly name: string,
    readonly port: number,
  ) {}

  get endpoint(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  async run(program: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<void> {
    const log = join(this.dir, 'log');
    const fd = openSync(log, 'a');
    const child = spawn(program, args, { stdio: ['ignore', fd, fd], env: { ...process.env, ...env } });
    closeSync(fd);
    process.once('exit', () => child.kill('SIGKILL'));
    this.#child = child;
    await waitFor(
      () => `${this.name} to start; its log ends:\n${readFileSync(log, 'utf8').slice(-2000)}`,
      async () => {
        if (child.exitCode !== null) throw new Error(readFileSync(log, 'utf8').slice(-2000));
        return await fetch(this.endpoint).then(
          () => true,
          () => false,
        );
      },
    );
  }

  stop(): void {
    this.#child?.kill('SIGKILL');
    if (!process.env['KEEP']) rmSync(this.dir, { recursive: true, force: true });
  }
}

const missing = (what: string, where: string): Error =>
  new Error(`these tests need ${what} at ${where}: \`npm test\` installs it (test/tools/install.mjs)`);

/** fake-gcs-server: Google Cloud Storage, without a check of credentials. */
export class TestGcs extends Server {
  static async start(bucket: string): Promise<TestGcs> {
    if (!existsSync(FAKE_GCS)) throw missing('fake-gcs-server', FAKE_GCS);
    const gcs = new TestGcs('fake-gcs-server', await freePort());
    const { dir, port, endpoint } = gcs;
    const args = `-scheme http -host 127.0.0.1 -port ${port} -public-host 127.0.0.1:${port} -backend memory -log-level error`;
    await gcs.run(FAKE_GCS, [...args.split(' '), '-external-url', endpoint, '-data', dir]);
    const made = await fetch(`${endpoint}/storage/v1/b?project=test`, {
      method: 'POST',
      body: JSON.stringify({ name: bucket }),
    });
    if (!made.ok) throw new Error(await made.text());
    return gcs;
  }

  /** What clients of Google's need in their environment. */
  get env(): { STORAGE_EMULATOR_HOST: string } {
    return { STORAGE_EMULATOR_HOST: `127.0.0.1:${this.port}` };
  }
}

/** Azurite: Azure Blob Storage. */
export class TestAzure extends Server {
  readonly account = 'kitefstest';
  readonly key = Buffer.from('a key of this test only, of nobody else').toString('base64');

  static async start(container: string): Promise<TestAzure> {
    if (!existsSync(AZURITE)) throw missing('Azurite', AZURITE);
    const azure = new TestAzure('Azurite', await freePort());
    const { dir, port, account, key } = azure;
    const flags = `--blobHost 127.0.0.1 --blobPort ${port} --silent --skipApiVersionCheck --disableTelemetry`;
    await azure.run(process.execPath, [AZURITE, ...flags.split(' '), '--location', dir], {
      AZURITE_ACCOUNTS: `${account}:${key}`,
    });
    const { BlobServiceClient, StorageSharedKeyCredential } = await import('@azure/storage-blob');
    const credential = new StorageSharedKeyCredential(account, key);
    await new BlobServiceClient(azure.accountEndpoint, credential).getContainerClient(container).create();
    return azure;
  }

  /** The account is in the path here, not in the name of the host. */
  get accountEndpoint(): string {
    return `${this.endpoint}/${this.account}`;
  }
}
