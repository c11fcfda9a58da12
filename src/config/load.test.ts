import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { KiteError } from '../errors.js';
import { formatRemark, loadConfig, type LoadedConfig, type LoadOptions } from './load.js';
import { sampleConfig } from './sample.js';
import { SETTINGS } from './schema.js';

let dir: string;
let file: string;

beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'kitefs-app-config-'));
  file = join(dir, 'kitefs.yml');
});
afterAll(() => rmSync(dir, { recursive: true }));

function load(text: string, options: LoadOptions = {}): LoadedConfig {
  writeFileSync(file, text);
  return loadConfig({ file, environment: {}, ...options });
}

/** The lines of the error that a file gives, without the folder's name. */
function problems(text: string, options: LoadOptions = {}): string[] {
  try {
    load(text, options);
  } catch (error) {
    expect(error).toBeInstanceOf(KiteError);
    expect((error as KiteError).code).toBe('ERR_CONFIG_INVALID');
    return (error as KiteError).message.replaceAll(`${dir}/`, '').split('\n');
  }
  throw new Error('no error');
}

/** etc/litefs.yml as LiteFS ships it, with the lease that it documents for one primary. */
const LITEFS_FILE = `# The fuse section describes settings for the FUSE file system.
fuse:
  dir: "/litefs"
data:
  dir: "/var/lib/litefs"
exit-on-error: false
proxy:
  addr: ":8080"
  target: "localhost:8081"
  db: "db"
  passthrough:
    - "*.ico"
    - "*.png"
exec:
  - cmd: "rails db:migrate"
    if-candidate: true
  - cmd: "rails server"
lease:
  type: "static"
  advertise-url: "http://\${FLY_ALLOC_ID}.vm.\${FLY_APP_NAME}.internal:20202"
  candidate: \${FLY_REGION == PRIMARY_REGION}
  promote: true
`;

