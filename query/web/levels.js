// What a record says about itself, under the names that are usual: its level and its message.
import { isObject } from './json.js';

export const levelFields = ['level', 'severity', 'lvl', 'loglevel', 'log_level', 'severity_text', 'Level', 'log.level', 'severityText'];
const messageFields = ['message', 'msg', 'Content', 'event', 'text', 'body', 'log', 'Message', 'error.message', 'error', 'title'];

// order is also that of the chart's layers from the bottom up: what matters most has the common baseline.
export const order = ['fatal', 'error', 'warn', 'info', 'debug', 'trace'];

const names = {
  fatal: /^(fatal|crit(ical)?|panic|emerg(ency)?|alert)$/i,
  error: /^(err(or)?|severe|failure)$/i,
  warn: /^warn(ing)?$/i,
  info: /^(info(rmation(al)?)?|notice|log|ok|success)$/i,
  debug: /^(debug|fine)$/i,
  trace: /^(trace|verbose|silly|finest|finer)$/i,
};
const numbers = [[60, 'fatal'], [50, 'error'], [40, 'warn'], [30, 'info'], [20, 'debug'], [10, 'trace']]; // pino, bunyan

// known returns the level that a value stands for, or ''.
export function known(value) {
  const text = String(value);
  const n = Number(text);
  if (n >= 10 && n < 70) return numbers.find(([least]) => n >= least)[1];
  return order.find((level) => names[level].test(text)) ?? '';
}

// member follows dotted names; a member with the whole dotted name wins.
export function member(data, dotted) {
  if (!isObject(data)) return undefined;
  if (Object.hasOwn(data, dotted)) return data[dotted];
  const dot = dotted.indexOf('.');
  return dot < 0 ? undefined : member(Object.hasOwn(data, dotted.slice(0, dot)) ? data[dotted.slice(0, dot)] : undefined, dotted.slice(dot + 1));
}

const firstOf = (data, fields) => fields.find((field) => {
  const value = member(data, field);
  return value != null && value !== '' && !isObject(value);
});

// describe returns {level, levelText, message, used}: used are the fields that said so.
export function describe(data) {
  const levelField = firstOf(data, levelFields);
  const messageField = firstOf(data, messageFields.filter((field) => field !== levelField));
  const levelText = levelField ? String(member(data, levelField)) : '';
  return {
    level: known(levelText),
    levelText,
    message: messageField ? String(member(data, messageField)) : '',
    used: [levelField, messageField],
  };
}
