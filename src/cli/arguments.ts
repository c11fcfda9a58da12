import { Option, type Command } from 'commander';
import { loadConfig, type LoadedConfig } from '../config/load.js';
import { SETTINGS, type Setting } from '../config/schema.js';

const SETTING_SWITCHES = new Set(SETTINGS.filter(({ isSwitch }) => isSwitch).map(({ key }) => `--${key}`));

/**
 * Takes the words of a command line; returns them with LiteFS's habits put into the usual form: long flags with
 * one dash get two, and `--fuse.debug` says `--fuse.debug=true`. What follows `--` stays as it is.
 */
export function normaliseArguments(words: readonly string[]): string[] {
  const end = words.indexOf('--');
  const flags = end === -1 ? words : words.slice(0, end);
  const rest = end === -1 ? [] : words.slice(end);
  return [
    ...flags.map((word) => {
      const long = /^-[A-Za-z][^=]/.test(word) ? `-${word}` : word;
      return SETTING_SWITCHES.has(long) ? `${long}=true` : long;
    }),
    ...rest,
  ];
}

/** Gives a command -config and a flag for every setting; only the help of `mount` lists these. */
export function addConfigOptions(command: Command): Command {
  const isMount = command.name() === 'mount';
  command.option('--config <file>', 'read this file and no other');
  command.option('--no-expand-env', 'leave $NAME in the file as it is');
  for (const setting of SETTINGS) {
    const option = optionOf(setting);
    command.addOption(isMount ? option : option.hideHelp());
  }
  if (!isMount) command.addHelpText('after', '\nEvery setting is a flag too: kitefs mount -help lists them.');
  for (const flag of ['--debug', '--skip-unmount', '--tracing']) {
    command.addOption(new Option(flag, 'as in LiteFS').hideHelp());
  }
  return command;
}

function optionOf(setting: Setting): Option {
  const { key, doc, env, noEffect, isSwitch } = setting;
  const otherwise = setting.default ?? setting.derived;
  const said = otherwise ? ` Default: ${otherwise}.` : '';
  const option = new Option(`--${key} <${isSwitch ? 'true|false' : 'value'}>`, `${doc}${said} [${env}]`);
  return noEffect === undefined ? option : option.hideHelp();
}

/** Reads the configuration that a command was given; `withoutLease` as for loadConfig. Throws ERR_CONFIG_*. */
export function configOf(command: Command, { withoutLease = false } = {}): LoadedConfig {
  const flags: Record<string, string> = {};
  for (const option of command.options) {
    const key = option.long?.slice(2) ?? '';
    const value: unknown = command.getOptionValue(option.attributeName());
    if (typeof value === 'string' && SETTINGS.some((setting) => setting.key === key)) flags[key] = value;
  }
  const {
    config: file,
    expandEnv,
    debug,
  } = command.opts<{ config?: string; expandEnv: boolean; debug?: boolean }>();
  if (debug) flags['log.debug'] = 'true';
  return loadConfig({ file, flags, expandEnv, withoutLease });
}
