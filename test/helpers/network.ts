import { execFileSync } from 'node:child_process';

/** Where a process of a test is on the network: in the namespace of the machine, or in one of its own. */
export interface Place {
  readonly address: string;
  /** Of its network namespace; undefined: the machine's own. */
  readonly namespace: string | undefined;
}

const ip = (...args: string[]): void =>
  void execFileSync('ip', args, { stdio: ['ignore', 'ignore', 'pipe'] });

/** A bridge with network namespaces on it, whose links can be cut in one direction. Needs root and iproute2. */
export class Network {
  /** Names of interfaces have 15 characters at most. */
  readonly #name = `kt${process.pid}`;
  readonly #subnet = `198.18.${process.pid % 250}`;
  readonly #places: Place[] = [];
  readonly machine: Place = { address: `${this.#subnet}.254`, namespace: undefined };

  constructor() {
    ip('link', 'add', this.#name, 'type', 'bridge');
    ip('addr', 'add', `${this.machine.address}/24`, 'dev', this.#name);
    ip('link', 'set', this.#name, 'up');
  }

  /** A namespace of its own, connected with all others. */
  add(): Place {
    const number = this.#places.length + 1;
    const name = `${this.#name}-${number}`;
    const place = { address: `${this.#subnet}.${number}`, namespace: name };
    this.#places.push(place);
    ip('netns', 'add', name);
    ip('link', 'add', name, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', name);
    ip('link', 'set', name, 'master', this.#name, 'up');
    ip('-n', name, 'addr', 'add', `${place.address}/24`, 'dev', 'eth0');
    for (const device of ['lo', 'eth0']) ip('-n', name, 'link', 'set', device, 'up');
    return place;
  }

  /**
   * Whatever goes from one to the other is lost from now on, without a word. Done by a hardware address that nobody has: unlike a
   * packet filter that needs no module of the kernel.
   */
  cut(from: Place, to: Place): void {
    const nobody = ['lladdr', '02:00:00:00:00:fe', 'nud', 'permanent'];
    ip(...this.#in(from), 'neigh', 'replace', to.address, ...nobody, 'dev', this.#deviceOf(from));
  }

  mend(from: Place, to: Place): void {
    ip(...this.#in(from), 'neigh', 'del', to.address, 'dev', this.#deviceOf(from));
  }

  stop(): void {
    for (const { namespace } of this.#places) if (namespace) ip('netns', 'del', namespace);
    ip('link', 'del', this.#name);
  }

  #in({ namespace }: Place): string[] {
    return namespace === undefined ? [] : ['-n', namespace];
  }

  #deviceOf({ namespace }: Place): string {
    return namespace === undefined ? this.#name : 'eth0';
  }
}
