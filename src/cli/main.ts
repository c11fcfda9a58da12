#!/usr/bin/env node
import { Command, CommanderError } from 'commander';
import { toKiteError } from '../errors.js';
import { VERSION } from '../util/version.js';
import { addConfigOptions, configOf, normaliseArguments } from './arguments.js';
import type { DrillFlags } from './drill.js';
import type { RestoreFlags } from './restore.js';
import type { RewindFlags } from './rewind.js';

/**
 * The command line. Each command's code is loaded when it is asked for. Exit codes: 0 done, 1 failed,
 * 2 usage or configuration; `mount` ends with the code of the application that it supervises.
 */

const URL_OPTION = ['--url <url>', 'the node’s http.addr', 'http://127.0.0.1:20202'] as const;
const WAIT_OPTION = [
  '--wait <duration>',
  'how long writers may take to end their transactions',
  '5s',
] as const;

function program(): Command {
  const kitefs = new Command('kitefs')
    .description('A replicated filesystem for SQLite. Long flags are taken with one dash or two.')
    .version(VERSION, '--version', 'print the version')
    .helpOption('--help', 'print this help')
    .helpCommand(false)
    .exitOverride();

  addConfigOptions(kitefs.command('mount').description('mount the databases and replicate them: the daemon'))
    .argument('[command...]', 'after --: the application to run while mounted, instead of exec')
    .action(async (words: string[], _options, command: Command) => {
      const { mount } = await import('./mount.js');
      const code = await mount(configOf(command), words);
      // Everything is stopped and said: a handle that some part left open must not keep the process.
      process.exit(code);
    });

  kitefs
    .command('demo')
    .description('several nodes on this machine, to try things out')
    .option('--dir <dir>', 'where everything is kept', './run')
    .option('--nodes <count>', 'how many nodes', '2')
    .action(async ({ dir, nodes }: { dir: string; nodes: string }) => {
      const { demo } = await import('./demo.js');
      process.exitCode = await demo(dir, nodes);
    });

  kitefs
    .command('status')
    .description('what a node says of itself')
    .option(...URL_OPTION)
    .option('--json', 'as JSON')
    .action(async ({ url, json }: { url: string; json?: boolean }) => {
      const { showStatus } = await import('./status.js');
      await showStatus(url, json ?? false);
    });

  kitefs
    .command('import')
    .description('make a SQLite file the content of a database (on the primary)')
    .argument('<path>', 'the file')
    .option(...URL_OPTION)
    .requiredOption('--name <name>', 'the database, as its path in the mount')
    .option('--if-db-not-exists', 'do nothing, with success, when there is such a database')
    .action(async (path: string, options: { url: string; name: string; ifDbNotExists?: boolean }) => {
      const { importFile } = await import('./transfer.js');
      await importFile(options.url, options.name, path, { ifNotExists: options.ifDbNotExists ?? false });
    });

  kitefs
    .command('export')
    .description('write a database to a SQLite file, replacing it')
    .argument('<path>', 'the file')
    .option(...URL_OPTION)
    .requiredOption('--name <name>', 'the database, as its path in the mount')
    .action(async (path: string, { url, name }: { url: string; name: string }) => {
      const { exportFile } = await import('./transfer.js');
      await exportFile(url, name, path);
    });

  addConfigOptions(
    kitefs
      .command('restore')
      .description(
        'restore a database from a backup of KiteFS or Litestream (0.5, 0.3): to a new file, or into the place of this node, which must be stopped',
      )
      .argument('<url|db>', 's3://BUCKET/PATH[?endpoint=…], file:///PATH, or a database of the configuration')
      .option('-o <file>', 'where to; it must not exist. Without: in data.dir of the configuration')
      .option('--timestamp <moment>', 'as it was then: 2026-11-20T15:04:05Z, or "2h ago"')
      .option('--txid <hex>', 'as of this TXID of the bucket, as `kitefs backups` lists it')
      .option('--cluster-txid <hex>', 'as of this TXID of the cluster, as `kitefs status` shows it')
      .option('--parallelism <count>', 'requests at a time', '8')
      .option('--if-db-not-exists', 'do nothing, with success, when the file is there')
      .option('--if-replica-exists', 'do nothing, with success, when there is no backup')
      .option('--integrity-check <kind>', 'let SQLite check the result: none, quick or full', 'none'),
  ).action(async (word: string, flags: RestoreFlags, command: Command) => {
    const { runRestore } = await import('./restore.js');
    await runRestore(word, flags, () => configOf(command));
  });

  kitefs
    .command('rewind')
    .description(
      'put a database of the running cluster back to a moment of its backups, as one more transaction',
    )
    .argument('<db>', 'the database, as its path in the mount')
    .option(...URL_OPTION)
    .option('--timestamp <moment>', 'as it was then: 2026-11-20T15:04:05Z, or "2h ago"')
    .option('--txid <hex>', 'as of this TXID of the bucket, as `kitefs backups` lists it')
    .option('--cluster-txid <hex>', 'as of this TXID of the cluster, as `kitefs status` shows it')
    .option('--yes', 'do not ask')
    .option('--dry-run', 'only show what would change')
    .action(async (name: string, flags: RewindFlags) => {
      const { rewind } = await import('./rewind.js');
      await rewind(name, flags);
    });

  kitefs
    .command('repair')
    .description(
      'make a damaged database of a node anew: from a replica, which becomes the primary, else from its backup',
    )
    .argument('<db>', 'the database, as its path in the mount')
    .option(...URL_OPTION)
    .action(async (name: string, { url }: { url: string }) => {
      const { repair } = await import('./rewind.js');
      await repair(name, url);
    });

  addConfigOptions(
    kitefs
      .command('backups')
      .description('list what backups there are and which moments can be restored')
      .argument(
        '[url|db]',
        'a URL as for restore, of one database or of all, or a database of the configuration',
      )
      .option('--json', 'as JSON'),
  ).action(async (word: string | undefined, { json }: { json?: boolean }, command: Command) => {
    const { listBackups } = await import('./backups.js');
    await listBackups(word, json ?? false, () => configOf(command));
  });

  kitefs
    .command('sync')
    .description('have the primary ship its backups now')
    .argument('[db]', 'one database, as its path in the mount, instead of all')
    .option(...URL_OPTION)
    .option('--wait', 'return when all backups have what was committed before')
    .option('--timeout <duration>', 'how long to wait', '30s')
    .action(async (name: string | undefined, options: { url: string; wait?: boolean; timeout: string }) => {
      const { sync } = await import('./sync.js');
      await sync(options.url, name, { wait: options.wait ?? false, timeout: options.timeout });
    });

  addConfigOptions(
    kitefs
      .command('drill')
      .description(
        'restore backups into scratch space with every check, and report as JSON; fails when anything was wrong',
      )
      .argument(
        '[url|db]',
        'a URL as for restore, of one database or of all, or a database of the configuration',
      )
      .option('--dir <dir>', 'where the scratch space is, instead of the system’s folder for temporary files')
      .option('--report <file>', 'write the report to this file')
      .option(
        '--objects <which>',
        'all: read and verify every object; restored: only those that the restores need',
      ),
  ).action(async (word: string | undefined, flags: DrillFlags, command: Command) => {
    const { drill } = await import('./drill.js');
    process.exitCode = await drill(word, flags, () => configOf(command));
  });

  kitefs
    .command('promote')
    .description('make a node the primary; without loss, by a hand-off from the primary that is')
    .option(...URL_OPTION)
    .option(...WAIT_OPTION)
    .option(
      '--accept-loss',
      'where no primary is left: take over with what this node has (docs/runbooks/promote-with-loss.md)',
    )
    .action(async ({ url, wait, acceptLoss }: { url: string; wait: string; acceptLoss?: boolean }) => {
      const { promote } = await import('./role.js');
      await promote(url, { wait, acceptLoss: acceptLoss ?? false });
    });

  kitefs
    .command('demote')
    .description('make the primary hand over to another node')
    .option(...URL_OPTION)
    .option(...WAIT_OPTION)
    .option('--to <node>', 'the id of the node that takes over, instead of whichever has everything first')
    .action(async ({ url, wait, to }: { url: string; wait: string; to?: string }) => {
      const { demote } = await import('./role.js');
      await demote(url, { wait, ...(to === undefined ? {} : { target: to }) });
    });

  kitefs
    .command('run')
    .description('run a command beside a node; its exit code becomes that of kitefs')
    .argument('<command...>', 'after --')
    .option(...URL_OPTION)
    .option(...WAIT_OPTION)
    .option('--promote', 'make the node the primary first; when that fails, nothing is run')
    .option(
      '--with-halt-lock-on <db>',
      'let the command write this database from a replica; the primary’s writers of it wait meanwhile',
    )
    .option('--if-candidate', 'run nothing, with success, on a node that can never be primary')
    .action(
      async (
        words: string[],
        options: {
          url: string;
          wait: string;
          promote?: boolean;
          ifCandidate?: boolean;
          withHaltLockOn?: string;
        },
      ) => {
        const { run } = await import('./role.js');
        const { url, wait, promote = false, ifCandidate = false, withHaltLockOn: haltLockOn } = options;
        process.exitCode = await run(words, { url, wait, promote, ifCandidate, haltLockOn });
      },
    );

  const lost = kitefs
    .command('lost')
    .description('transactions of this node that the cluster does not have, kept in lost+found');
  addConfigOptions(lost.command('ls').description('list them')).action(async (_options, command: Command) => {
    const { listLost } = await import('./lost.js');
    listLost(configOf(command, { withoutLease: true }));
  });
  addConfigOptions(
    lost
      .command('show')
      .description('show their pages, and the rows that differ from the database as it is now')
      .argument('<id>', 'as lost ls names it, or a part of that')
      .option('--rows <count>', 'rows shown of each kind and table', '20'),
  ).action(async (id: string, { rows }: { rows: string }, command: Command) => {
    const { showLost } = await import('./lost.js');
    await showLost(
      configOf(command, { withoutLease: true }),
      id,
      Math.max(0, Number.parseInt(rows, 10) || 0),
    );
  });
  addConfigOptions(
    lost
      .command('export')
      .description('write the database as it was with them to a SQLite file')
      .argument('<id>', 'as lost ls names it, or a part of that')
      .argument('<path>', 'the file')
      .option('--ltx', 'only the transactions, as one LTX file'),
  ).action(async (id: string, path: string, { ltx }: { ltx?: boolean }, command: Command) => {
    const { exportLost } = await import('./lost.js');
    await exportLost(configOf(command, { withoutLease: true }), id, path, ltx ?? false);
  });

  const ltx = kitefs.command('ltx').description('look into the files of the transaction log');
  ltx
    .command('dump')
    .description('show what LTX files hold')
    .argument('<files...>')
    .option('--json', 'as JSON')
    .action(async (files: string[], { json }: { json?: boolean }) => {
      const { dumpFiles } = await import('./ltx.js');
      await dumpFiles(files, json ?? false);
    });
  ltx
    .command('verify')
    .description('check every byte of LTX files')
    .argument('<files...>')
    .action(async (files: string[]) => {
      const { verifyFiles } = await import('./ltx.js');
      process.exitCode = await verifyFiles(files);
    });

  const node = kitefs.command('node').description('change what a stopped node is');
  addConfigOptions(
    node.command('reset-id').description('give a copied data directory a node id of its own'),
  ).action(async (_options, command: Command) => {
    const { resetNodeId } = await import('./node-id.js');
    resetNodeId(configOf(command, { withoutLease: true }));
  });

  const config = kitefs.command('config').description('look at the configuration');
  addConfigOptions(
    config.command('check').description('say what is wrong with it, and what has no effect'),
  ).action(async (_options, command: Command) => {
    const { checkConfiguration } = await import('./config.js');
    checkConfiguration(configOf(command));
  });
  addConfigOptions(config.command('print').description('print every value and where it comes from')).action(
    async (_options, command: Command) => {
      const { printConfiguration } = await import('./config.js');
      printConfiguration(configOf(command));
    },
  );

  addConfigOptions(kitefs.command('doctor').description('check whether this machine can run a node')).action(
    async (_options, command: Command) => {
      const { doctor } = await import('./doctor.js');
      process.exitCode = await doctor(() => configOf(command));
    },
  );
  return kitefs;
}

// Whoever reads what we say may go away (`kitefs … | head`): that is no error, and ends no node.
for (const stream of [process.stdout, process.stderr]) stream.on('error', () => undefined);

try {
  await program().parseAsync(normaliseArguments(process.argv.slice(2)), { from: 'user' });
} catch (thrown) {
  process.exitCode = exitCodeOf(thrown);
}

function exitCodeOf(thrown: unknown): number {
  // Commander has said what was wrong; --help and --version come this way too.
  if (thrown instanceof CommanderError) return thrown.exitCode === 0 ? 0 : 2;
  const error = toKiteError(thrown);
  process.stderr.write(`kitefs: ${error.message}\n${error.row.action} [${error.code}]\n`);
  if (error.code === 'ERR_INTERNAL' && thrown instanceof Error) process.stderr.write(`${thrown.stack}\n`);
  return error.row.exit;
}
