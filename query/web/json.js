// JSON whose numbers stay as they were sent: 12345678901234567890 and 1.10 are not what JavaScript makes of them.

// Exact is a number that JavaScript would write otherwise.
export class Exact {
  constructor(source) {
    this.source = source;
  }
  toString() {
    return this.source;
  }
}

// Browsers without source text access (context is undefined there) show the rounded number.
export const parse = (text) => JSON.parse(text, (_, value, context) =>
  typeof value === 'number' && context?.source !== undefined && context.source !== String(value)
    ? new Exact(context.source) : value);

export const stringify = (value, indent) => JSON.stringify(value, (_, part) =>
  part instanceof Exact ? JSON.rawJSON(part.source) : part, indent);

export const isObject = (value) => typeof value === 'object' && value !== null && !(value instanceof Exact);
