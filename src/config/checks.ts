import { existsSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { REMOTE_TTL_MIN_MS } from '../lease/schedule.js';
import type { Config } from './load.js';
import { isLoopback } from './values.js';

/** A rule over several settings that does not hold; `key` is the setting to look at. */
export interface BrokenRule {
  readonly key: string;
  readonly text: string;
}

/** What single values cannot say: each rule names one mistake and what would be right. */
export function checkConfig(config: Config): BrokenRule[] {
  const { fuse, data, http, peer, lease, proxy } = config;
  const broken: BrokenRule[] = [];
  const rule = (key: string, holds: boolean, text: string): void => {
    if (!holds) broken.push({ key, text });
  };

  rule('fuse.dir', fuse.dir !== '/', 'fuse.dir: a folder of its own is needed, not the root');
  rule(
    'data.dir',
    !isInside(data.dir, fuse.dir) && !isInside(fuse.dir, data.dir),
    `data.dir and fuse.dir must be two folders, neither inside the other (${data.dir}, ${fuse.dir})`,
  );
  if (lease.type === 'consul') checkConsul(config, rule);
  rule(
    'lease.path',
    lease.type !== 'local' || !isInside(lease.path, fuse.dir),
    'lease.path: the lease cannot be kept inside the mount',
  );
  rule('lease.ttl', lease.ttlMs >= 500, 'lease.ttl: at least 500ms is needed for renewals to be in time');
  rule(
    'lease.advertise-url',
    URL.canParse(lease.advertiseUrl),
    'lease.advertise-url: expected a URL such as http://node1:20202',
  );
  rule(
    'lease.primary',
    lease.type !== 'static' || lease.candidate || lease.primary !== undefined,
    'lease.primary: a static replica needs the peer address of its primary, such as node1:20203',
  );
  rule(
    'peer.addr',
    isLoopback(peer.addr.host) || peer.secret !== undefined,
    'peer.addr: other machines are let in only with peer.secret; set it on every node, or listen on 127.0.0.1',
  );
  rule(
    'http.token',
    http.token === undefined || http.token.length >= 16,
    'http.token: at least 16 characters are needed, such as the output of openssl rand -hex 32',
  );
  rule(
    'peer.secret',
    peer.secret === undefined || peer.secret.length >= 16,
    'peer.secret: at least 16 characters are needed, such as the output of openssl rand -hex 32',
  );
  rule(
    'proxy.target',
    proxy.addr === undefined || proxy.target !== undefined,
    'proxy.target: the proxy needs the address where the application listens, such as localhost:8080',
  );
  const waits = config.durability.filter(({ waitFor, backup }) => waitFor !== 'async' || backup);
  rule(
    'durability.commit',
    waits.length === 0 || fuse.driver === 'kernel',
    'durability.commit: waiting for replicas or backups needs fuse.driver: kernel; libfuse cannot hold an answer back without stopping readers',
  );
  rule(
    'durability.commit',
    lease.type !== 'static' || waits.every(({ waitFor }) => waitFor !== 'quorum'),
    'durability.commit: with lease.type static nobody knows the members, so there is no quorum; use replicas: <number>',
  );
  rule(
    'durability.backup',
    config.backups.length > 0 || waits.every(({ backup }) => !backup),
    'durability.backup: there are no backups to wait for',
  );
  rule(
    'durability.timeout',
    waits.every(({ timeoutMs }) => timeoutMs >= 100),
    'durability.timeout: at least 100ms is needed for a replica to answer in',
  );
  rule(
    'restore-if-missing',
    !config.restoreIfMissing || config.backups.length > 0,
    'restore-if-missing: there are no backups to start from',
  );
  rule(
    'http.addr',
    http.addr.port === 0 || http.addr.port !== peer.addr.port,
    `http.addr and peer.addr need two ports (both ${http.addr.port})`,
  );
  rule(
    'follow',
    config.follow === undefined || (lease.type === 'static' && !lease.candidate),
    'follow: a node that follows a bucket needs lease.type static and lease.candidate false',
  );
  rule('follow-interval', config.followIntervalMs >= 10, 'follow-interval: at least 10ms is needed');
  rule(
    'drill.interval',
    config.drill.intervalMs === 0 || config.backups.length > 0,
    'drill.interval: there are no backups to drill; configure the list backups',
  );
  rule(
    'drill.dir',
    config.drill.dir === undefined || !isInside(resolve(config.drill.dir), fuse.dir),
    'drill.dir: the scratch space cannot be inside the mount',
  );
  return broken;
}

function checkConsul({ lease }: Config, rule: (key: string, holds: boolean, text: string) => void): void {
  const { consul } = lease;
  rule(
    'lease.type',
    consul.url !== undefined,
    'lease.consul.url: lease.type consul needs the address of Consul (or FLY_CONSUL_URL, CONSUL_HTTP_ADDR)',
  );
  // The value may hold a token: it is not shown.
  rule(
    'lease.consul.url',
    consul.url === undefined || (/^https?:\/\//.test(consul.url) && URL.canParse(consul.url)),
    'lease.consul.url: expected a URL such as http://127.0.0.1:8500 or https://:TOKEN@consul:8501/prefix',
  );
  rule(
    consul.key === undefined ? 'lease.type' : 'lease.consul.key',
    /[^/]/.test(consul.key ?? ''),
    'lease.consul.key: lease.type consul needs the key of the lease, such as app/primary',
  );
  rule(
    consul.ttlMs === undefined ? 'lease.ttl' : 'lease.consul.ttl',
    lease.ttlMs >= REMOTE_TTL_MIN_MS,
    'lease.consul.ttl: at least 2s is needed, or at two writes a second to Consul a failed renewal could not be repeated in time',
  );
  rule(
    consul.clientCert === undefined ? 'lease.consul.client-key' : 'lease.consul.client-cert',
    (consul.clientCert === undefined) === (consul.clientKey === undefined),
    'lease.consul.client-cert and lease.consul.client-key need one another',
  );
  for (const [key, path] of [
    ['ca-file', consul.caFile],
    ['client-cert', consul.clientCert],
    ['client-key', consul.clientKey],
  ] as const) {
    const there = path === undefined || existsSync(path);
    rule(`lease.consul.${key}`, there, `lease.consul.${key}: there is no file ${path}`);
  }
}

/** Whether `path` is `dir` or below it; both absolute. */
function isInside(path: string, dir: string): boolean {
  for (let at = path; ; at = dirname(at)) {
    if (at === dir) return true;
    if (at === dirname(at)) return false;
  }
}
