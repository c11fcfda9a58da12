import { randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { homedir, userInfo } from 'node:os';
import { join, posix } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type * as Ssh from 'ssh2';
import { KiteError } from '../errors.js';
import { missingObject, type ByteRange, type ObjectBody, type StoredObject } from './destination.js';
import { FileTree, TEMPORARY, type TreeEntry } from './file-tree.js';
import { fingerprint, keyType, knownHostKeys, parseHostKey } from './known-hosts.js';
import { bodyBytes, bodyPart, SILENCE_MS } from './parts.js';

/** Litestream's keys of a replica of type sftp. */
export interface SftpSettings {
  readonly type: 'sftp';
  /** Name or address, with `:port` when it is not 22. */
  readonly host: string;
  readonly user: string;
  /** On the server: from its root when it begins with `/`, else below the folder in which a login begins. */
  readonly path: string;
  readonly password?: string | undefined;
  /** A file with a private key that needs no passphrase. */
  readonly keyPath?: string | undefined;
  /** The server's public key (`ssh-ed25519 AAAA…`); without it known_hosts decides. */
  readonly hostKey?: string | undefined;
  /** Several pieces of a file on their way at once, in both directions. */
  readonly concurrentWrites?: boolean | undefined;
}

/** For people. */
export const sftpUrl = ({ user, host, path }: SftpSettings): string =>
  `sftp://${encodeURIComponent(user)}@${host}${path.startsWith('/') ? path : `/~/${path}`}`;

const CONNECT_MS = 10_000;
const PIECE_BYTES = 32 * 1024;
/** Pieces on their way: 1 MB, so that a round trip of 50 ms leaves 20 MB/s. */
const WINDOW = 32;
const REMOVE_AT_ONCE = 32;
/** Of SFTP's version 3, which is the one that servers speak. */
const STATUS = { EOF: 1, NO_SUCH_FILE: 2, PERMISSION_DENIED: 3, FAILURE: 4 } as const;

/** A server with SFTP. The library is loaded here only. */
export async function openSftp(settings: SftpSettings): Promise<SftpDestination> {
  const { default: ssh } = await import('ssh2');
  return new SftpDestination(ssh, settings);
}

/**
 * A folder on a server, in the same form as a folder here (directory.ts). A file gets its name by the extension
 * hardlink@openssh.com, which is link(2): it fails when the name is taken, so only one of two writers makes an object. SFTP's own
 * rename may replace files on some servers, so a server without the extension is read from but not written to.
 */
class SftpDestination extends FileTree {
  readonly type = 'sftp';
  readonly url: string;
  readonly #ssh: Library;
  readonly #settings: SftpSettings;
  readonly #window: number;
  /** One connection for everything: its requests run side by side. Made when it is needed, and again after a loss. */
  #session: Promise<Session> | undefined;
  /** Files that are no objects and could not be removed yet. */
  readonly #leftovers = new Set<string>();

  constructor(ssh: Library, settings: SftpSettings) {
    super();
    this.#ssh = ssh;
    this.#settings = settings;
    this.#window = settings.concurrentWrites === false ? 1 : WINDOW;
    this.url = sftpUrl(settings);
  }

  async get(key: string, range?: ByteRange): Promise<AsyncIterable<Uint8Array>> {
    const path = this.#path(key);
    const session = await this.#connected();
    try {
      const handle = await session.run<Buffer>((sftp, done) => sftp.open(path, 'r', done));
      return this.#reading(session, handle, range ?? { start: 0 });
    } catch (error) {
      throw codeOf(error) === STATUS.NO_SUCH_FILE
        ? missingObject(this.url, key, error)
        : this.#failed('get', key, error);
    }
  }

  async *#reading(session: Session, handle: Buffer, { start, end }: ByteRange): AsyncGenerator<Uint8Array> {
    try {
      const { size } = await session.run<Ssh.Stats>((sftp, done) => sftp.fstat(handle, done));
      const stop = Math.min(size, end ?? size);
      const pieces: Promise<Uint8Array>[] = [];
      for (let asked = start; asked < stop || pieces.length > 0;) {
        while (asked < stop && pieces.length < this.#window) {
          const piece = readPiece(session, handle, asked, Math.min(PIECE_BYTES, stop - asked));
          // It is waited for later, perhaps never.
          piece.catch(() => undefined);
          pieces.push(piece);
          asked += PIECE_BYTES;
        }
        yield await pieces.shift()!;
      }
    } catch (error) {
      throw this.#failed('get', '', error);
    } finally {
      await session.run((sftp, done) => sftp.close(handle, done)).catch(() => undefined);
    }
  }

  async create(key: string, body: ObjectBody, timestampMs: number): Promise<'created' | 'exists'> {
    const path = this.#path(key);
    const folder = posix.dirname(path);
    const temporary = posix.join(folder, TEMPORARY + randomBytes(10).toString('hex'));
    const session = await this.#connected();
    try {
      await this.#upload(session, temporary, body, timestampMs);
      return await this.#link(session, temporary, path);
    } catch (error) {
      throw await this.#failedWriting(session, key, error);
    } finally {
      await this.#discard(session, temporary);
    }
  }

  /** Of a connection that is lost, what was written of a file is removed with the next one. */
  async #discard(session: Session, temporary: string): Promise<void> {
    this.#leftovers.add(temporary);
    await Promise.all(
      [...this.#leftovers].map(async (path) => {
        await session
          .run((sftp, done) => sftp.unlink(path, done))
          .then(
            () => this.#leftovers.delete(path),
            (error: unknown) => typeof codeOf(error) === 'number' && this.#leftovers.delete(path),
          );
      }),
    );
  }

  async #upload(session: Session, path: string, body: ObjectBody, timestampMs: number): Promise<void> {
    const open = (): Promise<Buffer> => session.run<Buffer>((sftp, done) => sftp.open(path, 'wx', done));
    const handle = await open().catch(async (error: unknown) => {
      if (codeOf(error) !== STATUS.NO_SUCH_FILE) throw error;
      await makeFolders(session, posix.dirname(path));
      return await open();
    });
    try {
      const size = bodyBytes(body);
      let next = 0;
      const worker = async (): Promise<void> => {
        while (next < size) {
          const at = next;
          next += PIECE_BYTES;
          const piece = Buffer.from(await bodyPart(body, at, Math.min(size, at + PIECE_BYTES)));
          await session.run((sftp, done) => sftp.write(handle, piece, 0, piece.length, at, done));
        }
      };
      await Promise.all(Array.from({ length: this.#window }, worker));
      const seconds = Math.floor(timestampMs / 1000);
      await session.run((sftp, done) => sftp.futimes(handle, seconds, seconds, done));
      // The bytes before the name: else a power cut there may keep an object with nothing in it. Not every server can.
      await session
        .run((sftp, done) => sftp.ext_openssh_fsync(handle, done))
        .catch((error: unknown) => {
          if (!isUnsupported(error)) throw error;
        });
    } finally {
      await session.run((sftp, done) => sftp.close(handle, done)).catch(() => undefined);
    }
  }

  async #link(session: Session, from: string, to: string): Promise<'created' | 'exists'> {
    try {
      await session.run((sftp, done) => sftp.ext_openssh_hardlink(from, to, done));
      return 'created';
    } catch (error) {
      if (isUnsupported(error))
        throw new KiteError(
          'ERR_BACKUP_UNSUPPORTED',
          `${this.url}: the server does not know hardlink@openssh.com, without which two primaries could overwrite one another's backups`,
        );
      // A taken name is no error of its own in SFTP.
      if (codeOf(error) !== STATUS.FAILURE) throw error;
      await session.run<Ssh.Stats>((sftp, done) => sftp.stat(to, done)).catch(() => Promise.reject(error));
      return 'exists';
    }
  }

  async remove(keys: readonly string[]): Promise<void> {
    const session = await this.#connected();
    for (let at = 0; at < keys.length; at += REMOVE_AT_ONCE) {
      const some = keys.slice(at, at + REMOVE_AT_ONCE);
      await Promise.all(
        some.map(async (key) => {
          await session
            .run((sftp, done) => sftp.unlink(this.#path(key), done))
            .catch((error: unknown) => {
              if (codeOf(error) !== STATUS.NO_SUCH_FILE) throw this.#failed('remove', key, error);
            });
        }),
      );
    }
  }

  close(): void {
    this.#session?.then(({ client }) => client.end()).catch(() => undefined);
    this.#session = undefined;
  }

  protected async entries(folder: string): Promise<TreeEntry[]> {
    const session = await this.#connected();
    try {
      const path = this.#path(folder);
      const found = await session.run<Ssh.FileEntryWithStats[]>((sftp, done) => sftp.readdir(path, done));
      return found
        .filter(({ filename }) => !filename.startsWith(TEMPORARY) && filename !== '.' && filename !== '..')
        .map(({ filename, attrs }) => ({
          name: filename,
          isFolder: attrs.isDirectory(),
          object: { sizeBytes: attrs.size, modifiedMs: attrs.mtime * 1000 },
        }));
    } catch (error) {
      if (codeOf(error) === STATUS.NO_SUCH_FILE) return [];
      throw this.#failed('list', folder, error);
    }
  }

  protected describe(_key: string, { object }: TreeEntry): Promise<Omit<StoredObject, 'key'> | undefined> {
    return Promise.resolve(object);
  }

  #path(key: string): string {
    return posix.join(this.#settings.path === '' ? '.' : this.#settings.path, key);
  }

  async #connected(): Promise<Session> {
    const begun = (this.#session ??= this.#connect());
    const forget = (): void => {
      if (this.#session === begun) this.#session = undefined;
    };
    try {
      const session = await begun;
      session.onEnd = forget;
      if (!session.isOver) return session;
      forget();
      return await this.#connected();
    } catch (error) {
      forget();
      throw this.#failed('reach', '', error);
    }
  }

  async #connect(): Promise<Session> {
    const { host: address, user, password, keyPath } = this.#settings;
    const { host, port } = splitAddress(address);
    const known = await this.#hostKeys(host, port);
    let shown: Buffer | undefined;
    const client = new this.#ssh.Client();
    const config: Ssh.ConnectConfig = {
      host,
      port,
      username: user,
      readyTimeout: CONNECT_MS,
      // A cut link is noticed in 20 s, not by TCP.
      keepaliveInterval: 5_000,
      keepaliveCountMax: 3,
      hostVerifier: (key: Buffer) => {
        shown = key;
        return known.some((one) => one.equals(key));
      },
      // The server shows one of its keys: one that is known, if it has it.
      ...(known.length > 0 && { algorithms: { serverHostKey: known.flatMap(signaturesOf) } }),
      ...(password === undefined ? {} : { password, tryKeyboard: true }),
      ...(await this.#privateKey(keyPath, password === undefined)),
    };
    if (password !== undefined)
      client.on('keyboard-interactive', (_name, _text, _lang, prompts, answer) =>
        answer(prompts.map(() => password)),
      );
    const opened = new Promise<Session>((resolve, reject) => {
      client.once('error', reject);
      client.once('close', () => reject(new Error('the connection was closed')));
      client.once('ready', () =>
        client.sftp((error, sftp) => (error ? reject(error) : resolve(new Session(client, sftp)))),
      );
    });
    // After a loss there may be several.
    client.on('error', () => undefined);
    client.connect(config);
    try {
      return await Promise.race([
        opened,
        sleep(2 * CONNECT_MS, undefined, { ref: false }).then(() => {
          throw new Error('the server does not answer');
        }),
      ]);
    } catch (error) {
      client.destroy();
      const isStranger = shown !== undefined && !known.some((one) => one.equals(shown!));
      throw isStranger ? this.#stranger(shown!, known) : error;
    }
  }

  #stranger(shown: Buffer, known: readonly Buffer[]): KiteError {
    const { hostKey } = this.#settings;
    const where = hostKey === undefined ? 'known_hosts' : 'host-key';
    const why =
      known.length > 0 ? `is not the one of ${where}` : `is not in known_hosts, and host-key is not given`;
    const key = `${keyType(shown)} ${shown.toString('base64')}`;
    return new KiteError(
      'ERR_BACKUP_HOST_KEY',
      `${this.url}: the server's key ${why}: it shows ${fingerprint(shown)}, which is ${key}`,
    );
  }

  async #hostKeys(host: string, port: number): Promise<Buffer[]> {
    const { hostKey } = this.#settings;
    if (hostKey !== undefined) return [parseHostKey(hostKey)].filter((key) => key !== undefined);
    const files = [join(homedir(), '.ssh/known_hosts'), '/etc/ssh/ssh_known_hosts'];
    const texts = await Promise.all(files.map((file) => readFile(file, 'utf8').catch(() => '')));
    return knownHostKeys(texts.join('\n'), host, port);
  }

  /** As ssh: the key that is named, else the agent's keys and the usual file. */
  async #privateKey(
    keyPath: string | undefined,
    isOnly: boolean,
  ): Promise<{ privateKey?: Buffer; agent?: string }> {
    if (keyPath !== undefined)
      return {
        privateKey: await readFile(keyPath).catch((error: unknown) => {
          throw new KiteError('ERR_BACKUP_DENIED', `${this.url}: key-path: ${messageOf(error)}`);
        }),
      };
    if (!isOnly) return {};
    const agent = process.env['SSH_AUTH_SOCK'];
    for (const name of ['id_ed25519', 'id_ecdsa', 'id_rsa']) {
      const privateKey = await readFile(join(userInfo().homedir, '.ssh', name)).catch(() => undefined);
      const isPlain = privateKey !== undefined && !(this.#ssh.utils.parseKey(privateKey) instanceof Error);
      if (isPlain) return { privateKey, ...(agent !== undefined && { agent }) };
    }
    return agent === undefined ? {} : { agent };
  }

  /** SFTP has no word for a full disk: the server is asked. */
  async #failedWriting(session: Session, key: string, error: unknown): Promise<KiteError> {
    if (codeOf(error) === STATUS.FAILURE) {
      const space = await session
        .run<{ f_bavail: number }>((sftp, done) => sftp.ext_openssh_statvfs(this.#path(''), done))
        .catch(() => undefined);
      if (space && space.f_bavail < 16)
        return new KiteError('ERR_BACKUP_FULL', `${this.url}: the server's disk is full`, { cause: error });
    }
    return this.#failed('create', key, error);
  }

  #failed(what: string, key: string, error: unknown): KiteError {
    if (error instanceof KiteError) return error;
    const { level } = error as { level?: string };
    const denied =
      level === 'client-authentication' ||
      codeOf(error) === STATUS.PERMISSION_DENIED ||
      /private key|passphrase/i.test(messageOf(error));
    return new KiteError(
      denied ? 'ERR_BACKUP_DENIED' : 'ERR_BACKUP_UNREACHABLE',
      `${this.url}: cannot ${what} ${key === '' ? 'it' : key}: ${messageOf(error)}`,
      { cause: error },
    );
  }
}

type Library = Pick<typeof Ssh, 'Client' | 'utils'>;

type Done<T> = (error?: Error | null, value?: T) => void;

/** A connection with an SFTP channel. When it ends, everything that waits for an answer fails. */
class Session {
  readonly client: Ssh.Client;
  readonly #sftp: Ssh.SFTPWrapper;
  readonly #waiting = new Set<(error: Error) => void>();
  isOver = false;
  onEnd: () => void = () => undefined;

  constructor(client: Ssh.Client, sftp: Ssh.SFTPWrapper) {
    this.client = client;
    this.#sftp = sftp;
    sftp.on('error', (error: Error) => this.#end(error));
    sftp.once('close', () => this.#end(new Error('the connection was closed')));
    client.on('error', (error: Error) => this.#end(error));
    client.once('close', () => this.#end(new Error('the connection was closed')));
  }

  /** One request. Rejects with the library's error, and when the server says nothing. */
  async run<T = void>(request: (sftp: Ssh.SFTPWrapper, done: Done<T>) => void): Promise<T> {
    let timer: NodeJS.Timeout | undefined;
    let fail: ((error: Error) => void) | undefined;
    try {
      return await new Promise<T>((resolve, reject) => {
        if (this.isOver) throw new Error('the connection was closed');
        fail = reject;
        this.#waiting.add(reject);
        timer = setTimeout(() => this.#end(new Error('the server does not answer')), SILENCE_MS);
        request(this.#sftp, (error, value) => (error ? reject(error) : resolve(value as T)));
      });
    } finally {
      clearTimeout(timer);
      if (fail) this.#waiting.delete(fail);
    }
  }

  #end(error: Error): void {
    if (this.isOver) return;
    this.isOver = true;
    this.onEnd();
    for (const fail of this.#waiting) fail(error);
    this.client.destroy();
  }
}

/** A piece of a file; less than asked for only where the file ends. */
async function readPiece(session: Session, handle: Buffer, start: number, length: number): Promise<Buffer> {
  const bytes = Buffer.allocUnsafe(length);
  let done = 0;
  while (done < length) {
    const at = done;
    const count = await session
      .run<number>((sftp, cb) => sftp.read(handle, bytes, at, length - at, start + at, cb))
      .catch((error: unknown) => {
        if (codeOf(error) === STATUS.EOF) return 0;
        throw error;
      });
    if (count === 0) break;
    done += count;
  }
  return bytes.subarray(0, done);
}

async function makeFolders(session: Session, path: string): Promise<void> {
  const make = (): Promise<void> => session.run((sftp, done) => sftp.mkdir(path, done));
  try {
    await make();
  } catch (error) {
    const code = codeOf(error);
    if (code === STATUS.NO_SUCH_FILE && posix.dirname(path) !== path) {
      await makeFolders(session, posix.dirname(path));
      await makeFolders(session, path);
      return;
    }
    // Somebody else may have made it, or it is one that this user cannot make and need not.
    const found = await session.run<Ssh.Stats>((sftp, done) => sftp.stat(path, done)).catch(() => undefined);
    if (!found?.isDirectory()) throw error;
  }
}

/** `name`, `name:port`, `[v6 address]:port`. */
function splitAddress(text: string): { host: string; port: number } {
  const [, host = text, port] = /^\[?([^\]]*?)\]?(?::(\d+))?$/.exec(text) ?? [];
  return { host, port: port === undefined ? 22 : Number(port) };
}

/** How a server may sign with a key of this type. */
const signaturesOf = (key: Buffer): Ssh.ServerHostKeyAlgorithm[] =>
  keyType(key) === 'ssh-rsa'
    ? ['rsa-sha2-512', 'rsa-sha2-256']
    : [keyType(key) as Ssh.ServerHostKeyAlgorithm];

const codeOf = (error: unknown): unknown => (error as { code?: unknown }).code;
const isUnsupported = (error: unknown): boolean => /does not support/i.test(messageOf(error));
const messageOf = (error: unknown): string => {
  const { message = '', code } = error as { message?: string; code?: unknown };
  return message === '' ? String(code ?? error) : message;
};

export type { SftpDestination };
