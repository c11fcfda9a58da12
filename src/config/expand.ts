/** A configuration file's text with the environment put in, as LiteFS does it: before YAML is read. */
export interface ExpandedText {
  readonly text: string;
  /** Variables that are not set (and read as empty), with the offset in the original text. */
  readonly unset: readonly { readonly name: string; readonly offset: number }[];
  /** Takes an offset in `text`; returns the one in the original, so that errors name the line in the file. */
  originalOffset(offset: number): number;
}

type Environment = Readonly<Record<string, string | undefined>>;

/** `$NAME`, `${NAME}`, `${ A == B }`, `${ A != 'text' }`. As in Go's os.Expand a `$` before anything else stays. */
const REFERENCE = /\$(?:\{([^}\n]*)\}|([A-Za-z_][A-Za-z0-9_]*))/g;
const COMPARISON = /^(\w+)\s*(==|!=)\s*(?:'([^']*)'|"([^"]*)"|(\w+))$/;

export function expandEnvironment(original: string, environment: Environment): ExpandedText {
  const unset: { name: string; offset: number }[] = [];
  const pieces: { at: number; from: number; length: number }[] = [];
  let text = '';
  let read = 0;

  const lookUp = (name: string, offset: number): string => {
    const value = environment[name];
    const lineStart = original.slice(original.lastIndexOf('\n', offset) + 1, offset);
    if (value === undefined && !/^\s*#/.test(lineStart)) unset.push({ name, offset });
    return value ?? '';
  };
  const append = (piece: string, from: number, length: number): void => {
    pieces.push({ at: text.length, from, length });
    text += piece;
  };

  for (const match of original.matchAll(REFERENCE)) {
    append(original.slice(read, match.index), read, match.index - read);
    const expression = (match[1] ?? match[2] ?? '').trim();
    // A comparison is quiet about unset variables: that one is not there is what it may ask.
    const compared = COMPARISON.exec(expression);
    const value = compared ? compare(compared, environment) : lookUp(expression, match.index);
    append(value, match.index, 0);
    read = match.index + match[0].length;
  }
  append(original.slice(read), read, original.length - read);

  return {
    text,
    unset,
    originalOffset(offset) {
      const piece = pieces.findLast(({ at }) => at <= offset);
      return piece ? piece.from + Math.min(offset - piece.at, piece.length) : offset;
    },
  };
}

function compare(match: RegExpExecArray, environment: Environment): string {
  const [, left = '', operator, single, double, name = ''] = match;
  const right = single ?? double ?? environment[name] ?? '';
  return String(((environment[left] ?? '') === right) === (operator === '=='));
}
