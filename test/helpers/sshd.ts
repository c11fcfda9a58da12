import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import {
  closeSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir, userInfo } from 'node:os';
import { join } from 'node:path';
import { freePort, waitFor } from './cluster.js';

/** A real OpenSSH server of its own: own keys, own port, the folder `files` as the one in which a login begins. */
export class TestSshd {
  readonly dir = mkdtempSync(join(tmpdir(), 'kitefs-sshd-'));
  readonly user = userInfo().username;
  readonly keyPath = join(this.dir, 'client');
  #child: ChildProcess | undefined;

  private constructor(readonly port: number) {}

  static async start(): Promise<TestSshd> {
    const sshd = new TestSshd(await freePort());
    const { dir } = sshd;
    mkdirSync(join(dir, 'files'));
    for (const name of ['host', 'client', 'stranger'])
      execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(dir, name)]);
    copyFileSync(join(dir, 'client.pub'), join(dir, 'authorized'));
    const settings = [
      `Port ${sshd.port}`,
      'ListenAddress 127.0.0.1',
      `HostKey ${join(dir, 'host')}`,
      `PidFile ${join(dir, 'pid')}`,
      `AuthorizedKeysFile ${join(dir, 'authorized')}`,
      'PasswordAuthentication no',
      'PermitRootLogin prohibit-password',
      'StrictModes no',
      'UsePAM no',
      `Subsystem sftp internal-sftp -d ${join(dir, 'files')}`,
    ];
    writeFileSync(join(dir, 'config'), `${settings.join('\n')}\n`);
    // Where it parts from its privileges; a packaged service makes it at boot.
    mkdirSync('/run/sshd', { recursive: true });
    await sshd.up();
    return sshd;
  }

  get host(): string {
    return `127.0.0.1:${this.port}`;
  }

  /** As in a `.pub` file, without the comment. */
  get hostKey(): string {
    return readFileSync(join(this.dir, 'host.pub'), 'utf8').split(' ').slice(0, 2).join(' ');
  }

  /** Where a path of a destination is on this machine. */
  file(path: string): string {
    return join(this.dir, 'files', path);
  }

  async up(): Promise<void> {
    const log = openSync(join(this.dir, 'log'), 'a');
    const child = spawn('/usr/sbin/sshd', ['-D', '-e', '-f', join(this.dir, 'config')], {
      stdio: ['ignore', log, log],
    });
    closeSync(log);
    process.once('exit', () => child.kill('SIGKILL'));
    this.#child = child;
    const said = (): string => readFileSync(join(this.dir, 'log'), 'utf8').slice(-2000);
    await waitFor(
      () => `sshd to start; its log ends:\n${said()}`,
      () => {
        if (child.exitCode !== null) throw new Error(said());
        return said().includes('Server listening');
      },
    );
  }

  stop(): void {
    this.#child?.kill('SIGKILL');
    if (!process.env['KEEP']) rmSync(this.dir, { recursive: true, force: true });
  }
}