describe('the configuration', () => {
  it('is complete without any file', () => {
    const { config } = load('');
    expect(config.lease).toMatchObject({ type: 'local', ttlMs: 5000, candidate: true });
    expect(config.lease.path).toBe('/var/lib/litefs/lease.db');
    expect(config.http.addr).toEqual({ host: '127.0.0.1', port: 20_202 });
    expect(config.peer.advertise).toBe('127.0.0.1:20203');
    expect(config.data).toMatchObject({ dir: '/var/lib/litefs', retentionMs: 600_000, compress: true });
  });

  it('takes a flag before the environment before the file before the default', () => {
    const text = 'lease:\n  ttl: 6s\n';
    const environment = { KITEFS_LEASE_TTL: '7s' };
    expect(load('').config.lease.ttlMs).toBe(5000);
    expect(load(text).config.lease.ttlMs).toBe(6000);
    expect(load(text, { environment }).config.lease.ttlMs).toBe(7000);
    expect(load(text, { environment, flags: { 'lease.ttl': '8s' } }).config.lease.ttlMs).toBe(8000);
  });

  it('reads a LiteFS file as it is and says line by line what has no effect', () => {
    const environment = { FLY_ALLOC_ID: '1a', FLY_APP_NAME: 'app', FLY_REGION: 'fra', PRIMARY_REGION: 'fra' };
    const { config, notes } = load(LITEFS_FILE, { environment });
    expect(config.fuse.dir).toBe('/litefs');
    expect(config.exitOnError).toBe(false);
    expect(config.exec).toEqual([
      { cmd: 'rails db:migrate', ifCandidate: true },
      { cmd: 'rails server', ifCandidate: false },
    ]);
    expect(config.lease).toMatchObject({
      type: 'static',
      candidate: true,
      advertiseUrl: 'http://1a.vm.app.internal:20202',
      primary: { host: '1a.vm.app.internal', port: 20_203 },
    });
    expect(
      notes.map((note) =>
        formatRemark(note)
          .replace(`${dir}/`, '')
          .replace(/:[^:]*$/, ''),
      ),
    ).toEqual([]);
    expect(config.proxy).toMatchObject({
      addr: { host: '', port: 8080 },
      target: [{ host: 'localhost', port: 8081 }],
      db: ['db'],
      passthrough: [{ path: '*.ico' }, { path: '*.png' }],
      primaryWaitMs: 5000,
    });
  });

  describe('of a lease in Consul', () => {
    const consul = (...lines: string[]): string =>
      `lease:\n  type: consul\n  consul:\n${lines.map((line) => `    ${line}\n`).join('')}`;

    it('reads a LiteFS file as it is', () => {
      const text = LITEFS_FILE.replace(
        '"static"',
        '"consul"\n  consul:\n    url: "${FLY_CONSUL_URL}"\n    key: "${FLY_APP_NAME}/primary"\n    ttl: 12s\n    lock-delay: 2s',
      );
      const environment = {
        FLY_CONSUL_URL: 'https://:t0p@consul-fra.fly.io/app-x1/',
        FLY_APP_NAME: 'app',
        FLY_ALLOC_ID: '1a',
        FLY_REGION: 'fra',
        PRIMARY_REGION: 'fra',
      };
      const { config, notes } = load(text, { environment });
      expect(config.lease).toMatchObject({
        type: 'consul',
        ttlMs: 12_000,
        lockDelayMs: 2000,
        consul: { url: 'https://:t0p@consul-fra.fly.io/app-x1/', key: 'app/primary', tlsSkipVerify: false },
      });
      const texts = notes.map(formatRemark).join('\n');
      expect(texts).not.toMatch(/consul\.\w+ has no effect/);
      expect(texts).toMatch(
        /:19: other machines cannot reach this node while peer\.addr is a loopback address/,
      );
    });

    it('takes what Consul’s own tools take from the environment, after the file', () => {
      const environment = { CONSUL_HTTP_ADDR: '10.0.0.1:8500', CONSUL_HTTP_TOKEN: 'secret1' };
      expect(load(consul('key: a/b'), { environment }).config.lease.consul).toMatchObject({
        url: 'http://10.0.0.1:8500',
        token: 'secret1',
      });
      const given = consul('key: a/b', 'url: http://here:8500', 'token: mine');
      expect(load(given, { environment }).config.lease.consul).toMatchObject({
        url: 'http://here:8500',
        token: 'mine',
      });
      expect(load('', { environment }).config.lease).toMatchObject({ type: 'local', lockDelayMs: 0 });
    });

    it('names file and line of what is missing or wrong, and shows no secret', () => {
      expect(problems(consul('ttl: 9s'))).toEqual([
        'kitefs.yml:2: lease.consul.url: lease.type consul needs the address of Consul (or FLY_CONSUL_URL, CONSUL_HTTP_ADDR)',
        'kitefs.yml:2: lease.consul.key: lease.type consul needs the key of the lease, such as app/primary',
      ]);
      // `kitefs lost` in a shell that does not have the service's environment.
      expect(load(consul('ttl: 9s'), { withoutLease: true }).config.lease.ttlMs).toBe(9000);
      expect(
        problems(
          consul('key: /', 'url: ftp://:hush@x', 'ttl: 500ms', 'ca-file: /nowhere', 'client-key: /etc'),
        ),
      ).toEqual([
        'kitefs.yml:5: lease.consul.url: expected a URL such as http://127.0.0.1:8500 or https://:TOKEN@consul:8501/prefix',
        'kitefs.yml:4: lease.consul.key: lease.type consul needs the key of the lease, such as app/primary',
        'kitefs.yml:6: lease.consul.ttl: at least 2s is needed, or at two writes a second to Consul a failed renewal could not be repeated in time',
        'kitefs.yml:8: lease.consul.client-cert and lease.consul.client-key need one another',
        'kitefs.yml:7: lease.consul.ca-file: there is no file /nowhere',
      ]);
    });
  });

  it('names an unset variable and leaves the file alone with -no-expand-env', () => {
    const { notes } = load('node:\n  region: $NOWHERE\n');
    expect(notes.map(formatRemark)).toEqual([
      `${file}:2: the environment variable NOWHERE is not set and reads as empty`,
    ]);
    expect(load('node:\n  region: $NOWHERE\n', { expandEnv: false }).config.node.region).toBe('$NOWHERE');
  });

  it('names file, line and the nearest key for an unknown one', () => {
    expect(problems('fuse:\n  dri: /a\n')).toEqual([
      'kitefs.yml:2: unknown key fuse.dri; did you mean fuse.dir?',
    ]);
    expect(problems('\nttl: 5s\n')).toEqual(['kitefs.yml:2: unknown key ttl; did you mean lease.ttl?']);
    expect(problems('zzzzzzzzzz: 1\n')).toEqual(['kitefs.yml:1: unknown key zzzzzzzzzz']);
    expect(problems('exec:\n  - cmd: a\n    if-candidat: true\n')).toEqual([
      'kitefs.yml:3: unknown key if-candidat in exec; did you mean if-candidate?',
    ]);
  });

  it('names file, line and the expected form for a bad value', () => {
    expect(problems('lease:\n  ttl: 5\n  candidate: perhaps\nhttp:\n  addr: here\n').toSorted()).toEqual([
      'kitefs.yml:2: lease.ttl: expected a duration such as 500ms, 10s or 1m30s, found "5"',
      'kitefs.yml:3: lease.candidate: expected true or false, found "perhaps"',
      'kitefs.yml:5: http.addr: expected an address such as 127.0.0.1:20202 or :20202, found "here"',
    ]);
    expect(problems('fuse:\n  driver: windows\n')).toEqual([
      'kitefs.yml:2: fuse.driver: expected one of kernel, fuse-native, found "windows"',
    ]);
    expect(problems('', { flags: { 'lease.ttl': 'x' } })[0]).toMatch(/^--lease\.ttl: lease\.ttl: expected/);
    expect(problems('', { environment: { KITEFS_DATA_RETENTION: 'x' } })[0]).toMatch(
      /^KITEFS_DATA_RETENTION: /,
    );
  });

  it('names the line of broken YAML, also after a variable of several lines', () => {
    expect(problems('fuse:\n  dir: "/a\n')[0]).toMatch(/^kitefs\.yml:[23]: /);
    expect(problems('fuse: /litefs\n')).toEqual([
      'kitefs.yml:1: fuse holds other keys; expected an indented block',
    ]);
    expect(problems('- a\n')[0]).toMatch(/^kitefs\.yml:1: expected keys and values/);
    expect(problems('node:\n  region: "$A"\n  idd: x\n', { environment: { A: '1\n    2\n    3' } })).toEqual([
      'kitefs.yml:3: unknown key node.idd; did you mean node.id?',
    ]);
  });

  it('refuses what single values cannot show, with the line to look at', () => {
    const [sameFolder] = problems('fuse:\n  dir: /a\ndata:\n  dir: /a/b\n');
    expect(sameFolder).toMatch(/^kitefs\.yml:4: data\.dir and fuse\.dir must be two folders/);
    expect(problems('peer:\n  addr: ":20203"\n')[0]).toMatch(
      /^kitefs\.yml:2: peer\.addr: other machines are let in only/,
    );
    expect(problems('peer:\n  secret: short\n')[0]).toMatch(/^kitefs\.yml:2: peer\.secret: at least 16/);
    expect(problems('http:\n  addr: ":1"\npeer:\n  addr: 127.0.0.1:1\n')[0]).toMatch(/need two ports/);
    expect(load('peer:\n  addr: ":20203"\n  secret: 0123456789abcdef\n').config.peer.advertise).toMatch(
      /:20203$/,
    );
  });

  it('shows no secret in an error', () => {
    expect(problems('peer:\n  secret: [topsecret]\n')).toEqual([
      'kitefs.yml:2: peer.secret: expected text, found (secret)',
    ]);
  });

  it('says which file is missing', () => {
    expect(() => loadConfig({ file: join(dir, 'nothing.yml') })).toThrow(
      /there is no configuration file .*nothing\.yml/,
    );
  });

  it('reads a sample file back as the values it was made of', () => {
    const values = Object.fromEntries(
      SETTINGS.filter((setting) => setting.noEffect === undefined && setting.default).map((setting) => [
        setting.key,
        setting.default ?? '',
      ]),
    );
    const withValues = load(sampleConfig('All of them.', values));
    expect(withValues.config).toEqual(load(sampleConfig('None of them.', {})).config);
    expect(withValues.config).toEqual(load('').config);
    expect(withValues.given.size).toBe(Object.keys(values).length);
  });

  it('names every setting once, in the file and in the environment', () => {
    expect(new Set(SETTINGS.map(({ key }) => key)).size).toBe(SETTINGS.length);
    expect(new Set(SETTINGS.map(({ env }) => env)).size).toBe(SETTINGS.length);
  });
});
